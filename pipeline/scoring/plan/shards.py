"""Listing rows cut into shard files, the unit of work."""

from pipeline.scoring.plan.plan import MAX_META_KEYS, Plan
from pipeline.scoring.run_folder import RunFolder
from pipeline.scoring.schemas import SHARD_SCHEMA, ShardRow
from pipeline.sources.archives import Entry
from pipeline.sources.listing import entry_row
from pipeline.sources.rows import Access, to_table
from pipeline.storage.parquet import to_parquet
from pipeline.storage.types import Store

_MAX_STREAM_ROWS = 20_000  # rows of compressed archives held back so that each archive stays in one shard


def shard_row(entry: Entry, subject_id: str | None) -> ShardRow:
    row = entry_row(entry)
    return ShardRow(
        row.image_id, row.uri, row.member, row.access, row.offset, row.stored_bytes, row.size_bytes, row.etag,
        row.mtime, subject_id, tuple(entry.meta.items()),
    )  # fmt: skip


def shard_size(rows_before: int) -> int:
    """Rows of the next shard: small at first, so that a small run spreads over all workers and reports early."""
    if rows_before < 2048:
        return 64
    return 256 if rows_before < 500_000 else 2048


class Shards:
    """Cuts rows into shard files. Rows of one compressed archive stay together: it is read front to back."""

    def __init__(self, folder: RunFolder, plan: Plan, store: Store) -> None:
        self._folder, self._plan, self._store = folder, plan, store
        self._rows: list[ShardRow] = []
        self._streams: dict[str, list[ShardRow]] = {}
        self._streamed = 0
        self._meta_keys: set[str] = set()

    @property
    def has_rows(self) -> bool:
        return bool(self._plan.rows or self._rows or self._streamed)

    def add(self, row: ShardRow) -> None:
        self._meta_keys.update(key for key, _ in row.meta if key != "subject_id")
        if row.access is Access.STREAM:
            self._streams.setdefault(row.uri, []).append(row)
            self._streamed += 1
            if self._streamed > _MAX_STREAM_ROWS:
                longest = max(self._streams, key=lambda uri: len(self._streams[uri]))
                self._write(self._take(longest))
            return
        self._rows.append(row)
        if len(self._rows) >= shard_size(self._plan.rows):
            self._write(self._rows)
            self._rows = []

    def _take(self, uri: str) -> list[ShardRow]:
        rows = self._streams.pop(uri)
        self._streamed -= len(rows)
        return rows

    def _write(self, rows: list[ShardRow]) -> None:
        number = self._plan.shards
        self._store.write(self._folder.shard(number), to_parquet(to_table(rows, SHARD_SCHEMA)))
        self._plan.shards += 1
        self._plan.rows += len(rows)
        self._plan.shard_rows.append(len(rows))
        self._plan.shard_bytes.append(sum(row.size_bytes for row in rows))
        self._plan.bytes += self._plan.shard_bytes[-1]

    def add_archive(self, row: ShardRow) -> None:
        """A shard of its own, whose rows are not known yet."""
        self._plan.archives.append((self._plan.shards, row.size_bytes))
        self._write([row])
        self._plan.rows -= 1
        self._plan.shard_rows[-1] = 0

    def close(self) -> None:
        if self._rows:
            self._write(self._rows)
        for uri in list(self._streams):
            self._write(self._take(uri))
        self._plan.meta_keys = sorted(self._meta_keys)[:MAX_META_KEYS]
