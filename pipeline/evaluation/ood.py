"""Fitting what tells images unlike those of training: the distance to training images, and the limit of it.

The distance is `pipeline/model/reference.py`'s; its limit comes from validation images, which the network was not
fitted to. Both are made when a model is published.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.intervals import called_units, subject_codes
from pipeline.model.reference import COLOURS, OodRule, Reference, described, is_far_above, told, unit_length

FALSE_FLAG_RATE = 0.01  # of a hundred proper images one is flagged: few enough that a flag is still looked at
FEWEST_TRAINING = 40
_LARGEST_RATE = 0.05  # a limit that flags more of the proper images than this is none
_COMPONENTS = 64
_IMAGES_A_COMPONENT = 10
# More move no figure of docs/evaluate.md by a hundredth and cost seconds, when somebody waits for the bundle
MOST_TRAINING, MOST_VALIDATION = _COMPONENTS * _IMAGES_A_COMPONENT, 1000
_SHRINKAGE = 0.02  # of the correlations, towards none
# The same image's distance differs by as much from batch to batch and engine to engine; the limit is one image's
_ROUNDING = 1e-4
_SMALLEST = 1e-6  # spread of what does not differ among training images


@dataclass(frozen=True)
class Seen:
    """What a network and the eye see of images."""

    features: NDArray[np.float32]  # (N, D)
    colours: NDArray[np.float32]  # (N, COLOURS)


@dataclass(frozen=True)
class Fitted:
    """The file of a bundle and its rule."""

    reference: bytes
    rule: OodRule


def fit_reference(training: Seen) -> Reference | None:
    """The map under which these images have mean 0 and covariance 1; None for too few to tell.

    Principal components of the features of length 1, one for every 10 images, 64 at most, each by its own spread, with
    the colours, each by its own; then the inverse of their correlations, shrunk by 2 %.
    """
    count = len(training.features)
    if count < FEWEST_TRAINING:
        return None
    units = unit_length(training.features).astype(np.float64)
    mean = units.mean(axis=0)
    _, spread, directions = np.linalg.svd(units - mean, full_matrices=False)
    spread = spread / math.sqrt(count)
    kept = min(_COMPONENTS, count // _IMAGES_A_COMPONENT, int((spread > _SMALLEST).sum()))
    to_components = directions[:kept].T / spread[:kept]  # (D, K)
    colours = training.colours.astype(np.float64)
    by_spread = 1 / np.maximum(colours.std(axis=0), _SMALLEST)
    # (N, K + COLOURS), each column of spread 1
    joint = np.hstack([(units - mean) @ to_components, (colours - colours.mean(axis=0)) * by_spread])
    shrunk = (1 - _SHRINKAGE) * joint.T @ joint / count + _SHRINKAGE * np.eye(kept + COLOURS)
    whiten = np.linalg.cholesky(np.linalg.inv(shrunk))  # joint @ whiten has covariance 1
    of_features = to_components @ whiten[:kept]
    of_colours = by_spread[:, None] * whiten[kept:]
    offset = -(mean @ of_features) - colours.mean(axis=0) @ of_colours
    return Reference(*(values.astype(np.float32) for values in (of_features, of_colours, offset)))


def fit(training: Seen, validation: Seen, subjects: Sequence[str | None], called: str) -> Fitted | None:
    """The reference and its limit. `subjects` of the validation images, which the manifest calls `called`.

    None where training images are too few to tell what they look like.
    """
    reference = fit_reference(training)
    if reference is None:
        return None
    usable = len(validation.features)
    scores = reference.scores(validation.features, validation.colours) if usable else np.empty(0, np.float32)
    codes, unit = subject_codes(list(subjects), len(scores))
    threshold, rate, note = limit(scores)
    data = reference.packed()
    rule = OodRule(
        reference_sha256=hashlib.sha256(data).hexdigest(),
        training_images=len(training.features),
        threshold=None if threshold is None else threshold * (1 + _ROUNDING),
        false_flag_rate=rate,
        images=len(scores),
        units=len(np.unique(codes)),
        called=called_units(unit, called),
        note=note,
    )
    return Fitted(data, rule)


def flagged_in(rule: OodRule | None, is_ood: NDArray[np.bool_] | None) -> dict[str, Any] | None:
    """`ood` of `metrics.json`: of these images (N,) how many are flagged; None where the model has no limit."""
    if rule is None or is_ood is None or not len(is_ood):
        return None
    flagged, images = int(is_ood.sum()), len(is_ood)
    return {
        "flagged": flagged,
        "images": images,
        "share": flagged / images,
        "threshold": rule.threshold,
        "false_flag_rate": rule.false_flag_rate,
        "rests_on": described(rule),
        "told": told(flagged, images, rule.false_flag_rate),
        "is_far_above": is_far_above(flagged, images, rule.false_flag_rate),
    }


def limit(scores: NDArray[np.float32]) -> tuple[float | None, float | None, str]:
    """The score above which an image is out of distribution, the rate at which proper ones are, and a note.

    The k-th smallest of n scores is exceeded by another image of their kind with a probability of at most
    1 - k / (n + 1) (split conformal prediction, Vovk et al. 2005), so n images can hold no rate below 1 / (n + 1).
    """
    count = len(scores)
    least = 1 / (count + 1)
    if least > _LARGEST_RATE:
        return None, None, f"{count} validation images are too few to hold any limit: nothing is flagged"
    rate = max(FALSE_FLAG_RATE, least)
    place = math.ceil((count + 1) * (1 - rate) - 1e-9)
    wanted = f"{100 * FALSE_FLAG_RATE:g} %"
    few = f"{count} validation images are too few for a false-flag rate of {wanted}: the limit holds {100 * rate:.1f} %"
    return float(np.sort(scores)[min(place, count) - 1]), rate, few if rate > FALSE_FLAG_RATE else ""
