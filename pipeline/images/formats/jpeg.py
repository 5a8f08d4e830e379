"""JPEG markers up to the end of the image (ITU-T T.81, annex B), and what is wrong but harmless."""

import re
from dataclasses import dataclass

from pipeline.images.formats.parts import MOST_PARTS, too_many_parts

# Baseline, extended and progressive, Huffman or arithmetic. Lossless and hierarchical frames (SOF3, SOF5 to 7, ...)
# are not scaled by the DCT: a decoder that was asked to scale them writes past its buffer.
_DECODED = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # 0xF7: JPEG-LS (ITU-T T.87)
_ALONE = frozenset({0x00, 0x01, *range(0xD0, 0xD8)})  # markers without a length
_NO_SCAN = b"\xff\xda\0\x08\1\1\0\0\x3f\0\xff\xd9"
_MOST_TURNING = 64  # segments that may hold an orientation; there is one of each kind
_LONG = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # a marker with a length, SOI or EOI; also behind coded bytes
_NO_FILL = re.compile(rb"[^\xff]")
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_SOI, _EOI, _SOS, _APP1 = 0xD8, 0xD9, 0xDA, 0xE1

# Warnings of libjpeg that leave every pixel as it was. Bytes before a restart marker (D0 to D7) are not among them.
_HARMLESS = re.compile(r"extraneous bytes before marker 0x(?!d[0-7])|JFIF revision|Invalid SOS parameters|Adobe color")


@dataclass(frozen=True)
class Frame:
    """A frame header. `may_be_turned`: a segment before it may hold an orientation; `end`: of it, in bytes."""

    marker: int
    precision: int  # bits a sample
    width: int
    height: int
    may_be_turned: bool
    end: int

    @property
    def is_decoded(self) -> bool:
        """Whether it is of a kind that is decoded here."""
        return self.marker in _DECODED and self.precision == 8 and self.width > 0 and self.height > 0

    @property
    def kind(self) -> str:
        """What it is, for a person."""
        if self.precision != 8:
            return f"{self.precision} bits a sample"
        if not self.width or not self.height:
            return "no size in its frame header"
        return "JPEG-LS" if self.marker == 0xF7 else f"lossless or hierarchical coding (SOF{self.marker - 0xC0})"


def read_frame(data: bytes) -> Frame | None:
    """The frame header of a file that begins with SOI; None where there is none before the first scan.

    Raises ImageRejected where there are too many segments before it.
    """
    at, turning = 2, 0
    for _ in range(MOST_PARTS):
        at = _next_marker(data, at)
        if at == -1 or at + 4 > len(data):
            return None
        marker = data[at + 1]
        if marker in _ALONE or marker == _SOI:
            at += 2
            continue
        if marker in (_EOI, _SOS):
            return None
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _FRAMES:
            if at + 9 > len(data):
                return None
            height, width = (int.from_bytes(data[at + k : at + k + 2], "big") for k in (5, 7))
            return Frame(marker, data[at + 4], width, height, turning > 0, at + 2 + length)
        turning += marker == _APP1 and _may_turn(data, at + 4, at + 2 + length)
        if turning > _MOST_TURNING:
            break
        at += 2 + length
    raise too_many_parts()


def _next_marker(data: bytes, at: int) -> int:
    """Where the next marker begins, with the last of its fill bytes; -1 where there is none. Each byte is seen once."""
    fill = data.find(b"\xff", at)
    behind = _NO_FILL.search(data, fill) if fill != -1 else None
    return -1 if behind is None else behind.start() - 1


def only_turning(data: bytes) -> bytes:
    """A header that says the same orientation, and no more: other segments may be costly to read."""
    kept, at = [data[:2]], 2
    while (at := _next_marker(data, at)) != -1:
        marker = data[at + 1]
        if marker in _ALONE or marker == _SOI:
            at += 2
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _FRAMES:
            return b"".join([*kept, data[at:end], _NO_SCAN])
        if marker == _APP1 and _may_turn(data, at + 4, end):
            kept.append(data[at:end])
        at = end
    return data


def _may_turn(data: bytes, begin: int, end: int) -> bool:
    """Whether an APP1 segment is Exif, or XMP that speaks of an orientation."""
    if data.startswith(b"Exif\0\0", begin):
        return True
    return data.startswith(_XMP, begin) and data.find(b"tiff:Orientation", begin, end) != -1


def scans(data: bytes, frame: Frame) -> int:
    """Scans up to the end mark, behind which phones put a film; a progressive image is decoded anew for each.

    Raises ImageRejected where there are too many segments between them.
    """
    return _body(data, frame)[0]


def _body(data: bytes, frame: Frame) -> tuple[int, bool]:
    """Scans behind the frame header, found as libjpeg finds them, and whether there is an end mark behind them."""
    at, number = frame.end, 0
    for _ in range(MOST_PARTS):
        found = _LONG.search(data, at)
        if found is None:
            return number, False
        at, marker = found.end(), data[found.end() - 1]
        if marker == _EOI:
            return number, True
        number += marker == _SOS
        if marker != _SOI:
            at += int.from_bytes(data[at : at + 2], "big")
    raise too_many_parts()


def is_harmless(warning: str) -> bool:
    return _HARMLESS.search(warning) is not None


def is_complete(data: bytes) -> bool:
    """Whether the file has its end mark, with padding or a film behind it. Raises ImageRejected as `scans` does."""
    if data.rstrip(b"\x00\xff\r\n ").endswith((b"\xff\xd9", b"\xd9")) and b"\xff\xd9" in data[-4096:]:
        return True
    frame = read_frame(data)
    return frame is not None and _body(data, frame)[1]
