"""What a bundle's network gives of images, by the names that its graph calls it, in this order."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LOGITS, FEATURES = "logits", "features"


class Outputs(NamedTuple):
    """Of B images. Features are what goes into the head; None where a graph of an older version gives none."""

    logits: NDArray[np.float32]  # (B, 1 or C)
    features: NDArray[np.float32] | None  # (B, D)
