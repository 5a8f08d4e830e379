"""From manifest rows to decoded pixels on Ray Data: fetched and decoded once, kept as uint8, one dataset a rank.

The driver has read and checked the manifest; it deals its rows to the ranks, and Ray Data turns each rank's rows into
blocks of `decoded_schema`. No row is lost on the way: a damaged image stays as a row with its code and without pixels,
so that the reader can count it. Every rank is dealt a known number of rows, so all can agree on a number of steps.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.base.errors import OUTAGE_CODES, ImageRejected, IncompleteError, PlatformError
from pipeline.base.resources import DECODE_CPUS
from pipeline.images.load import load_image
from pipeline.images.remarks import count_kinds, joined
from pipeline.sources.fetch import fetch_rows
from pipeline.sources.rows import Access, read_rows
from pipeline.storage.stores import Stores
from pipeline.training.rows import TargetRow

if TYPE_CHECKING:
    import ray.data

_BLOCK_BYTES = 16 << 20
_MAX_BLOCK_ROWS = 512
_STORE_SHARE = 1 / 3  # of the object store that decoded images may fill; the rest is for everything else


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
            pa.field("remark", pa.string()),
            pa.field("pixels", pa.binary(pixel_bytes(size)), nullable=False),
        ]
    )


def decode(rows: pa.Table, size: int, stores: Stores = Stores(), bit_depth: int | None = None) -> pa.Table:
    """Fetch and decode rows of ROW_SCHEMA to `decoded_schema(size)`: one row out for every row in."""
    pixels = np.zeros((rows.num_rows, size, size, 3), dtype=np.uint8)
    ids: list[int] = []
    targets: list[int] = []
    codes: list[str | None] = []
    messages: list[str | None] = []
    remarks: list[str | None] = []
    for number, fetched in enumerate(fetch_rows(read_rows(rows, TargetRow), stores)):
        rejected, noticed = fetched.rejected, None
        if fetched.data is not None:
            try:
                image = load_image(fetched.data, size, bit_depth=bit_depth)
                pixels[number], noticed = image.pixels, joined(image.remarks)
            except ImageRejected as error:
                rejected = error
        ids.append(fetched.row.image_id)
        targets.append(fetched.row.target)
        codes.append(rejected.code.value if rejected else None)
        messages.append(f"{fetched.row.place}: {rejected.message}" if rejected else None)
        remarks.append(noticed)
    packed = pa.Array.from_buffers(pa.binary(pixel_bytes(size)), len(ids), [None, pa.py_buffer(pixels)])
    return pa.Table.from_arrays(
        [
            pa.array(ids, pa.int64()),
            pa.array(targets, pa.int64()),
            *(pa.array(texts, pa.string()) for texts in (codes, messages, remarks)),
            packed,
        ],
        schema=decoded_schema(size),
    )


def decoded(rows: pa.Table, size: int, stores: Stores, cpus: float, bit_depth: int | None = None) -> "ray.data.Dataset":
    """A dataset of `decoded_schema(size)`, lazily fetched and decoded, in several blocks however few the rows."""
    import ray.data

    def decode_block(block: pa.Table) -> pa.Table:
        return decode(block, size, stores, bit_depth)

    blocks = _blocks(rows, size, parallel=max(2, 2 * int(cpus)))
    return ray.data.from_arrow(blocks).map_batches(
        decode_block, batch_format="pyarrow", batch_size=None, num_cpus=DECODE_CPUS
    )


def _blocks(rows: pa.Table, size: int, parallel: int) -> list[pa.Table]:
    """Slices of bounded decoded size. Members of one compressed tar share a block: a block reads it from the start."""
    length = max(1, min(_BLOCK_BYTES // pixel_bytes(size), _MAX_BLOCK_ROWS, -(-rows.num_rows // parallel)))
    streamed = pc.equal(rows["access"], Access.STREAM.value)
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
    """Images that could not be used, by code, with the first message of each; and what was noticed about the others."""

    total: int
    codes: dict[str, int]
    examples: dict[str, str]
    remarks: dict[str, int] = field(default_factory=dict)  # images by kind

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
    """Count rejected rows in blocks that have at least `code` and `message`, and remarks where they have `remark`."""
    total = 0
    codes: Counter[str] = Counter()
    examples: dict[str, str] = {}
    remarks: Counter[str] = Counter()
    for table in tables:
        total += table.num_rows
        if "remark" in table.column_names:
            remarks += count_kinds(table["remark"].drop_null().to_pylist())
        bad = table.filter(pc.is_valid(table["code"]))
        for code, message in zip(bad["code"].to_pylist(), bad["message"].to_pylist(), strict=True):
            codes[code] += 1
            examples.setdefault(code, message)
    return Rejected(total, dict(codes), examples, dict(remarks))


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
