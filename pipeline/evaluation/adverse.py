"""The one method of all intervals: a Bayesian bootstrap over subjects with one adverse subject added.

Images of one subject are not independent, so a sample gives each subject a random weight, drawn from the standard
exponential distribution (Rubin 1981, doi:10.1214/aos/1176345338). Few subjects cannot show what others would be like.
So for the lower limit a subject is added, as large as the mean one, whose images are all answered wrongly, and for the
upper limit one whose images are all answered rightly, weighted likewise; a limit is a quantile over the samples.

For a mean over subjects of one size this is the bound of Gaffke (2005; Learned-Miller & Thomas 2019, arXiv:1905.06208);
where each subject is all right or all wrong it is Clopper and Pearson's with subjects as trials. An answer that
turns wrong lowers the metric in every sample, so no limit moves towards the better side. Sample r and subject k get
the same weight in all tables of a split, so one quantity has one interval. Why this method, by its coverage and that of
others: `tests/interval_coverage.py`, with its table in docs/evaluate.md.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.evaluation.definitions import Floats, Ints, rank_metrics
from pipeline.evaluation.intervals import Interval, Resampling

METHOD = "Bayesian bootstrap over {units}, one adverse {unit} added"
FEWEST_UNITS = 2  # of a side: one says nothing of the spread between them
_CHUNK = 100  # samples at a time; another number would draw others


@dataclass(frozen=True)
class Draws:
    """Weights of R' samples, all positive."""

    units: Floats  # (R', K), of each subject
    adverse: Floats  # (R', C), of the subject that is added; a column for each class of which there is one


def draws(units: int, classes: int, resampling: Resampling) -> Iterator[Draws]:
    """All samples, some at a time. A unit more, or a class more, leaves the weights of the others as they are."""
    for start in range(0, resampling.replicates, _CHUNK):
        count = min(_CHUNK, resampling.replicates - start)
        one, other = np.random.SeedSequence((resampling.seed, start)).spawn(2)
        of_units = np.random.default_rng(one).standard_exponential((units, _CHUNK)).T
        of_adverse = np.random.default_rng(other).standard_exponential((classes, _CHUNK)).T
        yield Draws(of_units[:count], of_adverse[:count])


class Bounded(Protocol):
    """A metric in 0..1 that can be told of samples with an adverse subject, and of such with a helpful one."""

    def bounds(self, drawn: Draws) -> tuple[Floats, Floats]: ...  # (R',) and (R',)


@dataclass(frozen=True)
class Share:
    """A metric that is one sum over images divided by another."""

    units: Ints  # (k,), the subjects that it rests on
    top: Floats  # (k,), their parts of both sums
    bottom: Floats
    wrong: float  # what the subject for the lower limit adds to the bottom
    right: tuple[float, float]  # what the one for the upper limit adds to top and bottom
    column: int = 0

    def bounds(self, drawn: Draws) -> tuple[Floats, Floats]:
        weights, added = drawn.units[:, self.units], drawn.adverse[:, self.column]
        top, bottom = weights @ self.top, weights @ self.bottom
        above, below = self.right
        return top / (bottom + added * self.wrong), (top + added * above) / (bottom + added * below)


def share(
    codes: Ints,
    top: ArrayLike,
    bottom: ArrayLike,
    *,
    size: float | None = None,
    right: tuple[float, float] = (1.0, 1.0),
    column: int = 0,
) -> Share | None:
    """Share of what images add to two sums, top (N,) and bottom (N,), with `codes` (N,); None of fewer than two units.

    `size`: of the subject added, as it counts at the bottom (default: of the mean unit there); for the upper limit it
    adds so many times its size to top and bottom.
    """
    above, below = (np.bincount(codes, part).astype(np.float64) for part in (top, bottom))
    units = np.flatnonzero(below)
    if len(units) < FEWEST_UNITS:
        return None
    added = float(below.sum()) / len(units) if size is None else size
    return Share(units, above[units], below[units], added, (right[0] * added, right[1] * added), column)


class Area:
    """ROC-AUC of positive (N,) by scores (N,): added are a subject of the positives and one of the negatives."""

    def __init__(self, positive: NDArray[np.bool_], scores: Floats, codes: Ints) -> None:
        self._codes, self._positive, self._ranking = codes, positive, rank_metrics(positive, scores)
        self._added = [mean_size(codes[positive]), mean_size(codes[~positive])]

    def bounds(self, drawn: Draws) -> tuple[Floats, Floats]:
        weights = drawn.units[:, self._codes]
        sick = weights @ self._positive
        pairs = sick * (weights.sum(axis=1) - sick)
        more = drawn.adverse[:, :2] * self._added
        all_pairs = (sick + more[:, 0]) * (weights.sum(axis=1) - sick + more[:, 1])
        won = self._ranking(weights)[0] * pairs
        return won / all_pairs, np.minimum(1.0, (won + all_pairs - pairs) / all_pairs)  # rounding exceeds 1 by 2e-16


