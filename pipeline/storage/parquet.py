"""Parquet files as wholes and piece by piece, in any store."""

import io
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.stores import Stores


def to_parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=64 * 1024)
    return buffer.getvalue()


_BATCH_ROWS = 32 * 1024


def read_columns(uri: str, columns: list[str] | None, stores: Stores) -> pa.Table:
    with stores.of(uri).open(uri) as file:
        return pq.ParquetFile(file).read(columns=columns)


def read_batches(uri: str, columns: list[str], stores: Stores) -> Iterator[pa.Table]:
    """The rows of one file piece by piece, so that memory does not grow with the file."""
    with stores.of(uri).open(uri) as file:
        for batch in pq.ParquetFile(file).iter_batches(_BATCH_ROWS, columns=columns):
            yield pa.Table.from_batches([batch])
