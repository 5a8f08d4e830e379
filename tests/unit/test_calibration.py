"""Temperature and threshold: what few subjects say, how far that wanders, whether it fits another model."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import UsageError
from pipeline.evaluation import calibration
from pipeline.evaluation.calibration import Costs, agreement, calibrate, threshold_for
from pipeline.evaluation.temperature import fit_temperature
from tests.searches import search
from tests.unit.test_metrics import cells


def test_the_threshold_lies_in_the_middle_of_the_gap() -> None:
    chosen = threshold_for([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9])
    assert chosen.value == pytest.approx(0.5) and chosen.sensitivity == chosen.specificity == 1.0


def test_of_equal_maxima_the_more_sensitive_one_is_taken() -> None:
    chosen = threshold_for([1, 0, 1, 0], [0.9, 0.7, 0.5, 0.3])
    assert chosen.value == pytest.approx(0.4) and chosen.sensitivity == 1.0


@search(60)
@given(st.integers(0, 10_000), st.floats(0.05, 1.0))
def test_target_threshold_reaches_its_target_and_no_higher_one_does(seed: int, target: float) -> None:
    labels, probabilities, _ = cells(60, 5, seed)
    if labels.all() or not labels.any():
        return
    chosen = threshold_for(labels, probabilities, target)
    positives = probabilities[labels == 1]
    assert (positives >= chosen.value).mean() >= target - 1e-9
    assert all((positives >= score).mean() < target for score in probabilities if score > chosen.value + 1e-4)


def test_target_threshold_keeps_its_image_on_another_engine() -> None:
    chosen = threshold_for([0, 1, 1], [0.2, 0.6, 0.9], 1.0)
    assert 0.2 < chosen.value < 0.6 - 5e-6


def test_threshold_of_one_class_says_that_it_is_a_default() -> None:
    assert threshold_for([1, 1], [0.3, 0.4]).rule.startswith("default")


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_temperature_recovers_the_scale_of_binary_and_of_class_logits(true_temperature: float) -> None:
    rng = np.random.default_rng(0)
    binary = rng.normal(0, 2, 20_000)
    labels = rng.random(20_000) < 1 / (1 + np.exp(-binary))
    assert fit_temperature(binary * true_temperature, labels).value == pytest.approx(true_temperature, rel=0.1)
    classes = rng.normal(0, 2, (20_000, 4))
    drawn = (classes + rng.gumbel(size=classes.shape)).argmax(axis=1)
    assert fit_temperature(classes * true_temperature, drawn).value == pytest.approx(true_temperature, rel=0.1)


@pytest.mark.parametrize("scale", [1.0, 5.0, 10.0, 30.0, 60.0])
def test_a_separated_split_tells_no_temperature_however_sure_the_model_is(scale: float) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40)
    logits = (2 * labels - 1) * rng.uniform(0.3, 1.0, 80) * scale
    assert fit_temperature(logits, labels).value == 1.0
    three = np.eye(3)[np.arange(60) % 3] * scale
    assert fit_temperature(three, np.arange(60) % 3).value == 1.0


@pytest.mark.parametrize(
    ("logits", "labels", "reason"),
    [
        ([-2.0, -1.0, 1.0, 2.0], [0, 0, 1, 1], "separated"),
        ([-2.0, -1.0, 1.0, 2.0], [1, 1, 0, 0], "nothing"),
        ([1.0, 2.0], [1, 1], "fewer than two classes"),
        ([1.0, np.inf], [0, 1], "not finite"),
    ],
)
def test_temperature_stays_at_one_with_a_reason(logits: list[float], labels: list[int], reason: str) -> None:
    fitted = fit_temperature(logits, labels)
    assert fitted.value == 1.0 and reason in fitted.reason


def drawn(subjects: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labels, logits of images whose subjects share an offset, subjects."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(subjects), 30)
    labels = (rng.random(len(of)) < rng.beta(2, 4, subjects)[of]).astype(np.int64)
    logits = 3.0 * labels - 2 + rng.normal(0, 0.7, subjects)[of] + rng.normal(0, 1.2, len(of))
    return labels, logits, [f"s{k}" for k in of]


def loss(labels: np.ndarray, logits: np.ndarray, cut: float, costs: Costs | None) -> float:
    """Expected cost of an image; the mean of both shares of mistakes where no costs are given."""
    missed, alarmed = (logits[labels == 1] < cut), (logits[labels == 0] >= cut)
    if costs is None:
        return float(missed.mean() + alarmed.mean()) / 2
    return float(costs.missed * missed.sum() + costs.false_alarm * alarmed.sum()) / len(labels)


@pytest.mark.parametrize("costs", [None, Costs(5, 1), Costs(1, 5)])
def test_the_middle_of_good_thresholds_serves_other_subjects_better_than_the_very_best_one(costs: Costs | None) -> None:
    labels, logits, _ = drawn(400, seed=1)
    found = []
    for seed in range(60):
        few, scores, _ = drawn(8, seed=100 + seed)
        value = threshold_for(few, 1 / (1 + np.exp(-scores)), costs=costs).value
        sharp = min(np.sort(scores), key=lambda cut: loss(few, scores, cut, costs))
        found.append([loss(labels, logits, cut, costs) for cut in (np.log(value / (1 - value)), sharp)])
    ours, naive = np.mean(found, axis=0)
    assert ours < naive


def test_costs_move_the_threshold_to_the_cheaper_mistake() -> None:
    labels, logits, _ = drawn(60, seed=2)
    probabilities = 1 / (1 + np.exp(-logits))
    dear, even, cheap = (threshold_for(labels, probabilities, costs=Costs(fn, 1)) for fn in (10, 1, 0.1))
    assert dear.value < even.value < cheap.value and dear.sensitivity > even.sensitivity > cheap.sensitivity
    assert dear.rule == "middle of the thresholds near the lowest cost at FN=10,FP=1 on validation images"
    with pytest.raises(ValueError, match="two rules"):
        threshold_for(labels, probabilities, 0.9, Costs(1, 1))


@pytest.mark.parametrize("text", ["FN", "FN=0", "FN=-1,FP=1", "X=1", "FN=1,FP=inf", ""])
def test_costs_that_say_nothing_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="FN=5,FP=1"):
        Costs.parse(text)


def test_where_alarms_cost_much_the_cheapest_is_to_call_none() -> None:
    truth = np.array([0, 1] * 10)
    scores = np.linspace(0.9, 0.1, 20)  # the highest is of a negative
    found = threshold_for(truth, scores, costs=Costs(1, 100))
    assert 0.9 < found.value <= 1 and (found.sensitivity, found.specificity) == (0, 1)
    assert "no image is called positive" in found.rule
    assert threshold_for(1 - truth, scores, costs=Costs(1, 100)).value <= 0.9, "one is found without an alarm"
    certain = np.r_[1.0, scores[1:]]  # no threshold up to 1 lies above it
    assert threshold_for(truth, certain, costs=Costs(1, 100)).value <= 1


def test_costs_are_read_and_what_is_not_named_costs_one() -> None:
    assert Costs.parse("FN=5, fp=2") == Costs(5, 2) and Costs.parse("FN=3") == Costs(3, 1)


def test_limits_over_subjects_hold_what_many_subjects_say() -> None:
    labels, logits, subjects = drawn(200, seed=3)
    truth = calibrate(logits[:, None].astype(np.float32), labels, subjects, [1])
    assert truth.threshold is not None and truth.threshold_spread is not None
    held = []
    for seed in range(12):
        few, scores, names = drawn(24, seed=seed)
        found = calibrate(scores[:, None].astype(np.float32), few, names, [1], on="out-of-fold")
        spread = found.threshold_spread
        assert spread is not None and spread.low is not None and spread.high is not None
        held.append(spread.low <= truth.threshold.value <= spread.high)
        assert found.temperature.reason.startswith("log-loss on out-of-fold images")
    assert sum(held) >= 10  # of 12
    assert truth.record()["images"] == len(labels) and truth.record()["units"] == 200


def test_limits_are_those_of_temperatures_that_are_fitted_anew_for_each_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, logits, subjects = drawn(40, seed=5)
    found = calibrate(3 * logits[:, None].astype(np.float32), labels, subjects, [1]).threshold_spread

    def anew(scores: np.ndarray, truth: np.ndarray, _: float) -> Callable[[np.ndarray], float]:
        return lambda rows: fit_temperature(scores[rows], truth[rows]).value

    monkeypatch.setattr(calibration, "refitted", anew)
    exact = calibrate(3 * logits[:, None].astype(np.float32), labels, subjects, [1]).threshold_spread
    monkeypatch.setattr(calibration, "refitted", lambda _, __, temperature: lambda rows: temperature)
    never = calibrate(3 * logits[:, None].astype(np.float32), labels, subjects, [1]).threshold_spread
    assert found is not None and exact is not None and never is not None
    apart = [abs(one.low - exact.low) + abs(one.high - exact.high) for one in (found, never)]  # type: ignore[operator]
    assert apart[0] < 0.01 and apart[0] < apart[1]


def test_few_subjects_tell_no_limits_and_classes_without_disease_no_threshold() -> None:
    labels, logits, _ = drawn(1, seed=4)
    found = calibrate(logits[:, None].astype(np.float32), labels, ["s"] * len(labels), [1])
    assert found.threshold_spread is not None and (found.threshold_spread.low, found.units) == (None, 1)
    labels, logits, subjects = drawn(14, seed=5)
    found = calibrate(logits[:, None].astype(np.float32), labels, subjects, [1])
    assert found.threshold_spread is not None and found.threshold_spread.low is None
    assert found.record()["temperature"]["low"] is None
    three = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    assert calibrate(three, np.arange(60) % 3, None, []).threshold is None


def test_a_shipped_model_of_other_scores_is_told_from_one_of_the_same() -> None:
    labels, logits, subjects = drawn(80, seed=5)
    found = calibrate(logits[:, None].astype(np.float32), labels, subjects, [1], on="out-of-fold")
    alike = 0
    for seed in range(20):
        _, others, names = drawn(20, seed=50 + seed)
        alike += agreement(found, others[:, None].astype(np.float32), names, subjects, [1]).is_alike
    assert alike >= 18
    _, others, names = drawn(20, seed=6)
    shifted = agreement(found, others[:, None].astype(np.float32) + 3, names, subjects, [1])
    assert not shifted.is_alike and "NOT alike" in str(shifted) and shifted.distance > 0.4
