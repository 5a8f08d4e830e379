"""What an image looks like in eight figures, none of which says what it shows: light, colour, focus, grain, size.

For telling another stain, microscope or camera, so each means something to whoever stands at one. Of the whole image at
the model's size, with the ground that its network may not see. Why these: docs/another-laboratory.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Figure:
    """One of the figures. `smallest`: a difference that no eye or model minds, in its units."""

    name: str
    title: str
    unit: str
    smallest: float
    is_log: bool = False  # of a ratio, to the base of 2: a difference of 1 is a factor of 2


FIGURES = (
    Figure("brightness", "brightness", "L* of CIELAB, 0..100", 2.0),
    Figure("redness", "red against green", "a* of CIELAB", 1.5),
    Figure("yellowness", "yellow against blue", "b* of CIELAB", 1.5),
    Figure("saturation", "strength of colours", "chroma of CIELAB", 1.5),
    Figure("white_share", "bare ground", "share of pixels of L* above 80", 0.05),
    Figure("sharpness", "fine against coarse detail", "log2 of a ratio", 0.2, is_log=True),
    Figure("grain", "grain", "log2 of levels", 0.5, is_log=True),
    Figure("size", "diameter of what is purple", "log2 of its share of the side", 0.15, is_log=True),
)
NAMES = tuple(figure.name for figure in FIGURES)
_LIGHT = 80.0  # L*
_PLAIN = 0.5  # levels (standard deviation) of coarse detail: what has less shows nothing to be sharp
_GRAIN = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)  # blind to edges (Immerkaer 1996)
_NO_GRAIN = 0.25  # levels, added so that a sheet without any has a logarithm
_PURPLE = 6.0  # levels between nucleus and ground: less is a field without one


def appearances(images: NDArray[np.uint8]) -> Floats:
    """float32 (B, len(FIGURES)) of uint8 (B, S, S, 3), RGB; NaN where an image has no such figure."""
    return np.array([appearance(image) for image in images], np.float32).reshape(-1, len(FIGURES))


def appearance(pixels: NDArray[np.uint8]) -> Sequence[float]:
    """The figures of one image, uint8 (S, S, 3), RGB, in the order of FIGURES."""
    levels = pixels.astype(np.float32)
    lab = cv2.cvtColor(levels / np.float32(255), cv2.COLOR_RGB2LAB)  # (S, S, 3)
    light, red, yellow = (lab[..., k] for k in range(3))
    gray = np.asarray(cv2.cvtColor(levels, cv2.COLOR_RGB2GRAY), np.float32)
    return (
        float(light.mean()),
        float(red.mean()),
        float(yellow.mean()),
        float(cv2.magnitude(red, yellow).mean()),
        float((light > _LIGHT).mean()),
        _sharpness(gray),
        float(np.log2(np.median(np.abs(cv2.filter2D(gray, cv2.CV_32F, _GRAIN))) + _NO_GRAIN)),
        _size(pixels),
    )


def _sharpness(gray: Floats) -> float:
    """Log2 of the detail below two pixels over that of two to four; NaN where there is none, as in a blank field.

    A ratio, so that neither contrast nor how much an image shows counts, as they do in the Laplacian's variance.
    """
    soft = cv2.GaussianBlur(gray, (0, 0), 1.0)
    coarse = float((soft - cv2.GaussianBlur(soft, (0, 0), 2.0)).std())
    fine = float((gray - soft).std())
    return float(np.log2(fine / coarse)) if coarse > _PLAIN and fine > 0 else np.nan


def _size(pixels: NDArray[np.uint8]) -> float:
    """Log2 of the diameter of what is most purple, the nuclei, as a share of the side; NaN where nothing is.

    By Otsu's threshold of the lack of green (1979), and again within what is above; of several parts the mean by area.
    """
    soft = cv2.GaussianBlur(pixels, (0, 0), 1.0).astype(np.int16)
    lack = ((soft[..., 0] + soft[..., 2]) // 2 - soft[..., 1]).clip(-255, 255)
    purple = ((lack + 255) // 2).astype(np.uint8)  # (S, S)
    low, mask = cv2.threshold(purple, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    inside, outside = purple[mask > 0], purple[mask == 0]
    if not len(inside) or not len(outside) or 2 * (float(inside.mean()) - float(outside.mean())) < _PURPLE:
        return np.nan
    high, _ = cv2.threshold(inside.reshape(-1, 1), 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    count, _, parts, _ = cv2.connectedComponentsWithStats((purple > max(low, high)).astype(np.uint8), connectivity=8)
    if count < 2:
        return np.nan
    areas = parts[1:, cv2.CC_STAT_AREA].astype(np.float64)
    mean_area = float((areas**2).sum() / areas.sum())
    return float(0.5 * np.log2(mean_area / purple.size))
