"""Whether a subject is positive as a whole: which ones are, how probable it is, and when nothing is said."""

import itertools
import json

import numpy as np
import pyarrow as pa
import pytest

from pipeline.base.errors import InputError, UsageError
from pipeline.evaluation.subject_fit import FEWEST_OF_LABEL, CellCounts, fit_roll_up, fit_rules
from pipeline.evaluation.subject_labels import check_label, labels_in, labels_of, why_no_subjects
from pipeline.model.subject_rules import RollUp, SubjectLabel, SubjectRules
from pipeline.sources.manifest import Manifest, ManifestInfo

LABEL = SubjectLabel()


def drawn(rng: np.random.Generator, subjects: int, cells: int, is_positive: np.ndarray) -> CellCounts:
    """Cells of which 5 % are diseased in negative, 50 % in positive subjects, all called rightly."""
    share = np.where(is_positive, rng.beta(5, 5, subjects), rng.beta(1, 19, subjects))
    diseased = rng.binomial(cells, share)
    nothing = np.zeros(subjects, np.int64)
    return CellCounts(diseased, diseased, cells - diseased, nothing, [f"s{k}" for k in range(subjects)])


def fitted(subjects: int = 60, seed: int = 0) -> RollUp:
    rng = np.random.default_rng(seed)
    is_positive = np.arange(subjects) % 3 == 0
    found, why = fit_roll_up(drawn(rng, subjects, 40, is_positive), is_positive.tolist(), LABEL, "validation")
    assert found is not None, why
    return found


@pytest.mark.parametrize("confidence", [0.51, 0.6, 0.8, 0.95])
def test_the_interval_of_a_probability_holds_it_at_any_confidence(confidence: float) -> None:
    roll_up = fitted(subjects=30)
    far = tuple(tuple(40.0 * value for value in row) for row in roll_up.covariance)  # few large values, many near none
    for unsure in (roll_up, roll_up.model_copy(update={"covariance": far})):
        for called in range(0, 41, 4):
            found = unsure.probability(called, 40, confidence)
            assert found.low <= found.value <= found.high


def test_the_probability_rises_with_the_cells_called() -> None:
    roll_up = fitted()
    values = [roll_up.probability(called, 40).value for called in range(41)]
    assert all(one <= other + 1e-12 for one, other in itertools.pairwise(values))
    assert values[0] < 0.1 and values[20] > 0.9
    for called in range(41):
        found = roll_up.probability(called, 40)
        assert 0 <= found.low <= found.value <= found.high <= 1


def test_no_cell_says_no_more_than_how_common_the_label_is() -> None:
    roll_up = fitted()
    one_cell = roll_up.probability(0, 1)
    assert abs(one_cell.value - 1 / 3) < abs(roll_up.probability(0, 40).value - 1 / 3)


def test_it_is_calibrated_on_subjects_that_it_was_not_fitted_to() -> None:
    rng = np.random.default_rng(11)
    said, true = [], []
    for seed in range(8):
        roll_up = fitted(45, seed)
        is_positive = rng.random(150) < 1 / 3
        counts = drawn(rng, 150, 15, is_positive)
        said += [roll_up.probability(int(called), 15).value for called in counts.called]
        true += is_positive.tolist()
    told, happened = np.array(said), np.array(true)
    for low, high in ((0.0, 0.2), (0.2, 0.8), (0.8, 1.01)):
        inside = (told >= low) & (told < high)
        assert inside.sum() > 50
        assert happened[inside].mean() == pytest.approx(told[inside].mean(), abs=0.12)


def test_fewer_subjects_are_surer_of_nothing() -> None:
    few, many = fitted(24), fitted(240)
    called = 7
    few_width, many_width = ((found := one.probability(called, 40)).high - found.low for one in (few, many))
    assert few_width > many_width


def test_too_few_subjects_are_refused_with_a_sentence() -> None:
    is_positive = np.arange(30) < FEWEST_OF_LABEL - 1
    counts = drawn(np.random.default_rng(0), 30, 20, is_positive)
    found, why = fit_roll_up(counts, is_positive.tolist(), LABEL, "out-of-fold")
    assert found is None
    assert why == (
        "7 of the out-of-fold subjects are positive (more than 20 % of the cells are truly positive) and 23 are not; "
        "at least 8 of each are needed"
    )


