"""Random numbers that belong to an image: the same whichever worker draws them, and in whatever order.

A counter-based generator: every number is a hash of (seed, image, turn, column), after SplitMix64 (Steele, Lea & Flood
2014, doi:10.1145/2660193.2660195).
"""

import numpy as np
from numpy.typing import NDArray

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def uniform(seed: int, image_ids: NDArray[np.int64], turn: int, columns: int) -> NDArray[np.float32]:
    """float32 (B, columns) in [0, 1), for images int64 (B,) as they are seen the `turn`-th time."""
    start = _mixed(_mixed(np.uint64(seed)) ^ np.uint64(turn))
    rows = _mixed(image_ids.astype(np.uint64) ^ start)  # (B,)
    numbers = np.arange(1, columns + 1, dtype=np.uint64) * _STEP
    with np.errstate(over="ignore"):
        bits = _mixed(rows[:, None] + numbers[None, :])  # (B, columns)
    return (bits >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)


def _mixed(value: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        value = np.asarray(value, np.uint64) + _STEP
        value = (value ^ (value >> np.uint64(30))) * _FIRST
        value = (value ^ (value >> np.uint64(27))) * _SECOND
        return value ^ (value >> np.uint64(31))
