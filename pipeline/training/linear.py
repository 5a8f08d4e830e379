"""Logistic regression on features: fitted to its optimum, its strength chosen between subjects of the train split.

Features are standardised, and that is folded into the weights. The penalty is that of scikit-learn, |w|^2 / 2 C beside
the sum of losses, on standardised features; the intercept is free.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline.training.folds import dealt
from pipeline.training.objective import class_weights
from pipeline.training.settings import Settings

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# What is tried, C; with a thousand features the optimum usually lies near 3e-3
_STRENGTHS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_USUAL = 3e-3
_FOLDS = 5
_TOLERANCE, _ROUGH = 1e-6, 1e-4  # of the gradient's largest part; rough where strengths are compared
MOST_ITERATIONS = 5000
_COLUMNS = 64
_ROUNDING = 1e-6  # of single precision, in which features come


@dataclass(frozen=True)
class Learnt:
    """A head, and how it was found."""

    weight: NDArray[np.float32]  # (K, D)
    bias: NDArray[np.float32]  # (K,)
    strength: float  # C
    iterations: int

    def __call__(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, turns, D) -> logits (N, K): of a linear head, the mean over turns is that of the mean features."""
        mean = features.mean(axis=1, dtype=np.float64)
        return np.asarray(mean @ self.weight.T.astype(np.float64) + self.bias, np.float32)


@dataclass(frozen=True)
class Weighed:
    """What an image of each class counts, (C,), and what that adds to the logit of two classes."""

    of_class: Floats
    shift: float


def weigh(settings: Settings, targets: Ints) -> Weighed:
    """As `make_loss` weighs them, and as images drawn equally often would count.

    Of two classes, weights move no probability: the fit sees the logit of a world in which classes are as frequent as
    they weigh, the network gives that of the world as it is.
    """
    counts = np.bincount(targets, minlength=len(settings.classes)).astype(np.float64)
    weights = class_weights(settings, torch.from_numpy(counts).float()).numpy().astype(np.float64)
    if settings.balance == "sample":
        weights = weights / counts
    weights = weights * counts.sum() / (weights * counts).sum()
    return Weighed(weights, float(np.log(weights[1] / weights[0])) if settings.task == "binary" else 0.0)


def fit_head(
    turns: NDArray[np.float32], targets: Ints, weighed: Weighed, strength: float, settings: Settings
) -> Learnt:
    """The optimum for images, (N, turns, D), each of whose turns counts as its part of one image."""
    count, views, width = turns.shape
    flat = np.array(turns, np.float64).reshape(count * views, width)  # the one copy: twice as large as `turns`
    mean, deviation = _scale(flat)
    flat -= mean
    flat /= deviation
    labels = np.repeat(targets, views)
    found = _Regression(flat, labels, weighed.of_class[labels] / views, _TOLERANCE)
    weight, bias = found.fit(strength)
    weight, bias = weight / deviation, bias - (weight / deviation) @ mean
    if settings.task == "binary":
        bias = bias - weighed.shift
    elif len(weight) == 1:  # two classes of two outputs
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return Learnt(weight.astype(np.float32), bias.astype(np.float32), strength, found.iterations)


def choose_strength(
    features: NDArray[np.float32], targets: Ints, weighed: Weighed, groups: Ints, settings: Settings
) -> tuple[float, str]:
    """The strength with the least loss on held-out groups, (N,), and why it is that one, for a person.

    Features (N, D) are means over turns, whose best strength is that of the turns and is found four times as fast, in
    single precision. From the usual one in steps to whatever neighbour is better: the loss has one valley.
    """
    weights = weighed.of_class[targets]
    parts = list(_held_out(features, targets, weights, _folds(targets, groups, settings)))
    if not parts:
        return _USUAL, "the usual one: too few subjects to choose by"

    def loss(number: int) -> float:
        return sum(float(_losses(part, _STRENGTHS[number], targets, weights).sum()) for part in parts)

    number, tried = _lowest(loss, _STRENGTHS.index(_USUAL), len(_STRENGTHS))
    return _STRENGTHS[number], f"of {tried} tried, by {len(parts)} folds of the training subjects"


def held_out_losses(
    features: NDArray[np.float32], targets: Ints, weighed: Weighed, groups: Ints, settings: Settings
) -> Floats | None:
    """Log-loss (N,) of each image by a head of the usual strength that learnt from other groups' features (N, D).

    nan where no fold holds the image out; None where there are too few groups for any.
    """
    folds, weights = _folds(targets, groups, settings), weighed.of_class[targets]
    losses = np.full(len(targets), np.nan)
    for part in _held_out(features, targets, weights, folds):
        losses[part.out] = _losses(part, _USUAL, targets, weights)
    return losses if folds else None


