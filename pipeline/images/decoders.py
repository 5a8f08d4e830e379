"""Encoded bytes to RGB uint8: JPEG through libjpeg-turbo, scaled by its DCT; everything else through Pillow."""

import contextlib
import re
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import AvifImagePlugin, ExifTags, Image, features

from pipeline.base.errors import Code, ImageRejected
from pipeline.images.formats import foreign, heic, jpeg, png, tiff
from pipeline.images.formats.parts import CountedBytes
from pipeline.images.formats.sniff import damaged, is_complete, sniff
from pipeline.images.noise import decoder_remarks, heard, summed_up
from pipeline.images.samples import Pixels, to_rgb

_PILLOW_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")  # MPO comes out of JPEG
_FORMAT_NAMES = {"MPO": "jpeg", "JPEG2000": "jp2", "HEIF": "heic"}
# Tried only on files that begin as theirs do. The second: what Pillow calls them among what it was built with.
_PLUGINS = {"jp2": ("JPEG2000", "jpg_2000"), "avif": ("AVIF", "avif"), "heic": ("HEIF", None)}
_EXIF_ORIENTATION = ExifTags.Base.Orientation.value
_EXIF_DAMAGE = (OSError, SyntaxError, struct.error, ValueError, TypeError, KeyError)
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([1-8])\b")

AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # one worker a core
Image.MAX_IMAGE_PIXELS = None  # `pipeline.images.Limits` is the guard, with a code instead of a warning


def decode_jpeg(data: bytes, size: int, *, may_be_turned: bool) -> Pixels:
    """Upright, no side below `size` where the image has as many pixels. Raises ImageRejected."""
    try:
        levels = np.asarray(simplejpeg.decode_jpeg(data, "RGB", min_height=size, min_width=size, strict=True))
    except (ValueError, KeyError) as error:  # every warning of libjpeg is an error here
        is_harmless = jpeg.is_harmless(str(error))
        if not is_complete(data, "jpeg") or not (is_harmless or not _turbo_reads(data)):
            raise damaged(data, "jpeg", error) from error
        pixels = decode_pillow(data)
        said = [str(error)] if is_harmless else []
        return replace(pixels, remarks=(*pixels.remarks, *decoder_remarks(said)))
    if not may_be_turned:
        return Pixels(levels)
    with heard() as said:
        orientation = _jpeg_orientation(data)
    return Pixels(_orient(levels, orientation), decoder_remarks(said))


def _turbo_reads(data: bytes) -> bool:
    """False for colour spaces and codings that libjpeg-turbo's RGB road does not offer (CMYK, YCCK, arithmetic)."""
    try:
        return simplejpeg.decode_jpeg_header(data, strict=False)[2] in ("RGB", "YCbCr", "Gray")
    except (ValueError, KeyError):
        return False


def _jpeg_orientation(data: bytes) -> int:
    try:
        with Image.open(CountedBytes(jpeg.only_turning(data)), formats=("JPEG",)) as image:
            return _orientation(image)
    except _EXIF_DAMAGE:
        return 1


def _orientation(image: Image.Image) -> int:
    """Orientation 1..8 by EXIF, else by XMP; 1 where there is none or it is damaged."""
    value: Any = None
    with contextlib.suppress(*_EXIF_DAMAGE):
        value = image.getexif().get(_EXIF_ORIENTATION)
    if value not in range(1, 9):  # Pillow reads XMP too, but only one of its spellings; 0 says that nobody knows
        xmp = image.info.get("xmp")
        found = _XMP_ORIENTATION.search(xmp) if isinstance(xmp, bytes) else None
        value = found[1] if found else 1
    return int(value)


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
    with heard():  # what counts is said again when it is decoded
        return Image.open(CountedBytes(tiff.for_pillow(data)), formats=_plugins(sniff(data)))


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


def decode_pillow(data: bytes, bit_depth: int | None = None) -> Pixels:
    """Upright, at full size. `bit_depth`: of 16-bit samples, those that count. Raises ImageRejected."""
    try:
        return _pillow_pixels(data, bit_depth)
    except ImageRejected as rejected:
        lean = png.only_pixels(data) if rejected.code is Code.CORRUPT and data.startswith(png.MAGIC) else None
        if lean is None:
            raise
        return _pillow_pixels(lean, bit_depth)


def _pillow_pixels(data: bytes, bit_depth: int | None) -> Pixels:
    page = tiff.first_page(data) if data[:4] in tiff.MAGICS else None
    is_libtiff = page is not None and page.compression != 1
    said: list[str] = []
    try:
        with heard(from_libtiff=is_libtiff) as said:
            pixels = _loaded(data, page, bit_depth)
    except ImageRejected as rejected:
        raise _with_reason(rejected, said) from rejected
    return replace(pixels, remarks=(*pixels.remarks, *decoder_remarks(said)))


def _loaded(data: bytes, page: tiff.Page | None, bit_depth: int | None) -> Pixels:
    image = open_pillow(data)
    name = format_name(image)
    try:
        with image:
            image.load()
            orientation = _orientation(image)
            pixels = to_rgb(image, data, page, bit_depth)
    except ImageRejected:
        raise
    except MemoryError as error:
        raise ImageRejected(Code.TOO_MANY_PIXELS, "not enough memory to decode it; lower --max-pixels") from error
    except Exception as error:  # every other failure of a decoder is damage in the bytes
        raise damaged(data, name, error) from error
    return replace(pixels, levels=_orient(pixels.levels, orientation))


def _with_reason(rejected: ImageRejected, said: list[str]) -> ImageRejected:
    """With what the decoder said of the damage."""
    if not said or rejected.code not in (Code.CORRUPT, Code.TRUNCATED):
        return rejected
    return ImageRejected(rejected.code, f"{rejected.message} ({summed_up(said)})", rejected.stage)


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
