"""DICOM files of light: VL microscopic and photographic images, secondary captures (PS3.3, A.8 and A.32).

Read with pydicom, an extra. Of the header nothing but the description of the pixels is looked at, and no text of it,
not even in an error of pydicom, may reach a message or a log: there stand names of patients.
"""

import contextlib
import functools
import io
import itertools
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.base.errors import Code, ImageRejected
from pipeline.images.depth import CONTAINER_BITS, count_levels, depth_of
from pipeline.images.formats import jpeg, jpeg2000
from pipeline.images.formats.parts import MOST_PARTS, CountedBytes, too_many_parts

if TYPE_CHECKING:
    from pydicom import Dataset

_KIND, _SYNTAX = "1.2.840.10008.5.1.4.1.1.", "1.2.840.10008.1.2"
_READ = frozenset(_KIND + kind for kind in (
    "7", "7.1", "7.2", "7.3", "7.4",  # secondary captures
    "77.1.1", "77.1.2", "77.1.3", "77.1.4",  # VL endoscopic, microscopic, slide-coordinates microscopic, photographic
))  # fmt: skip
_WHOLE_SLIDE = _KIND + "77.1.6"
_NATIVE = frozenset({_SYNTAX, _SYNTAX + ".1", _SYNTAX + ".2"})
_JPEG = frozenset({_SYNTAX + ".4.50", _SYNTAX + ".4.51"})
_JPEG_LS = frozenset({_SYNTAX + ".4.80", _SYNTAX + ".4.81"})
_JPEG_2000 = frozenset(_SYNTAX + kind for kind in (".4.90", ".4.91", ".4.201", ".4.202", ".4.203"))
_RLE = _SYNTAX + ".5"
_SYNTAXES = _NATIVE | _JPEG | _JPEG_LS | _JPEG_2000 | {_RLE}
_GRAY = frozenset({"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"})
_COLOR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_PALETTE = [
    f"{color}PaletteColorLookupTable{part}" for color in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")
]
_WANTED = [
    "SOPClassUID", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows",
    "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData", *_PALETTE,
]  # fmt: skip
_UNHEARD = ("ignore", None, Warning, re.compile(r"pydicom\b"), 0)  # of warnings, which quote the header
_ITEM = b"\xfe\xff\x00\xe0"  # a fragment of coded pixels (PS3.5, annex A.4)
_SAVE = "save it as PNG or TIFF"


@dataclass(frozen=True)
class Header:
    """The description of the pixels. Of `allocated` bits that a sample takes, `bits` count."""

    width: int
    height: int
    samples: int
    photometric: str
    bits: int
    allocated: int
    is_signed: bool


def read_header(data: bytes) -> Header:
    """Raises ImageRejected."""
    with _reading():
        return _header(_dataset(data))


def decode(data: bytes, bit_depth: int | None = None) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """(H, W, 3) RGB, and what was noticed. Raises ImageRejected.

    White is what BitsStored or `bit_depth` hold, where the former is not all 16; window and rescaling are not applied.
    """
    with _reading():
        dataset = _dataset(data)
        header = _header(dataset)
        syntax = _syntax(data)
        frame = _checked_frame(dataset, header, syntax)
        if header.samples == 3 and syntax in _JPEG:
            return _jpeg_colors(frame, header), ()
        pixels = np.asarray(_pydicom().pixels.pixel_array(dataset, index=0))
        if header.photometric == "PALETTE COLOR":
            colors = np.asarray(_pydicom().pixels.apply_color_lut(pixels, dataset))
            return _levels(colors, int(dataset[_PALETTE[0]].value[2])), ()
        levels, remarks = _deep_levels(_stored(pixels, header), header, bit_depth)
        if header.samples == 3:
            return levels, remarks
        gray = 255 - levels if header.photometric == "MONOCHROME1" else levels
        return np.repeat(gray[:, :, None], 3, axis=2), remarks


