"""The directories of a TIFF (TIFF 6.0, section 2) or BigTIFF, of either byte order.

Not read with Pillow's own directory: where a value lies behind the last byte it warns and goes on without it, and so
cannot tell a cut file, nor one that announces tags of gigabytes; and it takes no BigTIFF that is big-endian.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL.ExifTags import Base as Tag

from pipeline.images.formats.parts import MOST_PARTS, too_many_parts

MAGICS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
IMAGEJ_COUNTS, IMAGEJ_DATA = 50838, 50839  # ImageJ's MetaDataByteCounts and MetaData
_MAX_SAMPLE_VALUE, _SMAX_SAMPLE_VALUE = 281, 341
_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # BYTE, SHORT, LONG, LONG8: all that the pixels' tags use
_ALL_TYPES = {**_TYPES, 2: "B", 7: "B", 11: "f", 12: "d"}  # ASCII, UNDEFINED, FLOAT, DOUBLE
_NUMBERS, _BYTES = frozenset({1, 3, 4, 11, 12, 16}), frozenset({1, 2, 7})
_MAX_VALUES = 1 << 20  # of one tag: a gigapixel in tiles of 32 pixels
_MAX_PAGES = 10_000
_FEW_PIXELS = 1024  # in a piece; a hundred thousand of them take a second
_MOST_ENTRIES = 5 * MOST_PARTS  # of all directories that are copied
_WANTED = frozenset({
    Tag.ImageWidth, Tag.ImageLength, Tag.BitsPerSample, Tag.Compression, Tag.PhotometricInterpretation,
    Tag.StripOffsets, Tag.StripByteCounts, Tag.SamplesPerPixel, Tag.PlanarConfiguration, Tag.TileWidth, Tag.TileLength,
    Tag.TileOffsets, Tag.TileByteCounts, Tag.SampleFormat,
})  # fmt: skip
# What the pixels can do without: an image is not refused because one of these is damaged.
_TOLD = {
    Tag.ImageDescription: _BYTES, _MAX_SAMPLE_VALUE: _NUMBERS, _SMAX_SAMPLE_VALUE: _NUMBERS,
    IMAGEJ_COUNTS: frozenset(_TYPES), IMAGEJ_DATA: _BYTES,
}  # fmt: skip
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
    pieces: int  # strips or tiles
    end: int  # first byte behind the pixels
    max_sample: int | None  # the highest value that samples may have, where a tag says so
    description: bytes
    imagej_counts: tuple[int, ...]
    imagej_data: bytes
    tags: frozenset[int]  # all, also those that are not read
    has_more: bool  # pages behind it

    @property
    def is_in_crumbs(self) -> bool:
        """Whether its pieces are many and small. libtiff writes strips of 8 kB, three times as many of planes."""
        pixels = self.width * self.height * (self.samples if self.is_planar else 1)
        return self.pieces > MOST_PARTS and pixels < _FEW_PIXELS * self.pieces

    def refused(self) -> str | None:
        """Why files of this kind are not read, None where they are."""
        if self.compression not in _READ:
            return f"TIFF compression {self.compression}"
        if self.sample_format == _FLOATS:
            is_single = self.bits == 32 and self.samples == 1
            return None if is_single else f"{self.bits}-bit float samples, {self.samples} a pixel"
        if self.sample_format != _INTEGERS:
            return "signed or complex samples"
        if self.bits not in (1, 2, 4, 8, 16) and not (self.bits == 12 and self.samples == 1):
            return f"{self.bits}-bit samples"
        if self.bits == 16 and self.is_planar and self.samples > 1 and self.compression == 1:
            return "16-bit samples in separate planes"  # Pillow takes them for interleaved ones
        return None

    @property
    def stated_bits(self) -> int | None:
        """Bits of a sample that count, where the file says so. All 16 are what writers put who know nothing."""
        highest = self.max_sample or 0
        is_mask = highest & (highest + 1) == 0  # 2^n - 1; another number is the highest sample of this one image
        return highest.bit_length() if is_mask and 0xFF <= highest < 0xFFFF else None


def first_page(data: bytes) -> Page | None:
    """None where the directory, or a value it names, lies behind the last byte.

    Raises ImageRejected where it has more tags than any program writes.
    """
    try:
        file = _File(data)
        entries, following = file.directory(file.first)
        tags = file.tags(entries)
    except struct.error:
        return None

    def one(tag: int, default: int) -> int:
        return int(tags.get(tag, (default,))[0])

    ends = [
        offset + size
        for offsets, sizes in ((Tag.StripOffsets, Tag.StripByteCounts), (Tag.TileOffsets, Tag.TileByteCounts))
        for offset, size in zip(tags.get(offsets, ()), tags.get(sizes, ()), strict=False)
    ]
    highest = tags.get(_SMAX_SAMPLE_VALUE) or tags.get(_MAX_SAMPLE_VALUE)
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
        pieces=max(len(tags.get(Tag.StripOffsets, ())), len(tags.get(Tag.TileOffsets, ()))),
        end=max(ends, default=0),
        max_sample=_whole(max(highest)) if highest else None,
        description=bytes(tags.get(Tag.ImageDescription, ())),
        imagej_counts=tags.get(IMAGEJ_COUNTS, ()),
        imagej_data=bytes(tags.get(IMAGEJ_DATA, ())),
        tags=frozenset(entry.tag for entry in entries),
        has_more=following != 0,
    )


def has_more_pages(data: bytes, than: int) -> bool:
    """Whether the chain of directories is longer."""
    seen = set[int]()
    try:
        file = _File(data)
        at = file.first
        while at and at not in seen and len(seen) <= than:
            seen.add(at)
            at = file.following(at)
    except struct.error:  # whoever reads them finds an end there as well
        pass
    return len(seen) > than


def _whole(value: float) -> int | None:
    """A number that some writers store as a float; None where it is none."""
    return int(value) if 0 <= value < 1 << 32 else None  # not where it is NaN


@dataclass(frozen=True)
class _Entry:
    tag: int
    kind: int
    number: int  # of values
    place: int  # where they begin


class _File:
    """Directories and their values. What lies behind the last byte raises struct.error."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.order = "<" if data[:2] == b"II" else ">"
        self.is_big = self.read("H", 2)[0] == 43
        self._word = "Q" if self.is_big else "I"
        self.first = int(self.read(self._word, 8 if self.is_big else 4)[0])

    def read(self, layout: str, at: int) -> tuple[Any, ...]:
        if at > len(self.data):  # an offset of 64 bits may be more than an index can hold
            raise struct.error(f"byte {at} of {len(self.data)}")
        return struct.unpack_from(self.order + layout, self.data, at)

    def directory(self, at: int) -> tuple[list[_Entry], int]:
        """Its entries, and where the next one lies: 0 where there is none."""
        count, size, inline = ("Q", 20, 8) if self.is_big else ("H", 12, 4)
        (number,) = self.read(count, at)
        at += struct.calcsize(self.order + count)
        if number * size > len(self.data):
            raise struct.error(f"{number} entries")
        if number > MOST_PARTS:
            raise too_many_parts()
        entries = []
        for entry in range(at, at + size * number, size):
            tag, kind, values = self.read("HH" + self._word, entry)
            place = entry + size - inline
            if values * _SIZES.get(kind, 1) > inline:
                (place,) = self.read(self._word, place)
            entries.append(_Entry(tag, kind, values, place))
        (following,) = self.read(self._word, at + size * number) if at + size * number < len(self.data) else (0,)
        return entries, int(following)

    def tags(self, entries: Sequence[_Entry]) -> dict[int, tuple[Any, ...]]:
        """Values by tag of those that are read here; of one that is there twice the last."""
        last = {entry.tag: entry for entry in entries if entry.number and self._is_read(entry)}
        tags: dict[int, tuple[Any, ...]] = {}
        for tag, entry in last.items():
            try:
                tags[tag] = self._values(entry)
            except struct.error:
                if tag in _WANTED:
                    raise
        return tags

    def _is_read(self, entry: _Entry) -> bool:
        return entry.kind in (_TYPES if entry.tag in _WANTED else _TOLD.get(entry.tag, ()))

    def _values(self, entry: _Entry) -> tuple[Any, ...]:
        if entry.number > _MAX_VALUES:
            raise struct.error(f"{entry.number} values of one tag")
        return self.read(f"{entry.number}{_ALL_TYPES[entry.kind]}", entry.place)

    def following(self, at: int) -> int:
        """Where the directory behind the one at `at` lies, without a look at its entries."""
        count, size = ("Q", 20) if self.is_big else ("H", 12)
        end = at + struct.calcsize(self.order + count) + size * int(self.read(count, at)[0])
        return int(self.read(self._word, end)[0])

    def pages(self) -> Iterator[list[_Entry]]:
        """The chain of directories, as far as it can be read."""
        at, seen = self.first, set[int]()
        while at and at not in seen and len(seen) < _MAX_PAGES:
            seen.add(at)
            try:
                entries, at = self.directory(at)
            except struct.error:
                return
            yield entries


