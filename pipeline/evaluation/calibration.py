"""From the scores of images that a model did not learn from to its temperature and its operating point.

The scores are those of the validation split, or out-of-fold ones: of each training image by the model of the fold that
did not see it. Then they are of other models than the one that is shipped, whose scores `agreement` compares with them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.base.errors import UsageError
from pipeline.evaluation.definitions import Floats, Ints, binary_arrays
from pipeline.evaluation.intervals import called_units, subject_codes
from pipeline.evaluation.temperature import Temperature, fit_temperature, refitted
from pipeline.model.prediction import probabilities

CalibratedOn = Literal["validation", "out-of-fold", "local"]  # local: of another laboratory than training
ENGINE_TOLERANCE = 1e-5  # what two inference engines may differ by on one image
_PLATEAU = 0.06  # of what it costs to call all images alike: thresholds this near to the best are as good
_REPLICATES = 200
FEWEST_UNITS = 20  # that tell limits of a threshold: measured in docs/train.md
_LARGEST_COST = 1e6  # far beyond it the weights of classes leave the range of single precision
CONFIDENCE = 0.95
_ALIKE = 0.01  # p of Kolmogorov and Smirnov above which two sets of scores may be of one distribution


@dataclass(frozen=True)
class Costs:
    """What mistakes cost, in any unit."""

    missed: float  # a diseased image called healthy
    false_alarm: float

    def __str__(self) -> str:
        return f"FN={self.missed:g},FP={self.false_alarm:g}"

    @classmethod
    def parse(cls, text: str) -> "Costs":
        """Read `FN=5,FP=1`; what is not named costs 1. Raises UsageError."""
        found: dict[str, float] = {}
        for part in text.split(","):
            name, _, value = part.partition("=")
            try:
                cost = float(value)
            except ValueError:
                cost = math.nan
            if name.strip().upper() not in {"FN", "FP"} - set(found) or not 1 / _LARGEST_COST <= cost <= _LARGEST_COST:
                raise UsageError(
                    f"--costs {text!r}: one number for each, of {1 / _LARGEST_COST:g} to {_LARGEST_COST:g}, is needed, "
                    "as in FN=5,FP=1"
                )
            found[name.strip().upper()] = cost
        return cls(found.get("FN", 1.0), found.get("FP", 1.0))


@dataclass(frozen=True)
class Threshold:
    """An operating point and how the scores it was chosen on behave at it. `rule` says how it was chosen."""

    value: float
    rule: str
    sensitivity: float
    specificity: float


def threshold_for(
    labels: ArrayLike,
    probabilities: ArrayLike,
    target_sensitivity: float | None = None,
    costs: Costs | None = None,
    *,
    on: CalibratedOn = "validation",
) -> Threshold:
    """Choose the operating point.

    Without a target: for the highest balanced accuracy, or the lowest expected cost at the share of disease among these
    images where `costs` are given. The optimum of few subjects is a matter of luck, so of all thresholds that are
    nearly as good (within 6 % of what calling all images alike would cost, which by costs is one of them) the middle
    one is taken; of two middles that
    of higher sensitivity (a missed patient weighs more than a second look). Within the gap between two neighbouring
    scores, where every threshold decides alike, it is the middle.

    With a target: the highest threshold whose sensitivity is at least the target. It lies ENGINE_TOLERANCE (or half the
    gap to the next score, if that is less) below the score it must keep, so that another engine keeps it as well.

    One class only leaves nothing to choose by: 0.5, and the rule says so.
    """
    truth, scores = binary_arrays(labels, probabilities)
    if not 0 < truth.sum() < len(truth):
        return Threshold(0.5, f"default 0.5: the {on} images are of one class only", math.nan, math.nan)
    if target_sensitivity is not None and not 0 < target_sensitivity <= 1:
        raise ValueError(f"target_sensitivity must lie in (0, 1], got {target_sensitivity}")
    if target_sensitivity is not None and costs is not None:
        raise ValueError("a target sensitivity and costs are two rules; give one")
    cuts, found, alarms = _cuts(truth, scores, with_none=costs is not None)
    if target_sensitivity is not None:
        chosen = int(np.flatnonzero(found >= target_sensitivity - 1e-12)[0])
        value = cuts[chosen] - min(ENGINE_TOLERANCE, (cuts[chosen] - cuts[chosen + 1]) / 2)
        rule = f"highest threshold with {on} sensitivity >= {target_sensitivity:g}"
    else:
        positives = int(truth.sum())
        missed, alarmed = (costs.missed * positives, costs.false_alarm * (len(truth) - positives)) if costs else (1, 1)
        loss = missed * (1 - found) + alarmed * alarms
        good = np.flatnonzero(loss <= loss.min() + _PLATEAU * min(missed, alarmed) + 1e-12)
        chosen = int(good[len(good) // 2])
        value = (cuts[chosen] + cuts[chosen + 1]) / 2
        best = f"the lowest cost at {costs}" if costs else "the highest balanced accuracy"
        rule = f"middle of the thresholds near {best} on {on} images"
        rule += ": above every score, so that no image is called positive" if value > scores.max() else ""
    return Threshold(float(value), rule, float(found[chosen]), float(1 - alarms[chosen]))


def _cuts(truth: Ints, scores: Floats, *, with_none: bool) -> tuple[Floats, Floats, Floats]:
    """Distinct scores from the highest (K,), with a floor below the last (K + 1,): called at and above each of them,
    the share of positives that is found (K,) and of negatives that alarms (K,). `with_none`: above the highest one
    more, 1, at which none is called; a score of exactly 1 leaves no room for it.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])  # of each run of equal scores
    hits = np.cumsum(truth[order])[last]
    cuts = np.append(scores[order][last], min(0.0, float(scores.min())))
    calls = last + 1
    if with_none and cuts[0] < 1:
        cuts, hits, calls = np.r_[1.0, cuts], np.r_[0, hits], np.r_[0, calls]
    positives = truth.sum()
    return cuts, hits / positives, (calls - hits) / (len(truth) - positives)


