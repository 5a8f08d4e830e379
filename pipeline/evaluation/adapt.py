"""From a few labelled images of another laboratory to what a model should say there, by held-out likelihood.

Every change is one formula, probabilities of `logits / temperature + shift + features @ weight`, tried in the order
of its freedom: as it was; another temperature (Guo et al. 2017, arXiv:1706.04599); a shift of each class with it
(Alexandari et al. 2020, arXiv:1901.06852, for classes of another frequency); a head that is held near the old one by a
ridge. Folds never divide a subject, and a freer change is taken where the gain of held-out log-loss is larger than its
standard error over subjects (Breiman et al. 1984). Steps of isotonic regression are not offered:
docs/another-laboratory.md.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline.evaluation.calibration import Costs, threshold_for
from pipeline.evaluation.definitions import Floats, Ints
from pipeline.evaluation.intervals import clustered_error
from pipeline.model.prediction import probabilities

Kind = Literal["as it was", "temperature", "shifts", "head"]
STRENGTHS = (0.3, 3.0, 30.0)  # of the new head, C of its ridge on features of length about 1
_FOLDS = 5
_SHIFT_SPREAD, _TEMPERATURE_SPREAD = 2.0, 1.0  # standard deviations of the priors of shifts and log temperature
_TINY = 1e-12


@dataclass(frozen=True)
class Local:
    """Images of one place: what the network gives of them, and the truth."""

    logits: Floats  # (N, 1 or C), of the network, before any temperature
    targets: Ints  # (N,) class
    groups: Ints  # (N,) number of the subject
    positive: tuple[int, ...]  # classes that mean disease
    temperature: float  # as it was
    threshold: float
    features: NDArray[np.float32] | None = None  # (N, D); None: no head can be adapted

    def __len__(self) -> int:
        return len(self.targets)

    def of(self, rows: Ints) -> "Local":
        features = None if self.features is None else self.features[rows]
        return replace(
            self, logits=self.logits[rows], targets=self.targets[rows], groups=self.groups[rows], features=features
        )

    @property
    def diseased(self) -> Ints | None:
        """1 where the class means disease; None where none does."""
        return np.isin(self.targets, self.positive).astype(np.int64) if self.positive else None


@dataclass(frozen=True)
class Change:
    """What is done to a network's logits."""

    kind: Kind
    temperature: float
    shift: Floats  # (1 or C,)
    weight: Floats | None = None  # (1 or C, D)
    strength: float | None = None

    @property
    def keeps_order(self) -> bool:
        """Whether of two images the one of higher probability stays it: so with one logit and the old head."""
        return len(self.shift) == 1 and self.weight is None

    def __call__(self, local: Local) -> Floats:
        """Calibrated logits (N, 1 or C)."""
        found = local.logits / self.temperature + self.shift
        if self.weight is not None and local.features is not None:
            found = found + local.features.astype(np.float64) @ self.weight.T
        return found

    def values(self, local: Local) -> Floats:
        """Calibrated probability of disease (N,); of the top class where none means disease."""
        classes = probabilities(self(local))
        found: Floats = (
            classes[:, list(local.positive)].sum(axis=1).clip(0, 1) if local.positive else classes.max(axis=1)
        )
        return found


@dataclass(frozen=True)
class Tried:
    """A change on images that it was not fitted to."""

    kind: Kind
    loss: float  # mean log-loss
    gain: float  # over what was taken until then
    error: float  # standard error of the gain, over subjects; NaN of a single one
    strength: float | None = None

    @property
    def helps(self) -> bool:
        return self.gain > self.error


@dataclass(frozen=True)
class Adapted:
    """The change, what was tried, and the operating point."""

    change: Change
    tried: tuple[Tried, ...]  # the first is as it was
    values: Floats  # (N,) probabilities that the threshold is chosen on: of a new head, of images it did not learn from
    logits: Floats  # (N, 1 or C) of held-out images, calibrated
    threshold: float
    has_new_threshold: bool  # by the rule; else it is the parent's, carried over by `carried`
    decides_alike: bool = False  # each of the images, as the parent does


@dataclass(frozen=True)
class Asked:
    """What a person wants."""

    adapts_head: bool = False
    shifts: bool = True  # False where a class has too few images
    target_sensitivity: float | None = None
    costs: Costs | None = None
    seed: int = 0


def adapt(local: Local, asked: Asked = Asked()) -> Adapted:
    """The change that held-out likelihood asks for, fitted to all images; and the threshold by the rule."""
    with threadpool_limits(1, "blas"):  # the matrices are small: more threads wait for each other
        parts = folds(local, asked.seed)
        fit, current, tried = _chosen(local, parts, asked)
        change = fit(local)
        held = Change("as it was", 1.0, np.zeros(1)).values(replace(local, logits=current))
        values = held if change.kind == "head" else change.values(local)
        new = _threshold(local, values, parts, fit, asked)
    threshold = carried(local.threshold, local, change, values) if new is None else new
    is_alike = np.array_equal(values >= threshold, as_it_was(local).values(local) >= local.threshold)
    return Adapted(change, tuple(tried), values, current, threshold, new is not None, is_alike)


