"""What a model is worth: metrics of a test split, the operating point and the temperature of a validation split.

Takes labels, probabilities and subjects as arrays, gives JSON-ready dictionaries of the metrics in `definitions`.
An undefined value (a split with one class, a class never called) is null in JSON, never 0.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.metrics import confusion_matrix, log_loss, roc_auc_score, roc_curve

from pipeline.evaluation.cautions import cautions
from pipeline.evaluation.definitions import Floats, Ints, binary_arrays, ratio, weighted_multiclass
from pipeline.evaluation.intervals import (
    Interval,
    Resampling,
    as_json,
    bootstrap,
    bootstrap_intervals,
    honest,
    known_or_none,
    subject_codes,
)
from pipeline.evaluation.slices import slice_table

ENGINE_TOLERANCE = 1e-5  # what two inference engines may differ by on one image
TEMPERATURE_BOUNDS = (0.05, 20.0)


@dataclass(frozen=True)
class Threshold:
    """An operating point and how the validation split behaves at it. `rule` says how it was chosen."""

    value: float
    rule: str
    sensitivity: float
    specificity: float


@dataclass(frozen=True)
class Temperature:
    """The divisor of the logits; `reason` says how it was found, or why it was left at 1."""

    value: float
    reason: str


def threshold_for(labels: ArrayLike, probabilities: ArrayLike, target_sensitivity: float | None = None) -> Threshold:
    """Choose the operating point on the validation split.

    Without a target: the maximum of Youden's J = sensitivity + specificity - 1. Of several maxima the one of higher
    sensitivity is taken (a missed patient weighs more than a second look), and within the gap between two neighbouring
    scores, where every threshold decides alike, the middle.

    With a target: the highest threshold whose sensitivity is at least the target. It lies ENGINE_TOLERANCE (or half the
    gap to the next score, if that is less) below the score it must keep, so that another engine keeps it as well.

    One class only leaves nothing to choose by: 0.5, and the rule says so.
    """
    truth, scores = binary_arrays(labels, probabilities)
    if not 0 < truth.sum() < len(truth):
        return Threshold(0.5, "default 0.5: the validation split holds one class only", math.nan, math.nan)
    if target_sensitivity is not None and not 0 < target_sensitivity <= 1:
        raise ValueError(f"target_sensitivity must lie in (0, 1], got {target_sensitivity}")
    alarms, sensitivity, cuts = roc_curve(truth, scores, drop_intermediate=False)
    cuts = np.append(cuts[1:], min(0.0, scores.min()))  # drop the point 'nothing is called'; add a floor below the last
    alarms, sensitivity = alarms[1:], sensitivity[1:]
    if target_sensitivity is None:
        youden = sensitivity - alarms
        best = int(np.flatnonzero(youden >= youden.max() - 1e-12)[-1])
        value, rule = (cuts[best] + cuts[best + 1]) / 2, "maximum of Youden's J on validation"
    else:
        best = int(np.flatnonzero(sensitivity >= target_sensitivity - 1e-12)[0])
        value = cuts[best] - min(ENGINE_TOLERANCE, (cuts[best] - cuts[best + 1]) / 2)
        rule = f"highest threshold with validation sensitivity >= {target_sensitivity:g}"
    return Threshold(float(value), rule, float(sensitivity[best]), float(1 - alarms[best]))


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> Temperature:
    """Temperature scaling (Guo et al. 2017, arXiv:1706.04599): minimise the validation log-loss of logits / T.

    Logits are (N,) or (N, 1) for two classes with one output, (N, C) for C classes. T stays at 1 where the data cannot
    tell it: one class, a separable split (the best T is 0) or uninformative scores (the best T is infinite).
    """
    logits = _as_class_logits(np.asarray(logits, np.float64))
    truth = np.asarray(labels, np.int64)
    if len(truth) != len(logits):
        raise ValueError(f"{len(logits)} scores but {len(truth)} labels")
    if len(np.unique(truth)) < 2:
        return Temperature(1.0, "not scaled: the validation split holds fewer than two classes")
    if not np.isfinite(logits).all():
        return Temperature(1.0, "not scaled: some scores are not finite")
    rows = np.arange(len(truth))
    others = logits.copy()
    others[rows, truth] = -np.inf
    if (logits[rows, truth] > others.max(axis=1)).all():  # the loss falls to 0 with T, and is 0 in float64 long before
        return Temperature(1.0, "not scaled: the validation split is separated without error, no finite optimum")

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / math.exp(log_temperature), axis=1)
        return float(-scaled[rows, truth].mean())

    low, high = (math.log(bound) for bound in TEMPERATURE_BOUNDS)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    if found.x < low + 1e-3:
        return Temperature(1.0, "not scaled: the best temperature is below what can be told")
    if found.x > high - 1e-3:
        return Temperature(1.0, "not scaled: the validation scores say nothing about the classes")
    return Temperature(math.exp(found.x), f"log-loss on validation {loss(0.0):.4f} -> {found.fun:.4f}")


def _as_class_logits(logits: Floats) -> Floats:
    """Logits of any accepted shape as (N, C), C >= 2."""
    single = logits[:, 0] if logits.ndim == 2 and logits.shape[1] == 1 else logits
    return np.stack([np.zeros_like(single), single], axis=1) if single.ndim == 1 else single


def evaluate_binary(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    threshold: float,
    subjects: Sequence[str | None] | None = None,
    slices: Mapping[str, Sequence[str | None]] | None = None,
    class_names: Sequence[str] = ("negative", "positive"),
    review_band: tuple[float, float] | None = None,
    resampling: Resampling = Resampling(),
    units: str = "subjects",
) -> dict[str, Any]:
    """Everything a report says of a two-class model on one split; JSON-ready. `units`: what `subjects` are called."""
    truth, scores = binary_arrays(labels, probabilities)
    _refuse_empty(truth)
    intervals = bootstrap_intervals(truth, scores, subjects, threshold, resampling)
    called = (scores >= threshold).astype(np.int64)
    in_band = (scores >= review_band[0]) & (scores < review_band[1]) if review_band else np.zeros(len(truth), bool)
    result = {
        "task": "binary",
        **_counts(truth, subjects, class_names),
        "threshold": threshold,
        "metrics": {name: as_json(interval) for name, interval in intervals.items()},
        "intervals": _interval_method(subjects, len(truth), units, resampling),
        "confusion": confusion_matrix(truth, called, labels=[0, 1]).tolist(),
        "per_class": _per_class_binary(truth, scores, threshold, class_names),
        "slices": {
            name: slice_table(truth, scores, called, values, threshold, subjects, resampling)
            for name, values in (slices or {}).items()
        },
        "review": {"low": review_band[0], "high": review_band[1], "images": int(in_band.sum())}
        if review_band
        else None,
    }
    return {**result, "warnings": cautions(result)}


def evaluate_multiclass(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    class_names: Sequence[str],
    subjects: Sequence[str | None] | None = None,
    slices: Mapping[str, Sequence[str | None]] | None = None,
    resampling: Resampling = Resampling(),
    units: str = "subjects",
) -> dict[str, Any]:
    """Everything a report says of a model of C classes on one split; probabilities (N, C), labels 0..C-1."""
    truth, scores = np.asarray(labels, np.int64), np.asarray(probabilities, np.float64)
    if scores.shape != (len(truth), len(class_names)):
        raise ValueError(f"expected probabilities of shape ({len(truth)}, {len(class_names)}), got {scores.shape}")
    _refuse_empty(truth)
    codes, unit = subject_codes(subjects, len(truth))
    drawn = bootstrap(weighted_multiclass(truth, scores), codes, unit, resampling)
    called = scores.argmax(axis=1)
    result = {
        "task": "multiclass",
        **_counts(truth, subjects, class_names),
        "threshold": None,
        "metrics": _overall(drawn, truth, codes, resampling.confidence),
        "log_loss": float(log_loss(truth, _normalised(scores), labels=range(len(class_names)))),
        "intervals": _interval_method(subjects, len(truth), units, resampling),
        "confusion": confusion_matrix(truth, called, labels=range(len(class_names))).tolist(),
        "per_class": [
            {"class_name": name, **_one_class(k, drawn, truth, called, codes, resampling.confidence)}
            for k, name in enumerate(class_names)
        ],
        "slices": {
            name: slice_table(truth, None, called, values, None, subjects, resampling)
            for name, values in (slices or {}).items()
        },
        "review": None,
    }
    return {**result, "warnings": cautions(result)}


Drawn = dict[str, list[Interval]]  # what `bootstrap` gives


def _overall(drawn: Drawn, truth: Ints, codes: Ints, confidence: float) -> dict[str, Any]:
    """The metrics over all classes."""
    present = [codes[truth == k] for k in np.unique(truth)]
    rests_on = {name: [codes] for name in ("accuracy", "brier", "ece")}
    return {
        name: as_json(honest(name, values[0], rests_on.get(name, present), confidence))
        for name, values in drawn.items()
        if not name.startswith("class_")
    }


def _one_class(k: int, drawn: Drawn, truth: Ints, called: Ints, codes: Ints, confidence: float) -> dict[str, Any]:
    """Class `k` against all others."""
    of_class = codes[truth == k]
    rests_on = {"precision": [codes[called == k]], "roc_auc": [of_class, codes[truth != k]]}
    limits = {
        name: honest(name, drawn[f"class_{name}"][k], rests_on.get(name, [of_class]), confidence)
        for name in ("precision", "recall", "f1", "roc_auc")
    }
    return {"support": len(of_class), **{name: as_json(interval) for name, interval in limits.items()}}


def _per_class_binary(truth: Ints, scores: Floats, threshold: float, names: Sequence[str]) -> list[dict[str, Any]]:
    """Both classes in turn taken as the one to find."""
    called = scores >= threshold
    rows = []
    for k, name in enumerate(names):
        predicted, actual = called == bool(k), truth == k
        hits = int((predicted & actual).sum())
        auc = roc_auc_score(actual, scores if k else -scores) if 0 < actual.sum() < len(truth) else math.nan
        values = {
            "precision": ratio(hits, predicted.sum()),
            "recall": ratio(hits, actual.sum()),
            "f1": ratio(2 * hits, predicted.sum() + actual.sum()) if actual.any() else math.nan,
            "roc_auc": auc,
        }
        support = {"class_name": name, "support": int(actual.sum())}
        rows.append({**support, **{key: {"value": known_or_none(float(value))} for key, value in values.items()}})
    return rows


def _counts(truth: Ints, subjects: Sequence[str | None] | None, class_names: Sequence[str]) -> dict[str, Any]:
    known = {subject for subject in subjects or () if subject}
    codes, _ = subject_codes(subjects, len(truth))
    return {
        "class_names": list(class_names),
        "images": len(truth),
        "subjects": len(known) or None,
        "images_per_class": {name: int((truth == k).sum()) for k, name in enumerate(class_names)},
        "units_per_class": {name: len(np.unique(codes[truth == k])) for k, name in enumerate(class_names)},
    }


def _interval_method(
    subjects: Sequence[str | None] | None, images: int, called: str, resampling: Resampling
) -> dict[str, Any]:
    codes, unit = subject_codes(subjects, images)
    return {"unit": unit, "units": int(codes.max()) + 1, **asdict(resampling), "called": called}


def _refuse_empty(truth: Ints) -> None:
    if not len(truth):
        raise ValueError("nothing to evaluate: the split holds no labelled image")


def _normalised(probabilities: Floats) -> Floats:
    """Rows summing to 1 in float64, which float32 softmax misses by 1e-7."""
    return np.asarray(probabilities / probabilities.sum(axis=1, keepdims=True), np.float64)
