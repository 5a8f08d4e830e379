"""The divisor of logits that makes probabilities of them: fitted to images that the model did not learn from."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pipeline.evaluation.definitions import Floats, Ints
from pipeline.model.prediction import probabilities

TEMPERATURE_BOUNDS = (0.05, 20.0)


@dataclass(frozen=True)
class Temperature:
    """The divisor of the logits; `reason` says how it was found, or why it was left at 1."""

    value: float
    reason: str


def fit_temperature(logits: ArrayLike, labels: ArrayLike, *, on: str = "validation") -> Temperature:
    """Temperature scaling (Guo et al. 2017, arXiv:1706.04599): minimise the log-loss of logits / T.

    Logits are (N,) or (N, 1) for two classes with one output, (N, C) for C classes. T stays at 1 where the data cannot
    tell it: one class, a separable split (the best T is 0) or uninformative scores (the best T is infinite).
    """
    logits = _as_class_logits(np.asarray(logits, np.float64))
    from scipy.optimize import minimize_scalar  # half a second to import, and needed when training has ended
    from scipy.special import log_softmax

    truth = np.asarray(labels, np.int64)
    if len(truth) != len(logits):
        raise ValueError(f"{len(logits)} scores but {len(truth)} labels")
    if len(np.unique(truth)) < 2:
        return Temperature(1.0, "not scaled: there are fewer than two classes")
    if not np.isfinite(logits).all():
        return Temperature(1.0, "not scaled: some scores are not finite")
    rows = np.arange(len(truth))
    others = logits.copy()
    others[rows, truth] = -np.inf
    if (logits[rows, truth] > others.max(axis=1)).all():  # the loss falls to 0 with T, and is 0 in float64 long before
        return Temperature(1.0, "not scaled: the classes are separated without error, no finite optimum")

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / math.exp(log_temperature), axis=1)
        return float(-scaled[rows, truth].mean())

    low, high = (math.log(bound) for bound in TEMPERATURE_BOUNDS)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    if found.x < low + 1e-3:
        return Temperature(1.0, "not scaled: the best temperature is below what can be told")
    if found.x > high - 1e-3:
        return Temperature(1.0, "not scaled: the scores say nothing about the classes")
    return Temperature(math.exp(found.x), f"log-loss on {on} images {loss(0.0):.4f} -> {found.fun:.4f}")


def refitted(logits: ArrayLike, labels: ArrayLike, temperature: float) -> Callable[[Ints], float]:
    """What `fit_temperature` finds of rows drawn from these (N, 1 or C), about, where it found `temperature` of all.

    By one step of Newton's on 1 / T, in which the loss is convex and whose derivatives are sums over images: 200 fits
    of 30,000 images of 17 classes would take a minute. 1, which tells no temperature, stays.
    """
    if temperature == 1.0:
        return lambda rows: 1.0
    whole = _as_class_logits(np.asarray(logits, np.float64))  # (N, C)
    said = probabilities(whole, temperature)
    mean = (said * whole).sum(axis=1)
    slope = mean - whole[np.arange(len(whole)), np.asarray(labels, np.int64)]  # (N,) of each image's log-loss
    curve = (said * (whole - mean[:, None]) ** 2).sum(axis=1)

    def again(rows: Ints) -> float:
        second = curve[rows].sum()
        moved = 1 / temperature - (slope[rows].sum() / second if second > 0 else 0.0)
        low, high = TEMPERATURE_BOUNDS
        return float(1 / np.clip(moved, 1 / high, 1 / low))

    return again


def _as_class_logits(logits: Floats) -> Floats:
    """Logits of any accepted shape as (N, C), C >= 2."""
    single = logits[:, 0] if logits.ndim == 2 and logits.shape[1] == 1 else logits
    return np.stack([np.zeros_like(single), single], axis=1) if single.ndim == 1 else single
