"""A table as a Parquet file, in the way of all files of this project."""

import io

import pyarrow as pa
import pyarrow.parquet as pq


def described(name: str, kind: pa.DataType, meaning: str, *, nullable: bool = True) -> pa.Field:
    """A field that says what it means, in docs/reference.md and to whoever reads the file's schema."""
    return pa.field(name, kind, nullable=nullable, metadata={"meaning": meaning})


def to_parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=64 * 1024)
    return buffer.getvalue()