def carried(cut: float, local: Local, change: Change, values: Floats) -> float:
    """Where a cut of the probabilities as they were lies among those of the change, `values` (N,) of the images.

    Of one logit, whose order neither temperature nor shift moves, where it decides alike. Of several, or with a new
    head, where as many of the images lie above it.
    """
    if change.kind == "as it was" or not 0 < cut < 1:
        return cut
    if change.keeps_order:
        logit = math.log(cut) - math.log1p(-cut)
        moved = logit * local.temperature / change.temperature + float(change.shift[0])
        return math.exp(-float(np.logaddexp(0.0, -moved)))
    above = int((as_it_was(local).values(local) >= cut).sum())
    ends = np.r_[1.0, np.sort(values)[::-1], 0.0]
    return float(ends[above] + ends[above + 1]) / 2


def _chosen(local: Local, parts: Sequence[NDArray[np.bool_]], asked: Asked) -> tuple["Fit", Floats, list[Tried]]:
    """How to fit what is taken, its held-out logits (N, K), and all that was tried."""
    (current,), chosen = held_out(local, parts, _fits("as it was")), _fits("as it was")[0]
    tried = [Tried("as it was", float(losses_of(current, local.targets).mean()), 0.0, 0.0)]
    more: list[tuple[Kind, bool]] = [("temperature", True), ("shifts", asked.shifts), ("head", asked.adapts_head)]
    for kind in (kind for kind, is_wanted in more if is_wanted):
        found = held_out(local, parts, _fits(kind))
        losses = [losses_of(logits, local.targets) for logits in found]
        best = int(np.argmin([loss.mean() for loss in losses]))
        gained = _mean_and_error(losses_of(current, local.targets) - losses[best], local.groups)
        one = Tried(kind, float(losses[best].mean()), *gained, STRENGTHS[best] if kind == "head" else None)
        tried.append(one)
        if one.helps:
            current, chosen = found[best], _fits(kind)[best]
    return chosen, current, tried


def as_it_was(local: Local) -> Change:
    return Change("as it was", local.temperature, np.zeros(local.logits.shape[1]))


Fit = Callable[[Local], Change]


def _fits(kind: Kind) -> list[Fit]:
    """The ways to fit a kind of change: one, or of a head one for each strength."""
    if kind == "head":
        return [functools.partial(_head, strength=strength) for strength in STRENGTHS]
    of_kind: dict[Kind, Fit] = {"as it was": as_it_was, "temperature": _temperature, "shifts": _shifts}
    return [of_kind[kind]]


def _temperature(local: Local) -> Change:
    return _scaled(local, "temperature", shifted=False)


def _shifts(local: Local) -> Change:
    return _scaled(local, "shifts", shifted=True)


def _scaled(local: Local, kind: Kind, *, shifted: bool) -> Change:
    """Temperature, and where `shifted` a shift of each class, with weak priors about the temperature as it was and no
    shift: so that a few images, or scores that say nothing of them, have an optimum.
    """
    from scipy.optimize import minimize

    count = local.logits.shape[1]
    truth = _one_hot(local.targets, count)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        log_temperature, shift = parameters[0], parameters[1:]
        base = local.logits / (local.temperature * math.exp(log_temperature))
        wrong = (probabilities(base + shift) - truth)[:, -count:]
        prior = (log_temperature / _TEMPERATURE_SPREAD) ** 2 + float(((shift / _SHIFT_SPREAD) ** 2).sum())
        slope = np.append(
            -float((wrong * base).sum()) + log_temperature / _TEMPERATURE_SPREAD**2,
            wrong.sum(axis=0) + shift / _SHIFT_SPREAD**2,
        )
        return float(losses_of(base + shift, local.targets).sum()) + prior / 2, slope

    bounds = [(-3.0, 3.0)] + [(-12.0, 12.0) if shifted else (0.0, 0.0)] * count
    found = minimize(loss, np.zeros(1 + count), jac=True, method="L-BFGS-B", bounds=bounds)
    return Change(kind, local.temperature * math.exp(found.x[0]), np.asarray(found.x[1:], np.float64))


