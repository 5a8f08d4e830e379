"""Where the nuclei of white cells lie in a stained image, by how much more green than blue light they take away.

Azure B on chromatin absorbs green and lets blue pass; haemoglobin takes of both alike, and so does the black beside a
picture (optical density as of Ruifrok & Johnston, Anal. Quant. Cytol. Histol. 2001). The difference of the two
densities, smoothed, is cut by Otsu's threshold (IEEE Trans. SMC 1979), and once more within what lies above, which
parts chromatin from blue cytoplasm where they differ. A rough finder, for asking whether a map points at a nucleus.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

_BACKGROUND = 95  # percentile of a colour that stands for empty glass
_DARK = 16  # levels added to all: the ratio of two dark colours is noise
_SMOOTHED = 1 / 100  # sigma of the smoothing, of a side
_SMALLEST = 0.002  # share of the image that a nucleus covers at least
_PALEST = 0.25  # difference below which nothing is a nucleus
_DENSER = 1.5  # times: chromatin to cytoplasm; less is texture within a nucleus


def nuclei(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(S, S), True in nuclei, of uint8 (S, S, 3), RGB; all False where there is none."""
    levels = pixels[:, :, 1:].astype(np.float32) + _DARK  # green, blue
    densities = np.log(np.percentile(levels, _BACKGROUND, axis=(0, 1)) / levels).astype(np.float32)
    density = densities[:, :, 0] - densities[:, :, 1]
    density = cv2.GaussianBlur(density, (0, 0), max(0.5, _SMOOTHED * len(pixels)))
    cut = max(_otsu(density), _PALEST)
    dense = density > cut
    if dense.any():
        second = _otsu(density[dense])
        low, high = density[dense & (density <= second)], density[density > second]
        if low.size and high.size and high.mean() > _DENSER * low.mean():
            dense = density > second
    return _without_specks(dense)


def _otsu(values: NDArray[np.float32]) -> float:
    """The cut that parts values into two groups with the largest variance between them."""
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-6:
        return high
    levels = np.rint((values - low) / (high - low) * 255).astype(np.uint8).reshape(-1, 1)
    cut, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_OTSU)
    return low + float(cut) / 255 * (high - low)


def _without_specks(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    _, labels, found, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    large = found[:, cv2.CC_STAT_AREA] >= _SMALLEST * mask.size
    large[0] = False  # what is around
    return np.asarray(large[labels], np.bool_)