@pytest.mark.parametrize("is_reversed", [False, True])
def test_a_label_that_cells_tell_nothing_of_gives_no_probability(is_reversed: bool) -> None:
    is_positive = np.arange(80) % 2 == 0
    counts = drawn(np.random.default_rng(2), 80, 30, ~is_positive if is_reversed else np.zeros(80, bool))
    roll_up, why = fit_roll_up(counts, is_positive.tolist(), LABEL, "validation")
    assert roll_up is None and "40 others do not show that more cells are called in positive ones" in why


def test_rules_hold_at_their_threshold_only_and_come_back_from_json() -> None:
    is_positive = np.arange(60) % 3 == 0
    counts = drawn(np.random.default_rng(0), 60, 40, is_positive)
    rules = fit_rules(counts, is_positive.tolist(), LABEL, on="validation", threshold=0.4, temperature=1.5)
    again = SubjectRules.model_validate(json.loads(rules.model_dump_json()))
    assert again == rules and again.at(0.4, 1.5) == rules
    assert rules.share(4, 40) is not None and rules.probability(4, 40) is not None
    for moved in (rules.at(0.5, 1.5), rules.at(0.4, 1.0), rules.model_copy(update={"rates": None}).at(0.5, 1.5)):
        assert moved.share(4, 40) is None and moved.probability(4, 40) is None
    assert "0.400" in moved.no_rates


def test_labels_by_the_true_share_of_cells() -> None:
    counts = CellCounts(np.array([3, 2]), np.array([0, 2]), np.array([7, 8]), np.array([5, 0]), ["a", "b"])
    assert labels_of(counts, {}, LABEL) == [True, False]


def manifest(subjects: list[str | None], **columns: list[object]) -> Manifest:
    table = pa.table({"subject_id": pa.array(subjects, pa.string()), **columns})
    return Manifest("lab/manifest", table, ManifestInfo(unit="cell"))


def test_labels_by_a_column_of_the_manifest() -> None:
    found = labels_in(manifest(["a", "a", "b", "c"], kind=["APL", "APL", "AML", None]), SubjectLabel.parse("kind=APL"))
    assert found == {"a": True, "b": False}
    counts = CellCounts(*(np.array([1, 1, 1]),) * 4, ["a", "b", "c"])
    assert labels_of(counts, found, SubjectLabel.parse("kind=APL")) == [True, False, None]


def test_wrong_labels_are_refused_before_anything_is_trained() -> None:
    cells = manifest(["a", "b"], kind=["APL", "AML"])
    check_label(cells, SubjectLabel.parse("kind=APL"), has_disease=True)
    with pytest.raises(UsageError, match=r"no such column \(it has: kind"):
        check_label(cells, SubjectLabel.parse("sort=APL"), has_disease=True)
    with pytest.raises(UsageError, match="no subject has that value; there are AML, APL"):
        check_label(cells, SubjectLabel.parse("kind=CML"), has_disease=True)
    with pytest.raises(UsageError, match="do not say which mean disease"):
        check_label(cells, SubjectLabel.parse("kind=APL"), has_disease=False)
    with pytest.raises(InputError, match="'a' has kind 'APL' and 'AML'"):
        labels_in(manifest(["a", "a"], kind=["APL", "AML"]), SubjectLabel.parse("kind=APL"))
    with pytest.raises(UsageError, match="COLUMN=VALUE"):
        SubjectLabel.parse("kind")


def test_nothing_is_said_of_fields_blocks_or_nobody() -> None:
    assert why_no_subjects("cell", "subjects", ["a", None]) == ""
    assert "field" in why_no_subjects("field", "subjects", ["a"])
    assert "nobody has said" in why_no_subjects(None, "subjects", ["a"])
    assert "no patients" in why_no_subjects("cell", "blocks", ["a"])
    assert "no subject" in why_no_subjects("cell", "subjects", [None])