@functools.cache
def _pydicom() -> ModuleType:
    """Raises ImageRejected where it is missing."""
    try:
        import pydicom
        import pydicom.encaps
        import pydicom.pixels
    except ImportError:
        raise ImageRejected(Code.UNSUPPORTED_FORMAT, "DICOM: pip install leukoray[dicom]") from None
    logging.getLogger("pydicom").disabled = True  # it quotes the header
    return pydicom


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Whatever pydicom and its decoders raise, without what they say."""
    if _UNHEARD not in warnings.filters:  # those who catch warnings undo it; images are decoded in threads, so not here
        warnings.filterwarnings("ignore", module=r"pydicom\b")
    try:
        yield
    except ImageRejected:
        raise
    except MemoryError:
        message = "not enough memory to decode it; lower --max-pixels"
        raise ImageRejected(Code.TOO_MANY_PIXELS, message) from None
    except Exception as error:
        raise ImageRejected(Code.CORRUPT, f"damaged dicom: {type(error).__name__} while reading it") from None


def _dataset(data: bytes) -> "Dataset":
    """What describes the pixels, and the pixels. Raises ImageRejected."""
    pydicom = _pydicom()
    syntax = _syntax(data)
    if syntax not in _SYNTAXES:  # a deflated one would be inflated before anything is known of its size
        raise _refused(f"coded as {_registered(syntax)}")
    dataset: Dataset = pydicom.dcmread(CountedBytes(data), specific_tags=_WANTED)
    return dataset


def _syntax(data: bytes) -> str:
    """The transfer syntax, from the group of elements that comes first (PS3.10, section 7.1)."""
    at, found = 132, ""
    for _ in range(MOST_PARTS):
        if data[at : at + 2] != b"\x02\x00":
            return found
        is_long = data[at + 4 : at + 6] in _LONG
        start = at + (12 if is_long else 8)
        size = int.from_bytes(data[start - (4 if is_long else 2) : start], "little")
        if data[at + 2 : at + 4] == b"\x10\x00":
            found = data[start : start + size].decode("ascii", "replace").strip("\0 ")
        at = start + size
    raise too_many_parts()


def _registered(uid: str) -> str:
    """The name that the standard gives to a UID; never the UID itself, which may be anything."""
    return str(_pydicom().uid.UID_dictionary.get(uid, ("something unknown",))[0])


def _header(dataset: "Dataset") -> Header:
    """Raises ImageRejected for what is not read, and for what is missing."""
    _refuse_kind(dataset)
    header = Header(
        width=int(dataset.Columns),
        height=int(dataset.Rows),
        samples=int(dataset.SamplesPerPixel),
        photometric=str(dataset.PhotometricInterpretation),
        bits=int(dataset.BitsStored),
        allocated=int(dataset.BitsAllocated),
        is_signed=int(dataset.get("PixelRepresentation", 0)) == 1,
    )
    _refuse_pixels(header, dataset)
    return header


def _refuse_kind(dataset: "Dataset") -> None:
    kind = str(
        dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID", "")
    )  # a DICOMDIR: the latter
    if kind == _WHOLE_SLIDE:
        raise ImageRejected(
            Code.UNSUPPORTED_FORMAT, "tiles of a whole slide in DICOM; save each as an image of its own"
        )
    if kind and kind not in _READ:
        message = f"a DICOM of kind {_registered(kind)}, which is not read; leave it out with --exclude"
        raise ImageRejected(Code.UNSUPPORTED_FORMAT, message)
    if "PixelData" not in dataset:  # pydicom gives none that is cut, and with it nothing of what came before
        raise ImageRejected(Code.TRUNCATED, "dicom ends before its pixels do")
    if not kind:
        raise _refused("that does not say of which kind it is")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise _refused(f"of {frames} frames")


def _refuse_pixels(header: Header, dataset: "Dataset") -> None:
    photometrics = {1: _GRAY, 3: _COLOR}.get(header.samples, frozenset())
    if header.photometric not in photometrics:
        raise _refused("of colours that are not read")
    if header.allocated not in (1, 8, 16) or (header.photometric.startswith("YBR_FULL") and header.bits != 8):
        raise _refused(f"of {header.bits} bits in {header.allocated}")
    if header.photometric == "PALETTE COLOR" and any(name not in dataset for name in _PALETTE):
        raise _refused("with a palette in segments")
    if header.is_signed and header.bits == CONTAINER_BITS:
        raise _refused("of signed samples of 16 bits")  # their scale would be a guess
    if not 0 < header.bits <= header.allocated or not header.width or not header.height:
        raise ImageRejected(Code.CORRUPT, "damaged dicom: bits or size that cannot be")
    if int(dataset.get("HighBit", header.bits - 1)) != header.bits - 1:  # older devices kept them in the upper bits
        raise _refused("whose bits that count are not the lowest ones")


def _refused(what: str) -> ImageRejected:
    return ImageRejected(Code.UNSUPPORTED_FORMAT, f"a DICOM {what}; {_SAVE}")


def _checked_frame(dataset: "Dataset", header: Header, syntax: str) -> bytes:
    """The coded pixels, which announce no more than the header: decoders take memory for that. Native ones: none."""
    decoded_bytes = (header.width * header.height * header.samples * header.allocated + 7) // 8
    if syntax in _NATIVE:
        expected = decoded_bytes * 2 // 3 if header.photometric == "YBR_FULL_422" else decoded_bytes
        if len(dataset.PixelData) < expected:
            message = f"dicom ends too early: {len(dataset.PixelData)} of {expected} bytes of pixels"
            raise ImageRejected(Code.TRUNCATED, message)
        return b""
    if dataset.PixelData.count(_ITEM) > MOST_PARTS:
        raise too_many_parts()
    frame: bytes = _pydicom().encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    if syntax == _RLE:
        is_expected = _unpacks_to(_segments(frame), decoded_bytes + 64)
    elif syntax in _JPEG_2000:
        wavelets = jpeg2000.read_frame(frame)
        if wavelets is not None and jpeg2000.has_too_many_pieces(frame, wavelets):
            raise too_many_parts()
        size = wavelets and (wavelets.width, wavelets.height, wavelets.components)
        is_expected = size == (header.width, header.height, header.samples)
    else:
        coded = jpeg.read_frame(frame)
        markers = (0xF7,) if syntax in _JPEG_LS else (0xC0, 0xC1)  # of no other kind than its transfer syntax says
        is_expected = coded is not None and coded.marker in markers
        is_expected = is_expected and coded is not None and (coded.width, coded.height) == (header.width, header.height)
    if not is_expected:
        raise ImageRejected(Code.CORRUPT, "damaged dicom: its pixels are not what its header says")
    return frame


def _jpeg_colors(frame: bytes, header: Header) -> NDArray[np.uint8]:
    """A JPEG that names its colours is believed; pydicom would convert them twice where the header names them too."""
    with Image.open(io.BytesIO(frame), formats=("JPEG",)) as image:
        components = getattr(image, "layer", ())
        is_named = "jfif" in image.info or "adobe" in image.info or bytes(row[0] for row in components) == b"RGB"
        if header.photometric == "RGB" and not is_named:
            image.draft("YCbCr", image.size)  # as they are
            return np.asarray(image)
        return np.asarray(image.convert("RGB"))


def _segments(frame: bytes) -> list[bytes]:
    """Of an RLE frame (PS3.5, annex G.5)."""
    offsets = [int.from_bytes(frame[at : at + 4], "little") for at in range(4, 64, 4)]
    ends = [*offsets[: int.from_bytes(frame[:4], "little")], len(frame)]
    return [frame[start:end] for start, end in itertools.pairwise(ends)]


def _unpacks_to(segments: list[bytes], most: int) -> bool:
    """Whether RLE segments unpack to `most` bytes or less, without doing it: two bytes may say 128, one byte nothing.

    What says nothing is counted as a byte: no program writes it, and a file of it has to end as well.
    """
    left = most
    for segment in segments:
        at = 0
        while at < len(segment) and left >= 0:
            control = segment[at]
            left -= control + 1 if control < 128 else 257 - control if control > 128 else 1
            at += control + 2 if control < 128 else 2 if control > 128 else 1
    return left >= 0


def _stored(pixels: NDArray[Any], header: Header) -> NDArray[Any]:
    """Samples from 0 on; what lies in the bits above those that count is none of theirs."""
    if header.bits == header.allocated and not header.is_signed:
        return pixels
    offset = 1 << (header.bits - 1) if header.is_signed else 0
    return (pixels.astype(np.int32) + offset) & ((1 << header.bits) - 1)


def _deep_levels(
    samples: NDArray[Any], header: Header, bit_depth: int | None
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    if header.bits <= 8:
        return _levels(samples, header.bits), ()
    stated = header.bits if header.bits < CONTAINER_BITS else None
    depth = depth_of(
        count_levels([samples]), fixed=bit_depth, stated=stated, can_guess=header.photometric == "MONOCHROME2"
    )
    return depth.levels(samples), depth.remarks


def _levels(samples: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    if samples.dtype == np.uint8 and bits == 8:
        return np.ascontiguousarray(samples)
    return (samples.astype(np.uint32) * 255 // ((1 << bits) - 1)).astype(np.uint8)
