"""The parts of a run: what each shard gave, read back and checked against what was listed."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.base.errors import IncompleteError
from pipeline.scoring.plan.plan import Plan
from pipeline.scoring.run_folder import PARTS, RunFolder, chunk_file, part_file, part_number, shard_file
from pipeline.scoring.schemas import ArchiveRow

_ARCHIVE_KEY = b"leukoray.archive"


@dataclass(frozen=True)
class ArchiveSummary:
    """What streaming one archive found, kept with the last piece of its part."""

    uri: str
    etag: str
    size_bytes: int
    chunks: int  # pieces before the last
    listed: int
    is_complete: bool
    left_out: dict[str, int]
    meta_keys: list[str]
    mask_ids: list[int] = field(default_factory=list)  # scored before their originals came, and no part of the output
    masks: list[str] = field(default_factory=list)  # where the first of them lie

    def metadata(self) -> dict[bytes, bytes]:
        """For the schema of the file."""
        return {_ARCHIVE_KEY: json.dumps(asdict(self)).encode()}

    @classmethod
    def read(cls, metadata: Mapping[bytes, bytes]) -> "ArchiveSummary":
        return cls(**json.loads(metadata[_ARCHIVE_KEY]))

    @property
    def row(self) -> ArchiveRow:
        return ArchiveRow(self.uri, self.etag, self.size_bytes, self.listed, self.is_complete)


def part_sizes(folder: RunFolder) -> tuple[dict[int, int], set[int]]:
    """(bytes of each shard's part so far, the shards whose part is whole)."""
    sizes: dict[int, int] = {}
    whole: set[int] = set()
    for info in folder.store.walk(folder.file(PARTS)):
        part = part_number(info.uri)
        if part is not None:
            number, completes = part
            sizes[number] = sizes.get(number, 0) + info.size
            whole |= {number} if completes else set()
    return sizes, whole


def all_part_sizes(folder: RunFolder, plan: Plan) -> list[int]:
    """Bytes of every shard's part. Raises IncompleteError naming the shards that have none."""
    sizes, whole = part_sizes(folder)
    missing = sorted(set(range(plan.shards)) - whole)
    if missing:
        raise IncompleteError(f"{folder.uri}: shards {missing[:10]} have no part; run the same command again")
    return [sizes[number] for number in range(plan.shards)]


def read_summary(folder: RunFolder, number: int) -> ArchiveSummary:
    """What streaming an archive found, from the piece that completes its part."""
    with folder.open(part_file(number)) as file:
        return ArchiveSummary.read(pq.ParquetFile(file).schema_arrow.metadata)


def read_part(folder: RunFolder, number: int, is_archive: bool) -> Iterator[pa.Table]:
    """The rows of one part, piece by piece. Raises IncompleteError when they are not those that were listed."""
    name = part_file(number)
    if not is_archive:
        table = folder.table(name)
        listed = folder.table(shard_file(number), ["image_id"])
        if not table["image_id"].combine_chunks().equals(listed["image_id"].combine_chunks()):
            raise IncompleteError(f"{folder.file(name)}: holds other images than its shard; delete it and run again")
        yield table
        return
    summary = read_summary(folder, number)
    rows = 0
    for piece in (*(chunk_file(number, index) for index in range(summary.chunks)), name):
        table = folder.table(piece)
        if not pc.all(pc.equal(table["etag"], summary.etag), min_count=0).as_py():
            what = f"holds images of another version of {summary.uri}"
            raise IncompleteError(f"{folder.file(name)}: {what}; delete it and run again")
        table = table.filter(pc.invert(pc.is_in(table["image_id"], pa.array(summary.mask_ids, pa.int64()))))
        rows += table.num_rows
        yield table
    if rows != summary.listed:
        what = f"{rows} rows, {summary.listed} listed in {summary.uri}"
        raise IncompleteError(f"{folder.file(name)}: {what}; delete it and run again")
