"""Fitting what a bundle knows of subjects to scores that its model was not fitted to, as counts a subject.

Rates: a beta-binomial of the cells called in each subject, its mean and overdispersion on a grid, under Jeffreys' prior
of the mean and a uniform one of the overdispersion (the shrinkage prior of Daniels 1999, doi:10.2307/3316112), so that
few subjects give wide limits instead of none. What a further subject may have is the mixture over that grid. The
roll-up: `model.subject_rules`, its four numbers at the mode of their posterior, their
covariance from the curvature there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.calibration import CalibratedOn
from pipeline.evaluation.definitions import Floats, Ints
from pipeline.evaluation.intervals import subject_codes
from pipeline.model.cell_rates import CONFIDENCE, DRAWN, CellRates, Rate
from pipeline.model.subject_rules import RollUp, SubjectLabel, SubjectRules

FEWEST_OF_RATES = 5  # subjects with cells of a kind: fewer tell nothing of the spread between them
FEWEST_OF_LABEL = 8  # subjects with the label, and without
_MEANS, _SPREADS, _VALUES = 80, 40, 240  # of the grids
_SHOWN = 3.84  # of twice the log-likelihood ratio: 1.96 squared, one side of 5 %
_NEGLIGIBLE = 1e-5  # of the largest weight
# of the roll-up's first three numbers, wide ones: mean and standard deviation
_PRIOR = np.array([[-1.5, 2.0], [0.5, 1.0], [-2.0, 1.5]])


@dataclass(frozen=True)
class CellCounts:
    """Cells of each subject, (K,) each."""

    diseased: Ints
    found: Ints  # of the diseased, called positive
    healthy: Ints
    alarms: Ints  # of the healthy, called positive
    subjects: list[str]

    @property
    def cells(self) -> Ints:
        return self.diseased + self.healthy

    @property
    def called(self) -> Ints:
        return self.found + self.alarms


def count_cells(diseased: NDArray[np.bool_], called: NDArray[np.bool_], subjects: Sequence[str | None]) -> CellCounts:
    """Of (N,) cells; those of no known subject are left out."""
    known = np.array([bool(subject) for subject in subjects])
    kept = [subject for subject in subjects if subject]
    codes, _ = subject_codes(kept, len(kept))
    sick, said, number = diseased[known], called[known], len(set(kept))
    parts = (sick, sick & said, ~sick, ~sick & said)
    a, b, c, d = (np.bincount(codes[rows], minlength=number).astype(np.int64) for rows in parts)
    return CellCounts(a, b, c, d, list(dict.fromkeys(kept)))


def fit_rules(
    counts: CellCounts, labels: Sequence[bool | None], label: SubjectLabel, *, on: CalibratedOn, threshold: float,
    temperature: float,
) -> SubjectRules:  # fmt: skip
    """Rates and roll-up, each where subjects are enough. `labels`: whether each subject is positive, None unknown."""
    rates, no_rates = fit_rates(counts, on)
    roll_up, no_roll_up = fit_roll_up(counts, labels, label, on)
    return SubjectRules(
        threshold=threshold, temperature=temperature, rates=rates, no_rates=no_rates, label=label, roll_up=roll_up,
        no_roll_up=no_roll_up,
    )  # fmt: skip


def fit_rates(counts: CellCounts, on: CalibratedOn) -> tuple[CellRates | None, str]:
    """The rates, or why there are none."""
    for cells, kind in ((counts.diseased, "diseased"), (counts.healthy, "healthy")):
        number = int(np.count_nonzero(cells))
        if number < FEWEST_OF_RATES:
            have = f"{number} of the {on} subjects have {kind} cells"
            return None, f"{have}, and at least {FEWEST_OF_RATES} are needed to say how they differ"
    found, alarms = fit_rate(counts.found, counts.diseased), fit_rate(counts.alarms, counts.healthy)
    rates = CellRates(on=on, found=found, alarms=alarms)
    if not rates.tell_cells_apart:
        return None, f"of the {on} cells, healthy ones are called positive as often as diseased ones"
    return rates, ""


def fit_rate(hits: Ints, cells: Ints) -> Rate:
    """Of (K,) subjects, `hits` among `cells`; those without cells tell nothing."""
    from scipy.special import betainc

    has = cells > 0
    pairs, times = np.unique(np.stack([hits[has], cells[has]]), axis=1, return_counts=True)
    likely = _posterior(pairs, times, (0.0, np.pi / 2), (0.0, 1.0))
    likely = _posterior(pairs, times, *likely.ends())  # the same grid, where the weight lies
    means, spreads = np.sin(likely.angle) ** 2, likely.root**2
    size = 1 / spreads - 1
    values = np.sin(np.linspace(0, np.pi / 2, _VALUES)) ** 2
    below = np.array([float(likely.weight @ betainc(means * size, (1 - means) * size, value)) for value in values])
    drawn = np.interp((np.arange(DRAWN) + 0.5) / DRAWN, below, values)
    low, high = _limits(means, likely.weight)
    return Rate(
        mean=float(likely.weight @ means), low=low, high=high, overdispersion=float(likely.weight @ spreads),
        cells=int(cells.sum()), subjects=int(has.sum()), of_subject=tuple(round(float(value), 6) for value in drawn),
    )  # fmt: skip


@dataclass(frozen=True)
class _Posterior:
    """Points of a grid that weigh anything, (G,) each: the mean is sin(angle)^2, the overdispersion root^2."""

    angle: Floats
    root: Floats
    weight: Floats  # sums to 1
    steps: tuple[float, float]

    def ends(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Angles and roots that it lies within."""
        (angle, root), bounds = self.steps, ((0.0, np.pi / 2), (0.0, 1.0))
        reach = ((self.angle.min() - angle, self.angle.max() + angle), (self.root.min() - root, self.root.max() + root))
        first, second = (
            (max(low, least), min(high, most)) for (low, high), (least, most) in zip(reach, bounds, strict=True)
        )
        return first, second


