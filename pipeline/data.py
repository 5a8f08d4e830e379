"""From manifest rows to decoded pixels on Ray Data: fetched and decoded once, kept as uint8, one dataset a rank.

The driver has read and checked the manifest; it deals its rows to the ranks, and Ray Data turns each rank's rows into
blocks of `decoded_schema`. No row is lost on the way: a damaged image stays as a row with its code and without pixels,
so that the reader can count it. Every rank is dealt a known number of rows, so all can agree on a number of steps.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import OUTAGE_CODES, ImageRejected, IncompleteError, InputError, PlatformError
from pipeline.fetch import fetch_rows
from pipeline.images import load_image
from pipeline.manifest import LOCATION_FIELDS, Manifest
from pipeline.storage import S3Settings

if TYPE_CHECKING:
    import ray.data

Task = Literal["binary", "multiclass"]
_BLOCK_BYTES = 16 << 20
_MAX_BLOCK_ROWS = 512
_STORE_SHARE = 1 / 3  # of the object store that decoded images may fill; the rest is for everything else
DECODE_CPUS = 0.5  # fractions, so that reading never waits for a whole core that workers hold

ROW_SCHEMA = pa.schema([*LOCATION_FIELDS, pa.field("target", pa.int64(), nullable=False)])  # index into the classes


@dataclass(frozen=True)
class LabelledRows:
    """What training needs of a manifest. `target` indexes `classes`; binary targets are the labels themselves."""

    task: Task
    classes: tuple[str, ...]
    positive_classes: tuple[str, ...]
    train: pa.Table  # ROW_SCHEMA
    validation: pa.Table  # ROW_SCHEMA

    def counts(self, split: str) -> list[int]:
        """Images of each class."""
        table = self.train if split == "train" else self.validation
        counts: list[int] = np.bincount(table["target"].to_numpy(), minlength=len(self.classes)).tolist()
        return counts


def labelled_rows(manifest: Manifest, task: Literal["auto", "binary", "multiclass"] = "auto") -> LabelledRows:
    """The train and validation rows with their targets. Raises InputError when there is nothing to learn from them."""
    known = manifest.table.filter(pc.is_in(manifest.table["split"], pa.array(["train", "validation"])))
    labels = set(pc.unique(known["label"].drop_null()).to_pylist())
    names = sorted(pc.unique(known["class_name"].drop_null()).to_pylist())
    chosen: Task = ("binary" if labels == {0, 1} else "multiclass") if task == "auto" else task
    if not labels and not names:
        raise InputError(
            f"{manifest.uri}: no labels to learn from; give a source with class folders or a table of labels to "
            "`leukoray ingest`, or score it with a trained model"
        )
    if chosen == "binary":
        if labels != {0, 1}:
            hint = (
                "name the classes that mean leukemia with `leukoray ingest --positive CLASS`, or use --task multiclass"
            )
            raise InputError(f"{manifest.uri}: {_seen(labels)}; two classes need positive and negative images: {hint}")
        known = known.filter(pc.is_valid(known["label"]))
        targets = known["label"].cast(pa.int64())
        classes: tuple[str, ...] = ("negative", "positive")
        positive: tuple[str, ...] = ("positive",)
    else:
        if len(names) < 2:
            raise InputError(f"{manifest.uri}: one class only ({', '.join(names) or 'none'}); nothing to tell apart")
        known = known.filter(pc.is_valid(known["class_name"]))
        targets = pc.index_in(known["class_name"], pa.array(names)).cast(pa.int64())
        classes, positive = tuple(names), _positive_names(known)
    rows = known.append_column("target", targets)
    columns = [field.name for field in ROW_SCHEMA]
    train, validation = (
        rows.filter(pc.equal(rows["split"], split)).select(columns).cast(ROW_SCHEMA).combine_chunks()
        for split in ("train", "validation")
    )
    labelled = LabelledRows(chosen, classes, positive, train, validation)
    _refuse_gaps(manifest.uri, labelled)
    return labelled


def _seen(labels: set[int]) -> str:
    if not labels:
        return "no image is labelled positive or negative"
    return f"every labelled image is {'positive' if labels == {1} else 'negative'}"


def _positive_names(table: pa.Table) -> tuple[str, ...]:
    """Class names whose every image is labelled positive, where the labels know both sides."""
    sides: dict[str, set[int]] = {}
    for name, label in zip(table["class_name"].to_pylist(), table["label"].to_pylist(), strict=True):
        if label is None:
            return ()
        sides.setdefault(name, set()).add(label)
    positive = tuple(sorted(name for name, labels in sides.items() if labels == {1}))
    return positive if len(positive) < len(sides) else ()


def _refuse_gaps(uri: str, rows: LabelledRows) -> None:
    for split, table in (("train", rows.train), ("validation", rows.validation)):
        if not table.num_rows:
            raise InputError(
                f"{uri}: no labelled images in the {split} split; run `leukoray ingest` again so that it makes splits"
            )
        missing = [name for name, count in zip(rows.classes, rows.counts(split), strict=True) if not count]
        if missing:
            raise InputError(
                f"{uri}: the {split} split has no image of class {', '.join(missing)}; every split needs subjects of "
                "it that are in no other: add some, then ingest again"
            )


def deal(table: pa.Table, ranks: int, seed: int) -> list[pa.Table]:
    """Shuffle rows by the seed and deal them to the ranks: every row to exactly one, sizes differ by one at most."""
    order = np.random.default_rng(seed).permutation(table.num_rows)
    return [table.take(pa.array(order[rank::ranks])) for rank in range(ranks)]


def pixel_bytes(size: int) -> int:
    return size * size * 3


def decoded_schema(size: int) -> pa.Schema:
    """`pixels` is uint8 (S, S, 3) RGB, row by row; all zero where `code` says why the image was rejected."""
    return pa.schema(
        [
            pa.field("image_id", pa.int64(), nullable=False),
            pa.field("target", pa.int64(), nullable=False),
            pa.field("code", pa.string()),
            pa.field("message", pa.string()),
            pa.field("pixels", pa.binary(pixel_bytes(size)), nullable=False),
        ]
    )


def decode(rows: pa.Table, size: int, s3: S3Settings | None = None) -> pa.Table:
    """Fetch and decode rows of ROW_SCHEMA to `decoded_schema(size)`: one row out for every row in."""
    pixels = np.zeros((rows.num_rows, size, size, 3), dtype=np.uint8)
    ids: list[int] = []
    targets: list[int] = []
    codes: list[str | None] = []
    messages: list[str | None] = []
    for number, fetched in enumerate(fetch_rows(rows.to_pylist(), s3)):
        rejected = fetched.rejected
        if fetched.data is not None:
            try:
                pixels[number] = load_image(fetched.data, size).pixels
            except ImageRejected as error:
                rejected = error
        ids.append(fetched.row["image_id"])
        targets.append(fetched.row["target"])
        codes.append(rejected.code.value if rejected else None)
        messages.append(f"{_place(fetched.row)}: {rejected.message}" if rejected else None)
    packed = pa.Array.from_buffers(pa.binary(pixel_bytes(size)), len(ids), [None, pa.py_buffer(pixels)])
    return pa.Table.from_arrays(
        [pa.array(ids, pa.int64()), pa.array(targets, pa.int64()), _strings(codes), _strings(messages), packed],
        schema=decoded_schema(size),
    )


def _strings(values: list[str | None]) -> pa.Array:
    return pa.array(values, pa.string())


def _place(row: Any) -> str:
    return f"{row['uri']}!/{row['member']}" if row["member"] else str(row["uri"])


def decoded(rows: pa.Table, size: int, s3: S3Settings | None, cpus: float) -> "ray.data.Dataset":
    """A dataset of `decoded_schema(size)`, lazily fetched and decoded, in several blocks however few the rows."""
    import ray.data

    def decode_block(block: pa.Table) -> pa.Table:
        return decode(block, size, s3)

    blocks = _blocks(rows, size, parallel=max(2, 2 * int(cpus)))
    return ray.data.from_arrow(blocks).map_batches(
        decode_block, batch_format="pyarrow", batch_size=None, num_cpus=DECODE_CPUS
    )


def _blocks(rows: pa.Table, size: int, parallel: int) -> list[pa.Table]:
    """Slices of bounded decoded size. Members of one compressed tar share a block: a block reads it from the start."""
    length = max(1, min(_BLOCK_BYTES // pixel_bytes(size), _MAX_BLOCK_ROWS, -(-rows.num_rows // parallel)))
    streamed = pc.equal(rows["access"], "stream")
    direct = rows.filter(pc.invert(streamed))
    blocks = [direct.slice(start, length) for start in range(0, direct.num_rows, length)]
    archives = rows.filter(streamed)
    blocks += [archives.filter(pc.equal(archives["uri"], uri)) for uri in pc.unique(archives["uri"]).to_pylist()]
    return blocks


def fits_object_store(images: int, size: int, store_bytes: float) -> bool:
    """Whether decoded images leave two thirds of the cluster's object store free."""
    return images * pixel_bytes(size) <= store_bytes * _STORE_SHARE


