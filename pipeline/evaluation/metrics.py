"""What a model is worth on a split.

Takes labels, probabilities and subjects as arrays, gives JSON-ready dictionaries of the metrics in `definitions`.
An undefined value (a split with one class, a class never called) is null in JSON, never 0.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import confusion_matrix, log_loss, roc_auc_score

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
