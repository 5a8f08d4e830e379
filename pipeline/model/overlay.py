"""A class-activation map over its image, for people: the image in gray, where it speaks for a class in orange.

One hue that grows denser, and a line at half of the peak: both are seen by the colour-blind and on paper.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

_ORANGE, _BLUE = (213, 94, 0), (15, 76, 129)  # the report's
_DENSEST = 0.65  # share of orange at the peak
_HALF = 0.5
_THIRDS, _SIDES = ("upper", "", "lower"), ("left", "", "right")
WHAT_IT_IS = (
    "The map shows where the network's last layers, on a coarse grid, found what raised the score of the class: in "
    "orange, and within the blue line at least half as much as at the peak. It is no outline of a cell, and no proof "
    "that the model looks at the right thing for the right reason. Every image has its own scale: a strong orange "
    "says nothing of how sure the model is."
)


def overlaid(pixels: NDArray[np.uint8], map_: NDArray[np.float32]) -> NDArray[np.uint8]:
    """uint8 (h, w, 3), RGB, of an image of that kind and a map float32 (S, S), 0..1, which is stretched to it."""
    height, width = pixels.shape[:2]
    share = cv2.resize(map_, (width, height), interpolation=cv2.INTER_LINEAR).clip(0, 1)
    gray = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    dense = _DENSEST * share[:, :, None]
    mixed = np.rint(gray * (1 - dense) + np.array(_ORANGE, np.float32) * dense).astype(np.uint8)
    outlines, _ = cv2.findContours((share >= _HALF).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    drawn = cv2.drawContours(mixed, outlines, -1, _BLUE, max(1, round(width / 160)), cv2.LINE_AA)
    return np.asarray(drawn, np.uint8)


def told(class_name: str, map_: NDArray[np.float32]) -> str:
    """What a map float32 (S, S) shows, for a caption and for whoever does not see it."""
    if not map_.max():
        return f"no place speaks for {class_name}"
    row, column = np.unravel_index(int(map_.argmax()), map_.shape)
    place = f"{_THIRDS[3 * int(row) // len(map_)]} {_SIDES[3 * int(column) // len(map_)]}".strip()
    return f"what speaks for {class_name}, most at the {place or 'centre'}"