@dataclass(frozen=True)
class Rejected:
    """Images that could not be used, by code, with the first message of each."""

    total: int
    codes: dict[str, int]
    examples: dict[str, str]

    @property
    def count(self) -> int:
        return sum(self.codes.values())

    def __str__(self) -> str:
        named = ", ".join(
            f"{number} {code} (e.g. {self.examples[code]})" for code, number in sorted(self.codes.items())
        )
        return f"{self.count} of {self.total} images could not be used: {named}"

    def refuse_too_many(self, max_share: float) -> None:
        """Raise IncompleteError when more than `max_share` are missing, PlatformError where the store is to blame."""
        not_given = sum(self.codes.get(code.value, 0) for code in OUTAGE_CODES)
        if not_given > self.total * max_share:
            raise PlatformError(f"the store does not give the images: {self}; run the same command when it is back")
        if self.count > self.total * max_share:
            raise IncompleteError(
                f"{self}; that is more than --max-error-share {max_share:g}: repair the source and ingest again, or "
                "raise the limit"
            )


def rejected(tables: Iterator[pa.Table] | list[pa.Table]) -> Rejected:
    """Count rejected rows in blocks that have at least `code` and `message`."""
    total = 0
    codes: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for table in tables:
        total += table.num_rows
        bad = table.filter(pc.is_valid(table["code"]))
        for code, message in zip(bad["code"].to_pylist(), bad["message"].to_pylist(), strict=True):
            codes[code] += 1
            examples.setdefault(code, message)
    return Rejected(total, dict(codes), examples)


@dataclass(frozen=True)
class Pixels:
    """Usable rows of one block, as views of Arrow's memory where all of them are usable."""

    image_ids: NDArray[np.int64]  # (N,)
    targets: NDArray[np.int64]  # (N,)
    images: NDArray[np.uint8]  # (N, S, S, 3)


def usable(table: pa.Table, size: int) -> Pixels:
    """The rows of a decoded block that have pixels, without copying when none was rejected."""
    good = table if table["code"].null_count == table.num_rows else table.filter(pc.is_null(table["code"]))
    column = good["pixels"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks else pa.array([], pa.binary(pixel_bytes(size)))
    raw = np.frombuffer(column.buffers()[1] or b"", dtype=np.uint8) if len(column) else np.empty(0, np.uint8)
    start = column.offset * pixel_bytes(size)
    images = raw[start : start + len(column) * pixel_bytes(size)].reshape(len(column), size, size, 3)
    return Pixels(good["image_id"].to_numpy(), good["target"].to_numpy(), images)
