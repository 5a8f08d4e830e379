"""JPEG 2000 (ISO/IEC 15444-1): the size and the pieces that its codestream announces, which cost a decoder memory."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.images.formats.boxes import boxes
from pipeline.images.formats.parts import MOST_PARTS, too_many_parts

CODESTREAM = b"\xff\x4f\xff\x51"
FILE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_SIZ = struct.Struct(">HH8IH")  # annex A.5.1, behind the marker
_END = b"\xff\xd9"
_COD, _COC, _SOT, _SOD = 0x52, 0x53, 0x90, 0x93
# A decoder makes room for all of them before it reads one: 11 kB a tile, about 500 bytes a precinct and 150 a block.
_MOST_TILES, _MOST_PRECINCTS, _MOST_BLOCKS, _MOST_PACKETS = 16_384, 200_000, 2_000_000, 50_000_000


@dataclass(frozen=True)
class Frame:
    """The SIZ segment of a codestream. Sizes in pixels."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    components: int
    bits: int  # a sample, of the deepest component
    is_complete: bool  # the codestream has its end mark
    start: int  # of the codestream, in bytes of the file

    @property
    def tiles(self) -> int:
        return -(-self.width // self.tile_width) * -(-self.height // self.tile_height)


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
    tile_width, tile_height = max(min(tile_width, width), 1), max(min(tile_height, height), 1)
    return Frame(width, height, tile_width, tile_height, components, bits, is_complete, start)


def has_too_many_pieces(data: bytes, frame: Frame) -> bool:
    """Whether it is cut into more tiles, precincts, code blocks or packets than any program makes."""
    if frame.tiles > _MOST_TILES:
        return True
    layers = 1
    for marker, at in _segments(data, frame.start):
        coding = at + 4
        if marker == _COD:
            has_precincts, layers = data[coding] & 1, int.from_bytes(data[coding + 2 : coding + 4], "big")
            coding += 5
        else:  # of one component; its number takes a byte, as there are at most four
            has_precincts = data[coding + 1] & 1
            coding += 2
        levels, across, down = data[coding] & 31, (data[coding + 1] & 15) + 2, (data[coding + 2] & 15) + 2
        sizes = data[coding + 5 : coding + 6 + levels] if has_precincts else b"\xff" * (levels + 1)
        precincts, blocks = _pieces(frame, sizes, across, down)
        if precincts > _MOST_PRECINCTS or blocks > _MOST_BLOCKS or precincts * layers > _MOST_PACKETS:
            return True
    return False


def _pieces(frame: Frame, sizes: bytes, across: int, down: int) -> tuple[int, int]:
    """Precincts and code blocks of all tiles and components. `across`, `down`: of a block, as powers of two."""
    precincts = blocks = 0
    for level, size in enumerate(reversed(sizes)):  # of half the width and height each
        width, height = -(-frame.tile_width >> level) or 1, -(-frame.tile_height >> level) or 1
        wide, high = size & 15, size >> 4
        precincts += -(-width >> wide) * -(-height >> high)
        blocks += -(-width >> min(wide, across)) * -(-height >> min(high, down))
    number = frame.tiles * frame.components
    return number * precincts, number * blocks


def _segments(data: bytes, start: int) -> Iterator[tuple[int, int]]:
    """(marker, its place) of each that says how pixels are coded, in the main header and in those of tile parts."""
    at, part = start + 2, start
    for _ in range(MOST_PARTS):
        if at + 16 > len(data):
            return
        marker = data[at + 1]
        if marker == _SOD:
            length = int.from_bytes(data[part + 6 : part + 10], "big")
            if length < 14:
                return
            at = part + length
            continue
        if marker == _SOT:
            part = at
        elif marker in (_COD, _COC):
            yield marker, at
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise too_many_parts()