def _posterior(pairs: Ints, times: Ints, angles: tuple[float, float], roots: tuple[float, float]) -> _Posterior:
    """Of (hits, cells) pairs (2, P), each of so many subjects (P,)."""
    from scipy.special import betaln

    steps = (angles[1] - angles[0]) / _MEANS, (roots[1] - roots[0]) / _SPREADS
    one = angles[0] + (np.arange(_MEANS) + 0.5) * steps[0]
    other = roots[0] + (np.arange(_SPREADS) + 0.5) * steps[1]
    angle, root = (grid.ravel() for grid in np.meshgrid(one, other, indexing="ij"))
    size = 1 / root**2 - 1
    a, b = np.sin(angle) ** 2 * size, np.cos(angle) ** 2 * size
    log_weight = np.log(root)  # uniform in its square; Jeffreys' prior of the mean is uniform in the angle
    for hit, cell, count in zip(*pairs, times, strict=True):
        log_weight += count * (betaln(hit + a, cell - hit + b) - betaln(a, b))
    weight = np.exp(log_weight - log_weight.max())
    kept = weight > _NEGLIGIBLE
    return _Posterior(angle[kept], root[kept], weight[kept] / weight[kept].sum(), steps)


def _limits(values: Floats, weight: Floats) -> tuple[float, float]:
    """Of the mean, by its posterior."""
    order = np.argsort(values, kind="stable")
    share = weight[order].cumsum()
    ends = np.searchsorted(share, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2]).clip(max=len(values) - 1)
    low, high = values[order][ends]
    return float(low), float(high)


