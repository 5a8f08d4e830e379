"""A scoring run from request to `_SUCCESS`: lock, plan, score, commit, count, in this order."""

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline.base.cluster import cluster_target, connected
from pipeline.base.errors import IncompleteError, InputError
from pipeline.base.log import under_run
from pipeline.base.record import COMPLETE, INCOMPLETE, now, surroundings
from pipeline.images.unit import mismatch
from pipeline.model.bundle import Bundle
from pipeline.scoring.commit import commit
from pipeline.scoring.measured import Measured
from pipeline.scoring.plan.freeze import make_plan
from pipeline.scoring.plan.overtaken import forget, overtaken_by
from pipeline.scoring.plan.plan import Plan, find_or_start, read_plan
from pipeline.scoring.record import TOO_MANY_ERRORS, Counts, ModelUsed, RunRecord
from pipeline.scoring.request import Request, RunOptions
from pipeline.scoring.run_folder import Finished, Output, RunFolder, next_number
from pipeline.scoring.schemas import SCHEMA_VERSION
from pipeline.scoring.task import ScoringTask
from pipeline.scoring.unit import unit_of_sources, unit_scored
from pipeline.scoring.work.driver import score_shards
from pipeline.scoring.work.progress import Progress
from pipeline.storage.lock import locked
from pipeline.storage.stores import Stores


@dataclass(frozen=True)
class Result:
    """A finished run."""

    folder: RunFolder
    record: RunRecord


def score(
    out: str, request: Request, bundle: Bundle, options: RunOptions, stores: Stores, say: Callable[[str], None]
) -> Result:
    """Run or continue `request` below `out`. Raises LeukorayError; what is done stays done."""
    output = Output.at(out, stores)
    with (
        locked(out, options.run_id or "new run", stores, options.wait_for_lock_s) as check_lock,
        contextlib.ExitStack() as joined,
    ):
        folder, continues = find_or_start(output, request, options.run_id, say)
        under_run(folder.run_id)
        finished = output.finished()
        plan = _continued(finished, folder, request, say) or _listed(finished, folder, request, stores)
        say(_describe(folder, plan, continues))
        task = ScoringTask(folder, request, plan, bundle, stores)
        ray, progress = None, Progress(plan, plan.rows, 0)
        is_scraped = cluster_target(options.address) is not None  # a Ray of its own is gone before anybody asks
        if plan.shards or is_scraped:  # a night without news starts no Ray, but a cluster is told that it was done
            ray = joined.enter_context(connected(options.address, options.num_cpus))
        measured = Measured(out, plan.started_at, [earlier for _, earlier in finished])
        if plan.shards:
            progress = score_shards(ray, task, options.workforce, check_lock, measured.progress)
        check_lock()
        done = commit.commit(ray, task, check_lock=check_lock)
        record = make_record(task, done.counts, progress, options, continues=continues)
        check_lock()
        commit.finish(folder, done.written, record)
        measured.finished(record)
        return Result(folder, record)


def _continued(finished: Finished, folder: RunFolder, request: Request, say: Callable[[str], None]) -> Plan | None:
    """The plan of an unfinished run, None where there is none, or where another run has done some of it since."""
    plan = read_plan(folder)
    if plan is None:
        return None
    other = overtaken_by(finished, folder, plan, request)
    if other is None:
        return replace(plan, number=next_number(finished))
    say(f"{folder.run_id}: {other} has done images of it since it began; it is listed and begun anew")
    forget(folder)
    return None


def _listed(finished: Finished, folder: RunFolder, request: Request, stores: Stores) -> Plan:
    """The plan; a folder for which there is nothing to do does not stay, unless somebody put files into it."""
    try:
        return make_plan(finished, folder, request, stores)
    except InputError:
        folder.discard_listing()
        raise


def _describe(folder: RunFolder, plan: Plan, continues: bool) -> str:
    verb = "continuing" if continues else "starting"
    skipped = "".join(f", {count} {reason}" for reason, count in plan.skipped.items())
    problems = f", {plan.problems} could not be listed" if plan.problems else ""
    unopened = f" and {len(plan.archives)} compressed archives" if plan.archives else ""
    return (
        f"{verb} {folder.run_id}: {plan.known_images} images{unopened} listed in {plan.listing_s:.1f} s{skipped}"
        f"{problems}; {plan.rows}{unopened} to score ({plan.bytes / 1e6:.1f} MB) in {plan.shards} shards"
    )


def make_record(
    task: ScoringTask, counts: Counts, progress: Progress, options: RunOptions, *, continues: bool
) -> RunRecord:  # fmt: skip
    """run.json, as of now."""
    plan, share = task.plan, counts.error_share
    status = TOO_MANY_ERRORS if share > options.max_error_share else COMPLETE
    if counts.uncounted > counts.uncounted_accepted and not options.accepts_damaged:
        status = INCOMPLETE
    return RunRecord(
        **surroundings(),
        run_id=plan.run_id,
        job="score",
        exit_code=0 if status == COMPLETE else IncompleteError.exit_code,
        configuration=options.configuration,
        digests={"model": task.bundle.info.identity()},
        number=plan.number,
        status=status,
        schema_version=SCHEMA_VERSION,
        counts=counts,
        error_share=round(share, 6),
        max_error_share=options.max_error_share,
        accepts_damaged=options.accepts_damaged,
        model=ModelUsed.of(task.bundle),
        request=task.request,
        layout=plan.layout,
        unit=unit_scored(task),
        unit_note=mismatch(task.bundle.info.unit, unit_of_sources(task)) or "",
        pixel_rules=_pixel_rules(task, counts),
        continued=continues,
        started_at=plan.started_at,
        finished_at=now(),
        listing_s=plan.listing_s,
        bytes=plan.bytes,
        progress=progress.pace(),
        resources=options.workforce,
        notice="Research software, not a medical device.",
    )


def _pixel_rules(task: ScoringTask, counts: Counts) -> dict[str, int]:
    rows = Counter(task.plan.pixel_rules)
    rows[task.bundle.info.preprocessing_digest] += counts.scored
    return {digest: count for digest, count in rows.items() if count}
