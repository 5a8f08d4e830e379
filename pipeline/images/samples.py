"""Samples of any Pillow mode to RGB uint8 (H, W, 3); what would have to be guessed is refused or remarked on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.base.errors import Code, ImageRejected
from pipeline.images.depth import CONTAINER_BITS, Depth, count_levels, depth_of, highest
from pipeline.images.formats import jpeg2000, png, tiff
from pipeline.images.formats.channels import Stack, colour_pages, read_stack

_STRIP_PIXELS = 1 << 20
_ALPHA = ("A", "a")
_HALF, _VISIBLE = 128, 1000  # of alpha; one pixel in so many has to be seen
_FULL_BYTE = 64  # high bytes of samples that fill more than 14 bits reach it


@dataclass(frozen=True)
class Pixels:
    """`levels`: uint8 (H, W, 3), RGB. `remarks`: what was noticed. `frames`: how many of the file's they show."""

    levels: NDArray[np.uint8]
    remarks: tuple[str, ...] = ()
    frames: int = 1


@dataclass(frozen=True)
class Told:
    """What the file and its user say of samples of more than 8 bits."""

    stated: int | None = None  # bits that count, by the file
    fixed: int | None = None  # by --bit-depth
    is_inverted: bool = False  # 0 is white
    is_deep_color: bool = False  # of 16 bits a sample, of which Pillow gives the high bytes

    def depth(self, counts: NDArray[np.int64], *, is_color: bool) -> Depth:
        """Of samples counted by value. In colour, and where 0 is white, the samples alone tell nothing."""
        can_guess = not is_color and not self.is_inverted
        return depth_of(counts, fixed=self.fixed, stated=self.stated, can_guess=can_guess)


def told_by(data: bytes, page: tiff.Page | None, stack: Stack | None, fixed: int | None) -> Told:
    """`page` and `stack`: of a TIFF, else None."""
    if data.startswith(png.MAGIC) and png.is_deep(data):
        return Told(png.significant_bits(data), fixed, is_deep_color=True)
    wavelets = jpeg2000.read_frame(data)
    if wavelets is not None:
        if wavelets.bits < CONTAINER_BITS:  # of which the decoder has made 16
            return Told(CONTAINER_BITS)
        return Told(fixed=fixed, is_deep_color=True)
    if page is None:
        return Told()
    if page.bits < CONTAINER_BITS:
        return Told(page.bits, is_inverted=page.zero_is_white)
    stated = page.stated_bits
    if stated is None and stack is not None and stack.significant_bits is not None:
        stated = stack.significant_bits if stack.significant_bits < CONTAINER_BITS else None
    return Told(stated, fixed, page.zero_is_white, page.bits == CONTAINER_BITS and page.samples > 1)


def to_rgb(image: Image.Image, data: bytes, page: tiff.Page | None, fixed: int | None) -> Pixels:
    """The pixels of a loaded image, with its other pages where they are its colours. Raises ImageRejected.

    `page`: the first of a TIFF, else None. `fixed`: by --bit-depth.
    """
    stack = read_stack(page) if page is not None else None
    told = told_by(data, page, stack, fixed)
    if page is not None and stack is not None:
        order = colour_pages(stack, page, int(getattr(image, "n_frames", 1)))
        if order is not None:
            return _from_pages(image, order, told)
    if image.mode == "I":
        raise ImageRejected(Code.UNSUPPORTED_FORMAT, "32-bit samples; save as 8 or 16 bits a channel")
    if image.mode == "F":
        return _from_floats(image)
    if image.mode.startswith("I;16"):
        return _from_gray(image, told)
    _refuse_invisible(image)
    levels = _in_strips(image, _to_levels)
    return _from_deep_color(image, levels, data, told) if told.is_deep_color else Pixels(levels)


def _refuse_invisible(image: Image.Image) -> None:
    """On white nothing of it would be left: a model would be shown an empty sheet."""
    if "transparency" not in image.info and image.getbands()[-1] not in _ALPHA:
        return
    seen = sum(int(np.count_nonzero(_alpha(strip) >= _HALF)) for strip in _strips(image))
    if seen * _VISIBLE < image.width * image.height:
        which = "nearly every" if seen else "every"
        message = f"{which} pixel is transparent; save it without an alpha channel or a transparent colour"
        raise ImageRejected(Code.UNSUPPORTED_FORMAT, message)


def _alpha(strip: Image.Image) -> NDArray[np.uint8]:
    band = strip.getbands()[-1]
    return np.asarray(strip.getchannel(band) if band in _ALPHA else strip.convert("RGBA").getchannel("A"))


