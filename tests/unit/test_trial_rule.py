"""The rule of a candidate's trial, and the limits that it rests on: they hold however often one looks."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serving.bounds import limits
from serving.rule import Figures, Rule, Verdict, judge

ORDER = ("drop", "wait", "promote")
RULE = Rule(min_images=300, max_changed_share=0.05, max_unanswered_share=0.02, max_latency_ratio=1.5)
counts = st.integers(0, 3000)


def state(found: Verdict, name: str) -> str:
    return next(one.state for one in found.criteria if one.name == name)


@pytest.mark.parametrize("share", [0.002, 0.02, 0.3])
def test_limits_looked_at_after_every_image_miss_the_true_share_as_rarely_as_they_say(share: float) -> None:
    """400 series of 400 images, each looked at 400 times, with limits that 10 % of series may leave at any look."""
    rng = np.random.default_rng(0)
    found = (rng.random((400, 400)) < share).cumsum(axis=1)
    pairs = {(int(k), n) for series in found for n, k in enumerate(series, 1)}
    misses = {pair for pair in pairs if not (lambda low, high: low <= share <= high)(*limits(*pair, 0.9))}
    missed = sum(any((int(k), n) in misses for n, k in enumerate(series, 1)) for series in found)
    assert missed / 400 <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / 400)


def test_limits_known_by_hand() -> None:
    """Of no change in n images the upper limit p solves (1 - p)^n = alpha B(1/2, n + 1/2) / B(1/2, 1/2)."""
    assert limits(0, 0, 0.95) == (0.0, 1.0)
    low, high = limits(0, 2, 0.95)  # B(1/2, 5/2) / B(1/2, 1/2) = 3/8
    assert low == 0.0 and high == pytest.approx(1 - (0.05 * 3 / 8) ** 0.5, abs=1e-9)
    assert limits(2, 2, 0.95) == (pytest.approx(1 - high), 1.0)
    with pytest.raises(ValueError, match=r"found must lie in 0\.\.3"):
        limits(4, 3, 0.95)


@given(st.integers(0, 500), st.integers(1, 500), st.floats(0.5, 0.999))
def test_limits_hold_the_share_rise_with_what_is_found_and_narrow_with_less_confidence(
    found: int, more: int, confidence: float
) -> None:
    trials = found + more
    low, high = limits(found, trials, confidence)
    assert 0 <= low <= found / trials <= high <= 1
    next_low, next_high = limits(found + 1, trials, confidence)
    assert next_low >= low and next_high >= high - 1e-12
    wider = limits(found, trials, (1 + confidence) / 2)
    assert wider[0] <= low and wider[1] >= high
    assert limits(found, trials + 1, confidence)[1] <= high + 1e-12, "another image without it"


@given(counts, counts, counts, st.floats(0.1, 4))
def test_more_changes_failures_or_time_never_make_a_candidate_look_better(
    images: int, changed: int, unanswered: int, ratio: float
) -> None:
    changed = min(changed, images)

    def place(**worse: float) -> int:
        given = {"images": images, "changed": changed, "unanswered": unanswered, "agreed_s": 1.0, "candidate_s": ratio}
        return ORDER.index(judge(RULE, Figures(**{**given, **worse}), 1.0).decision)  # type: ignore[arg-type]

    here = place()
    assert place(changed=min(images, changed + 5)) <= here
    assert place(unanswered=unanswered + 5) <= here
    assert place(candidate_s=ratio * 2) <= here


def test_a_candidate_is_promoted_when_all_is_met_dropped_when_it_is_lost_and_waited_for_else() -> None:
    good = Figures(images=600, changed=3, unanswered=0, agreed_s=0.01, candidate_s=0.012)
    assert judge(RULE, good, 0.1).decision == "promote"
    early = judge(RULE, good._replace(images=200, changed=0), 0.1)
    assert early.decision == "wait" and "min_images" in early.reason
    slow = judge(RULE, good._replace(candidate_s=0.016), 0.1)
    assert slow.decision == "drop" and "1.60: 16.0 ms beside 10.0 ms" in slow.reason
    assert judge(RULE, good._replace(images=200, candidate_s=0.03), 0.1).decision == "wait", "not yet timed enough"
    other = judge(RULE, Figures(images=40, changed=20, agreed_s=0.01, candidate_s=0.01), 0.1)
    assert other.decision == "drop" and "max_changed_share not met" in other.reason, "long before min_images"
    between = judge(RULE, good._replace(changed=30), 0.1)
    assert between.decision == "wait" and state(between, "max_changed_share") == "cannot be told"
    assert judge(RULE, Figures(), 0.0).decision == "wait"


def test_a_share_of_0_means_none_and_hours_bind_from_both_sides() -> None:
    rule = Rule(min_images=10, max_changed_share=0, min_hours=2, max_hours=4)
    clean = Figures(images=50)
    assert [judge(rule, clean, hours).decision for hours in (1.9, 2.0)] == ["wait", "promote"]
    assert judge(rule, Figures(images=50, changed=1), 3).decision == "drop"
    assert judge(rule, Figures(images=50, unanswered=1), 3).decision == "drop", "the default asks for all answers"
    late = judge(rule, Figures(images=9), 4.0)
    assert late.decision == "drop" and late.reason.startswith("not decided within 4 h: min_images cannot be told")


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_images": 0},
        {"max_changed_share": 1.0},
        {"confidence": 1.0},
        {"min_hours": 5, "max_hours": 4},
        {"min_hours": float("inf")},
        {"margin": 1},
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Rule.model_validate({"min_images": 10, "max_changed_share": 0.01, **wrong})


def test_how_many_images_without_a_change_show_a_share() -> None:
    """As docs/serve.md has it."""
    needed = {
        share: next(n for n in itertools.count(1) if limits(0, n, 0.95)[1] <= share)
        for share in (0.1, 0.05, 0.02, 0.01)
    }
    assert needed == {0.1: 53, 0.05: 116, 0.02: 320, 0.01: 680}
