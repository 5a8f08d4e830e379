"""Labels and probabilities as the points of the report's curves, JSON-ready and bounded in size."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

from pipeline.evaluation.abstention import trade_off
from pipeline.evaluation.adverse import Parts, interval_of, limits, share
from pipeline.evaluation.definitions import Floats, Ints, equal_mass_bins
from pipeline.evaluation.intervals import Resampling, known_or_none, subject_codes

MAX_POINTS = 400
HISTOGRAM_BINS = 40
RELIABILITY_BINS = 10


def binary_curves(
    labels: ArrayLike,
    probabilities: ArrayLike,
    subjects: Sequence[str | None] | None = None,
    resampling: Resampling = Resampling(),
    *,
    threshold: float | None = None,
) -> dict[str, Any]:
    """ROC, precision-recall, net benefit, histogram of scores by class and reliability of a two-class model.

    With a threshold also what errors it spares to leave images to a person. A curve that needs a class the split lacks
    is None.
    """
    truth, scores = np.asarray(labels, np.int64), np.asarray(probabilities, np.float64)
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    counts = [np.histogram(scores[truth == k], edges)[0].tolist() for k in (0, 1)]
    return {
        "roc": _roc(truth == 1, scores),
        "pr": _precision_recall(truth == 1, scores),
        "net_benefit": net_benefit(truth == 1, scores),
        "histogram": {"edges": edges.tolist(), "negative": counts[0], "positive": counts[1]},
        "reliability": reliability(truth == 1, scores, subjects, resampling),
        "trade_off": None if threshold is None else trade_off(truth, scores, subjects, threshold),
    }


def multiclass_curves(
    labels: ArrayLike,
    probabilities: ArrayLike,
    class_names: Sequence[str],
    subjects: Sequence[str | None] | None = None,
    resampling: Resampling = Resampling(),
) -> dict[str, Any]:
    """One-vs-rest ROC of every class, and the reliability of the probability of the class called."""
    truth, scores = np.asarray(labels, np.int64), np.asarray(probabilities, np.float64)
    return {
        "roc_by_class": {name: _roc(truth == k, scores[:, k]) for k, name in enumerate(class_names)},
        "reliability": reliability(scores.argmax(axis=1) == truth, scores.max(axis=1), subjects, resampling),
    }


def reliability_of(
    truth: Ints,
    classes: Floats,
    task: str,
    subjects: Sequence[str | None] | None,
    resampling: Resampling = Resampling(),
) -> list[dict[str, Any]]:
    """The calibration curve of true classes (N,) and probabilities (N, C): of class 1 of two, else of the top class."""
    if task == "binary":
        return reliability(truth == 1, classes[:, 1], subjects, resampling)
    return reliability(classes.argmax(axis=1) == truth, classes.max(axis=1), subjects, resampling)


def net_benefit(positive: Any, scores: Floats) -> dict[str, Any] | None:
    """Decision curve (Vickers & Elkin 2006, doi:10.1177/0272989X06295361): what a threshold is worth.

    At a threshold p, one disease found weighs as much as (1 - p) / p false alarms; net benefit is the share of images
    rightly called less that of false alarms so weighed. `all` calls every image positive, calling none is worth 0. At
    the share of positive images as it is here, `prevalence`. None where a class is missing.
    """
    if not 0 < positive.sum() < len(positive):
        return None
    thresholds = np.linspace(0.01, 0.99, 99)
    called = scores[None, :] >= thresholds[:, None]  # (99, N)
    found, alarms = (called & positive).mean(axis=1), (called & ~positive).mean(axis=1)
    odds, prevalence = thresholds / (1 - thresholds), float(positive.mean())
    return {
        "threshold": thresholds.tolist(),
        "model": (found - alarms * odds).tolist(),
        "all": (prevalence - (1 - prevalence) * odds).tolist(),
        "prevalence": prevalence,
    }


def _roc(positive: Any, scores: Floats) -> dict[str, Any] | None:
    if not 0 < positive.sum() < len(positive):
        return None
    alarms, found, _ = roc_curve(positive, scores)
    keep = _thinned(len(alarms))
    area = float(roc_auc_score(positive, scores))
    return {"fpr": alarms[keep].tolist(), "tpr": found[keep].tolist(), "auc": area}


def _precision_recall(positive: Any, scores: Floats) -> dict[str, Any] | None:
    if not 0 < positive.sum() < len(positive):
        return None
    precision, recall, _ = precision_recall_curve(positive, scores)
    keep = _thinned(len(recall))
    return {
        "recall": recall[keep].tolist(),
        "precision": precision[keep].tolist(),
        "prevalence": float(positive.mean()),
    }


def reliability(
    happened: Any, scores: Floats, subjects: Sequence[str | None] | None, resampling: Resampling
) -> list[dict[str, Any]]:
    """Bins of equally many images: mean, lowest and highest probability, share that happened with its limits (or
    None), images.
    """
    bins = equal_mass_bins(scores, RELIABILITY_BINS)
    codes, unit = subject_codes(subjects, len(scores))
    in_bin = {int(k): bins == k for k in np.unique(bins)}
    shares: Parts = {k: share(codes, happened & rows, rows) for k, rows in in_bin.items()}
    found = limits(shares, int(codes.max()) + 1, resampling)
    points = []
    for k, rows in in_bin.items():
        told = interval_of(float(happened[rows].mean()), found[k], unit)
        points.append(
            {
                "probability": float(scores[rows].mean()),
                "lowest": float(scores[rows].min()),
                "highest": float(scores[rows].max()),
                "share": told.value,
                "low": known_or_none(told.low),
                "high": known_or_none(told.high),
                "images": int(rows.sum()),
            }
        )
    return points


def _thinned(points: int) -> Any:
    """Indices of at most MAX_POINTS points, both ends kept."""
    return np.unique(np.linspace(0, points - 1, min(points, MAX_POINTS)).round().astype(int))
