"""The rows that scoring writes, as typed Arrow schemas, and where they lie in a run's folder.

A shard file holds listing rows; its part file holds one outcome a row, scored or rejected, in the same order, in one
file so that both kinds appear at the same instant. `predictions/` and `quarantine/` are made from parts at the end.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.base.text import column_names
from pipeline.model.bundle import class_columns
from pipeline.sources.rows import LISTING_SCHEMA, LOCATION_FIELDS, ListingRow
from pipeline.storage.parquet import described

SCHEMA_VERSION = 1
_VERSION = {"leukoray.schema_version": str(SCHEMA_VERSION)}

# What a later run needs to read the image again; part of both outputs.
_IDENTITY = [LISTING_SCHEMA.field(name) for name in ("image_id", "uri", "member", "etag", "size_bytes")]
_SCORED = [
    described("width", pa.int32(), "pixels, as stored"),
    described("height", pa.int32(), "pixels, as stored"),
    described("format", pa.string(), "jpeg, png, tiff, bmp, webp, gif, jp2, avif, heic, pnm or dicom"),
    described("class_name", pa.string(), "most probable class"),
    described("probability", pa.float32(), "of disease, calibrated, 0..1; of class_name where no class is disease"),
    described("decision", pa.string(), "positive, negative or review; null where the model decides nothing"),
]
IN_TRAINING = "in_training"
_NOTICED = [
    described("remark", pa.string(), "what was noticed about it, e.g. that its depth was guessed; else null"),
    described(
        IN_TRAINING, pa.bool_(), "its bytes are of an image the model learned from or was chosen by; null: not known"
    ),
]
IS_OOD = "is_ood"
_OOD = [
    described("ood_score", pa.float32(), "distance to the training images, which have about 1; null: not known"),
    described(IS_OOD, pa.bool_(), "the image looks unlike the training images; null: the model has no limit"),
]
_REJECTED = [
    described("stage", pa.string(), "where it failed: list, fetch, decode, predict or write"),
    described("code", pa.string(), "why, one of the codes of quarantine"),
    described("message", pa.string(), "what was found, for a person"),
    described("attempts", pa.int32(), "how often it was read"),
]
IS_UNCOUNTED = "is_uncounted"
_IS_UNCOUNTED = described(
    IS_UNCOUNTED, pa.bool_(), "an archive or a folder that holds an unknown number of images: counts as none"
)
_MODEL_SHA256 = described("model_sha256", pa.string(), "identity of the model: its weights and how it decides")
_PROVENANCE = [
    described("threshold", pa.float32(), "operating point of the decision"),
    described("model_name", pa.string(), "name in the registry"),
    described("model_version", pa.string(), "version in the registry"),
    _MODEL_SHA256,
    described("preprocessing_digest", pa.string(), "rule that made pixels of the bytes"),
]
_SUBJECT_ID = described("subject_id", pa.string(), "patient, where the path or a table names one")
_SCORED_AT = described("scored_at", pa.timestamp("us", tz="UTC"), "when its result was had")
_META = described("meta", pa.map_(pa.string(), pa.string()), "what sidecars or a manifest said of the image")
_TAIL = [_SUBJECT_ID, _SCORED_AT, described("run_id", pa.string(), "run that wrote the row")]
_EARLIER_RUN = described("earlier_run", pa.string(), "latest run that did the image")

SHARD_SCHEMA = pa.schema([*LOCATION_FIELDS, _SUBJECT_ID, _META])


@dataclass(frozen=True, slots=True)
class ShardRow(ListingRow):
    """One row of SHARD_SCHEMA."""

    subject_id: str | None
    meta: Sequence[tuple[str, str]]  # what sidecars or a manifest said of the image


@dataclass(frozen=True)
class ArchiveRow:
    """One row of ARCHIVES_SCHEMA: a compressed archive that a run is done with."""

    uri: str
    etag: str
    size_bytes: int
    images: int
    is_complete: bool


SKIPPED_SCHEMA = pa.schema(
    [*_IDENTITY[:3], described("reason", pa.string(), "why it was not read again"), _EARLIER_RUN], metadata=_VERSION
)
ARCHIVES_SCHEMA = pa.schema(
    [
        described("uri", pa.string(), "the compressed archive", nullable=False),
        described("etag", pa.string(), "its version", nullable=False),
        described("size_bytes", pa.int64(), "its length", nullable=False),
        described("images", pa.int64(), "listed in it, failures included", nullable=False),
        described("is_complete", pa.bool_(), "nothing in it is worth another try until it changes", nullable=False),
    ],
    metadata=_VERSION,
)
DELETED_SCHEMA = pa.schema([*_IDENTITY[:3], _EARLIER_RUN], metadata=_VERSION)


def part_schema(classes: Sequence[str]) -> pa.Schema:
    """One outcome a row: `code` null means scored."""
    fields = [
        *_IDENTITY, *_SCORED, *_of_classes(classes), *_OOD, *_NOTICED, *_REJECTED, _SUBJECT_ID, _SCORED_AT, _META,
    ]  # fmt: skip
    return pa.schema(fields)


def prediction_schema(classes: Sequence[str], meta_keys: Sequence[str]) -> pa.Schema:
    """The documented output: one row a scored image."""
    meta = [described(name, pa.string(), f"`{key}` of the image") for name, key in meta_columns(meta_keys).items()]
    said = [*_SCORED[:5], *_of_classes(classes), _SCORED[5], *_OOD, *_NOTICED]
    fields = [*_IDENTITY, *said, *_PROVENANCE, *_TAIL, *meta]
    return pa.schema(fields, metadata=_VERSION)


def meta_columns(meta_keys: Sequence[str]) -> dict[str, str]:
    """Column -> what a sidecar or a manifest calls it: `meta_<key>`, by the rule of `column_names`."""
    return dict(zip(column_names(meta_keys, "meta_"), meta_keys, strict=True))


def quarantine_schema() -> pa.Schema:
    """The documented output: one row an image (or archive) that gave no probability."""
    fields = [*_IDENTITY, *_REJECTED, _MODEL_SHA256, *_TAIL, _IS_UNCOUNTED]
    return pa.schema(fields, metadata=_VERSION)


def _of_classes(classes: Sequence[str]) -> list[pa.Field]:
    names = zip(class_columns(classes), classes, strict=True)
    return [described(name, pa.float32(), f"calibrated probability of class {of}, 0..1") for name, of in names]


def version_hash(etag: str, size_bytes: int) -> int:
    """Signed 64-bit hash of an object's version, to tell changed objects from unchanged ones."""
    digest = hashlib.blake2b(f"{etag}\0{size_bytes}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
