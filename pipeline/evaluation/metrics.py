"""What a model is worth on a split.

Takes labels, probabilities and subjects as arrays, gives JSON-ready dictionaries of the metrics in `definitions`.
An undefined value (a split with one class, a class never called) is null in JSON, never 0.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import confusion_matrix, log_loss, roc_auc_score

from pipeline.evaluation.abstention import judge_review
from pipeline.evaluation.adverse import NO_LIMITS, Limits, interval_of, limits
from pipeline.evaluation.cautions import cautions
from pipeline.evaluation.definitions import Floats, Ints, binary_arrays, binary_metrics, ratio, weighted_multiclass
from pipeline.evaluation.intervals import Resampling, as_json, clustered_error, known_or_none, subject_codes
from pipeline.evaluation.limits import Answers, Means, Parts, binary_parts, method_of, multiclass_parts
from pipeline.evaluation.slices import Slice
from pipeline.model.review import Band, ReviewRule

Columns = Mapping[str, Sequence[str | None]]
Found = Mapping[Hashable, Limits]


def evaluate_binary(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    threshold: float,
    subjects: Sequence[str | None] | None = None,
    slices: Mapping[str, Sequence[str | None]] | None = None,
    class_names: Sequence[str] = ("negative", "positive"),
    review_band: Band | None = None,
    review: ReviewRule | None = None,
    resampling: Resampling = Resampling(),
    units: str = "subjects",
) -> dict[str, Any]:
    """Everything a report says of a two-class model on one split; JSON-ready.

    `review_band` goes to a person, by the promise of `review`. `units`: what `subjects` are called.
    """
    truth, scores = binary_arrays(labels, probabilities)
    _refuse_empty(truth)
    called = (scores >= threshold).astype(np.int64)
    answers = Answers(truth, called, *subject_codes(subjects, len(truth)), subjects, scores, threshold)
    found, tables = _bounded(answers, *binary_parts(answers), slices or {}, resampling)
    points = binary_metrics(truth, scores, threshold)
    result = {
        "task": "binary",
        **_counts(truth, subjects, class_names),
        "threshold": threshold,
        "metrics": _told(points, found, answers.unit),
        "intervals": _interval_method(answers, units, resampling),
        "confusion": confusion_matrix(truth, called, labels=[0, 1]).tolist(),
        "per_class": _per_class_binary(answers, class_names, found),
        **_slices(tables, found, units, resampling),
        "review": judge_review(truth, scores, subjects, threshold, review_band, review, resampling),
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
    called = scores.argmax(axis=1)
    answers = Answers(truth, called, *subject_codes(subjects, len(truth)), subjects)
    found, tables = _bounded(answers, *multiclass_parts(answers, scores), slices or {}, resampling)
    points = weighted_multiclass(truth, scores)(np.ones((1, len(truth))))
    result = {
        "task": "multiclass",
        **_counts(truth, subjects, class_names),
        "threshold": None,
        "metrics": _told({name: float(of[0]) for name, of in points.items() if of.ndim == 1}, found, answers.unit),
        "log_loss": float(log_loss(truth, _normalised(scores), labels=range(len(class_names)))),
        "intervals": _interval_method(answers, units, resampling),
        "confusion": confusion_matrix(truth, called, labels=range(len(class_names))).tolist(),
        "per_class": [
            {"class_name": name, **_one_class(k, points, answers, found)} for k, name in enumerate(class_names)
        ],
        "shares": _shares(truth, scores, answers),
        **_slices(tables, found, units, resampling),
        "review": None,
    }
    return {**result, "warnings": cautions(result)}


def _bounded(
    answers: Answers, parts: Parts, means: Means, slices: Columns, resampling: Resampling
) -> tuple[Found, dict[str, Slice]]:
    """Limits of all figures of all tables, from the same samples, and the tables that will show them."""
    tables = {name: Slice(name, values, answers) for name, values in slices.items()}
    for table in tables.values():
        parts |= table.parts()
    return limits(parts, answers.units, resampling, means), tables


def _told(points: Mapping[str, float], found: Found, unit: str) -> dict[str, Any]:
    return {name: as_json(interval_of(value, found.get(name, NO_LIMITS), unit)) for name, value in points.items()}


def _slices(tables: Mapping[str, Slice], found: Found, called: str, resampling: Resampling) -> dict[str, Any]:
    return {
        "slices": {name: table.table(found, resampling.confidence) for name, table in tables.items()},
        "slice_intervals": {
            name: {"unit": table.unit, "method": table.method(called)} for name, table in tables.items()
        },
    }


def _shares(truth: Ints, scores: Floats, answers: Answers) -> dict[str, Any]:
    """Of each class: the mean of its probabilities, its share of the images, the standard error of the difference over
    `units`, null of one unit. `apart`: the share of images by which the means miss (total variation), 0..1.
    """
    actual = np.eye(scores.shape[1])[truth]
    told, true = scores.mean(axis=0), actual.mean(axis=0)
    errors = [known_or_none(clustered_error(column, answers.codes)) for column in (scores - actual).T]
    apart = float(np.abs(told - true).sum() / 2)
    return {"told": told.tolist(), "true": true.tolist(), "error": errors, "apart": apart}


def _one_class(k: int, points: Mapping[str, Floats], answers: Answers, found: Found) -> dict[str, Any]:
    """Class `k` against all others."""
    rated = {
        name: as_json(interval_of(float(points[f"class_{name}"][0, k]), found[name, k], answers.unit))
        for name in ("precision", "recall", "f1", "roc_auc")
    }
    return {"support": int((answers.truth == k).sum()), **rated}


def _per_class_binary(answers: Answers, names: Sequence[str], found: Found) -> list[dict[str, Any]]:
    """Both classes in turn taken as the one to find."""
    truth, scores, rows = answers.truth, answers.scores, []
    assert scores is not None
    for k, name in enumerate(names):
        predicted, actual = answers.called == k, truth == k
        hits = int((predicted & actual).sum())
        auc = roc_auc_score(actual, scores if k else -scores) if 0 < actual.sum() < len(truth) else math.nan
        values = {
            "precision": (ratio(hits, predicted.sum()), found["precision", k]),
            "recall": (ratio(hits, actual.sum()), found["recall", k]),
            "f1": (ratio(2 * hits, predicted.sum() + actual.sum()) if actual.any() else math.nan, found["f1", k]),
            "roc_auc": (auc, found["roc_auc"]),
        }
        told = {key: as_json(interval_of(float(value), of, answers.unit)) for key, (value, of) in values.items()}
        rows.append({"class_name": name, "support": int(actual.sum()), **told})
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


def _interval_method(answers: Answers, called: str, resampling: Resampling) -> dict[str, Any]:
    method = method_of(answers.unit, called)
    return {"method": method, "unit": answers.unit, "units": answers.units, **asdict(resampling), "called": called}


def _refuse_empty(truth: Ints) -> None:
    if not len(truth):
        raise ValueError("nothing to evaluate: the split holds no labelled image")


def _normalised(probabilities: Floats) -> Floats:
    """Rows summing to 1 in float64, which float32 softmax misses by 1e-7."""
    return np.asarray(probabilities / probabilities.sum(axis=1, keepdims=True), np.float64)
