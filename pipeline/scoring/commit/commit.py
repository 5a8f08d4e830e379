"""The end of a run: parts checked against shards, compacted into large files, counted again from what was written.

Every step gives the same files when it is done again, so a kill anywhere is mended by the same command: parts are
removed only after `_SUCCESS` is there.
"""

import functools
import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.base.errors import IncompleteError, PlatformError
from pipeline.base.text import first_line
from pipeline.images.remarks import count_kinds
from pipeline.images.unit import Unit
from pipeline.scoring.commit.compact import Compactor, group_parts
from pipeline.scoring.commit.partition import Partition
from pipeline.scoring.commit.subjects import Rule, roll_up
from pipeline.scoring.history.uncounted import ACCEPTED_UNCOUNTED, UNCOUNTED
from pipeline.scoring.output import OutputFile, OutputSeries, Written
from pipeline.scoring.plan.plan import Plan
from pipeline.scoring.record import Counts, RunRecord
from pipeline.scoring.run_folder import FAILED_BEFORE, PARTS_LIST, RECORD, SUBJECTS, SUCCESS, WORK, RunFolder
from pipeline.scoring.schemas import ARCHIVES_SCHEMA, IN_TRAINING, IS_OOD, IS_UNCOUNTED
from pipeline.scoring.task import ScoringTask
from pipeline.scoring.unit import has_blocks, unit_scored
from pipeline.scoring.work.parts import ArchiveSummary, all_part_sizes, read_summary
from pipeline.scoring.work.tasks import lost_errors, results
from pipeline.sources.masks import MASKS_NAMED

_MAX_META_KEYS = 256  # sidecars whose keys are data would make a column an image
_TRIES = 4  # of a task that is lost


@dataclass(frozen=True)
class Sizes:
    """Bytes of parts that make one output file, and of a run that is put together in the driver."""

    file: int = 128 << 20
    in_driver: int = 4 << 20  # about 50,000 rows; more goes to Ray tasks, which keeps the memory of the driver level


@dataclass(frozen=True)
class Committed:
    """All output files, and what they hold."""

    written: list[Written]
    counts: Counts


def commit(
    ray: Any, task: ScoringTask, sizes: Sizes = Sizes(), check_lock: Callable[[], None] = lambda: None
) -> Committed:
    """Write all output files; small runs in this process, large ones as Ray tasks.

    Raises IncompleteError when something is missing or does not add up, PlatformError where tasks are lost again and
    again or this node is, and what `check_lock` raises. `ray` may be None for a small run.
    """
    folder, plan = task.folder, task.plan
    parts = all_part_sizes(folder, plan)
    archives = [read_summary(folder, number) for number, _ in plan.archives]
    keys = sorted({*plan.meta_keys, *(key for summary in archives for key in summary.meta_keys)} - {"subject_id"})
    plan, without = replace(plan, meta_keys=keys[:_MAX_META_KEYS]), keys[_MAX_META_KEYS:]
    rule = task.request.partition_by
    compactor = Compactor(folder, plan, task.bundle.info, Partition.parse(rule) if rule else None)
    groups = list(enumerate(group_parts(parts, sizes.file) or [[]]))  # what could not be listed is in the first
    if sum(parts) <= sizes.in_driver or ray is None:
        written = [item for group in groups for item in compactor.write(*group)]
    else:
        written = _by_tasks(ray, compactor, groups, check_lock)
    written += _archives(folder, plan, archives)
    written += plan.files
    written += _subjects(task, written)
    counts = _count(folder, plan, archives, written)
    return Committed(
        written, counts.model_copy(update={"meta_left_out": len(without), "meta_first": tuple(without[:10])})
    )


def _by_tasks(
    ray: Any, compactor: Compactor, groups: Sequence[tuple[int, Sequence[int]]], check_lock: Callable[[], None]
) -> list[Written]:
    remote = ray.remote(num_cpus=1, max_retries=0)(Compactor.write)
    begin = [functools.partial(remote.remote, compactor, *group) for group in groups]
    try:
        return [item for result in results(ray, begin, check_lock, _TRIES) for item in result]
    except lost_errors(ray) as error:
        raise PlatformError(
            f"{compactor.folder.uri}: a task that writes output files died {_TRIES} times ({first_line(error)}); free "
            "memory (leukoray doctor), then run the same command again: all images are scored"
        ) from error


def _archives(folder: RunFolder, plan: Plan, summaries: Sequence[ArchiveSummary]) -> list[Written]:
    """`archives/`: the compressed archives that are done with, so that the next run need not read them."""
    series = OutputSeries(folder, "archives", ARCHIVES_SCHEMA)
    for row in (*plan.opened, *(summary.row for summary in summaries)):
        series.add_row(asdict(row))
    return series.finish()


