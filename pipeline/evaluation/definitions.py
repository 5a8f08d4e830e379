"""Every metric, defined once: as a function of how often each image counts.

A drawn sample of a split is a row of integer weights over its images, so all metrics of many samples are a few matrix
products; the split itself has a weight of 1 everywhere (`binary_metrics`, `multiclass_metrics`). An undefined value is
NaN. A case is called positive where probability >= threshold.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ECE_BINS = 15


def binary_metrics(labels: ArrayLike, probabilities: ArrayLike, threshold: float) -> dict[str, float]:
    """Labels 0/1 (N,), probabilities of class 1 (N,), N > 0."""
    truth, scores = binary_arrays(labels, probabilities)
    return _points(weighted_binary(truth, scores, threshold), len(truth))


def multiclass_metrics(labels: Ints, probabilities: Floats) -> dict[str, float]:
    """Labels 0..C-1 (N,), probabilities (N, C); the metrics over all classes."""
    return _points(weighted_multiclass(labels, probabilities), len(probabilities))


def _points(metrics: Callable[[Floats], dict[str, Floats]], images: int) -> dict[str, float]:
    return {name: float(value[0]) for name, value in metrics(np.ones((1, images))).items() if value.ndim == 1}


def binary_arrays(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Ints, Floats]:
    """Checked: labels 0 or 1 (N,), finite probabilities (N,). Raises ValueError."""
    truth, scores = np.asarray(labels, np.int64), np.asarray(probabilities, np.float64)
    if truth.shape != scores.shape or truth.ndim != 1:
        raise ValueError(f"expected labels and probabilities of one length, got {truth.shape} and {scores.shape}")
    if not np.isin(truth, (0, 1)).all() or not np.isfinite(scores).all():
        raise ValueError("labels must be 0 or 1 and probabilities finite")
    return truth, scores


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> Floats:
    """Numerator / denominator, NaN where the denominator is 0."""
    top, bottom = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    result: Floats = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)
    return result


def equal_mass_bins(probabilities: Floats, bins: int = ECE_BINS) -> Ints:
    """Bin number (N,) of each probability, bins holding equally many images as far as ties allow.

    The calibration error is the mean gap between probability and observed share over such bins: Naeini et al. 2015
    with the adaptive bins of Nixon et al. 2019 (arXiv:1904.01685), which do not waste bins where no scores lie.
    """
    edges = np.quantile(probabilities, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(np.unique(edges), probabilities, side="left").astype(np.int64)


def weighted_binary(labels: Ints, probabilities: Floats, threshold: float) -> Callable[[Floats], dict[str, Floats]]:
    """A function from weights (R, N) to every binary metric (R,), equal to scikit-learn's with sample weights."""
    positive = labels == 1
    called = probabilities >= threshold
    counts = np.stack([positive & called, positive & ~called, ~positive & called, ~positive & ~called], axis=1)
    bins = equal_mass_bins(probabilities)
    gaps = np.where(bins[:, None] == np.arange(bins.max() + 1), (probabilities - positive)[:, None], 0.0)
    squared = (probabilities - positive) ** 2
    ranking = rank_metrics(positive, probabilities)

    def metrics(weights: Floats) -> dict[str, Floats]:
        tp, fn, fp, tn = (weights @ counts.astype(np.float64)).T
        total = tp + fn + fp + tn
        sensitivity, specificity = ratio(tp, tp + fn), ratio(tn, tn + fp)
        roc_auc, pr_auc = ranking(weights)
        return {
            "accuracy": ratio(tp + tn, total),
            "balanced_accuracy": (sensitivity + specificity) / 2,
            "precision": ratio(tp, tp + fp),
            "sensitivity": sensitivity,
            "specificity": specificity,
            "f1": np.where(tp + fn > 0, ratio(2 * tp, 2 * tp + fp + fn), np.nan),
            "roc_auc": roc_auc,
            "pr_auc": pr_auc,
            "brier": ratio(weights @ squared, total),
            "ece": ratio(np.abs(weights @ gaps).sum(axis=1), total),
        }

    return metrics


def rank_metrics(positive: NDArray[np.bool_], scores: Floats) -> Callable[[Floats], tuple[Floats, Floats]]:
    """A function from weights (R, N) to ROC-AUC (R,) and average precision (R,); ties count half, one class is NaN."""
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])  # first row of each run of equal scores
    positive = positive[order]

    def metrics(weights: Floats) -> tuple[Floats, Floats]:
        weights = weights[:, order]
        hits = np.add.reduceat(weights * positive, starts, axis=1)  # (R, distinct scores), highest first
        alarms = np.add.reduceat(weights * ~positive, starts, axis=1)
        true, false = hits.cumsum(axis=1), alarms.cumsum(axis=1)
        wins = (alarms * (true - hits / 2)).sum(axis=1)
        precision = np.nan_to_num(ratio(true, true + false))
        average = ratio((hits * precision).sum(axis=1), true[:, -1])
        return ratio(wins, true[:, -1] * false[:, -1]), np.where(false[:, -1] > 0, average, np.nan)

    return metrics


def weighted_multiclass(labels: Ints, probabilities: Floats) -> Callable[[Floats], dict[str, Floats]]:
    """A function from weights (R, N) to the metrics of C classes: (R,) each, or (R, C) for the per-class ones.

    `probabilities` is (N, C). Macro averages leave out classes that a sample lacks.
    """
    classes = probabilities.shape[1]
    called = probabilities.argmax(axis=1)
    cells = labels * classes + called
    truth = labels[:, None] == np.arange(classes)
    squared = ((probabilities - truth) ** 2).sum(axis=1)
    top = probabilities.max(axis=1)
    bins = equal_mass_bins(top)
    gaps = np.where(bins[:, None] == np.arange(bins.max() + 1), (top - (called == labels))[:, None], 0.0)
    rankings = [rank_metrics(truth[:, k], probabilities[:, k]) for k in range(classes)]

    def metrics(weights: Floats) -> dict[str, Floats]:
        counted = [np.bincount(cells, of_sample, classes * classes) for of_sample in weights]
        confusion = np.array(counted).reshape(-1, classes, classes)  # (R, true, called)
        hits, support, predicted = (
            np.einsum("rkk->rk", confusion),
            confusion.sum(axis=2),
            confusion.sum(axis=1),
        )
        recall = ratio(hits, support)
        f1 = np.where(support > 0, ratio(2 * hits, support + predicted), np.nan)
        auc = np.stack([ranking(weights)[0] for ranking in rankings], axis=1)
        total = support.sum(axis=1)
        return {
            "accuracy": ratio(hits.sum(axis=1), total),
            "balanced_accuracy": _mean_of_defined(recall),
            "f1_macro": _mean_of_defined(f1),
            "roc_auc_macro": _mean_of_defined(auc),
            "brier": ratio(weights @ squared, total),
            "ece": ratio(np.abs(weights @ gaps).sum(axis=1), total),
            "class_precision": ratio(hits, predicted),
            "class_recall": recall,
            "class_f1": f1,
            "class_roc_auc": auc,
        }

    return metrics


def _mean_of_defined(values: Floats) -> Floats:
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1))
