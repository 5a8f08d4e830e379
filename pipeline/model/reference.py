"""Whether an image looks like those that a model learnt from: a distance to them, from the same forward pass.

What stands for an image: the features that go into the head, scaled to length 1 (tiny ones, as of a blank field, are no
nearer for being tiny), in the directions in which training images differ most; and mean and spread of red, green and
blue, because a network that was trained to see no stain lets other stains pass. The score is the Mahalanobis distance
(Lee et al. 2018, arXiv:1807.03888) under the training images' covariance, by the root of its dimensions: about 1 for
them. Why it is this one: docs/evaluate.md. `pipeline/evaluation/ood.py` fits it. No torch here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pipeline.base.errors import InputError
from pipeline.base.text import first_line
from pipeline.model.seen import middle_of

REFERENCE = "reference.safetensors"
COLOURS = 6  # mean and standard deviation of red, green, blue
_GRID = 36  # pixels a side that colours are taken from: more of them move no score by a hundredth
_SMALLEST = 1e-12  # length of features that is none
_FAR_ABOVE = 5.0  # times the stated rate: no luck, but other images


class OodRule(BaseModel):
    """`ood` of `bundle.json`: what is out of distribution, and what that rests on."""

    model_config = ConfigDict(frozen=True)

    method: Literal["mahalanobis"] = "mahalanobis"
    reference_sha256: str
    training_images: int  # that the reference was fitted to
    threshold: float | None = Field(None, ge=0)  # scores above are out of distribution; null: none can be held
    false_flag_rate: float | None = Field(None, ge=0, le=1)  # of images like those of validation
    images: int = 0  # of validation
    units: int = 0  # of these subjects, or images where none is known
    called: str = "images"  # what the units are
    note: str = ""  # where validation is too small for the rate that was wanted


@dataclass(frozen=True)
class Reference:
    """An affine map of features and colours under which training images have mean 0 and covariance 1."""

    features: NDArray[np.float32]  # (D, M), of features of length 1
    colours: NDArray[np.float32]  # (COLOURS, M)
    offset: NDArray[np.float32]  # (M,)

    def scores(self, features: NDArray[np.float32], colours: NDArray[np.float32]) -> NDArray[np.float32]:
        """Distances float32 (B,), 0 and more, of features (B, D) and colours (B, COLOURS)."""
        whitened = unit_length(features) @ self.features + colours @ self.colours + self.offset  # (B, M)
        return np.asarray(np.sqrt(np.mean(np.square(whitened), axis=1)), np.float32)

    def packed(self) -> bytes:
        return safetensors.numpy.save({"features": self.features, "colours": self.colours, "offset": self.offset})

    @classmethod
    def unpacked(cls, data: bytes) -> "Reference":
        """Raises InputError for what is no reference."""
        try:
            tensors = safetensors.numpy.load(data)
        except safetensors.SafetensorError as error:
            raise InputError(f"no tensors ({first_line(error)})") from error
        _check(tensors)
        return cls(tensors["features"], tensors["colours"], tensors["offset"])


def _check(tensors: Mapping[str, NDArray[np.float32]]) -> None:
    names = sorted(tensors)
    if names != ["colours", "features", "offset"]:
        raise InputError(f"holds {', '.join(names) or 'nothing'}, expected colours, features and offset")
    width = tensors["offset"].size
    shapes = {name: values.shape for name, values in tensors.items()}
    fits = shapes["offset"] == (width,) and shapes["colours"] == (COLOURS, width)
    if not (fits and len(shapes["features"]) == 2 and shapes["features"][1] == width and width):
        raise InputError(f"its tensors do not fit each other ({shapes})")
    if not all(values.dtype == np.float32 and np.isfinite(values).all() for values in tensors.values()):
        raise InputError("its tensors are no finite float32")


def unit_length(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """(B, D), each row divided by its length; one without a length stays 0."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, _SMALLEST), np.float32)


def colours_seen(images: NDArray[np.uint8], seen: int) -> NDArray[np.float32]:
    """Mean and standard deviation of red, green and blue, 0..1, float32 (B, COLOURS), of uint8 (B, S, S, 3).

    Of the `seen` pixels a side in the middle, which is what the network sees.
    """
    middle = middle_of(images.shape[1], seen)
    step = max(1, seen // _GRID)
    grid = images[:, middle, middle][:, step // 2 :: step, step // 2 :: step]
    points = grid.shape[1] * grid.shape[2]  # not -1, which no images would leave open
    levels = (
        grid.transpose(0, 3, 1, 2).reshape(len(images), 3, points).astype(np.float32)
    )  # (B, 3, P), sums run fast so
    mean = levels.mean(axis=2)
    levels -= mean[:, :, None]
    spread = np.sqrt(np.einsum("bcp,bcp->bc", levels, levels) / levels.shape[2])
    return np.asarray(np.concatenate([mean, spread], axis=1) / 255, np.float32)


def described(rule: OodRule | None) -> str:
    """What a bundle flags, for a person."""
    if rule is None:
        return "nothing is flagged: training images were too few to say what they look like"
    if rule.threshold is None:
        return rule.note
    units = "" if rule.called == "images" else f" of {rule.units:,} {rule.called}"
    rate = f"{100 * (rule.false_flag_rate or 0.0):.2g} %"
    held = f"{rate} of images like the {rule.images:,} of validation{units}"
    return f"flagged beyond a distance of {rule.threshold:.2f}, as {held} are" + (f"; {rule.note}" if rule.note else "")


def told(flagged: int, images: int, rule_rate: float | None) -> str:
    """How many of the images are out of distribution, a sentence; a warning where they are many more than stated."""
    if not images:
        return ""
    share = f"{flagged:,} of {images:,} images ({100 * flagged / images:.1f} %) look unlike those the model learnt from"
    if rule_rate is None:
        return f"{share}."
    stated = f"{100 * rule_rate:.2g} %"
    if is_far_above(flagged, images, rule_rate):
        return (
            f"{share}, where {stated} would be expected of images like its own: another stain, microscope or kind of "
            "image. Do not trust probabilities and decisions of these; look at some of them (column is_ood)."
        )
    return f"{share}; of images like its own {stated} are expected to."


def is_far_above(flagged: int, images: int, rule_rate: float | None) -> bool:
    """Whether more are flagged than luck explains, by a factor and by more than a few images."""
    return rule_rate is not None and flagged > max(_FAR_ABOVE * rule_rate * images, _FAR_ABOVE - 1)