def _rule(task: ScoringTask, unit: Unit | None) -> Rule | None:
    """How a subject's count becomes a share: only of cells, of patients, at the threshold the rates are known for."""
    info = task.bundle.info
    if unit != "cell" or info.subject_rules is None or has_blocks(task):
        return None
    rules = info.subject_rules.at(info.threshold, info.temperature)
    return None if rules.rates is None and rules.roll_up is None else Rule(info.threshold, rules)


def _subjects(task: ScoringTask, written: Sequence[Written]) -> list[Written]:
    """SUBJECTS, where a subject is known."""
    folder, unit = task.folder, unit_scored(task)
    names = [item.name for item in written if item.name.startswith("predictions/")]
    columns = ["subject_id", "probability", "decision", "image_id"]
    batches = (batch for name in names for batch in folder.batches(name, columns))
    table = roll_up(batches, folder.run_id, unit, _rule(task, unit))
    if not table.num_rows:
        return []
    file = OutputFile(table.schema)
    file.add(table)
    return [file.write(folder, SUBJECTS)]


def _count(folder: RunFolder, plan: Plan, archives: Sequence[ArchiveSummary], written: Sequence[Written]) -> Counts:
    """Count again from the footers of the files that are there, and compare with the listing.

    Raises IncompleteError when they do not add up.
    """
    rows, codes, remarks, flags = (Counter[str]() for _ in range(4))
    failed_before, again, uncounted = folder.table(FAILED_BEFORE)["image_id"], 0, 0
    for item in written:
        kind = item.name.split("/", 1)[0]
        with folder.open(item.name) as file:
            parquet = pq.ParquetFile(file)
            rows[kind] += parquet.metadata.num_rows
            if kind == "predictions":
                table = parquet.read(columns=["remark", IN_TRAINING, IS_OOD])
                remarks.update(count_kinds(table["remark"].drop_null().to_pylist()))
                flags.update({name: pc.sum(table[name], min_count=0).as_py() for name in (IN_TRAINING, IS_OOD)})
            elif kind == "quarantine":
                table = parquet.read(columns=["code", "image_id", IS_UNCOUNTED])
                uncounted += pc.sum(table[IS_UNCOUNTED], min_count=0).as_py()
                table = table.filter(pc.invert(table[IS_UNCOUNTED]))
                codes.update(table["code"].to_pylist())
                again += pc.sum(pc.is_in(table["image_id"], failed_before), min_count=0).as_py()
    left_out = sum((Counter(archive.left_out) for archive in archives), Counter(plan.left_out))
    unchanged = sum(plan.skipped.get(reason, 0) for reason in UNCOUNTED)
    counts = Counts(
        listed=plan.listed + sum(archive.listed for archive in archives) - uncounted - unchanged,
        scored=rows["predictions"],
        quarantined=rows["quarantine"] - uncounted,
        quarantined_again=again,
        skipped=rows["skipped"] - unchanged,
        deleted_at_source=rows["deleted"],
        codes=dict(codes),
        remarks=dict(remarks),
        in_training=flags[IN_TRAINING],
        out_of_distribution=flags[IS_OOD],
        skipped_reasons={reason: count for reason, count in plan.skipped.items() if reason not in UNCOUNTED},
        left_out=dict(left_out),
        masks=tuple(itertools.islice((*plan.masks, *(place for one in archives for place in one.masks)), MASKS_NAMED)),
        uncounted=uncounted + unchanged,
        uncounted_unchanged=unchanged,
        uncounted_accepted=plan.skipped.get(ACCEPTED_UNCOUNTED, 0),
    )
    if counts.listed != counts.scored + counts.quarantined + counts.skipped:
        raise IncompleteError(
            f"{folder.uri}: {counts.listed} listed, but {counts.scored} scored + {counts.quarantined} quarantined "
            f"+ {counts.skipped} skipped in the files; the run is not complete, run the same command again"
        )
    return counts


def finish(folder: RunFolder, written: Sequence[Written], record: RunRecord) -> None:
    """parts.json, run.json, then `_SUCCESS`, which holds the run's status; then the parts go."""
    folder.sweep()
    folder.write(PARTS_LIST, json.dumps([asdict(item) for item in written], indent=1).encode())
    folder.write(RECORD, json.dumps(record.model_dump(mode="json"), indent=2).encode())
    folder.write(SUCCESS, f"{record.status}\n".encode())
    folder.delete(WORK)