def _from_floats(image: Image.Image) -> Pixels:
    for strip in _strips(image):
        samples = np.asarray(strip)
        if not np.isfinite(samples).all() or samples.min(initial=0) < 0 or samples.max(initial=0) > 1:
            raise ImageRejected(Code.UNSUPPORTED_FORMAT, "float samples outside 0..1; save as 8 or 16 bits")
    return Pixels(_in_strips(image, lambda strip: _gray(np.rint(np.asarray(strip) * 255).astype(np.uint8))))


def _from_gray(image: Image.Image, told: Told) -> Pixels:
    """Of one channel of 16 bits."""
    depth = told.depth(count_levels(np.asarray(strip) for strip in _strips(image)), is_color=False)

    def levels(strip: Image.Image) -> NDArray[np.uint8]:
        samples = np.asarray(strip)
        return _gray(depth.levels(depth.top - np.minimum(samples, depth.top) if told.is_inverted else samples))

    return Pixels(_in_strips(image, levels), depth.remarks)


def _from_deep_color(image: Image.Image, levels: NDArray[np.uint8], data: bytes, told: Told) -> Pixels:
    """Of 16 bits a sample. `levels` are the high bytes, which will do where the samples fill what holds them."""
    colors = len(image.getbands()) - (image.getbands()[-1] in _ALPHA)
    counts = count_levels((np.asarray(strip)[..., :colors] for strip in _strips(image)), bits=8)
    if told.fixed in (None, CONTAINER_BITS) and (told.fixed or highest(counts) >= _FULL_BYTE):
        return Pixels(levels)
    samples = _whole_samples(image, data)
    depth = told.depth(count_levels([samples]), is_color=True)
    return Pixels(levels if depth.bits == CONTAINER_BITS else depth.levels(samples), depth.remarks)


def _whole_samples(image: Image.Image, data: bytes) -> NDArray[np.uint16]:
    """(H, W, 3) uint16, RGB, through OpenCV, which must find the high bytes that Pillow found. Raises ImageRejected."""
    readable = None
    if image.format == "PNG":
        readable = png.bare(data)  # OpenCV takes memory for whatever length a chunk announces
    elif image.format == "TIFF":
        readable = tiff.for_pillow(data)
    if image.mode == "RGB" and readable is not None:
        try:
            found = cv2.imdecode(np.frombuffer(readable, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error:
            found = None
        if found is not None and found.dtype == np.uint16 and found.shape == (image.height, image.width, 3):
            samples: NDArray[np.uint16] = np.asarray(found[..., ::-1], np.uint16)
            if ((samples >> 8) == np.asarray(image)).all():
                return samples
    raise ImageRejected(
        Code.UNSUPPORTED_FORMAT,
        f"colour of fewer bits in 16, as {image.format} of mode {image.mode}; save it as RGB of 8 bits a channel",
    )


def _from_pages(image: Image.Image, order: tuple[int, int, int], told: Told) -> Pixels:
    """Red, green and blue from three gray pages of one size. One depth for all three, or white would not be white."""
    mode, planes = image.mode, list[NDArray[np.uint16]]()
    if mode != "L" and (not mode.startswith("I;16") or told.is_inverted):
        raise ImageRejected(
            Code.UNSUPPORTED_FORMAT, f"colour channels in pages of mode {mode}; save it as one RGB image"
        )
    size = image.size  # upright, which a page is only once it is loaded
    for number in order:
        image.seek(number)
        if image.mode != mode or sorted(image.size) != sorted(size):
            raise ImageRejected(Code.UNSUPPORTED_FORMAT, "channels of unlike pages; save it as one RGB image")
        image.load()
        planes.append(np.asarray(image))
    if len({plane.shape for plane in planes}) > 1:
        raise ImageRejected(Code.UNSUPPORTED_FORMAT, "channels turned each its own way; save it as one RGB image")
    samples = np.stack(planes, axis=2)  # (H, W, 3)
    if mode == "L":
        return Pixels(samples.astype(np.uint8), frames=3)
    depth = told.depth(count_levels(planes), is_color=True)
    return Pixels(depth.levels(samples), depth.remarks, frames=3)


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    """The image in strips: whole copies in other modes on the way would each be as large again."""
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // max(1, width))
    if rows >= height:
        yield image
        return
    for top in range(0, height, rows):
        yield image.crop((0, top, width, min(top + rows, height)))


def _in_strips(image: Image.Image, levels: Callable[[Image.Image], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8, filled strip by strip."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    top = 0
    for strip in _strips(image):
        pixels[top : top + strip.height] = levels(strip)
        top += strip.height
    return pixels


def _to_levels(image: Image.Image) -> NDArray[np.uint8]:
    """Of 8 bits a sample and any mode, alpha on white."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        colored = image.convert("RGBA")
        paper = Image.new("RGBA", colored.size, "white")
        image = Image.alpha_composite(paper, colored)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _gray(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(levels[:, :, None], 3, axis=2)
