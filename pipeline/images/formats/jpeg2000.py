"""JPEG 2000 (ISO/IEC 15444-1): the size that its codestream announces, which is what a decoder takes memory for."""

import struct
from dataclasses import dataclass

from pipeline.images.formats.boxes import boxes

CODESTREAM = b"\xff\x4f\xff\x51"
FILE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_SIZ = struct.Struct(">HH8IH")  # annex A.5.1, behind the marker
_END = b"\xff\xd9"


@dataclass(frozen=True)
class Frame:
    """The SIZ segment of a codestream. Sizes in pixels."""

    width: int
    height: int
    tile_pixels: int
    components: int
    bits: int  # a sample, of the deepest component
    is_complete: bool  # the codestream has its end mark


def read_frame(data: bytes) -> Frame | None:
    """None where there is no whole header of a codestream."""
    start, end = 0, len(data)
    if data.startswith(FILE):
        found = next((box for box in boxes(data) if box.kind == b"jp2c"), None)
        if found is None:
            return None
        start, end = found.start, found.end
    if data[start : start + 4] != CODESTREAM or start + 4 + _SIZ.size > len(data):
        return None
    _, _, right, bottom, left, top, tile_width, tile_height, _, _, components = _SIZ.unpack_from(data, start + 4)
    depths = data[start + 4 + _SIZ.size : start + 4 + _SIZ.size + 3 * components : 3]
    if right <= left or bottom <= top or not components or len(depths) < components:
        return None
    bits = max((depth & 0x7F) + 1 for depth in depths)
    is_complete = end <= len(data) and data[start:end].rstrip(b"\0").endswith(_END)
    width, height = right - left, bottom - top
    tile_pixels = min(tile_width, right) * min(tile_height, bottom)
    return Frame(width, height, tile_pixels, components, bits, is_complete)
