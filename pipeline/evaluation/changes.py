"""Changed copies of images, to see what a model's answers rest on and what they bear.

Takes batches as a model gets them, uint8 (B, S, S, 3), RGB; gives copies of the same shape. Only the middle that the
network sees is changed. Nothing is drawn but the noise, by the image's own number, so a copy is the same on any worker.
Kinds and severities after ImageNet-C (Hendrycks & Dietterich 2019, arXiv:1903.12261), in steps for microscopes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.nuclei import nuclei
from pipeline.model.seen import middle_of

Images = NDArray[np.uint8]  # (B, S, S, 3), RGB
Masks = NDArray[np.bool_]  # (B, S, S)

RING = 0.125  # of the side the network sees: what counts as its border
MARGIN = 0.5  # of the radius of an image's mean nucleus: how far around nuclei a cell is taken to reach
BLUR = 0.125  # of that side: the standard deviation at which no form is left
TURN = 90.0  # degrees of hue

UNCHANGED = "unchanged"
HIDDEN = {  # by key: what a person is told the model was shown
    "border": "Border only, cells and middle masked",
    "background": "Background only, cells masked",
    "cell": "Cells only, background masked",
    "blurred": "Blurred, no form left",
    "grey": "Grey, no colour left",
    "turned": "Stain turned, colours exchanged",
}


@dataclass(frozen=True)
class Disturbance:
    """What light, camera or stain may do to an image, at four severities."""

    key: str
    name: str
    unit: str  # what the numbers are, with a place for one
    steps: tuple[float, float, float, float]
    change: Callable[[Images, float, Sequence[int]], Images]  # of images, a step, and the images' numbers

    def told(self, step: float) -> str:
        return self.unit.format(step)


def _noise(images: Images, step: float, numbers: Sequence[int]) -> Images:
    """The same noise at each severity, only louder: what differs between severities is not luck."""
    shape = images.shape[1:]
    drawn = np.stack([np.random.default_rng(number % 2**64).standard_normal(shape, np.float32) for number in numbers])
    return _rounded(images + step * drawn)


def _blur(images: Images, step: float, _: Sequence[int]) -> Images:
    return _smoothed(images, step / 100 * images.shape[1])


def _light(images: Images, step: float, _: Sequence[int]) -> Images:
    return _rounded(np.arange(256) * step)[images]


def _stain(images: Images, step: float, _: Sequence[int]) -> Images:
    """More of the basic dye, less of eosin: their optical densities, unmixed by Ruifrok & Johnston's vectors (2001)."""
    density = _DENSITY[images]  # (B, S, S, 3)
    return _rounded(255 * np.exp(-(density @ _mixing(1 + step / 100, 1 - step / 100))))


def _hue(images: Images, step: float, _: Sequence[int]) -> Images:
    return turned_hue(images, step)


def _jpeg(images: Images, step: float, _: Sequence[int]) -> Images:
    """Saved and read again; what JPEG does to colour at such qualities, halving it in both directions, included."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(step)]
    coded = (cv2.imencode(".jpg", image[:, :, ::-1], quality)[1] for image in images)
    read = [np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8) for data in coded]
    return np.stack(read)[..., ::-1]


DISTURBANCES = (
    Disturbance("noise", "Noise", "standard deviation {:g} of 255", (5, 10, 20, 40), _noise),
    Disturbance("blur", "Blur", "Gaussian, {:g} % of the side", (0.5, 1, 2, 4), _blur),
    Disturbance("brighter", "Brighter", "levels x {:g}", (1.1, 1.2, 1.35, 1.5), _light),
    Disturbance("darker", "Darker", "levels x {:g}", (0.9, 0.8, 0.65, 0.5), _light),
    Disturbance("stain", "Stain, its balance", "basic dye + {0:g} %, eosin - {0:g} %", (10, 20, 35, 50), _stain),
    Disturbance("hue", "Stain, its hue", "turned by {:g} degrees", (5, 10, 20, 40), _hue),
    Disturbance("jpeg", "JPEG", "quality {:g}", (60, 30, 15, 7), _jpeg),
)


@dataclass(frozen=True)
class Copies:
    """Which changed copies to make. `fill`: the colour of what is masked around cells, RGB."""

    fill: tuple[float, float, float]
    with_disturbances: bool = False

    @property
    def keys(self) -> list[tuple[str, int]]:
        """(kind, severity) of each, severity 0 of those that hide something; the image as it is first."""
        found = [(UNCHANGED, 0), *((key, 0) for key in HIDDEN)]
        if self.with_disturbances:
            found += [(each.key, k) for each in DISTURBANCES for k in range(1, len(each.steps) + 1)]
        return found

    def made(self, images: Images, seen: int, numbers: Sequence[int]) -> Iterator[Images]:
        """One batch for each of `keys`, of images whose `seen` pixels a side in the middle the network sees."""
        middle = middle_of(images.shape[1], seen)
        shown = np.ascontiguousarray(images[:, middle, middle])
        yield images
        for changed in self._changed(shown, numbers):
            copy = images.copy()
            copy[:, middle, middle] = changed
            yield copy

    def _changed(self, shown: Images, numbers: Sequence[int]) -> Iterator[Images]:
        cells = cells_of(shown)
        yield filled(shown, cells | _middle(shown.shape[1]), self.fill)
        yield filled(shown, cells, self.fill)
        yield np.where(cells[..., None], shown, _rounded(np.array(self.fill)))
        yield _smoothed(shown, BLUR * shown.shape[1])
        yield greyed(shown)
        yield turned_hue(shown, TURN)
        if self.with_disturbances:
            for each in DISTURBANCES:
                for step in each.steps:
                    yield each.change(shown, step, numbers)


def cells_of(images: Images) -> Masks:
    """White cells with what is around them: nuclei and a margin; a disc in the middle where no nucleus is found."""
    side = images.shape[1]
    across = np.arange(side) - (side - 1) / 2
    disc = np.hypot(*np.meshgrid(across, across)) <= side / 4
    return np.stack([_widened(mask) if mask.any() else disc for mask in nuclei(images)])


def _widened(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Nuclei and all that is no farther from them than MARGIN tells."""
    parts = cv2.connectedComponents(mask.astype(np.uint8))[0] - 1
    reach = MARGIN * np.sqrt(mask.sum() / parts / np.pi)
    return np.asarray(cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5) <= reach)


