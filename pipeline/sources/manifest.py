"""The manifest: one typed row an image, in Parquet. Every step after listing knows only this.

A manifest is a folder with `part-*.parquet` (MANIFEST_SCHEMA, then the further columns of whoever made it) and
`manifest.json` (`ManifestInfo`), on disk or on S3.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from pipeline.base.errors import InputError
from pipeline.base.text import first_line
from pipeline.base.versions import check_version
from pipeline.images.unit import Unit
from pipeline.sources.pseudonyms import names_of
from pipeline.sources.rows import LOCATION_FIELDS, ListingRow, read_rows
from pipeline.storage.foreign import has_columns, has_keys, refuse_foreign_files
from pipeline.storage.parquet import described, to_parquet
from pipeline.storage.stores import Stores
from pipeline.storage.types import StoreError
from pipeline.storage.uris import absolute, join

MANIFEST_VERSION = 1
SPLITS = ("train", "validation", "test")
_PART = re.compile(r"part-\d{5}\.parquet")

LABEL_FIELDS = [
    described("label", pa.int8(), "1 positive (leukemia), 0 negative, null unknown"),
    described("class_name", pa.string(), "class, as the source names it"),
    described("subject_id", pa.string(), "patient; null where the source names none"),
    described("split", pa.string(), "train, validation or test"),
    described("site", pa.string(), "hospital or laboratory; null where nothing names one"),
    described("unit", pa.string(), "what the image shows: cell (one white cell) or field (many); null unknown"),
]
MANIFEST_SCHEMA = pa.schema(
    LOCATION_FIELDS + LABEL_FIELDS, metadata={"leukoray.manifest_version": str(MANIFEST_VERSION)}
)


@dataclass(frozen=True, slots=True)
class ManifestRow(ListingRow):
    """One row of MANIFEST_SCHEMA."""

    label: int | None
    class_name: str | None
    subject_id: str | None
    split: str | None
    site: str | None = None
    unit: str | None = None


class Counts(BaseModel):
    """Images and subjects of a manifest; '(none)' is the class and 'none' the split of those without."""

    model_config = ConfigDict(frozen=True)

    classes: dict[str, dict[str, int]] = {}  # class to split to images
    splits: dict[str, int] = {}  # split to images
    subjects: dict[str, int] = {}  # split to distinct subjects
    labels: dict[str, int] = {}  # positive, negative or unknown to images


class NearCopyCounts(BaseModel):
    """Images that show what another one shows, though their bytes differ."""

    model_config = ConfigDict(frozen=True)

    compared: int = 0  # images
    unread: int = 0  # labelled images that could not be read
    pairs: int = 0
    images: int = 0  # in pairs
    torn: int = 0  # pairs that given splits divide
    images_per_s: float = 0.0  # read, decoded and compared


class ManifestInfo(BaseModel):
    """`manifest.json`. `write_manifest` fills in the first three fields."""

    model_config = ConfigDict(frozen=True)

    version: int = MANIFEST_VERSION
    digest: str = ""  # table_digest
    images: int = 0  # rows of all parts
    source: list[str] = []  # URIs
    layout: str = ""  # name of an ingest layout
    labels_from: str = "paths"  # 'paths', 'sidecars' or the URI of a table
    split_rule: str = ""  # given, subjects, sites, images, test (all of it, by the user's word) or none
    split_reason: str = ""  # a sentence
    units: str = "subjects"  # what `subject_id` names: 'subjects', or 'blocks' of consecutive file numbers
    unit: Unit | None = None  # what an image shows, where it is known
    warnings: list[str] = []  # sentences
    synthetic: bool = False
    license: str = ""  # of the images, as whoever made the manifest gave it; empty: nobody has said
    pseudonym_key_id: str | None = None  # of the key that hides paths and subjects
    ignored: list[str] = []  # classes in no split, by the word of whoever made the manifest
    positive: dict[str, int] = {}  # class to label, of the classes that have one
    counts: Counts = Counts()
    contradictions: int = 0  # images in no split, since the same bytes are under another label
    near_copies: NearCopyCounts | None = None  # None where they were not looked for
    bytes: int = 0  # of all encoded images
    left_out: dict[str, int] = {}  # reason to files
    problems: dict[str, int] = {}  # code to failures to list something
    created_at: str = ""  # ISO 8601, UTC
    leukoray: str = ""  # version that made it
    configuration: dict[str, Any] = {}  # of the ingest job


@dataclass(frozen=True)
class Manifest:
    """A manifest read into memory (about 200 bytes an image)."""

    uri: str
    table: pa.Table  # MANIFEST_SCHEMA and further columns
    info: ManifestInfo

    @property
    def further(self) -> list[str]:
        """Columns beside those of MANIFEST_SCHEMA: what tables said of images and subjects."""
        return [name for name in self.table.column_names if name not in MANIFEST_SCHEMA.names]

    def split(self, name: str) -> list[ManifestRow]:
        return read_rows(self.table.filter(pc.equal(self.table["split"], name)), ManifestRow)

    def split_digest(self, name: str) -> str:
        """`table_digest` of the images of one split: what figures on it rest on."""
        return table_digest(self.table.filter(pc.equal(self.table["split"], name)))


def table_digest(table: pa.Table) -> str:
    """SHA-256, hex, of ids, versions, labels and splits in id order: what training depends on."""
    ordered = table.sort_by("image_id").select(["image_id", "etag", "label", "class_name", "subject_id", "split"])
    sink = hashlib.sha256()
    for column in ordered.columns:
        sink.update(json.dumps(column.to_pylist()).encode())
    return sink.hexdigest()


def write_manifest(out: str, tables: Iterable[pa.Table], info: ManifestInfo, stores: Stores = Stores()) -> Manifest:
    """Write parts, then `manifest.json` last; a manifest without it is refused by `read_manifest`.

    Of two that write at once neither may be whole: whoever calls holds the lock of `out`.
    """
    out = absolute(out)
    store = stores.of(out)
    parts = [_completed(table) for table in tables]
    whole = pa.concat_tables(parts, promote_options="default") if parts else MANIFEST_SCHEMA.empty_table()
    info = info.model_copy(
        update={"version": MANIFEST_VERSION, "digest": table_digest(whole), "images": whole.num_rows}
    )
    store.delete(join(out, "manifest.json"))
    for uri in part_uris(out, stores):
        store.delete(uri)
    for number, part in enumerate(parts):
        store.write(join(out, f"part-{number:05d}.parquet"), to_parquet(part))
    store.write(join(out, "manifest.json"), json.dumps(info.model_dump(), indent=2).encode())
    return Manifest(out, whole, info)


def refuse_foreign(out: str, stores: Stores = Stores()) -> None:
    """Raises InputError where `out` holds files by the names of a manifest's that are of something else.

    `write_manifest` would remove them. What an interrupted one left, or an older version wrote, is ours; parts of ours
    vouch for what is left of a damaged manifest.json.
    """
    parts = dict.fromkeys((uri.removeprefix(absolute(out) + "/") for uri in part_uris(out, stores)), _is_part)
    refuse_foreign_files(out, parts or {"manifest.json": _is_info}, "manifest", "removed", stores)


def _is_part(data: bytes) -> bool:
    return has_columns(data, {"image_id", "uri", "label", "split"})


def _is_info(data: bytes) -> bool:
    return has_keys(data, {"version", "digest", "images"})


def _completed(table: pa.Table) -> pa.Table:
    """With the columns of MANIFEST_SCHEMA first, those that older versions did not write as nulls; then all others.

    Raises ValueError where one is missing that every version wrote, or is of another type.
    """
    further = [field for field in table.schema if field.name not in MANIFEST_SCHEMA.names]
    schema = pa.schema([*MANIFEST_SCHEMA, *further], metadata=MANIFEST_SCHEMA.metadata)
    for field in MANIFEST_SCHEMA:
        if field.name not in table.schema.names:
            if not field.nullable:
                raise ValueError(f"no column {field.name}")
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(schema.names).cast(schema)


def is_manifest(uri: str, stores: Stores = Stores()) -> bool:
    """Whether `uri` is a folder that holds a manifest of ours; other programs use the name as well."""
    path = join(absolute(uri), "manifest.json")
    store = stores.of(path)
    if store.head(path) is None:
        return False
    try:
        info = json.loads(store.read(path).data)
    except ValueError:
        return True  # perhaps ours and damaged: whoever reads it says so
    return isinstance(info, dict) and {"digest", "images", "version"} <= set(info)


def read_info(uri: str, stores: Stores = Stores()) -> ManifestInfo:
    """`manifest.json` of a manifest. Raises InputError when it is missing, damaged or of another version."""
    path = join(absolute(uri), "manifest.json")
    try:
        found = json.loads(stores.of(path).read(path).data)
        version = found.get("version") if isinstance(found, dict) else None
        check_version(version, MANIFEST_VERSION, f"{path}: manifest", "run `leukoray ingest` again")
        return ManifestInfo.model_validate(found)
    except StoreError as error:
        advice = f"make one with `leukoray ingest SOURCE --out {uri}`"
        raise error.refusal(f"{uri}: no manifest here ({error}); {advice}") from error
    except ValueError as error:
        raise InputError(f"{path}: damaged ({first_line(error)}); run `leukoray ingest` again") from error


def read_manifest(uri: str, stores: Stores = Stores()) -> Manifest:
    """Read a whole manifest. Raises InputError naming what is wrong, or that the key of its pseudonyms is missing."""
    uri = absolute(uri)
    info = read_info(uri, stores)
    if info.pseudonym_key_id is not None and info.pseudonym_key_id != names_of(stores).key_id:
        raise InputError(
            f"{uri}: its paths are pseudonyms of key {info.pseudonym_key_id}; give --pseudonymize the file of that key"
        )
    store = stores.of(uri)
    try:
        tables = [pq.read_table(io.BytesIO(store.read(name).data)) for name in part_uris(uri, stores)]
        table = pa.concat_tables([_completed(item) for item in tables], promote_options="default")
    except StoreError as error:
        raise error.refusal() from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{uri}: cannot be read as a manifest ({error}); run `leukoray ingest` again") from error
    if table.num_rows != info.images:
        raise InputError(f"{uri}: {table.num_rows} rows, manifest.json says {info.images}; run `leukoray ingest` again")
    if table_digest(table) != info.digest:
        raise InputError(
            f"{uri}: its parts are not those that manifest.json was written for (changed since, or another ingest "
            "wrote here); run `leukoray ingest` again"
        )
    if doubled := table.num_rows - pc.count_distinct(table["image_id"]).as_py():
        raise InputError(
            f"{uri}: {doubled:,} rows are of images that other rows name (column image_id), and figures would count "
            "these twice; keep a row an image, or run `leukoray ingest` again"
        )
    return Manifest(uri, table, info)


def part_uris(uri: str, stores: Stores = Stores()) -> list[str]:
    """The part files directly in the folder; whatever else somebody keeps below it is not ours."""
    folder = absolute(uri) + "/"
    found = (item.uri for item in stores.of(uri).walk(absolute(uri)))
    return sorted(name for name in found if _PART.fullmatch(name.removeprefix(folder)))
