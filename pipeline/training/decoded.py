"""Rows to decoded pixels, each image accounted for: one that cannot be used stays, with its code and without pixels.

No torch here: the processes that decode would wait three seconds for it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.base.errors import TRANSIENT_CODES, ImageRejected
from pipeline.images.load import Limits, Preprocessing, load_image
from pipeline.images.remarks import count_kinds, joined
from pipeline.sources.fetch import Fetched
from pipeline.sources.outage import fetch_while_up
from pipeline.sources.rows import ListingRow, read_rows
from pipeline.storage.stores import Stores
from pipeline.training.pixel_file import HEADER_SCHEMA
from pipeline.training.rejected import Rejected

DECODED_SCHEMA = HEADER_SCHEMA.remove(HEADER_SCHEMA.get_field_index("crc"))


def pixel_bytes(size: int) -> int:
    return size * size * 3


@dataclass(frozen=True)
class Decoded:
    """Images and what is to be said of each, in the same order."""

    notes: pa.Table  # DECODED_SCHEMA
    images: NDArray[np.uint8]  # (N, S, S, 3), RGB; zeros where `code` says why there are no pixels


_CHANGED = "not the version that the manifest lists, so each run decodes it anew (`leukoray ingest` lists it again)"


def decode(rows: pa.Table, pixels: Preprocessing, stores: Stores = Stores()) -> Decoded:
    """Fetch and decode rows that have the columns of a listing: one out for every row in, in id order.

    Raises PlatformError when the store is out.
    """
    return decode_fetched(list(fetch_while_up(read_rows(rows, ListingRow), stores, Limits())), pixels)


def decode_fetched(fetched: list[Fetched[ListingRow]], pixels: Preprocessing) -> Decoded:
    """Decode what was fetched, in id order."""
    ordered = sorted(fetched, key=lambda item: item.row.image_id)
    images = np.zeros((len(ordered), pixels.size, pixels.size, 3), np.uint8)
    notes = []
    for number, item in enumerate(ordered):
        is_as_listed, rejected, remark = item.etag == item.row.etag, item.rejected, None
        if item.data is not None:
            try:
                loaded = load_image(item.data, pixels.size, bit_depth=pixels.bit_depth)
                images[number] = loaded.pixels
                remark = joined(loaded.remarks if is_as_listed else [*loaded.remarks, _CHANGED])
            except ImageRejected as error:
                rejected = error
        notes.append(
            {
                "image_id": item.row.image_id,
                "etag": item.row.etag,
                "lasting": is_as_listed and (rejected is None or rejected.code not in TRANSIENT_CODES),
                "code": rejected.code.value if rejected else None,
                "message": f"{item.row.place}: {rejected.message}" if rejected else None,
                "remark": remark,
            }
        )
    return Decoded(pa.Table.from_pylist(notes, DECODED_SCHEMA), images)


@dataclass(frozen=True)
class Note:
    """What is to be said of one image: why it cannot be used, or what was noticed about it."""

    code: str | None
    message: str | None
    remark: str | None


@dataclass(frozen=True)
class Noted:
    """Of `total` images, those of which something is to be said, by image id: so that several who know some of the
    same images can be put together."""

    total: int
    notes: Mapping[int, Note] = field(default_factory=dict)

    @classmethod
    def of(cls, tables: Iterable[pa.Table]) -> "Noted":
        """From tables with NOTE_FIELDS, of different images."""
        total, notes = 0, dict[int, Note]()
        for table in tables:
            total += table.num_rows
            said = table.filter(pc.or_(pc.is_valid(table["code"]), pc.is_valid(table["remark"])))
            columns = (said[name].to_pylist() for name in ("image_id", "code", "message", "remark"))
            notes |= {number: Note(*note) for number, *note in zip(*columns, strict=True)}
        return cls(total, notes)

    @classmethod
    def of_rows(cls, total: int, rows: Iterable[Sequence[Any]]) -> "Noted":
        """From what `rows` gave, perhaps as JSON."""
        return cls(total, {number: Note(*note) for number, *note in rows})

    def rows(self) -> list[tuple[int, str | None, str | None, str | None]]:
        """Of each image of which something is to be said its id, code, message and remark, in id order."""
        return [(number, note.code, note.message, note.remark) for number, note in sorted(self.notes.items())]

    @classmethod
    def union(cls, total: int, parts: Iterable["Noted"]) -> "Noted":
        """Of parts that may know the same images; `total`: of all together."""
        return cls(total, {number: note for part in parts for number, note in part.notes.items()})

    @property
    def rejected(self) -> Rejected:
        first = {note.code: note.message or "" for _, note in sorted(self.notes.items(), reverse=True) if note.code}
        codes = Counter(note.code for note in self.notes.values() if note.code is not None)
        remarks = count_kinds(note.remark for note in self.notes.values() if note.remark is not None)
        return Rejected(self.total, dict(codes), first, dict(remarks))