@dataclass(frozen=True)
class Spread:
    """A calibrated number with its limits over subjects; None where too few subjects, or no method, tell them.

    A threshold has them from `FEWEST_UNITS` subjects on, a temperature never: percentile limits of fewer, and of any
    temperature, hold the truth less often than they say.
    """

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Calibration:
    """What scores say: temperature and threshold, how far subjects let them wander, and the images they rest on."""

    on: CalibratedOn
    temperature: Temperature
    threshold: Threshold | None  # None where no class means disease
    diseased: NDArray[np.bool_] | None  # (N,) the truth, None likewise
    values: Floats  # (N,) calibrated probability of disease; of the top class where none means disease
    temperature_spread: Spread
    threshold_spread: Spread | None
    units: int
    unit: str  # 'subject' or 'image'
    called: str = "subjects"  # the units, where they are no images
    inherited: Mapping[str, CalibratedOn] = field(
        default_factory=dict
    )  # 'temperature', 'threshold': of a parent, by which scores

    def record(self) -> dict[str, Any]:
        """For `bundle.json`."""
        of = {"temperature": self.temperature_spread, "threshold": self.threshold_spread}
        spreads = {name: {"value": s.value, "low": s.low, "high": s.high} for name, s in of.items() if s is not None}
        return {
            "images": len(self.values),
            "units": self.units,
            "unit": self.unit,
            "called": called_units(self.unit, self.called),
            "confidence": CONFIDENCE,
            **({"inherited": dict(self.inherited)} if self.inherited else {}),
            **spreads,
        }


def spread_in(record: Mapping[str, Any], name: str) -> Spread | None:
    """What a bundle keeps of 'temperature' or 'threshold', by `Calibration.record`; None where it keeps nothing.

    Limits that bundles from between two releases hold of fewer subjects, or of temperatures, are left out.
    """
    found = record.get(name)
    if found is None:
        return None
    has_limits = name == "threshold" and record["units"] >= FEWEST_UNITS
    return Spread(found["value"], *((found["low"], found["high"]) if has_limits else (None, None)))


def inherited_in(record: Mapping[str, Any]) -> dict[str, CalibratedOn]:
    """Which of 'temperature' and 'threshold' a version for another laboratory has of its parent, by which scores."""
    return dict(record.get("inherited") or {})


def kept_of_parent(record: Mapping[str, Any]) -> str:
    """'; temperature as of its parent', behind the images that the others rest on."""
    kept = inherited_in(record)
    return f"; {' and '.join(kept)} as of its parent" if kept else ""


def called_in(record: Mapping[str, Any]) -> str:
    """What the units of such a record are called; older bundles do not say."""
    return str(record.get("called") or f"{record['unit']}s")


def calibrate(
    logits: NDArray[np.float32],
    targets: Ints,
    subjects: Sequence[str | None] | None,
    positive: Sequence[int],
    *,
    on: CalibratedOn = "validation",
    target_sensitivity: float | None = None,
    costs: Costs | None = None,
    seed: int = 0,
    called: str = "subjects",
) -> Calibration:
    """Fit temperature and threshold to logits (N, 1 or C), targets (N,), classes `positive` meaning disease.

    `called`: what the manifest calls the units that `subjects` names.
    """

    temperature = fit_temperature(logits, targets, on=on)
    values, sick = value_of(logits, temperature.value, positive), np.isin(targets, positive)
    threshold = threshold_for(sick, values, target_sensitivity, costs, on=on) if positive else None
    codes, unit = subject_codes(subjects, len(targets))
    low_high: _Limits = (None, None)
    if threshold:
        again = refitted(logits, targets, temperature.value)

        def fit(rows: Ints) -> Threshold:
            drawn = value_of(logits[rows], again(rows), positive)
            return threshold_for(sick[rows], drawn, target_sensitivity, costs, on=on)

        low_high = _limits(fit, codes, seed)
    return Calibration(
        on, temperature, threshold, np.isin(targets, positive) if positive else None, values,
        Spread(temperature.value, None, None), Spread(threshold.value, *low_high) if threshold else None,
        int(codes.max()) + 1, unit, called,
    )  # fmt: skip


