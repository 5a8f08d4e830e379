"""The rows that scoring writes, as typed Arrow schemas, and where they lie in a run's folder.

A shard file holds listing rows; its part file holds one outcome a row, scored or rejected, in the same order, in one
file so that both kinds appear at the same instant. `predictions/` and `quarantine/` are made from parts at the end.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.model.bundle import class_columns
from pipeline.sources.rows import LOCATION_FIELDS, ListingRow

SCHEMA_VERSION = 1
_VERSION = {"leukoray.schema_version": str(SCHEMA_VERSION)}
_TIME = pa.timestamp("us", tz="UTC")

# What a later run needs to read the image again; part of both outputs.
_IDENTITY = [
    pa.field("image_id", pa.int64(), nullable=False),
    pa.field("uri", pa.string(), nullable=False),
    pa.field("member", pa.string()),
    pa.field("etag", pa.string(), nullable=False),
    pa.field("size_bytes", pa.int64(), nullable=False),
]
_SCORED = [
    pa.field("width", pa.int32()),  # pixels, as stored
    pa.field("height", pa.int32()),
    pa.field("format", pa.string()),  # jpeg | png | tiff | bmp | webp | gif
    pa.field("class_name", pa.string()),  # most probable class
    pa.field("probability", pa.float32()),  # of disease, calibrated, 0..1; of class_name where no class is disease
    pa.field("decision", pa.string()),  # positive | negative | review
]
_REJECTED = [
    pa.field("stage", pa.string()),  # list | fetch | decode | predict | write
    pa.field("code", pa.string()),  # pipeline.errors.Code
    pa.field("message", pa.string()),
    pa.field("attempts", pa.int32()),
]
_PROVENANCE = [
    pa.field("threshold", pa.float32()),
    pa.field("model_name", pa.string()),
    pa.field("model_version", pa.string()),
    pa.field("model_sha256", pa.string()),
    pa.field("preprocessing_digest", pa.string()),
]
_TAIL = [pa.field("subject_id", pa.string()), pa.field("scored_at", _TIME), pa.field("run_id", pa.string())]

SHARD_SCHEMA = pa.schema(
    [*LOCATION_FIELDS, pa.field("subject_id", pa.string()), pa.field("meta", pa.map_(pa.string(), pa.string()))]
)


@dataclass(frozen=True, slots=True)
class ShardRow(ListingRow):
    """One row of SHARD_SCHEMA."""

    subject_id: str | None
    meta: Sequence[tuple[str, str]]  # what sidecars said of the image


@dataclass(frozen=True)
class ArchiveRow:
    """One row of ARCHIVES_SCHEMA: a compressed archive that a run is done with."""

    uri: str
    etag: str
    size_bytes: int
    images: int  # listed in it, failures included
    is_complete: bool  # nothing in it is worth another try until it changes


SKIPPED_SCHEMA = pa.schema(
    [*_IDENTITY[:3], pa.field("reason", pa.string()), pa.field("earlier_run", pa.string())], metadata=_VERSION
)
ARCHIVES_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("images", pa.int64(), nullable=False),
        pa.field("is_complete", pa.bool_(), nullable=False),
    ],
    metadata=_VERSION,
)
DELETED_SCHEMA = pa.schema([*_IDENTITY[:3], pa.field("earlier_run", pa.string())], metadata=_VERSION)


def part_schema(classes: Sequence[str]) -> pa.Schema:
    """One outcome a row: `code` null means scored."""
    probabilities = [pa.field(name, pa.float32()) for name in class_columns(classes)]
    at = pa.field("scored_at", _TIME)
    extra = [pa.field("subject_id", pa.string()), at, pa.field("meta", pa.map_(pa.string(), pa.string()))]
    return pa.schema([*_IDENTITY, *_SCORED, *probabilities, *_REJECTED, *extra])


def prediction_schema(classes: Sequence[str], meta_keys: Sequence[str]) -> pa.Schema:
    """The documented output: one row a scored image."""
    probabilities = [pa.field(name, pa.float32()) for name in class_columns(classes)]
    meta = [pa.field(f"meta_{key}", pa.string()) for key in meta_keys]
    fields = [*_IDENTITY, *_SCORED[:5], *probabilities, _SCORED[5], *_PROVENANCE, *_TAIL, *meta]
    return pa.schema(fields, metadata=_VERSION)


def quarantine_schema() -> pa.Schema:
    """The documented output: one row an image (or archive) that gave no probability."""
    fields = [*_IDENTITY, *_REJECTED, pa.field("model_sha256", pa.string()), *_TAIL]
    return pa.schema(fields, metadata=_VERSION)


def version_hash(etag: str, size_bytes: int) -> int:
    """Signed 64-bit hash of an object's version, to tell changed objects from unchanged ones."""
    digest = hashlib.blake2b(f"{etag}\0{size_bytes}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