def _head(local: Local, strength: float) -> Change:
    """What is added to the old head after `_shifts`: its ridge lets few images move little.

    In the coordinates of the images' own span, where the optimum lies: as many as there are images.
    """
    assert local.features is not None, "asked for where features are known"
    base = _shifts(local)
    raw = local.features.astype(np.float64)
    mean, deviation = raw.mean(axis=0), raw.std(axis=0)
    scale = np.where(deviation > 1e-6 * max(float(deviation.max()), _TINY), deviation, np.inf) * math.sqrt(raw.shape[1])
    seen = np.hstack([(raw - mean) / scale, np.ones((len(raw), 1))])  # (N, D + 1)
    spread, directions = np.linalg.eigh(seen @ seen.T)
    kept = spread > 1e-9 * spread.max()
    roots = np.sqrt(spread[kept])
    found = _ridge(directions[:, kept] * roots, base(local), local.targets, strength)  # (R, K)
    delta = seen.T @ (directions[:, kept] / roots @ found)  # (D + 1, K)
    weight = (delta[:-1] / scale[:, None]).T
    return Change("head", base.temperature, base.shift + delta[-1] - weight @ mean, weight, strength)


def _ridge(places: Floats, base: Floats, targets: Ints, strength: float) -> Floats:
    """(R, K): what of places (N, R), added to logits `base` (N, K), minimises losses and |w|^2 / 2 C."""
    from scipy.optimize import minimize

    shape = places.shape[1], base.shape[1]
    truth = _one_hot(targets, shape[1])

    def loss(flat: Floats) -> tuple[float, Floats]:
        weight = flat.reshape(shape)
        logits = base + places @ weight
        wrong = (probabilities(logits) - truth)[:, -shape[1] :]
        value = float(losses_of(logits, targets).sum()) + float((weight**2).sum()) / (2 * strength)
        return value, (places.T @ wrong + weight / strength).ravel()

    found = minimize(loss, np.zeros(shape[0] * shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return np.asarray(found.x, np.float64).reshape(shape)


def _one_hot(targets: Ints, outputs: int) -> Floats:
    """(N, C) of C classes, two for one output."""
    return np.eye(max(2, outputs), dtype=np.float64)[targets]


def folds(local: Local, seed: int, count: int = _FOLDS) -> list[NDArray[np.bool_]]:
    """Which images each fold holds out; subjects are dealt in turn, those of one class after those of another."""
    groups = np.unique(local.groups)
    usual = np.array([np.bincount(local.targets[local.groups == group]).argmax() for group in groups])
    order = np.random.default_rng(seed).permutation(len(groups))
    order = order[np.argsort(usual[order], kind="stable")]
    number = np.empty(len(groups), np.int64)
    number[order] = np.arange(len(groups)) % min(count, len(groups))
    of_image = number[np.searchsorted(groups, local.groups)]
    return [of_image == k for k in range(min(count, len(groups)))]


def held_out(local: Local, parts: Sequence[NDArray[np.bool_]], fits: Sequence[Fit]) -> list[Floats]:
    """For each way to fit, calibrated logits (N, K) of each image by what was fitted to the other folds."""
    found = [np.zeros(local.logits.shape) for _ in fits]
    for out in parts:
        some, rest = local.of(np.flatnonzero(~out)), local.of(np.flatnonzero(out))
        for fit, logits in zip(fits, found, strict=True):
            logits[out] = fit(some)(rest)
    return found


def losses_of(logits: Floats, targets: Ints) -> Floats:
    """Log-loss (N,) of calibrated logits (N, K)."""
    chosen = probabilities(logits)[np.arange(len(targets)), targets]
    found: Floats = -np.log(np.maximum(chosen, _TINY))
    return found


def _mean_and_error(values: Floats, groups: Ints) -> tuple[float, float]:
    """Mean of (N,) and its standard error, whole subjects counting as one; NaN of a single one: nothing is known."""
    return float(values.mean()), clustered_error(values, groups)


def _threshold(
    local: Local, values: Floats, parts: Sequence[NDArray[np.bool_]], fit: Fit, asked: Asked
) -> float | None:
    """The operating point by the rule; None where it does no better on held-out images than what was decided before.

    One for a sensitivity is chosen in any case: it is a promise, no optimum.
    """
    truth = local.diseased
    if truth is None or not 0 < truth.sum() < len(truth):
        return None
    new = threshold_for(truth, values, asked.target_sensitivity, asked.costs, on="local").value
    if asked.target_sensitivity is not None:
        return new
    costs = asked.costs or Costs(1 / float(truth.mean()), 1 / (1 - float(truth.mean())))
    weight, gained = np.where(truth == 1, costs.missed, costs.false_alarm), np.zeros(len(truth))
    before = (as_it_was(local).values(local) >= local.threshold) != (truth == 1)
    for out in parts:
        some, rest = local.of(np.flatnonzero(~out)), local.of(np.flatnonzero(out))
        sides, change = some.diseased, fit(some)
        if sides is None or not 0 < sides.sum() < len(sides):
            continue
        cut = threshold_for(sides, change.values(some), None, asked.costs, on="local").value
        now = (change.values(rest) >= cut) != (truth[out] == 1)
        gained[out] = weight[out] * (before[out].astype(np.float64) - now)
    mean, error = _mean_and_error(gained, local.groups)
    return new if mean > error else None
