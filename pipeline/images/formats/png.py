"""PNG chunks (ISO/IEC 15948, clause 11): the file without what does not decide a pixel."""

import struct
import zlib

MAGIC = b"\x89PNG\r\n\x1a\n"
_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"})


_TURNING = frozenset({b"eXIf", b"iTXt"})  # may hold an orientation, which a wrong check sum must not cost the pixels
_XMP = b"XML:com.adobe.xmp\0"
_MAX_XMP = 1 << 20


def only_pixels(data: bytes) -> bytes | None:
    """The file with header, palette, transparency, pixels and orientation alone; None where nothing can be left out.

    Text of megabytes, a profile, or a wrong check sum in either must not cost an image whose pixels are whole.
    """
    kept, at, left_out = [MAGIC], len(MAGIC), False
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, end = data[at + 4 : at + 8], at + 12 + length
        if end > len(data):
            return None
        is_xmp = kind == b"iTXt" and data.startswith(_XMP, at + 8) and length < _MAX_XMP
        if (kind in _PIXELS or is_xmp) and (kind not in _TURNING or _is_sound(data, at, end)):
            kept.append(data[at:end])
        else:
            left_out = True
        if kind == b"IEND":
            return b"".join(kept) if left_out else None
        at = end
    return None


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
    at = len(MAGIC)
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind = data[at + 4 : at + 8]
        if kind == b"sBIT" and 0 < length <= 4:
            bits = max(data[at + 8 : at + 8 + length])
            return bits if 8 <= bits <= 16 else None
        if kind == b"IDAT":
            return None
        at += 12 + length
    return None
