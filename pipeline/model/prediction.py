"""From a network's logits to what the model says of an image: calibrated probabilities, then the decision rule."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.model.bundle import BundleInfo
from pipeline.model.reference import OodRule
from pipeline.model.review import is_in

Decision = Literal["positive", "negative", "review"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says of one image. Probabilities are calibrated and have the precision of float32."""

    classes: tuple[float, ...]  # of each class, in the bundle's order
    probability: float  # of disease; of the top class where no class means disease
    class_name: str  # the most probable
    decision: Decision | None  # None where no class means disease
    # how far the image lies from those of training; None where the bundle has nothing to compare with
    ood_score: float | None = None
    is_ood: bool | None = None  # beyond the bundle's limit: probability and decision mean little; None without a limit


def probabilities(logits: NDArray[Any], temperature: float = 1.0) -> NDArray[np.float64]:
    """Logits (N, 1 or C) to probabilities (N, 2 or C); a single logit is that of the second of two classes."""
    scaled = logits.astype(np.float64) / temperature
    if scaled.shape[1] == 1:
        second = np.exp(-np.logaddexp(0.0, -scaled))  # (N, 1)
        return np.concatenate([1.0 - second, second], axis=1)
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def predictions(
    info: BundleInfo, logits: NDArray[Any], ood_scores: NDArray[np.float32] | None = None
) -> list[Prediction]:
    """What the model of `info` says by finite logits (N, 1 or C) and scores (N,) by its reference, one record a row."""
    classes = probabilities(logits, info.temperature)  # (N, C)
    positive = [info.classes.index(name) for name in info.positive_classes]
    values = classes[:, positive].sum(axis=1).clip(0.0, 1.0) if positive else classes.max(axis=1)
    decisions = [decide(info, value) if positive else None for value in values.tolist()]
    names = [info.classes[k] for k in classes.argmax(axis=1).tolist()]
    rows = map(tuple, classes.astype(np.float32).tolist())
    values32 = values.astype(np.float32).tolist()
    return list(map(Prediction, rows, values32, names, decisions, *_ood(info.ood, ood_scores)))


def mapped_class(info: BundleInfo, said: Prediction) -> str:
    """The class that a map of an image is of, unless another is asked for: of two the second, of more the one named."""
    return said.class_name if info.outputs > 1 else info.classes[-1]


def _ood(rule: OodRule | None, scores: NDArray[np.float32] | None) -> tuple[Iterable[Any], ...]:
    """`ood_score` and `is_ood`, none where there is nothing to compare with."""
    if rule is None or scores is None:
        return ()
    shown = [score if math.isfinite(score) else None for score in scores.tolist()]
    if rule.threshold is None:
        return (shown,)
    return shown, np.logical_not(scores <= np.float32(rule.threshold)).tolist()  # what is no number is like nothing


def decide(info: BundleInfo, probability: float) -> Decision:
    """The side of the threshold that a probability of disease lies on, or 'review' within the band."""
    if is_in(info.review_band, probability, is_ruled=info.review is not None):
        return "review"
    return "positive" if probability >= info.threshold else "negative"
