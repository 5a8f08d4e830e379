"""How many bits of 16-bit samples count. Cameras fill 10 to 14 of them, and few files say how many.

`--bit-depth` is the last word, then what the file states, then a guess from the samples, which is remarked on. Samples
that nothing anchors are refused: those of colour, and those of which 0 is white.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import Code, ImageRejected
from pipeline.images.remarks import remark

CONTAINER_BITS = 16
GUESSED = "depth guessed as "  # begins the remark on a guess
_DEPTHS = (8, 10, 12, 14, CONTAINER_BITS)  # what analogue-digital converters give
# Pixels on the smooth edges of letters: so many for a white one; small letters are edges all over, of one pixel in 200.
_EDGES, _SMALL_PRINT = 4, 200
_PIECE = 1 << 20  # samples that are widened at a time
_OUTLIERS = 1000  # one sample in so many may be a hot pixel
_BURNT_IN = 0.05  # share of samples at the very top that may be a scale bar or a caption drawn into the image


@dataclass(frozen=True)
class Depth:
    """`bits` of a sample that count: 2^bits - 1 is white."""

    bits: int
    remarks: tuple[str, ...] = ()

    @property
    def top(self) -> int:
        return (1 << self.bits) - 1

    def levels(self, samples: NDArray[Any]) -> NDArray[np.uint8]:
        """uint16 samples of any shape as 0..255; what lies above white is white.

        Rounded, so that an 8-bit image that was stretched to fewer than 16 bits comes back as it was; all 16 are cut.
        """
        half = self.top // 2 if self.bits < CONTAINER_BITS else 0
        levels = np.empty(samples.shape, np.uint8)
        rows = max(1, _PIECE * len(samples) // max(1, samples.size))
        for row in range(0, len(samples), rows):
            within = np.minimum(samples[row : row + rows], self.top).astype(np.uint32)
            levels[row : row + rows] = (within * 255 + half) // self.top
        return levels


def count_levels(samples: Iterable[NDArray[Any]], bits: int = CONTAINER_BITS) -> NDArray[np.int64]:
    """(2^bits,): how many of unsigned samples, given in pieces, have each value."""
    counts = np.zeros(1 << bits, np.int64)
    for piece in samples:
        flat = piece.reshape(-1)
        for start in range(0, len(flat), _PIECE):
            counts += np.bincount(flat[start : start + _PIECE], minlength=len(counts))
    return counts


def highest(counts: NDArray[np.int64]) -> int:
    """The value that all but a few hot pixels, and marks that were drawn into the image, stay within."""
    total, edges = int(counts.sum()), 0
    top = len(counts) - max(1, len(counts) >> 8)  # what is white in 8 bits, however it was made 16
    marks = int(counts[top:].sum())
    if 0 < marks <= _BURNT_IN * total and counts[1:top].any():
        edges = min(max(_EDGES * marks, total // _SMALL_PRINT), int(_BURNT_IN * total))
        counts, total = counts[:top], total - marks
    hot = max(total // _OUTLIERS, min(4, total // 16), edges)
    return int(np.searchsorted(np.cumsum(counts), total - hot))


def depth_of(
    counts: NDArray[np.int64], *, fixed: int | None = None, stated: int | None = None, can_guess: bool = True
) -> Depth:
    """The depth of samples with these `counts` (65536,). `fixed`: by --bit-depth. `stated`: by the file.

    Raises ImageRejected where the samples do not fit what was fixed, and where there is nothing to go by.
    """
    if not counts[1:].any():  # black, whatever the depth
        return Depth(fixed or stated or CONTAINER_BITS)
    found = highest(counts)
    if fixed is not None:
        if found >> fixed:
            message = f"samples up to {found} are more than the {fixed} bits of --bit-depth; leave it out or raise it"
            raise ImageRejected(Code.UNSUPPORTED_FORMAT, message)
        is_other = stated is not None and stated != fixed
        return Depth(fixed, (remark(f"depth fixed at {fixed} bits, the file states {stated}"),) if is_other else ())
    if stated is not None and not found >> stated:
        return Depth(stated)
    guess = next(bits for bits in _DEPTHS if not found >> bits)
    if guess == CONTAINER_BITS:
        return Depth(guess)
    if not can_guess:
        message = (
            f"samples fill {guess} of {CONTAINER_BITS} bits, and the file does not say how many count; fix them with "
            f"--bit-depth, e.g. --bit-depth {guess}, or save it with 8 bits"
        )
        raise ImageRejected(Code.UNSUPPORTED_FORMAT, message)
    return Depth(guess, (remark(f"{GUESSED}{guess} bits"),))
