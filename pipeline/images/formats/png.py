"""PNG chunks (ISO/IEC 15948, clause 11): the file without what does not decide a pixel."""

import struct
import zlib
from collections.abc import Iterator

from pipeline.images.formats.parts import MOST_PARTS

MAGIC = b"\x89PNG\r\n\x1a\n"
_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"})
_TURNING = frozenset({b"eXIf", b"iTXt"})  # may hold an orientation, which a wrong check sum must not cost the pixels
_XMP = b"XML:com.adobe.xmp\0"
_MAX_XMP = 1 << 20


def only_pixels(data: bytes) -> bytes | None:
    """The file with header, palette, transparency, pixels and orientation alone; None where nothing can be left out.

    Text of megabytes, a profile, or a wrong check sum in either must not cost an image whose pixels are whole.
    """
    kept, left_out = [MAGIC], False
    for kind, at, end in _chunks(data):
        is_xmp = kind == b"iTXt" and data.startswith(_XMP, at + 8) and end - at < _MAX_XMP
        if (kind in _PIXELS or is_xmp) and (kind not in _TURNING or _is_sound(data, at, end)):
            kept.append(data[at:end])
        else:
            left_out = True
        if kind == b"IEND":
            return b"".join(kept) if left_out else None
    return None


def bare(data: bytes) -> bytes | None:
    """The file with header and pixels alone, for decoders that trust lengths; None where a chunk has no end."""
    kept = [MAGIC]
    for kind, at, end in _chunks(data):
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            kept.append(data[at:end])
        if kind == b"IEND":
            return b"".join(kept)
    return None


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, first byte, first byte behind) of each chunk that ends within the file, of too many the first."""
    at = len(MAGIC)
    for _ in range(MOST_PARTS):
        if at + 12 > len(data):
            return
        (length,) = struct.unpack(">I", data[at : at + 4])
        end = at + 12 + length
        if end > len(data):
            return
        yield data[at + 4 : at + 8], at, end
        at = end


def _is_sound(data: bytes, at: int, end: int) -> bool:
    (expected,) = struct.unpack(">I", data[end - 4 : end])
    return bool(zlib.crc32(data[at + 4 : end - 4]) == expected)


def is_complete(data: bytes) -> bool:
    return b"IEND" in data[-64:]


def is_deep(data: bytes) -> bool:
    """Whether samples have 16 bits."""
    return data[24:25] == b"\x10"


def significant_bits(data: bytes) -> int | None:
    """Bits of a sample that its maker meant, by the chunk sBIT, which comes before palette and pixels; None without."""
    for kind, at, end in _chunks(data):
        if kind == b"sBIT" and 12 < end - at <= 16:
            bits = max(data[at + 8 : end - 4])
            return bits if 8 <= bits <= 16 else None
        if kind == b"IDAT":
            return None
    return None
