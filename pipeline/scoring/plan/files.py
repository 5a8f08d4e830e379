"""The files that a listing becomes: shards to score, problems, and what needs no scoring and goes straight out."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

import pyarrow as pa

from pipeline.base.errors import Stage
from pipeline.scoring.history.uncounted import UNCOUNTED
from pipeline.scoring.output import OutputFile, OutputSeries
from pipeline.scoring.plan.plan import Plan
from pipeline.scoring.plan.shards import Shards
from pipeline.scoring.run_folder import DELETED, FAILED_BEFORE, PROBLEMS, SKIPPED, RunFolder
from pipeline.scoring.schemas import DELETED_SCHEMA, SKIPPED_SCHEMA, ArchiveRow, quarantine_schema
from pipeline.sources.archives import Entry, Problem, holds_many
from pipeline.storage.parquet import to_parquet


class PlanFiles:
    """Takes what was listed, each image once, and gives the plan when all is written."""

    def __init__(self, folder: RunFolder, model_sha256: str, begin: datetime) -> None:
        self._folder, self._model_sha256, self._begin = folder, model_sha256, begin
        for kind in (SKIPPED, DELETED):  # of a listing that was cut short
            folder.delete(kind)
        self.shards = Shards(folder)
        self.opened: list[ArchiveRow] = []  # compressed archives whose images were taken one by one
        self.deleted = OutputSeries(folder, DELETED, DELETED_SCHEMA)
        self._skipped = OutputSeries(folder, SKIPPED, SKIPPED_SCHEMA)
        self._reasons: Counter[str] = Counter()
        self._problems = OutputFile(quarantine_schema())
        self._uncounted = 0

    def add_problem(self, image_id: int, item: Problem) -> None:
        self._uncounted += holds_many(item.uri, item.member)
        where = {"image_id": image_id, "uri": item.uri, "member": item.member, "etag": item.etag}
        what = {"stage": Stage.LIST.value, "code": item.code.value, "message": item.message, "attempts": 1}
        run = {"model_sha256": self._model_sha256, "scored_at": self._begin, "run_id": self._folder.run_id}
        self._problems.add_row({**where, "size_bytes": item.size_bytes, **what, **run})

    def skip(self, image_id: int, item: Entry | Problem, reason: str, earlier_run: str) -> None:
        self._reasons[reason] += 1
        where = {"image_id": image_id, "uri": item.uri, "member": item.member}
        self._skipped.add_row({**where, "reason": reason, "earlier_run": earlier_run})

    def skip_all(self, rows: pa.Table) -> None:
        """Rows of SKIPPED_SCHEMA."""
        self._reasons.update(rows["reason"].to_pylist())
        self._skipped.add(rows)

    def finish(self, failed_before: Sequence[int], left_out: Counter[str], layout: str) -> Plan:
        """The plan, once everything it names is written."""
        self.shards.close()
        self._folder.write(PROBLEMS, self._problems.finish())
        self._folder.write(FAILED_BEFORE, to_parquet(pa.table({"image_id": pa.array(failed_before, pa.int64())})))
        return Plan(
            self._folder.run_id,
            shard_rows=self.shards.images,
            shard_bytes=self.shards.bytes,
            archives=self.shards.archives,
            opened=self.opened,
            meta_keys=sorted(self.shards.meta_keys),
            problems=self._problems.rows,
            uncounted=self._uncounted + sum(self._reasons[reason] for reason in UNCOUNTED),
            skipped=dict(self._reasons),
            left_out=dict(left_out),
            files=[*self._skipped.finish(), *self.deleted.finish()],
            layout=layout,
            started_at=self._begin.isoformat(timespec="seconds"),
        )