def threshold_limits(
    labels: Ints, values: Floats, subjects: Sequence[str | None] | None, target_sensitivity: float | None = None,
    seed: int = 0, *, costs: Costs | None = None,
) -> Spread:  # fmt: skip
    """The threshold, as `threshold_for` finds it, with its limits over subjects where enough.

    Labels 0/1 (N,), calibrated probabilities of disease (N,).
    """
    codes, _ = subject_codes(subjects, len(labels))
    limits = _limits(lambda rows: threshold_for(labels[rows], values[rows], target_sensitivity, costs), codes, seed)
    return Spread(threshold_for(labels, values, target_sensitivity, costs).value, *limits)


def value_of(logits: NDArray[Any], temperature: float, positive: Sequence[int]) -> Floats:
    """Calibrated probability of disease (N,) of logits (N, 1 or C); of the top class where none means disease."""
    classes = probabilities(logits, temperature)
    values: Floats = classes[:, list(positive)].sum(axis=1).clip(0.0, 1.0) if positive else classes.max(axis=1)
    return values


_Limits = tuple[float | None, float | None]


def _limits(fit: Callable[[Ints], Threshold | None], codes: Ints, seed: int) -> _Limits:
    """Percentile limits of the threshold, whole subjects resampled; None of fewer than FEWEST_UNITS."""
    clusters = int(codes.max()) + 1
    if clusters < FEWEST_UNITS:
        return None, None
    rows_of = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    rng = np.random.default_rng(seed)
    found = np.full(_REPLICATES, np.nan)
    for k in range(_REPLICATES):
        threshold = fit(np.concatenate([rows_of[n] for n in rng.integers(0, clusters, clusters)]))
        if threshold is not None and not math.isnan(threshold.sensitivity):
            found[k] = threshold.value
    return _percentiles(found)


def _percentiles(drawn: Floats) -> _Limits:
    """Percentile limits of replicates (R,); None where fewer than half of them are defined."""
    defined = drawn[~np.isnan(drawn)]
    if len(defined) * 2 < len(drawn) or not len(defined):
        return None, None
    low, high = np.quantile(defined, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Agreement:
    """How the shipped model's scores on images it never saw compare with those it was calibrated on."""

    images: int
    distance: float  # of Kolmogorov and Smirnov between both distributions, 0..1
    is_alike: bool
    positive_shipped: float | None  # share called positive by the threshold; None where nothing is decided
    positive_calibrated: float | None

    def __str__(self) -> str:
        judged = "alike" if self.is_alike else "NOT alike, so its temperature and threshold may not fit it"
        shares = (
            f"; {self.positive_shipped:.1%} and {self.positive_calibrated:.1%} are called positive"
            if self.positive_shipped is not None and self.positive_calibrated is not None
            else ""
        )
        return (
            f"scores of the shipped model on {self.images} images it never saw and the out-of-fold scores are {judged} "
            f"(Kolmogorov-Smirnov distance {self.distance:.3f}{shares})"
        )


def agreement(
    calibration: Calibration,
    logits: NDArray[np.float32],
    subjects: Sequence[str | None] | None,
    calibrated_subjects: Sequence[str | None] | None,
    positive: Sequence[int],
) -> Agreement:
    """Compare the shipped model's `logits` of held-out images (no labels needed) with what `calibration` rests on.

    Each subject counts once, by the mean of its images' scores, so that the images of one do not make the samples look
    larger than they are.
    """
    from scipy.stats import ks_2samp

    shipped = value_of(logits, calibration.temperature.value, positive)
    means = [
        np.bincount(codes, values) / np.bincount(codes)
        for values, (codes, _) in (
            (shipped, subject_codes(subjects, len(shipped))),
            (calibration.values, subject_codes(calibrated_subjects, len(calibration.values))),
        )
    ]
    p = float(ks_2samp(*means).pvalue)
    cut = None if calibration.threshold is None else calibration.threshold.value
    shares = [None if cut is None else float((values >= cut).mean()) for values in (shipped, calibration.values)]
    return Agreement(len(shipped), float(ks_2samp(shipped, calibration.values).statistic), p > _ALIKE, *shares)
