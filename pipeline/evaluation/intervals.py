"""Uncertainty of metrics: bootstrap intervals over subjects, and what takes their place where resampling is blind.

Images of one subject are not independent, so the bootstrap draws whole subjects with replacement (cluster bootstrap;
Field & Welsh, 2007, doi:10.1111/j.1467-9868.2007.00593.x). A drawn sample is a row of integer weights over the images;
all metrics of all replicates are then a few matrix products: 1,000 replicates of 3,000 images take about a second.

Where all replicates are alike (a proportion of exactly 0 or 1, a perfect ranking) the bootstrap would claim certainty.
`honest` puts a Wilson or a Newcombe interval there, and none where one subject is all there is to a class.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pipeline.evaluation.definitions import Floats, Ints, weighted_binary

_WEIGHTS_PER_CHUNK = 4_000_000  # float64: 32 MB of weights at a time, whatever the number of images
_FEWEST = 2  # clusters of a side: one says nothing of the spread between clusters
PROPORTIONS = frozenset({"accuracy", "precision", "sensitivity", "specificity", "recall"})
AREAS = frozenset({"roc_auc"})


@dataclass(frozen=True)
class Interval:
    """A value with its confidence limits; NaN where undefined. `unit` is what was resampled or counted."""

    value: float
    low: float
    high: float
    unit: str = "image"


def known_or_none(value: float) -> float | None:
    return None if np.isnan(value) else value


def as_json(interval: Interval) -> dict[str, Any]:
    return {key: value if isinstance(value, str) else known_or_none(value) for key, value in asdict(interval).items()}


@dataclass(frozen=True)
class Resampling:
    """How the bootstrap is drawn: so many samples, limits of so much confidence, from this seed."""

    replicates: int = 1000
    confidence: float = 0.95
    seed: int = 0


def wilson_interval(successes: int, total: int, confidence: float = 0.95) -> Interval:
    """Score interval of a proportion (Wilson, 1927, doi:10.1080/01621459.1927.10502953); NaN of nothing."""
    if not 0 <= successes <= total:
        raise ValueError(f"successes must lie in 0..{total}, got {successes}")
    if total == 0:
        return Interval(np.nan, np.nan, np.nan)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    margin = z / (1 + z * z / total) * np.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    low = 0.0 if successes == 0 else float(centre - margin)  # exact at the ends, where rounding would leave 1e-17
    high = 1.0 if successes == total else float(centre + margin)
    return Interval(share, low, high)


def auc_edge(area: float, positives: int, negatives: int, confidence: float = 0.95) -> Interval:
    """Interval of a ROC-AUC of exactly 0 or 1, from how many of each side there are.

    Method 5 of Newcombe, 2006 (doi:10.1002/sim.2324): the values whose standard error by Hanley & McNeil, with the
    mean number of both sides in place of each, reaches the one that was seen.
    """
    from scipy.optimize import brentq  # 0.2 s to import: scoring needs none of it

    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    others = (positives + negatives) / 2 - 1

    def gap(shortfall: float) -> float:  # (1 - theta)^2 = z^2 var(theta), divided by 1 - theta
        theta = 1 - shortfall
        spread = 1 + others * (shortfall / (2 - theta) + theta / (1 + theta))
        return shortfall - z * z * theta * spread / (positives * negatives)

    short = float(brentq(gap, 0.0, 1.0))
    return Interval(1.0, 1 - short, 1.0) if area == 1.0 else Interval(0.0, 0.0, short)


def subject_codes(subjects: Sequence[str | None] | None, images: int) -> tuple[Ints, str]:
    """Cluster number of every image, and the unit resampled: 'subject', or 'image' where no subject is known.

    Among known subjects, an image without one is a cluster of its own.
    """
    if subjects is None or all(subject is None or subject == "" for subject in subjects):
        return np.arange(images), "image"
    if len(subjects) != images:
        raise ValueError(f"{images} images but {len(subjects)} subjects")
    codes: dict[object, int] = {}
    keys = (subject if subject else (row,) for row, subject in enumerate(subjects))
    return np.array([codes.setdefault(key, len(codes)) for key in keys], dtype=np.int64), "subject"


def resampled_weights(codes: Ints, replicates: int, seed: int) -> Iterator[Floats]:
    """Yield float64 (R', N) weights, R' summing to `replicates`: how often each image is in each drawn sample."""
    rng = np.random.default_rng(seed)
    clusters = int(codes.max()) + 1
    rows = max(1, _WEIGHTS_PER_CHUNK // len(codes))
    for start in range(0, replicates, rows):
        count = min(rows, replicates - start)
        drawn = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=count)  # (R', clusters)
        yield drawn[:, codes].astype(np.float64)


def percentile_limits(drawn: Floats, confidence: float) -> tuple[float, float]:
    """Percentile limits of replicates (R,); NaN where fewer than half of them are defined."""
    defined = drawn[~np.isnan(drawn)]
    if len(defined) * 2 < len(drawn) or not len(defined):
        return np.nan, np.nan
    low, high = np.quantile(defined, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def bootstrap(
    metrics: Callable[[Floats], dict[str, Floats]], codes: Ints, unit: str, resampling: Resampling
) -> dict[str, list[Interval]]:
    """Intervals of every metric, one of each class (a list of one for plain metrics).

    A single cluster says nothing of the spread between clusters: limits are NaN then.
    """
    points = metrics(np.ones((1, len(codes))))
    drawn: dict[str, list[Floats]] = {name: [] for name in points}
    if codes.max() > 0:
        for weights in resampled_weights(codes, resampling.replicates, resampling.seed):
            for name, values in metrics(weights).items():
                drawn[name].append(values.reshape(len(weights), -1))
    intervals: dict[str, list[Interval]] = {}
    for name, point in points.items():
        values = np.concatenate(drawn[name]) if drawn[name] else np.full((1, point.size), np.nan)
        intervals[name] = [
            Interval(float(value), *percentile_limits(values[:, k], resampling.confidence), unit)
            if not np.isnan(value)
            else Interval(np.nan, np.nan, np.nan, unit)
            for k, value in enumerate(point.reshape(-1))
        ]
    return intervals


def bootstrap_intervals(
    labels: ArrayLike,
    probabilities: ArrayLike,
    subjects: Sequence[str | None] | None,
    threshold: float,
    resampling: Resampling = Resampling(),
) -> dict[str, Interval]:
    """Intervals of every binary metric, subjects resampled; `Interval.unit` is 'image' where none is known.

    Limits are `honest`: of sides with one subject there are none.
    """
    truth = np.asarray(labels, dtype=np.int64)
    scores = np.asarray(probabilities, dtype=np.float64)
    codes, unit = subject_codes(subjects, len(truth))
    metrics = weighted_binary(truth, scores, threshold)
    drawn = bootstrap(metrics, codes, unit, resampling)
    intervals = {name: values[0] for name, values in drawn.items()}
    positive, negative, every = codes[truth == 1], codes[truth == 0], codes
    rests_on = {
        "accuracy": (every,),
        "balanced_accuracy": (positive, negative),
        "precision": (codes[scores >= threshold],),
        "sensitivity": (positive,),
        "specificity": (negative,),
        "f1": (positive,),
        "roc_auc": (positive, negative),
        "pr_auc": (positive, negative),
        "brier": (every,),
        "ece": (every,),
    }
    return {name: honest(name, interval, rests_on[name], resampling.confidence) for name, interval in intervals.items()}


def honest(name: str, interval: Interval, sides: Sequence[Ints], confidence: float) -> Interval:
    """The interval of metric `name`, with limits that do not claim more than the data can.

    `sides` are the cluster numbers of the images that it rests on, one array a side (the diseased; both classes).
    No limits (NaN) where a side has fewer than two clusters. Where the replicates were all alike: Wilson's limits for a
    proportion of 0 or 1, with clusters (not images) as trials; Newcombe's for a ROC-AUC of 0 or 1; else none.
    """
    counts = [len(np.unique(side)) for side in sides]
    if np.isnan(interval.value) or min(counts) < _FEWEST:
        return Interval(interval.value, np.nan, np.nan, interval.unit)
    if interval.low != interval.high:
        return interval
    edge = Interval(interval.value, np.nan, np.nan)
    if interval.value in (0.0, 1.0) and name in PROPORTIONS:
        edge = wilson_interval(counts[0] if interval.value == 1.0 else 0, counts[0], confidence)
    elif interval.value in (0.0, 1.0) and name in AREAS:
        edge = auc_edge(interval.value, counts[0], counts[1], confidence)
    return Interval(interval.value, edge.low, edge.high, interval.unit)
