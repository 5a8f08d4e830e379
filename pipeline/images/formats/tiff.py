"""The first directory of a TIFF (TIFF 6.0, section 2) or BigTIFF, of either byte order.

Not read with Pillow's own directory: where a value lies behind the last byte it warns and goes on without it, and so
cannot tell a cut file, nor one that announces tags of gigabytes.
"""

import struct
from dataclasses import dataclass
from typing import Any

from PIL.ExifTags import Base as Tag

MAGICS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # BYTE, SHORT, LONG, LONG8: all that the tags below use
_MAX_VALUES = 1 << 20  # of one tag: a gigapixel in tiles of 32 pixels
_WANTED = frozenset({
    Tag.ImageWidth, Tag.ImageLength, Tag.BitsPerSample, Tag.Compression, Tag.PhotometricInterpretation,
    Tag.StripOffsets, Tag.StripByteCounts, Tag.SamplesPerPixel, Tag.PlanarConfiguration, Tag.TileWidth, Tag.TileLength,
    Tag.TileOffsets, Tag.TileByteCounts, Tag.SampleFormat,
})  # fmt: skip
# None, CCITT, LZW, old and new JPEG, Deflate, PackBits, LZMA, Zstandard: what Pillow's wheels read
_READ = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32946, 34925, 50000})
_INTEGERS, _FLOATS = 1, 3


@dataclass(frozen=True)
class Page:
    """What the first directory says. Sizes in pixels as stored, before any orientation."""

    width: int
    height: int
    bits: int  # a sample
    samples: int  # a pixel
    compression: int
    sample_format: int
    zero_is_white: bool
    is_planar: bool
    tile_pixels: int  # 0 where there are strips
    end: int  # first byte behind the pixels

    def refused(self) -> str | None:
        """Why files of this kind are not read, None where they are."""
        if self.compression not in _READ:
            return f"TIFF compression {self.compression}"
        if self.sample_format == _FLOATS:
            is_single = self.bits == 32 and self.samples == 1
            return None if is_single else f"{self.bits}-bit float samples, {self.samples} a pixel"
        if self.sample_format != _INTEGERS:
            return "signed or complex samples"
        if self.bits not in (1, 2, 4, 8, 16):
            return f"{self.bits}-bit samples"
        if self.bits == 16 and self.is_planar and self.samples > 1 and self.compression == 1:
            return "16-bit samples in separate planes"  # Pillow takes them for interleaved ones
        return None


def first_page(data: bytes) -> Page | None:
    """None where the directory, or a value it names, lies behind the last byte."""
    try:
        tags = _first_directory(data)
    except struct.error:
        return None
    if tags is None:
        return None

    def one(tag: int, default: int) -> int:
        return int(tags.get(tag, (default,))[0])

    ends = [
        offset + size
        for offsets, sizes in ((Tag.StripOffsets, Tag.StripByteCounts), (Tag.TileOffsets, Tag.TileByteCounts))
        for offset, size in zip(tags.get(offsets, ()), tags.get(sizes, ()), strict=False)
    ]
    return Page(
        width=one(Tag.ImageWidth, 0),
        height=one(Tag.ImageLength, 0),
        bits=max(tags.get(Tag.BitsPerSample, (1,))),
        samples=one(Tag.SamplesPerPixel, 1),
        compression=one(Tag.Compression, 1),
        sample_format=one(Tag.SampleFormat, _INTEGERS),
        zero_is_white=one(Tag.PhotometricInterpretation, 1) == 0,
        is_planar=one(Tag.PlanarConfiguration, 1) == 2,
        tile_pixels=one(Tag.TileWidth, 0) * one(Tag.TileLength, 0),
        end=max(ends, default=0),
    )


def _first_directory(data: bytes) -> dict[int, tuple[int, ...]] | None:
    """Values by tag. Raises struct.error where the bytes end too early."""
    order = "<" if data[:2] == b"II" else ">"

    def read(layout: str, at: int) -> tuple[Any, ...]:
        return struct.unpack_from(order + layout, data, at)

    is_big = read("H", 2)[0] == 43
    offset_type, count_type, entry_bytes, inline = ("Q", "Q", 20, 8) if is_big else ("I", "H", 12, 4)
    (at,) = read(offset_type, 8 if is_big else 4)
    (entries,) = read(count_type, at)
    at += struct.calcsize(order + count_type)
    tags: dict[int, tuple[int, ...]] = {}
    for index in range(entries):
        entry = at + entry_bytes * index
        tag, kind, number = read("HHQ" if is_big else "HHI", entry)
        if tag not in _WANTED or kind not in _TYPES:
            continue
        if number > _MAX_VALUES:
            return None
        place = entry + entry_bytes - inline
        if number * struct.calcsize(_TYPES[kind]) > inline:
            (place,) = read(offset_type, place)
        values = read(f"{number}{_TYPES[kind]}", place)
        if values:
            tags[tag] = values
    return tags
