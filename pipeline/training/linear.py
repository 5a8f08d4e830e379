"""Logistic regression on features: fitted to its optimum, its strength chosen between subjects of the train split.

Features are standardised, and that is folded into the weights. The penalty is that of scikit-learn, |w|^2 / 2 C beside
the sum of losses, on standardised features; the intercept is free.
"""

import warnings
from collections.abc import Callable
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
_Asked = tuple[NDArray[np.float32], Ints, Floats]

# What is tried, C; with a thousand features the optimum usually lies near 3e-3
_STRENGTHS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_USUAL = 3e-3
_FOLDS = 5
_TOLERANCE, _ROUGH = 1e-6, 1e-4  # of the gradient's largest part; rough where strengths are compared
MOST_ITERATIONS = 5000
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
    flat = turns.reshape(count * views, width).astype(np.float64)
    mean, deviation = _scale(flat)
    labels = np.repeat(targets, views)
    found = _Regression((flat - mean) / deviation, labels, weighed.of_class[labels] / views, _TOLERANCE)
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
    parts = _held_out(features, targets, weighed, groups, settings)
    if not parts:
        return _USUAL, "the usual one: too few subjects to choose by"

    def loss(number: int) -> float:
        return sum(float(part.losses(_STRENGTHS[number], *asked).sum()) for part, _, asked in parts)

    number, tried = _lowest(loss, _STRENGTHS.index(_USUAL), len(_STRENGTHS))
    return _STRENGTHS[number], f"of {tried} tried, by {len(parts)} folds of the training subjects"


def held_out_losses(
    features: NDArray[np.float32], targets: Ints, weighed: Weighed, groups: Ints, settings: Settings
) -> Floats | None:
    """Log-loss (N,) of each image by a head of the usual strength that learnt from other groups' features (N, D).

    nan where no fold holds the image out; None where there are too few groups for any.
    """
    parts, losses = _held_out(features, targets, weighed, groups, settings), np.full(len(targets), np.nan)
    for part, out, asked in parts:
        losses[out] = part.losses(_USUAL, *asked)
    return losses if parts else None


def held_out_probabilities(features: NDArray[np.float32], targets: Ints, fold: Ints, classes: int) -> Floats:
    """What heads of the usual strength that learnt from the other folds, classes weighted alike, say of each image.

    Features (N, D), fold (N,) -> probabilities (N, classes); nan where the others lack a class that there is. In single
    precision.
    """
    counts = np.bincount(targets, minlength=classes)
    there = np.flatnonzero(counts)
    weights = (len(targets) / len(there) / np.maximum(1, counts))[targets]
    mean, deviation = _scale(features.astype(np.float64))
    values = ((features - mean) / deviation).astype(np.float32)
    found = np.full((len(targets), classes), np.nan)
    for number in np.unique(fold):
        out = fold == number
        if len(np.unique(targets[~out])) == len(there):
            weight, bias = _Regression(values[~out], targets[~out], weights[~out], _ROUGH).fit(_USUAL)
            found[out] = 0.0
            found[np.ix_(out, there)] = np.exp(_log_probabilities((values[out] @ weight.T + bias).astype(np.float64)))
    return found


def _held_out(
    features: NDArray[np.float32], targets: Ints, weighed: Weighed, groups: Ints, settings: Settings
) -> "list[tuple[_Regression, NDArray[np.bool_], _Asked]]":
    """For each fold a regression on the other groups, which images it holds out, and what `losses` takes of them.

    In single precision; nothing where there are too few groups.
    """
    count = min(_FOLDS, len(np.unique(groups)))
    folds = _folds(targets, groups, count, settings) if count > 1 else []
    mean, deviation = _scale(features.astype(np.float64))
    values, weights = ((features - mean) / deviation).astype(np.float32), weighed.of_class[targets]
    return [
        (
            _Regression(values[~out], targets[~out], weights[~out], _ROUGH),
            out,
            (values[out], targets[out], weights[out]),
        )
        for out in folds
    ]


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


def _folds(targets: Ints, groups: Ints, count: int, settings: Settings) -> list[NDArray[np.bool_]]:
    """Which images each fold holds out; folds without which a class is gone are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer groups than folds
        try:
            fold = dealt(targets, groups, count, settings.seed)
        except ValueError:  # no class has an image for each fold
            return []
    held_out = [fold == number for number in range(count)]
    everything = len(np.unique(targets))
    return [out for out in held_out if out.any() and len(np.unique(targets[~out])) == everything]


def mean_loss(logits: NDArray[np.float32], targets: Ints) -> float:
    """Log-loss of logits (N, 1 or C)."""
    return float(-_log_probabilities(logits.astype(np.float64))[np.arange(len(targets)), targets].mean())


def _scale(values: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation; 1 for a feature that is constant but for rounding, which would become noise."""
    mean, deviation = values.mean(axis=0), values.std(axis=0)
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

    def losses(self, strength: float, values: NDArray[np.floating], targets: Ints, weights: Floats) -> Floats:
        """The losses of other images (N,)."""
        weight, bias = self.fit(strength)
        said = _log_probabilities((values @ weight.T + bias).astype(np.float64))
        found: Floats = -(weights * said[np.arange(len(targets)), targets])
        return found
