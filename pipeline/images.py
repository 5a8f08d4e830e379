"""Encoded bytes to RGB uint8 of the model's input size: the one way, for training, evaluation, batch and serving.

JPEG takes the fast road: libjpeg-turbo scales during decoding (DCT scaling) to the smallest n/8 not below the
target, then one bilinear step. Everything else, and any JPEG that turbo cannot read (CMYK, arithmetic coding), goes
through Pillow, is reduced by whole factors with area averaging, then takes the same bilinear step. Against a plain
Pillow resize the result differs by about one level on average; what counts is that all users share it.

Rules: the whole field is kept (aspect ratio is not), EXIF orientation is applied, alpha lies on white, the first
frame or page is used, 16-bit samples are scaled to 8, float samples must lie in 0..1, ICC profiles are ignored.
"""

import hashlib
import io
import json
import struct
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from pipeline.errors import Code, ImageRejected

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif"})
_PILLOW_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "MPO")
_FORMAT_NAMES = {"MPO": "jpeg"}
_EXIF_ORIENTATION = ExifTags.Base.Orientation.value

cv2.setNumThreads(1)  # one worker a core: threads of our own would only fight each other
Image.MAX_IMAGE_PIXELS = None  # `Limits` is the guard, with a code instead of a warning


@dataclass(frozen=True)
class Limits:
    """What is refused before decoding, from length and header alone."""

    max_bytes: int = 64 * 1024 * 1024
    max_pixels: int = 100_000_000
    max_frames: int = 1000  # of an animation or a multi-page file, of which only the first is used


@dataclass(frozen=True)
class Preprocessing:
    """Everything that decides the pixels a model sees; its digest is stored in the bundle.

    Raise `version` with any change to `load_image` that moves a pixel.
    """

    size: int
    version: int = 1
    color: str = "RGB, alpha on white, ICC ignored"
    resize: str = "DCT n/8 or area by whole factors, then bilinear (exact) to size x size, aspect not kept"
    orientation: str = "EXIF applied"

    def digest(self) -> str:
        """SHA-256, hex, of the rules above."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Header:
    """What is known before decoding. `width` and `height` in pixels as stored, before EXIF orientation."""

    format: str
    width: int
    height: int
    frames: int = 1


@dataclass(frozen=True)
class LoadedImage:
    """A decoded image at model size."""

    pixels: NDArray[np.uint8]  # (size, size, 3), RGB
    header: Header


def load_image(data: bytes, size: int, limits: Limits = Limits()) -> LoadedImage:
    """Decode, orient and resize one encoded image to uint8 (size, size, 3), RGB.

    Raises ImageRejected with code empty, too_large, too_many_pixels, unsupported_format, truncated or corrupt.
    """
    header = read_header(data, limits)
    if header.format == "jpeg":
        pixels = _decode_jpeg(data, header, size)
    else:
        pixels = _decode_pillow(data)
    return LoadedImage(_resize(pixels, size), header)


def read_header(data: bytes, limits: Limits = Limits()) -> Header:
    """Check length and announced size against the limits. Raises ImageRejected as `load_image` does."""
    if not data:
        raise ImageRejected(Code.EMPTY, "the file has no bytes")
    if len(data) > limits.max_bytes:
        raise ImageRejected(
            Code.TOO_LARGE, f"{len(data)} bytes, limit {limits.max_bytes}; raise --max-bytes to accept it"
        )
    header = _jpeg_header(data) if data[:3] == b"\xff\xd8\xff" else _pillow_header(data)
    if header.width * header.height > limits.max_pixels:
        raise ImageRejected(
            Code.TOO_MANY_PIXELS,
            f"{header.width}x{header.height} pixels announced, limit {limits.max_pixels}; raise --max-pixels",
        )
    if header.frames > limits.max_frames:
        message = f"{header.frames} frames, limit {limits.max_frames}: a film or a stack; save the frame that counts"
        raise ImageRejected(Code.TOO_MANY_FRAMES, message)
    return header


def _jpeg_header(data: bytes) -> Header:
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except KeyError as error:  # simplejpeg knows no name for the colour space: no frame header, or an unusual one
        if _is_complete(data, "jpeg"):
            return _pillow_header(data)
        raise _damaged(data, "jpeg", ValueError("no complete frame header")) from error
    except ValueError as error:
        raise _damaged(data, "jpeg", error) from error
    return Header("jpeg", width, height)


def _pillow_header(data: bytes) -> Header:
    with _open(data) as image:
        name = _FORMAT_NAMES.get(image.format or "", (image.format or "").lower())
        return Header(name, image.width, image.height, _frames(image))


def _frames(image: Image.Image) -> int:
    """Frames or pages, by walking their headers."""
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # damage behind the first frame; the decoder will say what it is
        return 1


def _open(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged header is reported by its exception, not on stderr
            return Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS)
    except Exception as error:  # Pillow plugins raise many kinds on damaged headers
        name = _sniff(data)
        if name is None:
            start = data[:8].hex(" ")
            message = f"starts with {start}: not JPEG, PNG, TIFF, BMP, WebP or GIF; convert it or leave it out"
            raise ImageRejected(Code.UNSUPPORTED_FORMAT, message) from error
        raise _damaged(data, name, error) from error


def _decode_jpeg(data: bytes, header: Header, size: int) -> NDArray[np.uint8]:
    try:
        pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", min_height=size, min_width=size, strict=True)
    except (ValueError, KeyError) as error:
        if not _is_complete(data, "jpeg"):
            raise _damaged(data, "jpeg", error) from error
        if _turbo_reads(data):
            raise _damaged(data, "jpeg", error) from error
        return _decode_pillow(data)
    orientation = _orientation(data)
    return pixels if orientation == 1 else _orient(pixels, orientation)


def _turbo_reads(data: bytes) -> bool:
    """False for colour spaces and codings that libjpeg-turbo's RGB road does not offer (CMYK, YCCK, lossless)."""
    try:
        return simplejpeg.decode_jpeg_header(data, strict=False)[2] in ("RGB", "YCbCr", "Gray")
    except (ValueError, KeyError):
        return False