def held_out_probabilities(features: NDArray[np.float32], targets: Ints, fold: Ints, classes: int) -> Floats:
    """What heads of the usual strength that learnt from the other folds, classes weighted alike, say of each image.

    Features (N, D), fold (N,) -> probabilities (N, classes); nan where the others lack a class that there is. In single
    precision.
    """
    counts = np.bincount(targets, minlength=classes)
    there = np.flatnonzero(counts)
    weights = (len(targets) / len(there) / np.maximum(1, counts))[targets]
    found = np.full((len(targets), classes), np.nan)
    folds = _whole([fold == number for number in np.unique(fold)], targets)
    for part in _held_out(features, targets, weights, folds):
        found[part.out] = 0.0
        found[np.ix_(part.out, there)] = np.exp(part.said(_USUAL))
    return found


@dataclass(frozen=True)
class _Part:
    """A regression on other images than those of a fold, and what is held out."""

    fitted: "_Regression"
    out: NDArray[np.bool_]  # (N,)
    values: NDArray[np.float32]  # (M, D), of the images that are held out

    def said(self, strength: float) -> Floats:
        """Logarithms of their probabilities (M, K), K classes that there are."""
        weight, bias = self.fitted.fit(strength)
        return _log_probabilities((self.values @ weight.T + bias).astype(np.float64))


def _held_out(
    features: NDArray[np.float32], targets: Ints, weights: Floats, folds: list[NDArray[np.bool_]]
) -> Iterator[_Part]:
    """One for each fold, in single precision; features (N, D), weights (N,)."""
    mean, deviation = _scale(features.astype(np.float64))
    values = ((features - mean) / deviation).astype(np.float32)
    for out in folds:
        yield _Part(_Regression(values[~out], targets[~out], weights[~out], _ROUGH), out, values[out])


def _losses(part: _Part, strength: float, targets: Ints, weights: Floats) -> Floats:
    """Of the images that are held out (M,), each weighing as in the fit."""
    truth = targets[part.out]
    found: Floats = -(weights[part.out] * part.said(strength)[np.arange(len(truth)), truth])
    return found


def _lowest(loss: Callable[[int], float], start: int, count: int) -> tuple[int, int]:
    """The lowest of a valley over 0 to `count` - 1, looked for from `start`; how many were looked at."""
    losses = {start: loss(start)}
    best = start
    for step in (1, -1):
        while 0 <= best + step < count and best + step not in losses:
            losses[best + step] = loss(best + step)
            if losses[best + step] >= losses[best]:
                break
            best += step
    return best, len(losses)


def _folds(targets: Ints, groups: Ints, settings: Settings) -> list[NDArray[np.bool_]]:
    """Which images each fold holds out; none where there are too few groups."""
    count = min(_FOLDS, len(np.unique(groups)))
    if count < 2:
        return []
    try:
        fold = dealt(targets, groups, count, settings.seed)
    except ValueError:  # no class has an image for each fold
        return []
    return _whole([fold == number for number in range(count)], targets)


def _whole(folds: list[NDArray[np.bool_]], targets: Ints) -> list[NDArray[np.bool_]]:
    """Without the folds that hold nothing out, and those without which a class is gone."""
    everything = len(np.unique(targets))
    return [out for out in folds if out.any() and len(np.unique(targets[~out])) == everything]


def mean_loss(logits: NDArray[np.float32], targets: Ints) -> float:
    """Log-loss of logits (N, 1 or C)."""
    return float(-_log_probabilities(logits.astype(np.float64))[np.arange(len(targets)), targets].mean())


def _scale(values: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation; 1 for a feature that is constant but for rounding, which would become noise."""
    mean = values.mean(axis=0)
    columns = range(0, values.shape[1], _COLUMNS)  # a standard deviation of all would copy all
    deviation = np.concatenate([values[:, at : at + _COLUMNS].std(axis=0) for at in columns])
    floor = _ROUNDING * np.maximum(np.abs(mean), deviation.max())
    return mean, np.where(deviation > floor, deviation, 1.0)


def _log_probabilities(logits: Floats) -> Floats:
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    found: Floats = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return found


class _Regression:
    """Fits of the same images, each going on from the one before."""

    def __init__(self, values: NDArray[np.floating], targets: Ints, weights: Floats, tolerance: float) -> None:
        from sklearn.linear_model import LogisticRegression

        self._values, self._targets, self._weights = values, targets, weights
        self._model = LogisticRegression(tol=tolerance, max_iter=MOST_ITERATIONS, warm_start=True)
        self.iterations = 0

    def fit(self, strength: float) -> tuple[Floats, Floats]:
        """Weights (1 or C, D) and intercepts (1 or C,). `iterations` says where the optimum was not reached."""
        from sklearn.exceptions import ConvergenceWarning

        # one thread, so that the number of cores moves no bit; more of them wait for memory, and for each other
        with warnings.catch_warnings(), threadpool_limits(1, "blas"):
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._model.set_params(C=strength).fit(self._values, self._targets, sample_weight=self._weights)
        self.iterations = int(self._model.n_iter_.max())
        return self._model.coef_, self._model.intercept_
