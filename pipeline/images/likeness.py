"""Whether two small pictures are one image: saved anew, turned by 90 degrees, mirrored, cropped by 2 px, brighter by 5.

Keys find who may be alike: magnitudes of the low cosine frequencies, where turning and mirroring only swap or negate.
Pixels confirm it: one picture must be the other, moved and scaled a little (a step of Lucas and Kanade 1981), in nearly
every window that shows something, so that cells of one shape on plain ground are not taken for one cell.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SIDE = 64  # pixels of a small picture
REACH = 0.2  # distance of keys; copies of real images lie within it, see docs/ingest.md
_BLUR = 1.0  # pixels: what differs between two ways of making an image small
_MIN_SPREAD = 2.0  # levels (standard deviation): a plain sheet is like any other
_FREQUENCIES = 10
_MARGIN = 3  # pixels: what a crop takes away, or a gradient cannot see
_WINDOW = 9  # pixels
_MIN_VARIANCE = 2.0  # levels squared, of a window that shows something
_MIN_SHOWN = 0.02  # share of windows that show something
_EXPLAINED = 0.85  # share of a window's variance
_GAIN = (0.8, 1.25)  # of contrast
AGREEMENT = 0.75  # share of the windows that show something


def small_picture(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (S, S, 3), RGB, to uint8 (SIDE, SIDE): gray, without detail."""
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    if gray.shape != (SIDE, SIDE):
        gray = cv2.resize(gray, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.GaussianBlur(gray, (0, 0), _BLUR, borderType=cv2.BORDER_REFLECT), np.uint8)


def keys(pictures: NDArray[np.uint8]) -> Floats:
    """Of small pictures (n, SIDE, SIDE): float32 (n, KEY_LENGTH), equal for all symmetries; NaN for a plain sheet."""
    gray = pictures.astype(np.float32)
    spread: Floats = np.asarray(gray.std(axis=(1, 2), keepdims=True), np.float32)
    low = np.abs(_COSINES @ gray @ _COSINES.T) / np.where(spread < _MIN_SPREAD, np.nan, spread * SIDE)
    across, down = low[:, *_UPPER], low.transpose(0, 2, 1)[:, *_UPPER]
    found = np.concatenate([across + down, np.abs(across - down)], axis=1) / np.sqrt(2)
    return np.asarray(found, np.float32)


def agreement(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> Floats:
    """Of small pictures (n, SIDE, SIDE): the share of windows of `second` that `first` explains, float32 (n,), 0 to 1.

    0 where the contrast differs too much, or where nothing is shown.
    """
    turned = _turned_alike(first.astype(np.float32), second.astype(np.float32))
    inner = (slice(None), slice(_MARGIN, -_MARGIN), slice(_MARGIN, -_MARGIN))
    gradients: list[Floats] = list(np.gradient(turned, axis=(1, 2)))
    down, across = gradients
    terms = [np.ones_like(turned), turned, across, down, _PLACE * across, _PLACE[:, None] * down]
    basis = np.stack([term[inner] for term in terms], axis=-1)  # (n, s, s, 6)
    wanted = second.astype(np.float32)[inner]  # (n, s, s)
    weights = _least_squares(basis, wanted)  # (n, 6)
    rest = wanted - np.einsum("nyxi,ni->nyx", basis, weights)
    variance = _mean_of_windows(wanted * wanted) - _mean_of_windows(wanted) ** 2
    shown = variance > _MIN_VARIANCE
    explained = shown & (_mean_of_windows(rest * rest) <= (1 - _EXPLAINED) * variance)
    share = explained.sum((1, 2)) / np.maximum(shown.sum((1, 2)), 1)
    usable = (shown.mean((1, 2)) >= _MIN_SHOWN) & (weights[:, 1] >= _GAIN[0]) & (weights[:, 1] <= _GAIN[1])
    return np.where(usable, share, 0).astype(np.float32)


def _turned_alike(first: Floats, second: Floats) -> Floats:
    """`first`, each turned or mirrored as correlates best with its `second`; (n, SIDE, SIDE)."""
    centred = second - second.mean((1, 2), keepdims=True)
    ways = [_turned(first, way) for way in range(8)]
    best = np.argmax([(way * centred).sum((1, 2)) for way in ways], axis=0)
    return np.stack([ways[way][row] for row, way in enumerate(best)])


def _turned(pictures: Floats, way: int) -> Floats:
    """One of the eight symmetries of a square, on the last two axes."""
    turned = np.swapaxes(pictures, -1, -2) if way & 4 else pictures
    turned = turned[..., ::-1] if way & 1 else turned
    return turned[..., ::-1, :] if way & 2 else turned


def _least_squares(basis: Floats, wanted: Floats) -> Floats:
    rows = basis.reshape(len(basis), -1, basis.shape[-1]).astype(np.float64)  # (n, p, 6)
    columns = rows.transpose(0, 2, 1)
    squares = columns @ rows + 1e-3 * np.eye(basis.shape[-1])  # a picture may lack a gradient
    found = np.linalg.solve(squares, columns @ wanted.reshape(len(basis), -1, 1).astype(np.float64))
    return np.asarray(found[..., 0], np.float32)


def _mean_of_windows(values: Floats) -> Floats:
    """Of each window of each picture; (n, s, s) to the same."""
    size = (_WINDOW, _WINDOW)
    filtered: list[Any] = [cv2.blur(one, size, borderType=cv2.BORDER_REFLECT) for one in values]
    return np.stack(filtered)


def _cosines() -> Floats:
    """The first rows of the orthonormal discrete cosine transform (type II), float32 (_FREQUENCIES, SIDE)."""
    rows, places = np.arange(_FREQUENCIES)[:, None], np.arange(SIDE)[None]
    waves: NDArray[np.float64] = np.cos(np.pi * (2 * places + 1) * rows / (2 * SIDE)) * np.sqrt(2 / SIDE)
    waves[0] /= np.sqrt(2)
    return waves.astype(np.float32)


_COSINES = _cosines()
_PLACE = np.linspace(-1, 1, SIDE, dtype=np.float32)
# Frequencies (u, v) with u <= v: the others have their places taken by symmetry. The mean says nothing.
_UPPER = tuple(
    np.array([(u, v) for u in range(_FREQUENCIES) for v in range(u, _FREQUENCIES) if 0 < u + v < _FREQUENCIES]).T
)
KEY_LENGTH = 2 * len(_UPPER[0])
