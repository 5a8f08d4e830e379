"""The parts of a run: what each shard gave, read back and checked against what was listed."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.base.errors import IncompleteError
from pipeline.scoring.plan.plan import Plan
from pipeline.scoring.run_folder import ArchiveSummary, RunFolder, part_number
from pipeline.storage.parquet import read_columns
from pipeline.storage.stores import Stores


def part_sizes(folder: RunFolder, plan: Plan, stores: Stores) -> list[int]:
    """Bytes of every shard's part. Raises IncompleteError naming the shards that have none."""
    sizes: dict[int, int] = {}
    complete: set[int] = set()
    for info in stores.of(folder.uri).walk(folder.parts):
        part = part_number(info.uri)
        if part is not None:
            number, completes = part
            sizes[number] = sizes.get(number, 0) + info.size
            complete |= {number} if completes else set()
    missing = sorted(set(range(plan.shards)) - complete)
    if missing:
        raise IncompleteError(f"{folder.uri}: shards {missing[:10]} have no part; run the same command again")
    return [sizes[number] for number in range(plan.shards)]


def read_summary(folder: RunFolder, number: int, stores: Stores) -> ArchiveSummary:
    """What streaming an archive found, from the piece that completes its part."""
    uri = folder.part(number)
    with stores.of(uri).open(uri) as file:
        return ArchiveSummary.read(pq.ParquetFile(file).schema_arrow.metadata)


def read_part(folder: RunFolder, number: int, is_archive: bool, stores: Stores) -> Iterator[pa.Table]:
    """The rows of one part, piece by piece. Raises IncompleteError when they are not those that were listed."""
    uri = folder.part(number)
    if not is_archive:
        table = read_columns(uri, None, stores)
        listed = read_columns(folder.shard(number), ["image_id"], stores)
        if not table["image_id"].combine_chunks().equals(listed["image_id"].combine_chunks()):
            raise IncompleteError(f"{uri}: holds other images than its shard; delete it and run again")
        yield table
        return
    summary = read_summary(folder, number, stores)
    rows = 0
    for index in range(summary.chunks + 1):
        table = read_columns(folder.chunk(number, index) if index < summary.chunks else uri, None, stores)
        if not pc.all(pc.equal(table["etag"], summary.etag), min_count=0).as_py():
            raise IncompleteError(f"{uri}: holds images of another version of {summary.uri}; delete it and run again")
        rows += table.num_rows
        yield table
    if rows != summary.listed:
        raise IncompleteError(f"{uri}: {rows} rows, {summary.listed} listed in {summary.uri}; delete it and run again")
