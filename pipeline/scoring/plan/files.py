"""The files that a listing becomes: shards to score, problems, and what needs no scoring and goes straight out."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime

import pyarrow as pa

from pipeline.base.errors import Stage
from pipeline.scoring.output import OutputFile, OutputSeries
from pipeline.scoring.plan.plan import MAX_META_KEYS, Plan
from pipeline.scoring.plan.shards import Shards
from pipeline.scoring.run_folder import FAILED_BEFORE, PROBLEMS, RunFolder
from pipeline.scoring.schemas import DELETED_SCHEMA, SKIPPED_SCHEMA, ArchiveRow, ShardRow, quarantine_schema
from pipeline.sources.archives import Entry, Problem
from pipeline.sources.rows import image_id
from pipeline.storage.parquet import to_parquet


class PlanFiles:
    """Takes what was listed, each image once, and gives the plan when all is written."""

    def __init__(self, folder: RunFolder, model_sha256: str, begin: datetime) -> None:
        self._folder, self._model_sha256, self._begin = folder, model_sha256, begin
        for kind in ("skipped", "deleted"):  # of a listing that was cut short
            folder.delete(kind)
        self._shards = Shards(folder)
        self._problems = OutputFile(quarantine_schema())
        self._skipped = OutputSeries(folder, "skipped", SKIPPED_SCHEMA)
        self._reasons: Counter[str] = Counter()
        self._deleted = OutputSeries(folder, "deleted", DELETED_SCHEMA)
        self._opened: list[ArchiveRow] = []

    @property
    def has_work(self) -> bool:
        return self._shards.has_rows

    def add(self, row: ShardRow) -> None:
        self._shards.add(row)

    def add_archive(self, row: ShardRow) -> None:
        """One that its worker is to open; its images are not listed yet."""
        self._shards.add_archive(row)

    def add_problem(self, item: Problem) -> None:
        self._problems.add_row(
            {
                "image_id": image_id(item.uri, item.member, item.occurrence),
                "uri": item.uri,
                "member": item.member,
                "etag": item.etag,
                "size_bytes": item.size_bytes,
                "stage": Stage.LIST.value,
                "code": item.code.value,
                "message": item.message,
                "attempts": 1,
                "model_sha256": self._model_sha256,
                "subject_id": None,
                "scored_at": self._begin,
                "run_id": self._folder.run_id,
            }
        )

    def skip(self, number: int, item: Entry | Problem, reason: str, earlier_run: str) -> None:
        self._reasons[reason] += 1
        identity = {"image_id": number, "uri": item.uri, "member": item.member}
        self._skipped.add_row({**identity, "reason": reason, "earlier_run": earlier_run})

    def skip_all(self, rows: pa.Table) -> None:
        """Rows of SKIPPED_SCHEMA."""
        self._reasons.update(rows["reason"].to_pylist())
        self._skipped.add(rows)

    def note_opened(self, archive: ArchiveRow) -> None:
        """A compressed archive whose images were taken one by one."""
        self._opened.append(archive)

    def note_deleted(self, tables: Iterator[pa.Table]) -> None:
        for table in tables:
            self._deleted.add(table)

    def finish(self, failed_before: Sequence[int], left_out: Counter[str], layout: str) -> Plan:
        """The plan, once everything it names is written; its `listing_s` is for whoever writes it."""
        self._shards.close()
        self._folder.write(PROBLEMS, self._problems.finish())
        self._folder.write(FAILED_BEFORE, to_parquet(pa.table({"image_id": pa.array(failed_before, pa.int64())})))
        return Plan(
            self._folder.run_id,
            shard_rows=self._shards.images,
            shard_bytes=self._shards.bytes,
            archives=self._shards.archives,
            opened=self._opened,
            meta_keys=sorted(self._shards.meta_keys)[:MAX_META_KEYS],
            problems=self._problems.rows,
            skipped=dict(self._reasons),
            left_out=dict(left_out),
            files=[*self._skipped.finish(), *self._deleted.finish()],
            layout=layout,
            started_at=self._begin.isoformat(timespec="seconds"),
        )