def filled(images: Images, hidden: Masks, otherwise: Sequence[float]) -> Images:
    """What is hidden gets the mean colour of what is not, image by image, so that it tells nothing of itself.

    `otherwise`: its colour where nothing is left open.
    """
    found = images.copy()
    for image, mask in zip(found, hidden, strict=True):
        open_ = image[~mask]  # (P, 3)
        image[mask] = _rounded(open_.mean(axis=0) if len(open_) else np.asarray(otherwise))
    return found


def greyed(images: Images) -> Images:
    """Luma of ITU-R BT.601 in all three channels."""
    return np.repeat(_rounded(images @ _LUMA)[..., None], 3, axis=3)


def turned_hue(images: Images, degrees: float) -> Images:
    """Chroma turned about grey, luma kept: a rotation in the plane of I and Q of YIQ."""
    angle = np.deg2rad(degrees)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    matrix = np.linalg.inv(_YIQ) @ turn @ _YIQ
    return _rounded(images.astype(np.float32) @ matrix.T.astype(np.float32))


def _middle(side: int) -> NDArray[np.bool_]:
    """(S, S), all but the border."""
    ring = max(1, round(RING * side))
    mask = np.zeros((side, side), bool)
    mask[ring:-ring, ring:-ring] = True
    return mask


def _smoothed(images: Images, sigma: float) -> Images:
    """Gaussian; a wide one of smaller copies, which come close to it in a tenth of the time."""
    side = images.shape[1]
    small = max(1, round(side / max(1.0, sigma / _WIDE)))
    return np.stack([_smoothed_one(image, sigma * small / side, small) for image in images])


def _smoothed_one(image: NDArray[np.uint8], sigma: float, small: int) -> NDArray[np.uint8]:
    side = len(image)
    if small == side:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)
    less = cv2.resize(image.astype(np.float32), (small, small), interpolation=cv2.INTER_AREA)
    wide = cv2.resize(cv2.GaussianBlur(less, (0, 0), sigma), (side, side), interpolation=cv2.INTER_LINEAR)
    return _rounded(np.asarray(wide, np.float32))


def _mixing(basic: float, eosin: float) -> NDArray[np.float32]:
    """(3, 3) from densities of red, green and blue (a row) to those with more or less of both dyes."""
    amounts = np.diag([basic, eosin, 1.0])
    return np.asarray(np.linalg.inv(_DYES) @ amounts @ _DYES, np.float32)


def _rounded(levels: NDArray[np.floating]) -> Images:
    return np.asarray(np.clip(np.rint(levels), 0, 255), np.uint8)


_WIDE = 4.0  # pixels: from this standard deviation on the image is made smaller first
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_DENSITY = -np.log(np.maximum(np.arange(256), 1) / 255).astype(np.float32)  # of a level
# Haematoxylin, eosin and what neither is (their cross product), each of length 1
_TWO = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
_DYES = np.vstack([row / np.linalg.norm(row) for row in (*_TWO, np.cross(*_TWO))])