def fit_roll_up(
    counts: CellCounts, labels: Sequence[bool | None], label: SubjectLabel, on: CalibratedOn
) -> tuple[RollUp | None, str]:
    """The roll-up, or why there is none."""
    known = np.array([given is not None for given in labels], bool) & (counts.cells > 0)
    positive = np.array([bool(given) for given in labels], bool)
    positives, negatives = int((known & positive).sum()), int((known & ~positive).sum())
    if min(positives, negatives) < FEWEST_OF_LABEL:
        return None, (
            f"{positives} of the {on} subjects are positive ({label}) and {negatives} are not; at least "
            f"{FEWEST_OF_LABEL} of each are needed"
        )
    centre, covariance, is_shown = _mode(counts.called[known], counts.cells[known], positive[known])
    if not is_shown:
        return None, (
            f"{positives} positive subjects ({label}) and {negatives} others do not show that more cells are called in "
            "positive ones"
        )
    odds, uncertain = np.log(positives / negatives), 1 / positives + 1 / negatives
    whole = np.zeros((4, 4))
    whole[:3, :3], whole[3, 3] = covariance, uncertain
    rows = [tuple(round(float(value), 6) for value in row) for row in whole]
    middle = tuple(round(float(value), 6) for value in (*centre, odds))
    return RollUp.model_validate(
        {"positives": positives, "negatives": negatives, "centre": middle, "covariance": rows}
    ), ""


_Numbers = Callable[[Floats], float]


def _mode(called: Ints, cells: Ints, positive: NDArray[np.bool_]) -> tuple[Floats, Floats, bool]:
    """The most likely (3,) numbers under _PRIOR, the inverse curvature (3, 3) there, and whether the counts show that
    positive subjects have more cells called: by the likelihood ratio, against one share in all.
    """
    from scipy.optimize import minimize

    def unlikely(numbers: Floats) -> float:
        return -_likelihood(called, cells, positive, numbers)

    def loss(numbers: Floats) -> float:
        return unlikely(numbers) + float((((numbers - _PRIOR[:, 0]) / _PRIOR[:, 1]) ** 2).sum() / 2)

    def as_one(numbers: Floats) -> float:
        return unlikely(np.array([numbers[0], -np.inf, numbers[1]]))

    options = {"maxiter": 4000, "xatol": 1e-6, "fatol": 1e-9}
    at = np.asarray(minimize(loss, _PRIOR[:, 0], method="Nelder-Mead", options=options).x, np.float64)
    null = minimize(as_one, at[[0, 2]], method="Nelder-Mead", options=options)
    is_shown = 2 * (float(null.fun) - unlikely(at)) > _SHOWN
    return at, np.asarray(np.linalg.inv(_curvature(loss, at)), np.float64), is_shown


def _likelihood(called: Ints, cells: Ints, positive: NDArray[np.bool_], numbers: Floats) -> float:
    """Log of it, but for a constant, of the first three numbers of `RollUp.centre`."""
    from scipy.special import betaln, expit

    low, gap, spread = numbers
    share = expit(np.where(positive, low + np.exp(min(gap, 4.0)), low)).clip(1e-9, 1 - 1e-9)
    size = 1 / float(expit(spread).clip(1e-9, 1 - 1e-9)) - 1
    a, b = share * size, (1 - share) * size
    return float((betaln(called + a, cells - called + b) - betaln(a, b)).sum())


def _curvature(loss: _Numbers, at: Floats, step: float = 1e-3) -> Floats:
    """Second differences (3, 3), made positive definite where rounding leaves them flat."""
    ways = np.eye(len(at)) * step
    second = np.array([[_second(loss, at, one, other, step) for other in ways] for one in ways])
    values, vectors = np.linalg.eigh((second + second.T) / 2)
    return np.asarray(vectors @ np.diag(np.maximum(values, 1e-2)) @ vectors.T)


def _second(loss: _Numbers, at: Floats, one: Floats, other: Floats, step: float) -> float:
    ends = loss(at + one + other) - loss(at + one - other) - loss(at - one + other) + loss(at - one - other)
    return float(ends) / (4 * step * step)
