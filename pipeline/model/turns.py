"""Test-time turns: the mean of a network's logits over the turns of an image, for a smear has no up.

The turns are subgroups of the square's eight symmetries, so an image and its turns get the same answer to rounding.
Predicting costs as many forward passes.
"""

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Turns = Literal[1, 2, 4, 8]  # as they are; and by 180 degrees; by quarters; by quarters and mirrored


def turned(images: NDArray[np.uint8], turns: Turns) -> Iterator[NDArray[np.uint8]]:
    """uint8 (B, S, S, 3) in each of its turns, one at a time, contiguous."""
    for number in range(turns):
        quarters = (0, 2, 1, 3)[number % 4]
        side = images[:, :, ::-1] if number >= 4 else images
        yield np.ascontiguousarray(np.rot90(side, quarters, axes=(1, 2)))


def over_turns(
    forward: Callable[[NDArray[np.uint8]], NDArray[np.float32]], images: NDArray[np.uint8], turns: Turns
) -> NDArray[np.float32]:
    """Logits float32 (B, K) of uint8 images (B, S, S, 3): the mean over the turns. One turn is the network alone."""
    if turns == 1:
        return forward(images)
    total = sum(forward(some).astype(np.float64) for some in turned(images, turns))
    return np.asarray(total / turns, dtype=np.float32)
