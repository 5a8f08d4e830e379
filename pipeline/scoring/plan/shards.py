"""Listing rows cut into shard files, the unit of work."""

from collections.abc import Mapping

from pipeline.scoring.run_folder import RunFolder, shard_file
from pipeline.scoring.schemas import SHARD_SCHEMA, ShardRow
from pipeline.sources.rows import Access, ListingRow, read_rows, to_table
from pipeline.storage.parquet import to_parquet

_MAX_STREAM_ROWS = 20_000  # rows of compressed archives held back so that each archive stays in one shard


def shard_row(row: ListingRow, subject_id: str | None, meta: Mapping[str, str]) -> ShardRow:
    return ShardRow(
        row.image_id, row.uri, row.member, row.access, row.offset, row.stored_bytes, row.size_bytes, row.etag,
        row.mtime, subject_id, tuple(meta.items()),
    )  # fmt: skip


def read_shard(folder: RunFolder, number: int) -> list[ShardRow]:
    return read_rows(folder.table(shard_file(number)), ShardRow)


def first_uri(folder: RunFolder, number: int) -> str:
    """The first object of a shard."""
    return str(folder.table(shard_file(number), ["uri"])["uri"][0].as_py())


def shard_size(rows_before: int) -> int:
    """Rows of the next shard: small at first, so that a small run spreads over all workers and reports early."""
    if rows_before < 2048:
        return 64
    return 256 if rows_before < 500_000 else 2048


class Shards:
    """Cuts rows into shard files. Rows of one compressed archive stay together: it is read front to back."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._rows: list[ShardRow] = []
        self._streams: dict[str, list[ShardRow]] = {}
        self._streamed = self._written = 0  # rows
        self.images: list[int] = []  # of each shard; 0 for an archive, whose images are not known yet
        self.bytes: list[int] = []
        self.archives: list[tuple[int, int]] = []  # (shard, bytes)
        self.meta_keys: set[str] = set()

    def add(self, row: ShardRow) -> None:
        self.meta_keys.update(key for key, _ in row.meta if key != "subject_id")
        if row.access is Access.STREAM:
            self._streams.setdefault(row.uri, []).append(row)
            self._streamed += 1
            if self._streamed > _MAX_STREAM_ROWS:
                self._write_stream(max(self._streams, key=lambda uri: len(self._streams[uri])))
            return
        self._rows.append(row)
        if len(self._rows) >= shard_size(self._written):
            self._write(self._rows)
            self._rows = []

    def add_archive(self, row: ShardRow) -> None:
        """A shard of its own, whose rows are not known yet."""
        self.archives.append((len(self.images), row.size_bytes))
        self._write([row], images=0)

    def _write_stream(self, uri: str) -> None:
        rows = self._streams.pop(uri)
        self._streamed -= len(rows)
        self._write(rows)

    def _write(self, rows: list[ShardRow], images: int | None = None) -> None:
        self._folder.write(shard_file(len(self.images)), to_parquet(to_table(rows, SHARD_SCHEMA)))
        self.images.append(len(rows) if images is None else images)
        self.bytes.append(sum(row.size_bytes for row in rows))
        self._written += self.images[-1]

    def close(self) -> None:
        if self._rows:
            self._write(self._rows)
        for uri in list(self._streams):
            self._write_stream(uri)
