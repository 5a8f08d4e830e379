"""Encoded bytes to RGB uint8 of the model's input size: the one way, for training, evaluation, batch and serving.

JPEG takes the fast road: libjpeg-turbo scales during decoding (DCT scaling) to the smallest n/8 not below the
target, then one bilinear step. Everything else, and any JPEG that turbo cannot read (CMYK, arithmetic coding), goes
through Pillow, is reduced by whole factors with area averaging, then takes the same bilinear step. Against a plain
Pillow resize the result differs by about one level on average; what counts is that all users share it.

Rules: the whole field is kept (aspect ratio is not), orientation by EXIF or XMP is applied, alpha lies on white, the
first frame or page is used (three pages that are called red, green and blue are one image), 16-bit samples are scaled
to 8 by the bits that count (`pipeline/images/depth.py`), float samples must lie in 0..1, ICC profiles are ignored. What
would have to be guessed is refused, or remarked on.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.base.errors import Code, ImageRejected, Stage
from pipeline.images.decoders import decode_jpeg, decode_pillow, format_name, open_pillow
from pipeline.images.formats import dicom, foreign, jpeg, jpeg2000, pnm, tiff
from pipeline.images.formats.parts import too_many_parts
from pipeline.images.formats.sniff import damaged, sniff
from pipeline.images.remarks import remark
from pipeline.images.samples import Pixels

IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".tif", ".tiff", ".btf", ".tf8", ".tf2", ".bmp", ".dib",
    ".webp", ".gif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif", ".avifs", ".heic", ".heif", ".hif",
    ".pnm", ".pbm", ".pgm", ".ppm", ".dcm", ".dicom",
})  # fmt: skip
_FREE_SCANS, _MAX_SCANNED = 20, 20  # more scans than any encoder makes; passes over an image of --max-pixels

cv2.setNumThreads(1)  # one worker a core: threads of our own would only fight each other
cv2.utils.logging.setLogLevel(0)  # what it cannot read is a code here, not a line on stderr


@dataclass(frozen=True)
class Limits:
    """What is refused before decoding, from length and header alone."""

    max_bytes: int = 64 * 1024 * 1024
    max_pixels: int = 100_000_000
    max_frames: int = 1000  # of an animation or a multi-page file, of which only the first is used

    def too_large(self, size_bytes: int, stage: Stage = Stage.DECODE) -> ImageRejected:
        """What a file of more than `max_bytes` is refused with, wherever that is noticed."""
        message = f"{size_bytes} bytes, the limit (--max-bytes) is {self.max_bytes}"
        return ImageRejected(Code.TOO_LARGE, message, stage)


@dataclass(frozen=True)
class Preprocessing:
    """Everything that decides the pixels a model sees; its digest is stored in the bundle.

    Raise `version` with any change to `load_image` that moves a pixel.
    """

    size: int
    version: int = 3
    color: str = "RGB, alpha on white, ICC ignored"
    resize: str = "DCT n/8 or area by whole factors, then bilinear (exact) to size x size, aspect not kept"
    orientation: str = "EXIF, else XMP applied"
    depth: str = "of 16 bits those fixed, else stated, else guessed of gray by percentile; colour never guessed"
    bit_depth: int | None = None  # fixed by --bit-depth, whatever files state

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
    may_be_turned: bool = False  # of a JPEG: it holds what may be an orientation
    scans: int = 1  # of a JPEG


@dataclass(frozen=True)
class LoadedImage:
    """A decoded image at model size."""

    pixels: NDArray[np.uint8]  # (size, size, 3), RGB
    header: Header
    remarks: tuple[str, ...] = ()  # what was noticed on the way; see `pipeline/images/remarks.py`


def load_image(data: bytes, size: int, limits: Limits = Limits(), bit_depth: int | None = None) -> LoadedImage:
    """Decode, orient and resize one encoded image to uint8 (size, size, 3), RGB.

    `bit_depth`: how many bits of 16-bit samples count, whatever the file states; None: as it says, or a guess.
    Raises ImageRejected with code empty, too_large, too_many_pixels, unsupported_format, truncated or corrupt.
    """
    return decode_image(data, read_header(data, limits), size, bit_depth)


def decode_image(data: bytes, header: Header, size: int, bit_depth: int | None = None) -> LoadedImage:
    """The second half of `load_image`, of a file whose header was read and is within limits. Raises ImageRejected."""
    if header.format == "jpeg":
        pixels = decode_jpeg(data, size, may_be_turned=header.may_be_turned)
    elif header.format in _DECODERS:
        pixels = Pixels(*_DECODERS[header.format](data, bit_depth))
    else:
        pixels = decode_pillow(data, bit_depth)
    remarks = pixels.remarks
    if header.frames > pixels.frames:
        remarks = (*remarks, remark("first of several frames used", f"{header.frames} frames"))
    return LoadedImage(_resize(pixels.levels, size), header, remarks)


def read_header(data: bytes, limits: Limits = Limits()) -> Header:
    """Check length and announced size against the limits. Raises ImageRejected as `load_image` does."""
    if not data:
        raise ImageRejected(Code.EMPTY, "the file has no bytes")
    if len(data) > limits.max_bytes:
        raise limits.too_large(len(data))
    name = sniff(data)
    header = _HEADERS.get(name or "", _pillow_header)(data, limits)
    if header.width * header.height > limits.max_pixels:
        raise ImageRejected(
            Code.TOO_MANY_PIXELS,
            f"{header.width}x{header.height} pixels announced, the limit (--max-pixels) is {limits.max_pixels}",
        )
    if header.frames > limits.max_frames:
        raise _too_many_frames(str(header.frames), limits)
    return header


def _too_many_frames(number: str, limits: Limits) -> ImageRejected:
    message = f"{number} frames, the limit (--max-frames) is {limits.max_frames}; save the frame that counts"
    return ImageRejected(Code.TOO_MANY_FRAMES, message)


def _jpeg_header(data: bytes, limits: Limits) -> Header:
    frame = jpeg.read_frame(data)
    if frame is None:
        raise damaged(data, "jpeg", ValueError("no complete frame header"))
    if not frame.is_decoded:
        raise ImageRejected(Code.UNSUPPORTED_FORMAT, f"a JPEG with {frame.kind}; save it as a baseline JPEG or PNG")
    scans = jpeg.scans(data, frame)
    if scans > _FREE_SCANS and scans * frame.width * frame.height > _MAX_SCANNED * limits.max_pixels:
        size = f"{frame.width}x{frame.height}"
        message = f"{scans} scans of {size} pixels are too much work; save it as a baseline JPEG"
        raise ImageRejected(Code.TOO_MANY_PIXELS, message)
    return Header("jpeg", frame.width, frame.height, may_be_turned=frame.may_be_turned, scans=scans)


def _tiff_header(data: bytes, limits: Limits) -> Header:
    page = tiff.first_page(data)
    if page is None:
        raise damaged(data, "tiff", ValueError("its directory lies behind its end"))
    slide = foreign.by_tiff(page)
    if slide is not None:
        raise ImageRejected(Code.UNSUPPORTED_FORMAT, slide)
    refused = page.refused()
    if refused is not None:
        raise ImageRejected(Code.UNSUPPORTED_FORMAT, f"{refused}; save it with 8 or 16 bits a channel, LZW or none")
    if page.is_in_crumbs:
        raise too_many_parts()
    if page.tile_pixels > limits.max_pixels:
        message = f"tiles of {page.tile_pixels} pixels announced, the limit (--max-pixels) is {limits.max_pixels}"
        raise ImageRejected(Code.TOO_MANY_PIXELS, message)
    if tiff.has_more_pages(data, limits.max_frames):
        raise _too_many_frames(f"more than {limits.max_frames}", limits)
    with open_pillow(data) as image:
        return Header("tiff", page.width, page.height, _frames(image))


def _jpeg2000_header(data: bytes, limits: Limits) -> Header:
    frame = jpeg2000.read_frame(data)
    if frame is None or not frame.is_complete:
        raise damaged(data, "jp2", ValueError("no end of its codestream"))
    if jpeg2000.has_too_many_pieces(data, frame):
        raise too_many_parts()
    if frame.components > 4 or frame.bits > 16:
        message = f"JPEG 2000 of {frame.components} components of {frame.bits} bits; save it as RGB of 8 bits"
        raise ImageRejected(Code.UNSUPPORTED_FORMAT, message)
    with open_pillow(data) as image:  # it believes the file's header, and takes memory for that as well
        if image.size != (frame.width, frame.height):
            raise ImageRejected(Code.CORRUPT, "damaged jp2: its header and its codestream say different sizes")
    return Header("jp2", frame.width, frame.height)


def _pnm_header(data: bytes, limits: Limits) -> Header:
    header = pnm.read_header(data)
    return Header("pnm", header.width, header.height)


def _dicom_header(data: bytes, limits: Limits) -> Header:
    header = dicom.read_header(data)
    return Header("dicom", header.width, header.height)


def _pillow_header(data: bytes, limits: Limits) -> Header:
    with open_pillow(data) as image:
        return Header(format_name(image), image.width, image.height, _frames(image))


_HEADERS = {
    "jpeg": _jpeg_header, "tiff": _tiff_header, "jp2": _jpeg2000_header, "pnm": _pnm_header, "dicom": _dicom_header,
}  # fmt: skip
_DECODERS = {"pnm": pnm.decode, "dicom": dicom.decode}


def _frames(image: Image.Image) -> int:
    """Frames or pages, by walking their headers."""
    try:
        return int(getattr(image, "n_frames", 1))
    except ImageRejected:  # they were still being counted
        raise ImageRejected(Code.TOO_MANY_FRAMES, "more frames than can be counted; save the one that counts") from None
    except Exception:  # damage behind the first frame; the decoder will say what it is
        return 1


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
