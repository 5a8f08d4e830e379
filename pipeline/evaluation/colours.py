"""What is left of an image without its shapes: the colours of its border, where few cells lie, and of all of it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BORDER = 0.06  # share of the side that counts as border
_PERCENTILES = (10, 50, 90)


@dataclass(frozen=True)
class Colours:
    """Of R, G and B each: mean, standard deviation and percentiles 10, 50 and 90, all 0..255; (15,) numbers a part."""

    border: tuple[float, ...]
    whole: tuple[float, ...]


def colours_of(pixels: NDArray[np.uint8]) -> Colours:
    """The colours of a uint8 (S, S, 3) image, RGB."""
    width = max(1, round(_BORDER * len(pixels)))
    sides = (pixels[:width], pixels[-width:], pixels[:, :width], pixels[:, -width:])
    border = np.concatenate([side.reshape(-1, 3) for side in sides])
    return Colours(_told(border), _told(pixels.reshape(-1, 3)))


def _told(colours: NDArray[np.uint8]) -> tuple[float, ...]:
    """Colours (N, 3) in fifteen numbers."""
    parts = [colours.mean(axis=0), colours.std(axis=0), *np.percentile(colours, _PERCENTILES, axis=0)]
    return tuple(np.concatenate(parts).astype(float).tolist())
