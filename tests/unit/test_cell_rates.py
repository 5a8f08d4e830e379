"""From counts of called cells to true shares: corrected, with intervals that hold, and with what cannot be seen."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.base.errors import UsageError
from pipeline.evaluation.subject_fit import count_cells, fit_rate, fit_rates
from pipeline.model.cell_rates import (
    DRAWN,
    CellRates,
    Rate,
    corrected_share,
    critical_count,
    detection_limit,
    missed,
    missed_at_best,
)
from pipeline.model.subject_rules import detection


def rate(mean: float, overdispersion: float = 0.0) -> Rate:
    """Of subjects whose rates are a Beta of this mean and correlation; all alike without one."""
    from scipy.stats import beta

    places = (np.arange(DRAWN) + 0.5) / DRAWN
    if overdispersion and 1e-3 < mean < 1 - 1e-3:
        size = 1 / overdispersion - 1
        values = beta.ppf(places, mean * size, (1 - mean) * size)
    else:
        values = np.full(DRAWN, mean)
    return Rate(
        mean=mean, low=mean, high=mean, overdispersion=overdispersion, cells=1000, subjects=50,
        of_subject=tuple(values.tolist()),
    )  # fmt: skip


def rates(found: float, alarms: float, overdispersion: float = 0.0) -> CellRates:
    return CellRates(on="validation", found=rate(found, overdispersion), alarms=rate(alarms, overdispersion))


PERFECT = rates(1.0, 0.0)
SHARES = st.floats(0, 1)
SOME_RATES = st.builds(rates, st.floats(0.6, 1.0), st.floats(0.0, 0.4), st.sampled_from([0.0, 0.005, 0.05, 0.3]))


def test_the_estimate_is_rogan_and_gladens() -> None:
    assert corrected_share(rates(0.9, 0.1), 30, 100).value == pytest.approx((0.3 - 0.1) / 0.8)
    assert corrected_share(rates(0.9, 0.1), 2, 100).value == 0.0
    assert corrected_share(rates(0.9, 0.1), 98, 100).value == 1.0


@pytest.mark.parametrize(("called", "cells"), [(0, 20), (3, 20), (50, 100), (100, 100)])
def test_perfect_rates_give_clopper_and_pearsons_interval(called: int, cells: int) -> None:
    from pipeline.evaluation.intervals import exact_interval

    found, exact = corrected_share(PERFECT, called, cells), exact_interval(called, cells)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.005)  # the grid


@given(SOME_RATES, st.integers(1, 300), st.data())
def test_more_called_moves_no_limit_down(known: CellRates, cells: int, data: st.DataObject) -> None:
    called = data.draw(st.integers(0, cells - 1))
    one, more = corrected_share(known, called, cells), corrected_share(known, called + 1, cells)
    assert 0 <= one.low <= one.value <= one.high <= 1
    assert (one.low, one.value, one.high) <= (more.low, more.value, more.high)
    assert one.high <= more.high and one.value <= more.value


def test_false_alarms_that_differ_widen_the_interval() -> None:
    alike, differing = (corrected_share(rates(0.9, 0.1, spread), 30, 100) for spread in (0.0, 0.1))
    assert differing.low < alike.low and differing.high > alike.high


def test_a_share_of_one_in_a_hundred_among_200_cells() -> None:
    assert missed(PERFECT, 200, 0.01) == pytest.approx(0.99**200)  # 13 %
    assert missed(PERFECT, 700, 0.01) == pytest.approx(0.99**700)
    assert missed_at_best(PERFECT, 0.01) == 0.0
    assert detection(PERFECT, 200)[0] == (
        "Of 200 cells of a subject, a share of 1 % that is positive is missed with probability 13 %; 500 more cells "
        "bring it to < 0.1 %."
    )


@given(SOME_RATES, st.integers(1, 400), SHARES, SHARES)
@example(rates(0.625, 0.14623919674614919, 0.3), 1, 0.25, 0.23046875)
def test_a_larger_share_is_missed_no_more_often(known: CellRates, cells: int, one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert 0 <= missed(known, cells, large) <= missed(known, cells, small) <= 1
    assert missed_at_best(known, large) <= missed_at_best(known, small)


@given(st.floats(0.3, 1.0), st.integers(1, 400), st.integers(1, 400), SHARES)
def test_more_cells_miss_less_where_nothing_alarms(found: float, cells: int, more: int, share: float) -> None:
    known = rates(found, 0.0)
    assert missed(known, cells + more, share) <= missed(known, cells, share) + 1e-12


@given(SOME_RATES, st.integers(5, 200), SHARES)
def test_more_cells_miss_less_but_for_one_count(known: CellRates, cells: int, share: float) -> None:
    """A whole number of cells makes the limit jump; it never costs more than one more cell called would."""
    from scipy.stats import binom

    from pipeline.model.cell_rates import shares_called

    one_more = binom.cdf(critical_count(known, cells), cells, shares_called(known, share)).mean()
    assert missed(known, 4 * cells, share) <= one_more + 1e-9


def test_what_is_missed_comes_down_to_a_floor_and_no_further() -> None:
    known = rates(0.9, 0.05, 0.05)
    floor = missed_at_best(known, 0.1)
    seen = [missed(known, cells, 0.1) for cells in (50, 500, 5000, 50_000)]
    assert 0.3 < floor < seen[-1] < seen[0]
    assert seen[-1] == pytest.approx(floor, abs=0.03)
    assert missed_at_best(rates(0.9, 0.05), 0.1) == 0.0  # subjects alike: enough cells tell


def test_a_subject_without_a_positive_cell_is_seldom_told_from_none() -> None:
    known = rates(0.9, 0.05, 0.02)
    assert 1 - missed(known, 200, 0.0) <= 0.025
    assert corrected_share(known, critical_count(known, 200), 200).low > 0
    assert corrected_share(known, critical_count(known, 200) - 1, 200).low == 0


def test_the_smallest_share_that_is_told() -> None:
    known = rates(0.95, 0.02, 0.02)
    limit = detection_limit(known, 200)
    assert limit is not None and missed(known, 200, limit) <= 0.05 < missed(known, 200, limit - 0.01)
    at_best = detection_limit(known, None)
    assert at_best is not None and at_best < limit
    assert detection_limit(rates(0.3, 0.25, 0.2), 200) is None


def test_the_floor_is_told_in_words() -> None:
    first, second = detection(rates(0.95, 0.02, 0.02), 200)
    assert "false alarms differ between subjects" in first
    assert second.startswith("The smallest share missed with at most 5 % is ")
    assert (
        detection(rates(0.3, 0.25, 0.2), 200)[1] == "No share is missed with at most 5 %, whatever the number of cells."
    )


def test_impossible_counts_and_useless_rates_are_refused() -> None:
    with pytest.raises(UsageError, match="must lie in 0"):
        corrected_share(PERFECT, 21, 20)
    with pytest.raises(UsageError, match="at least one"):
        corrected_share(PERFECT, 0, 0)
    with pytest.raises(UsageError, match="no share can be told"):
        corrected_share(rates(0.1, 0.2), 1, 10)


@pytest.mark.parametrize("overdispersion", [0.01, 0.1])
def test_a_rate_is_found_again(overdispersion: float) -> None:
    rng, size = np.random.default_rng(3), 1 / overdispersion - 1
    cells = rng.integers(20, 200, 80)
    found = fit_rate(rng.binomial(cells, rng.beta(0.9 * size, 0.1 * size, 80)), cells)
    assert found.low < 0.9 < found.high
    assert found.mean == pytest.approx(0.9, abs=0.04)
    assert found.overdispersion == pytest.approx(overdispersion, rel=0.8)
    assert found.subjects == 80 and found.cells == cells.sum()
    assert list(found.of_subject) == sorted(found.of_subject)


def test_few_subjects_leave_much_open() -> None:
    few, many = (fit_rate(np.full(k, 20), np.full(k, 20)) for k in (5, 100))
    assert few.of_subject[0] < many.of_subject[0] < 1
    assert few.low < many.low


def test_intervals_hold_the_share_of_subjects_like_those_of_the_fit() -> None:
    """Rates from 20 subjects, 20 cells of each kind; the shares of 30 others, 15 times."""
    rng = np.random.default_rng(5)
    held = []
    for _ in range(15):
        sizes = np.full(20, 20)
        known = CellRates(
            on="validation",
            found=fit_rate(rng.binomial(sizes, rng.beta(18, 2, 20)), sizes),
            alarms=fit_rate(rng.binomial(sizes, rng.beta(2, 38, 20)), sizes),
        )
        for share in rng.choice([0.0, 0.02, 0.1, 0.3, 0.6, 0.95], 30):
            positive = rng.binomial(100, share)
            called = rng.binomial(positive, rng.beta(18, 2)) + rng.binomial(100 - positive, rng.beta(2, 38))
            found = corrected_share(known, int(called), 100)
            held.append(found.low <= share <= found.high)
    assert np.mean(held) >= 0.93


def test_missed_is_how_often_simulated_subjects_are_missed() -> None:
    rng, known = np.random.default_rng(7), rates(0.9, 0.05, 0.03)
    size = 1 / 0.03 - 1
    positive = rng.binomial(200, 0.15, 4000)
    called = rng.binomial(positive, rng.beta(0.9 * size, 0.1 * size, 4000))
    called += rng.binomial(200 - positive, rng.beta(0.05 * size, 0.95 * size, 4000))
    simulated = np.mean([corrected_share(known, int(count), 200).low == 0 for count in called])
    assert missed(known, 200, 0.15) == pytest.approx(simulated, abs=0.03)


def test_cells_are_counted_by_subject_and_those_of_nobody_left_out() -> None:
    sick = np.array([True, False, True, True, False])
    called = np.array([True, True, False, True, False])
    counts = count_cells(sick, called, ["b", "a", "b", None, "a"])
    assert counts.subjects == ["b", "a"]
    assert counts.diseased.tolist() == [2, 0] and counts.found.tolist() == [1, 0]
    assert counts.healthy.tolist() == [0, 2] and counts.alarms.tolist() == [0, 1]


def test_rates_of_few_subjects_are_refused_with_a_sentence() -> None:
    sick = np.tile([True, False], 4)
    counts = count_cells(sick, sick, [f"s{k // 2}" for k in range(8)])
    known, why = fit_rates(counts, "validation")
    assert known is None
    assert why == "4 of the validation subjects have diseased cells, and at least 5 are needed to say how they differ"
    with_many = count_cells(np.tile(sick, 5), ~np.tile(sick, 5), [f"s{k // 4}" for k in range(40)])
    known, why = fit_rates(with_many, "validation")
    assert known is None and "as often as diseased ones" in why
