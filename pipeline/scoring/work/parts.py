"""The parts of a run: what each shard gave, read back and checked against what was listed."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.base.errors import IncompleteError
from pipeline.scoring.plan.plan import Plan
from pipeline.scoring.run_folder import ArchiveSummary, RunFolder, part_number
from pipeline.storage.parquet import read_columns
from pipeline.storage.stores import store_for
from pipeline.storage.types import S3Settings


def part_sizes(folder: RunFolder, plan: Plan, s3: S3Settings | None) -> list[int]:
    """Bytes of every shard's part. Raises IncompleteError naming the shards that have none."""
    sizes: dict[int, int] = {}
    complete: set[int] = set()
    for info in store_for(folder.uri, s3).walk(folder.parts):
        part = part_number(info.uri)
        if part is not None:
            number, completes = part
            sizes[number] = sizes.get(number, 0) + info.size
            complete |= {number} if completes else set()
    missing = sorted(set(range(plan.shards)) - complete)
    if missing:
        raise IncompleteError(f"{folder.uri}: shards {missing[:10]} have no part; run the same command again")
    return [sizes[number] for number in range(plan.shards)]


def read_summary(folder: RunFolder, number: int, s3: S3Settings | None) -> ArchiveSummary:
    """What streaming an archive found, from the piece that completes its part."""
    uri = folder.part(number)
    with store_for(uri, s3).open(uri) as file:
        return ArchiveSummary.read(pq.ParquetFile(file).schema_arrow.metadata)


def read_part(folder: RunFolder, number: int, is_archive: bool, s3: S3Settings | None) -> Iterator[pa.Table]:
    """The rows of one part, piece by piece. Raises IncompleteError when they are not those that were listed."""
    uri = folder.part(number)
    if not is_archive:
        table = read_columns(uri, None, s3)
        listed = read_columns(folder.shard(number), ["image_id"], s3)
        if not table["image_id"].combine_chunks().equals(listed["image_id"].combine_chunks()):
            raise IncompleteError(f"{uri}: holds other images than its shard; delete it and run again")
        yield table
        return
    summary = read_summary(folder, number, s3)
    rows = 0
    for index in range(summary.chunks + 1):
        table = read_columns(folder.chunk(number, index) if index < summary.chunks else uri, None, s3)
        if not pc.all(pc.equal(table["etag"], summary.etag), min_count=0).as_py():
            raise IncompleteError(f"{uri}: holds images of another version of {summary.uri}; delete it and run again")
        rows += table.num_rows
        yield table
    if rows != summary.listed:
        raise IncompleteError(f"{uri}: {rows} rows, {summary.listed} listed in {summary.uri}; delete it and run again")