def _orientation(data: bytes) -> int:
    """EXIF orientation 1..8 of a JPEG; 1 where there is none or it is damaged."""
    if b"Exif\x00\x00" not in data[:4096]:
        return 1
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "MPO")) as image:
            value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except (OSError, SyntaxError, struct.error, ValueError, TypeError):
        return 1
    return value if value in range(1, 9) else 1


def _orient(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo an EXIF orientation (CIPA DC-008, tag 0x0112)."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _decode_pillow(data: bytes) -> NDArray[np.uint8]:
    image = _open(data)
    name = _FORMAT_NAMES.get(image.format or "", (image.format or "").lower())
    try:
        with image, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            upright = ImageOps.exif_transpose(image)
            return _to_rgb(upright)
    except ImageRejected:
        raise
    except MemoryError as error:
        raise ImageRejected(Code.TOO_MANY_PIXELS, "not enough memory to decode it; lower --max-pixels") from error
    except Exception as error:  # every other failure of a decoder is damage in the bytes
        raise _damaged(data, name, error) from error


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 from any Pillow mode."""
    if image.mode.startswith("I;16") or image.mode == "I":
        samples = np.asarray(image).astype(np.int64)
        top = samples.max(initial=0)
        if samples.min(initial=0) < 0 or top > 65535:
            raise ImageRejected(Code.UNSUPPORTED_FORMAT, "32-bit samples; save as 8 or 16 bits a channel")
        return _gray((samples // 257).astype(np.uint8))
    if image.mode == "F":
        levels = np.asarray(image)
        if not np.isfinite(levels).all() or levels.min(initial=0) < 0 or levels.max(initial=0) > 1:
            raise ImageRejected(Code.UNSUPPORTED_FORMAT, "float samples outside 0..1; save as 8 or 16 bits")
        return _gray(np.rint(levels * 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        colored = image.convert("RGBA")
        paper = Image.new("RGBA", colored.size, "white")
        image = Image.alpha_composite(paper, colored)
    return np.ascontiguousarray(np.asarray(image.convert("RGB")))


def _gray(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(levels[:, :, None], 3, axis=2)


def _resize(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    if (height, width) == (size, size):
        return pixels
    rows, columns = max(1, height // size), max(1, width // size)
    if rows > 1 or columns > 1:
        reduced = (max(size, width // columns), max(size, height // rows))
        pixels = _as_uint8(cv2.resize(pixels, reduced, interpolation=cv2.INTER_AREA))
    return _as_uint8(cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR_EXACT))


def _as_uint8(pixels: Any) -> NDArray[np.uint8]:
    return np.asarray(pixels, dtype=np.uint8)


def _sniff(data: bytes) -> str | None:
    """The format that the magic number names, None if none of ours."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if data[:8] == b"\x89PNG\r\n\x1a\n"[: len(data)] and len(data) >= 4:
        return "png"
    if data[:4] in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"):
        return "tiff"
    if data[:4] == b"RIFF" and data[8:12] in (b"WEBP"[: len(data) - 8], b"WEBP"):
        return "webp"
    if data[:4] == b"GIF8":
        return "gif"
    if data[:2] == b"BM" and len(data) >= 14 and data[6:10] == b"\x00\x00\x00\x00":
        return "bmp"
    return None


def _is_complete(data: bytes, name: str) -> bool:
    """Whether the file reaches the end that its own header or end marker promises."""
    if name == "jpeg":
        return data.rstrip(b"\x00\xff\r\n ").endswith((b"\xff\xd9", b"\xd9")) and b"\xff\xd9" in data[-4096:]
    if name == "png":
        return b"IEND" in data[-64:]
    if name == "gif":
        return data.rstrip(b"\x00").endswith(b"\x3b")
    if name == "webp":
        return len(data) >= 12 and len(data) >= int.from_bytes(data[4:8], "little") + 8
    if name == "bmp":
        return len(data) >= int.from_bytes(data[2:6], "little")
    return not _tiff_reaches_past_end(data)


def _tiff_reaches_past_end(data: bytes) -> bool:
    """True when the first directory, or a strip or tile it names, lies behind the last byte (TIFF 6.0, section 2)."""
    if len(data) < 8:
        return True
    order = "<" if data[:2] == b"II" else ">"
    (offset,) = struct.unpack(order + "I", data[4:8])
    if offset + 2 > len(data):
        return True
    (count,) = struct.unpack(order + "H", data[offset : offset + 2])
    if offset + 2 + 12 * count > len(data):
        return True
    positions = {273: 0, 279: 0, 324: 0, 325: 0}  # first strip/tile offsets and byte counts
    for index in range(count):
        entry = data[offset + 2 + 12 * index : offset + 14 + 12 * index]
        tag, kind, number = struct.unpack(order + "HHI", entry[:8])
        if tag in positions:
            width = 2 if kind == 3 else 4
            at = offset + 10 + 12 * index
            if number * width > 4:
                (at,) = struct.unpack(order + "I", entry[8:])
                at += (number - 1) * width
            if at + width > len(data):
                return True
            positions[tag] = struct.unpack(order + ("H" if width == 2 else "I"), data[at : at + width])[0]
    return max(positions[273] + positions[279], positions[324] + positions[325]) > len(data)


def _damaged(data: bytes, name: str, error: Exception) -> ImageRejected:
    detail = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    if _is_complete(data, name):
        return ImageRejected(Code.CORRUPT, f"damaged {name}: {detail}")
    return ImageRejected(Code.TRUNCATED, f"{name} ends too early ({len(data)} bytes): {detail}")