class AveragePrecision:
    """Average precision likewise: those added are ranked last and first, or first and last.

    Of weighted images it is the area under precision over recall: a positive of weight w behind positives of weight u
    and false alarms of weight f adds the integral of t / (t + f) over t from u to u + w. The usual sum, (u + w) times
    w / (u + w + f), depends on which of two neighbouring positives comes first, so a mistake could raise it.
    """

    def __init__(self, positive: NDArray[np.bool_], scores: Floats, codes: Ints) -> None:
        self._codes = codes
        self._added = [mean_size(codes[positive]), mean_size(codes[~positive])]
        ends = np.append(positive, [True, False])
        self._areas = [_precision_area(ends, np.append(scores, [edge, -edge])) for edge in (-np.inf, np.inf)]

    def bounds(self, drawn: Draws) -> tuple[Floats, Floats]:
        weights = np.hstack([drawn.units[:, self._codes], drawn.adverse[:, :2] * self._added])
        low, high = (np.minimum(1.0, area(weights)) for area in self._areas)
        return low, high


def _precision_area(positive: NDArray[np.bool_], scores: Floats) -> Callable[[Floats], Floats]:
    """A function from positive weights (R, N) to that area (R,); equal scores count with all their false alarms."""
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, scores[order][1:] != scores[order][:-1]])  # of each run of equal scores
    positive = positive[order]

    def area(weights: Floats) -> Floats:
        weights = weights[:, order]
        hits = np.add.reduceat(weights * positive, starts, axis=1)  # (R, distinct scores), highest first
        false = np.add.reduceat(weights * ~positive, starts, axis=1).cumsum(axis=1)
        true = hits.cumsum(axis=1)
        growth = np.divide(hits, true - hits + false, out=np.zeros_like(hits), where=false > 0)
        found: Floats = (hits - false * np.log1p(growth)).sum(axis=1) / true[:, -1]
        return found

    return area


def mean_size(codes: Ints) -> float:
    """Images a unit, of codes (N,); 0 of none."""
    return len(codes) / max(1, len(np.unique(codes)))


Parts = Mapping[Hashable, Bounded | None]
Limits = tuple[float, float]
NO_LIMITS: Limits = (np.nan, np.nan)


def samples(
    metrics: Parts, units: int, resampling: Resampling, means: Mapping[Hashable, Sequence[Hashable]] = {}
) -> dict[Hashable, Floats]:
    """Of each metric that is not None, and of each of `means`, what it is in samples with an adverse subject and in
    such with a helpful one (2, R). Sample r has the same weights for whatever is asked of the same subjects.
    """
    known = {key: metric for key, metric in metrics.items() if metric is not None}
    classes = 2 + max((metric.column for metric in known.values() if isinstance(metric, Share)), default=0)
    found: dict[Hashable, list[tuple[Floats, Floats]]] = {key: [] for key in known}
    for drawn in draws(units, classes, resampling) if known else ():
        for key, metric in known.items():
            found[key].append(metric.bounds(drawn))
    drawn_of = {key: np.concatenate(pairs, axis=1) for key, pairs in found.items()}
    for key, parts in means.items():
        if parts and all(part in drawn_of for part in parts):
            drawn_of[key] = np.mean([drawn_of[part] for part in parts], axis=0)
    return drawn_of


def limits(
    metrics: Parts, units: int, resampling: Resampling, means: Mapping[Hashable, Sequence[Hashable]] = {}
) -> dict[Hashable, Limits]:
    """Limits of each metric; none (NaN) where it is None. `means` names further ones that are means of some."""
    drawn_of = samples(metrics, units, resampling, means)
    return {
        key: limits_of(drawn_of[key], resampling.confidence) if key in drawn_of else NO_LIMITS
        for key in [*metrics, *means]
    }


def limits_of(drawn: Floats, confidence: float) -> Limits:
    """Of a metric, from its samples (2, R)."""
    tail = (1 - confidence) / 2
    return float(np.quantile(drawn[0], tail)), float(np.quantile(drawn[1], 1 - tail))


def paired_limits(first: Floats, second: Floats, confidence: float) -> Limits:
    """Of a metric of some answers less the same of others to the same images, both of `samples` (2, R), paired.

    The subject for the lower limit is answered all wrongly first and all rightly second; that for the upper limit the
    other way round.
    """
    tail = (1 - confidence) / 2
    return float(np.quantile(first[0] - second[1], tail)), float(np.quantile(first[1] - second[0], 1 - tail))


def interval_of(value: float, found: Limits, unit: str) -> Interval:
    """The value with its limits, which always hold it; no limits of what is undefined."""
    if np.isnan(value):
        return Interval(np.nan, np.nan, np.nan, unit)
    low, high = found
    return Interval(value, *((low, high) if np.isnan(low) else (min(low, value), max(high, value))), unit)