# ---- BigTIFF of big-endian bytes ----

# Bytes of a value by type; LONG8, SLONG8 and IFD8 have shorter twins in a classic file.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_SHORTER = {16: 4, 17: 9, 18: 13}


def for_pillow(data: bytes) -> bytes:
    """The same file, a big-endian BigTIFF with classic directories appended, which point to the same pixels.

    Raises ImageRejected where its directories share their bytes, and would take more than the file.
    """
    if not data.startswith(b"MM\x00+") or len(data) >= 1 << 31:
        return data
    try:
        file = _File(data)
        pages, entries_left = list[list[_Entry]](), _MOST_ENTRIES
        for entries in file.pages():
            pages.append(entries)
            entries_left -= len(entries)
            if entries_left < 0:
                raise too_many_parts()
        start = len(data) + len(data) % 2
        added = bytearray(start - len(data))
        for number, entries in enumerate(pages):
            _append(added, len(data), file, entries, is_last=number == len(pages) - 1)
            if len(added) > len(data):  # values grow shorter
                raise too_many_parts()
    except struct.error:
        return data
    return b"MM\x00*" + struct.pack(">I", start) + data[8:] + bytes(added)


def _append(added: bytearray, base: int, file: _File, entries: list[_Entry], *, is_last: bool) -> None:
    """One classic directory, and behind it those of its values that have another length now."""
    known = [entry for entry in entries if entry.kind in _SIZES]
    rows, values = bytearray(), bytearray()
    behind = base + len(added) + 2 + 12 * len(known) + 4
    for entry in known:
        kind = _SHORTER.get(entry.kind, entry.kind)
        size = entry.number * _SIZES[kind]
        if kind != entry.kind:
            if entry.number > _MAX_VALUES:
                raise struct.error(f"{entry.number} values of one tag")
            if len(values) + size > len(file.data):
                raise too_many_parts()
            packed = struct.pack(f">{entry.number}I", *file.read(f"{entry.number}Q", entry.place))
            place = behind + len(values)
            values += packed if size > 4 else b""
        else:
            packed, place = file.data[entry.place : entry.place + 4], entry.place
        value = packed[:size].ljust(4, b"\0") if size <= 4 else struct.pack(">I", place)
        rows += struct.pack(">HHI", entry.tag, kind, entry.number) + value
    values += b"\0" * (len(values) % 2)
    added += struct.pack(">H", len(known)) + rows + struct.pack(">I", 0 if is_last else behind + len(values)) + values
