"""Where white cells lie in an image: their nuclei, which a Romanowsky stain makes purple.

Takes uint8 images, gives masks. A nucleus lets blue pass and no green; red cells and plasma take about as much of both,
and what is black is none. So the nuclei are the highest of three classes of blue less green, parted by Otsu's method
(1979, doi:10.1109/TSMC.1979.4310076) with two thresholds: one would part ground from red cells where stains are weak.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

_SMOOTHING = 0.01  # of the side, the standard deviation
_SMALLEST = 0.002  # of the image's area: less is a platelet or dirt
_LEAST_APART = 15.0  # levels between the highest class and the one below: less is no nucleus, but noise
_ZERO = 100  # of a byte: what equal blue and green come to


def nuclei(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """True on nuclei, (B, S, S), of uint8 images (B, S, S, 3), RGB; nowhere in an image that shows none."""
    return np.stack([_of_one(image) for image in images]) if len(images) else np.zeros(images.shape[:3], bool)


def _of_one(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    side = len(image)
    smooth = cv2.GaussianBlur(image, (0, 0), max(0.5, _SMOOTHING * side)).astype(np.int16)
    excess = np.clip(smooth[:, :, 2] - smooth[:, :, 1] + _ZERO, 0, 255)
    counts = np.bincount(excess.ravel(), minlength=256).astype(np.float64)
    found = two_thresholds(counts)
    if found is None:
        return np.zeros(excess.shape, bool)
    (middle, upper), levels = found, np.arange(256)
    below, above = (
        (counts[part] * levels[part]).sum() / max(counts[part].sum(), 1.0)
        for part in (slice(middle, upper), slice(upper, None))
    )
    if above - below < _LEAST_APART:
        return np.zeros(excess.shape, bool)
    _, parts, stats, _ = cv2.connectedComponentsWithStats((excess >= upper).astype(np.uint8), connectivity=8)
    is_large = stats[:, cv2.CC_STAT_AREA] >= _SMALLEST * side * side
    is_large[0] = False  # the ground
    return np.asarray(is_large[parts], bool)


def two_thresholds(counts: NDArray[np.float64]) -> tuple[int, int] | None:
    """First levels of the second and third class that lie farthest apart, of a histogram (256,) by level.

    None of fewer than three levels.
    """
    levels = np.flatnonzero(counts)
    if len(levels) < 3:
        return None
    weight = np.concatenate([[0.0], counts.cumsum()])
    moment = np.concatenate([[0.0], (counts * np.arange(256)).cumsum()])
    first, second = np.meshgrid(levels[1:], levels[1:], indexing="ij")

    def apart(start: NDArray[np.int64] | int, end: NDArray[np.int64] | int) -> NDArray[np.float64]:
        held, sum_ = weight[end] - weight[start], moment[end] - moment[start]
        return np.asarray(np.divide(sum_**2, held, out=np.zeros(np.shape(held)), where=held > 0))

    between = np.where(first < second, apart(0, first) + apart(first, second) + apart(second, 256), -1.0)
    row, column = np.unravel_index(between.argmax(), between.shape)
    return int(levels[1 + row]), int(levels[1 + column])
