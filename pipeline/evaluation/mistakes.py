"""A wrong image as the report shows it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Mistake:
    """A wrong image for the report. Pixels are uint8 (h, w, 3), RGB; `alt` and `map_alt` are for who does not see."""

    pixels: NDArray[np.uint8]
    caption: str
    alt: str
    mapped: NDArray[np.uint8] | None = None  # as `overlaid`
    map_alt: str = ""
