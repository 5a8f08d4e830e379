"""Encoded bytes to RGB uint8: JPEG through libjpeg-turbo, scaled by its DCT; everything else through Pillow."""

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import AvifImagePlugin, ExifTags, Image, features

from pipeline.base.errors import Code, ImageRejected
from pipeline.images.formats import foreign, heic, jpeg, jpeg2000, png, tiff
from pipeline.images.formats.sniff import damaged, is_complete, sniff

_PILLOW_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")  # MPO comes out of JPEG
_FORMAT_NAMES = {"MPO": "jpeg", "JPEG2000": "jp2", "HEIF": "heic"}
# Tried only on files that begin as theirs do. The second: what Pillow calls them among what it was built with.
_PLUGINS = {"jp2": ("JPEG2000", "jpg_2000"), "avif": ("AVIF", "avif"), "heic": ("HEIF", None)}
_EXIF_ORIENTATION = ExifTags.Base.Orientation.value
_EXIF_DAMAGE = (OSError, SyntaxError, struct.error, ValueError, TypeError, KeyError)
_STRIP_PIXELS = 1 << 20
_TWELVE_BITS = 4095  # what many cameras fill of 16 bits

AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # one worker a core
Image.MAX_IMAGE_PIXELS = None  # `pipeline.images.Limits` is the guard, with a code instead of a warning


def decode_jpeg(data: bytes, size: int, *, has_exif: bool) -> NDArray[np.uint8]:
    """(H, W, 3), upright, no side below `size` where the image has as many pixels. Raises ImageRejected."""
    try:
        pixels = np.asarray(simplejpeg.decode_jpeg(data, "RGB", min_height=size, min_width=size, strict=True))
    except (ValueError, KeyError) as error:  # every warning of libjpeg is an error here
        is_whole = is_complete(data, "jpeg") and (jpeg.is_harmless(str(error)) or not _turbo_reads(data))
        if not is_whole:
            raise damaged(data, "jpeg", error) from error
        return decode_pillow(data)
    return _orient(pixels, _jpeg_orientation(data)) if has_exif else pixels


def _turbo_reads(data: bytes) -> bool:
    """False for colour spaces and codings that libjpeg-turbo's RGB road does not offer (CMYK, YCCK, arithmetic)."""
    try:
        return simplejpeg.decode_jpeg_header(data, strict=False)[2] in ("RGB", "YCbCr", "Gray")
    except (ValueError, KeyError):
        return False


def _jpeg_orientation(data: bytes) -> int:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return _orientation(image)
    except _EXIF_DAMAGE:
        return 1


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 where there is none or it is damaged."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except _EXIF_DAMAGE:
        return 1
    return value if value in range(1, 9) else 1


def open_pillow(data: bytes) -> Image.Image:
    """The image with its header read. Raises ImageRejected."""
    try:
        return _open(data)
    except ImageRejected:
        raise
    except Exception as error:  # Pillow plugins raise many kinds on damaged headers
        lean = png.only_pixels(data) if data.startswith(png.MAGIC) else None
        if lean is not None:
            with contextlib.suppress(Exception):  # the first one tells more
                return _open(lean)
        raise _unreadable(data, error) from error


