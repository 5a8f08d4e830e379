"""Output files are made piece by piece: all rows, in order, in row groups of a bounded size."""

import hashlib
import io
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import UsageError
from pipeline.scoring.commit.partition import Partition
from pipeline.scoring.output import ROW_GROUP, OutputFile
from pipeline.scoring.run_folder import RunFolder
from pipeline.scoring.schemas import meta_columns, prediction_schema
from pipeline.storage.stores import Stores
from tests.searches import search

SCHEMA = pa.schema([pa.field("number", pa.int64(), nullable=False), pa.field("name", pa.string())])


@search(25)
@given(st.lists(st.integers(0, 30_000), max_size=8))
def test_tables_come_back_whole_in_order_and_in_bounded_row_groups(sizes: list[int]) -> None:
    file = OutputFile(SCHEMA)
    start = 0
    for size in sizes:
        numbers = pa.array(range(start, start + size), pa.int64())
        file.add(pa.table([numbers, pa.nulls(size, pa.string())], schema=SCHEMA))
        start += size
    got = pq.ParquetFile(io.BytesIO(file.finish()))
    groups = [got.metadata.row_group(index).num_rows for index in range(got.metadata.num_row_groups)]
    assert got.read()["number"].to_pylist() == list(range(start))
    assert all(rows < ROW_GROUP + 30_000 for rows in groups)
    assert len(groups) <= 1 + start // ROW_GROUP


def test_single_rows_come_back_with_nulls_where_nothing_was_given(tmp_path: Path) -> None:
    file = OutputFile(SCHEMA)
    for number in range(10_000):
        file.add_row({"number": number} if number % 2 else {"number": number, "name": "even"})
    written = file.write(RunFolder.at(str(tmp_path), Stores()), "skipped/part-000000.parquet")
    data = (tmp_path / "skipped" / "part-000000.parquet").read_bytes()
    assert (written.rows, written.bytes, written.sha256) == (10_000, len(data), hashlib.sha256(data).hexdigest())
    table = pq.ParquetFile(io.BytesIO(data)).read()
    assert table["number"].to_pylist() == list(range(10_000))
    assert table["name"].to_pylist() == ["even", None] * 5_000


@pytest.mark.parametrize("key", ["format", "decision", "Probability", "subject_id", "prob_blast", "META_site", "code"])
def test_partitions_named_like_a_column_are_refused(key: str) -> None:
    with pytest.raises(UsageError, match="column of the files"):
        Partition.parse(rf"{key}=/(\w+)/")


def test_other_names_of_partitions_are_taken() -> None:
    assert Partition.parse(r"site=/site-(\w+)/").value("/a/site-b/x.jpg") == "b"


def test_columns_of_what_was_said_of_images_are_read_alike_by_all_tools(tmp_path: Path) -> None:
    said = {"Age at diagnosis": "61", "site": "north", "Site": "n", "a.b": "1", "a b": "2", "8th": "x"}
    schema = prediction_schema(("no", "yes"), sorted(said))
    row = {column: said[key] for column, key in meta_columns(sorted(said)).items()}
    file = tmp_path / "part.parquet"
    pq.write_table(
        pa.Table.from_pylist([{"image_id": 1, "uri": "x", "etag": "e", "size_bytes": 1, **row}], schema), file
    )
    for names, values in (
        (duckdb.sql(f"from '{file}'").columns, duckdb.sql(f"select {', '.join(row)} from '{file}'").fetchall()[0]),
        (pl.read_parquet(file).columns, pl.read_parquet(file).select(list(row)).row(0)),
        (list(pd.read_parquet(file)), tuple(pd.read_parquet(file)[list(row)].iloc[0])),
    ):
        assert names == schema.names
        assert values == tuple(row.values())


def test_partitions_that_readers_pass_over_are_refused() -> None:
    with pytest.raises(UsageError, match="begin with _"):
        Partition.parse(r"_site=/site-(\w+)/")


def test_a_long_value_of_a_partition_is_a_folder_that_disks_can_hold() -> None:
    partition = Partition.parse("folder=(.*)")
    one, other = (partition.value("ä" * 300 + end) for end in ("1", "2"))
    assert one != other and len(f"folder={one}".encode()) < 200
    assert partition.value("a/b c") == "a_b_c"
