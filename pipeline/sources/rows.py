"""The record that flows: one image that was found, where its bytes lie, and how they are to be read.

As Arrow tables where there are many (`LISTING_SCHEMA`), as `ListingRow` where each is looked at. What knows more of an
image extends the row: a manifest its label and split, a shard its subject.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import TypeVar

import pyarrow as pa

from pipeline.storage.parquet import described

NESTED = "!/"  # between an archive and what is inside


class Access(StrEnum):
    """How the bytes of an image are had."""

    FILE = "file"  # the whole object
    RANGE = "range"  # bytes `offset .. offset + stored_bytes` of an archive
    ZIP = "zip"  # a member whose local header lies at `offset`; `stored_bytes` with that header
    STREAM = "stream"  # member number `offset` of an archive that can only be read from its front
    ARCHIVE = "archive"  # a compressed tar that is not listed yet: what it holds is known to whoever reads it


LOCATION_FIELDS = [
    described("image_id", pa.int64(), "stable 64-bit hash of uri and member", nullable=False),
    described("uri", pa.string(), "the file, or the archive that holds the image", nullable=False),
    described("member", pa.string(), "path inside the archive; `inner.tar!/x.jpg` when nested"),
    described("access", pa.string(), "how its bytes are had: file, range, zip, stream or archive", nullable=False),
    described("offset", pa.int64(), "first stored byte inside `uri`, or number of the member; see access"),
    described("stored_bytes", pa.int64(), "stored length inside `uri`; differs from size_bytes when deflated"),
    described("size_bytes", pa.int64(), "length of the encoded image", nullable=False),
    described("etag", pa.string(), "version of `uri`: S3 ETag, or mtime_ns-size on disk", nullable=False),
    described("mtime", pa.timestamp("us", tz="UTC"), "when `uri` was last changed"),
]
LISTING_SCHEMA = pa.schema(LOCATION_FIELDS)


@dataclass(frozen=True, slots=True)
class ListingRow:
    """One row of LISTING_SCHEMA."""

    image_id: int
    uri: str
    member: str | None
    access: Access
    offset: int | None
    stored_bytes: int | None
    size_bytes: int
    etag: str
    mtime: datetime | None

    @property
    def place(self) -> str:
        """Where the image lies, for a person."""
        return place_of(self.uri, self.member)

    @property
    def start(self) -> int:
        """The first byte of an image with random access inside its archive."""
        assert self.offset is not None, f"{self.access} without an offset"
        return self.offset

    @property
    def end(self) -> int:
        """The byte behind the last one."""
        assert self.stored_bytes is not None, f"{self.access} without a length"
        return self.start + self.stored_bytes


Row = TypeVar("Row", bound=ListingRow)


def read_rows(table: pa.Table, kind: type[Row]) -> list[Row]:
    """The rows of a table that has a column for each field of `kind`."""
    names = [field.name for field in fields(kind)]
    columns = [table[name].to_pylist() for name in names]
    columns[names.index("access")] = list(map(Access, columns[names.index("access")]))
    return [kind(*values) for values in zip(*columns, strict=True)]


def to_table(rows: Sequence[ListingRow], schema: pa.Schema) -> pa.Table:
    """A table of rows that have the schema's columns as fields."""
    return pa.table({name: [getattr(row, name) for row in rows] for name in schema.names}, schema=schema)


def place_of(uri: str, member: str | None) -> str:
    """`uri`, or `uri!/member` inside an archive."""
    return uri if member is None else f"{uri}{NESTED}{member}"


def places_of(table: pa.Table) -> list[str]:
    """Where each row of a table with `uri` and `member` lies, for a person."""
    return [*map(place_of, table["uri"].to_pylist(), table["member"].to_pylist())]


def image_id(uri: str, member: str | None = None, occurrence: int = 0) -> int:
    """Signed 64-bit BLAKE2b of where an image lies; `occurrence` tells duplicate members of one archive apart."""
    text = "\0".join([uri, member or "", str(occurrence) if occurrence else ""])
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big", signed=True
    )