def _open(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a damaged header is reported by its exception, not on stderr
        return Image.open(io.BytesIO(data), formats=_plugins(sniff(data)))


def _plugins(name: str | None) -> tuple[str, ...]:
    """Which of Pillow's readers a file is given to. Raises ImageRejected where the one it needs is missing."""
    if name not in _PLUGINS:
        return _PILLOW_FORMATS
    plugin, feature = _PLUGINS[name]
    if feature is None:
        heic.enable()
    elif not features.check(feature):
        message = f"{plugin}: this Pillow was built without it; pip install --force-reinstall pillow"
        raise ImageRejected(Code.UNSUPPORTED_FORMAT, message)
    return (plugin,)


def _unreadable(data: bytes, error: Exception) -> ImageRejected:
    """Why no decoder takes the file for one of its own."""
    name = sniff(data)
    if name is None:
        message = f"starts with {data[:8].hex(' ')}: no image of a kind that is read; convert it or leave it out"
        return ImageRejected(Code.UNSUPPORTED_FORMAT, foreign.by_content(data) or message)
    if name == "tiff" and is_complete(data, name):
        return ImageRejected(Code.UNSUPPORTED_FORMAT, "a kind of TIFF that is not read; save it with 8 bits a channel")
    return damaged(data, name, error)


def decode_pillow(data: bytes) -> NDArray[np.uint8]:
    try:
        return _pillow_pixels(data)
    except ImageRejected as rejected:
        lean = png.only_pixels(data) if rejected.code is Code.CORRUPT and data.startswith(png.MAGIC) else None
        if lean is None:
            raise
        return _pillow_pixels(lean)


def _pillow_pixels(data: bytes) -> NDArray[np.uint8]:
    image = open_pillow(data)
    name = format_name(image)
    try:
        with image, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            _refuse_invisible(image)
            pixels = _to_rgb(image, _sample_range(image, data, name))
            orientation = _orientation(image)
    except ImageRejected:
        raise
    except MemoryError as error:
        raise ImageRejected(Code.TOO_MANY_PIXELS, "not enough memory to decode it; lower --max-pixels") from error
    except Exception as error:  # every other failure of a decoder is damage in the bytes
        raise damaged(data, name, error) from error
    _refuse_almost_black(pixels, data, name)
    return _orient(pixels, orientation)


@dataclass(frozen=True)
class _SampleRange:
    """What is white among the samples of one channel, and whether it is 0."""

    top: float
    is_inverted: bool = False


def _sample_range(image: Image.Image, data: bytes, name: str) -> _SampleRange:
    """Of single-channel samples of more than 8 bits. Raises ImageRejected where their scale is anybody's guess."""
    if image.mode == "I":
        raise ImageRejected(Code.UNSUPPORTED_FORMAT, "32-bit samples; save as 8 or 16 bits a channel")
    if image.mode == "F":
        for strip in _strips(image):
            samples = np.asarray(strip)
            if not np.isfinite(samples).all() or samples.min(initial=0) < 0 or samples.max(initial=0) > 1:
                raise ImageRejected(Code.UNSUPPORTED_FORMAT, "float samples outside 0..1; save as 8 or 16 bits")
        return _SampleRange(1.0)
    if not image.mode.startswith("I;16"):
        return _SampleRange(255.0)
    if name == "jp2" and (frame := jpeg2000.read_frame(data)) is not None and frame.bits < 16:
        return _SampleRange(65535.0)  # brought to 16 bits by the decoder
    page = tiff.first_page(data) if name == "tiff" else None
    is_inverted = page is not None and page.zero_is_white
    highest = max(int(np.asarray(strip).max(initial=0)) for strip in _strips(image))
    is_twelve_bits = highest <= _TWELVE_BITS and not is_inverted
    return _SampleRange(_TWELVE_BITS if is_twelve_bits else 65535.0, is_inverted)


def _refuse_invisible(image: Image.Image) -> None:
    """On white nothing of it would be left: a model would be shown an empty sheet."""
    alpha = image.getbands()[-1]
    if alpha in ("A", "a") and image.getchannel(alpha).getextrema() == (0, 0):
        raise ImageRejected(Code.UNSUPPORTED_FORMAT, "every pixel is transparent; save it without an alpha channel")


def _refuse_almost_black(pixels: NDArray[np.uint8], data: bytes, name: str) -> None:
    """Colour samples of 16 bits come with their high bytes alone: of a camera's 12 bits too little is left."""
    page = tiff.first_page(data) if name == "tiff" else None
    is_deep = png.is_deep(data) if name == "png" else page is not None and page.bits == 16 and page.samples > 1
    if is_deep and 0 < pixels.max(initial=0) <= _TWELVE_BITS >> 8:
        raise ImageRejected(Code.UNSUPPORTED_FORMAT, "12 bits or fewer in 16-bit colour samples; save as 8 bits")


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    """The image in strips: whole copies in other modes on the way would each be as large again."""
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // max(1, width))
    if rows >= height:
        yield image
        return
    for top in range(0, height, rows):
        yield image.crop((0, top, width, min(top + rows, height)))


def _to_rgb(image: Image.Image, samples: _SampleRange) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 from any Pillow mode."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    top = 0
    for strip in _strips(image):
        pixels[top : top + strip.height] = _strip_to_rgb(strip, samples)
        top += strip.height
    return pixels


def _strip_to_rgb(image: Image.Image, samples: _SampleRange) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.int64)
        wide = int(samples.top) - wide if samples.is_inverted else wide
        return _gray((wide * 255 // int(samples.top)).astype(np.uint8))
    if image.mode == "F":
        return _gray(np.rint(np.asarray(image) * 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        colored = image.convert("RGBA")
        paper = Image.new("RGBA", colored.size, "white")
        image = Image.alpha_composite(paper, colored)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _gray(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(levels[:, :, None], 3, axis=2)


def _orient(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo an EXIF orientation (CIPA DC-008, tag 0x0112)."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def format_name(image: Image.Image) -> str:
    """As in the output: jpeg, png, tiff, ..."""
    return _FORMAT_NAMES.get(image.format or "", (image.format or "").lower())
