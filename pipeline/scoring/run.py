"""A scoring run from request to `_SUCCESS`: lock, plan, score, commit, count, in this order."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline import __version__
from pipeline.base.cluster import Connection
from pipeline.base.errors import InputError
from pipeline.base.machine import usable_cores
from pipeline.model.bundle import Bundle
from pipeline.scoring.commit import commit
from pipeline.scoring.commit.subjects import roll_up
from pipeline.scoring.history.ledger import read_ledger
from pipeline.scoring.history.retry import read_retry
from pipeline.scoring.output import OutputFile, Written
from pipeline.scoring.plan.freeze import make_plan
from pipeline.scoring.plan.plan import Plan, find_or_start, read_plan
from pipeline.scoring.request import Request
from pipeline.scoring.run_folder import RunFolder
from pipeline.scoring.schemas import SCHEMA_VERSION
from pipeline.scoring.work.driver import Resources, ScoreDriver
from pipeline.scoring.work.progress import Progress
from pipeline.storage.lock import locked
from pipeline.storage.parquet import read_batches
from pipeline.storage.stores import Stores


@dataclass(frozen=True)
class Result:
    """A finished run."""

    folder: RunFolder
    run: dict[str, Any]  # run.json


@dataclass(frozen=True)
class Options:
    """How a run is done; none of it changes its rows."""

    resources: Resources
    address: str | None = None
    num_cpus: int | None = None
    run_id: str | None = None
    wait_for_lock_s: float = 0.0
    max_error_share: float = 0.05


Say = Callable[[str], None]


def score(out: str, request: Request, bundle: Bundle, options: Options, stores: Stores, say: Say) -> Result:
    """Run or continue `request` below `out`. Raises LeukorayError; what is done stays done."""
    partition = commit.Partition.parse(request.partition_by) if request.partition_by else None
    with (
        locked(out, options.run_id or "new run", stores, options.wait_for_lock_s) as check_lock,
        Connection(options.address, options.num_cpus, prestart=_takes_every_core(options)) as connection,
    ):
        folder, continues = find_or_start(out, request, options.run_id, stores)
        plan = read_plan(folder, stores)
        if plan is None:
            plan = _listed(out, folder, request, stores, connection.begin)
        say(_describe(folder, plan, continues))
        ray, progress = None, Progress(plan, plan.rows, 0)
        if plan.shards:
            ray = connection.ray()
            driver = ScoreDriver(ray, folder, request, plan, bundle, options.resources, stores, check_lock)
            progress = driver.run()
        check_lock()
        facts = RunFacts(request, bundle, plan, progress, options, continues)
        return conclude(ray, folder, facts, partition, stores, check_lock, connection.release)


def _takes_every_core(options: Options) -> bool:
    resources = options.resources
    return resources.workers * resources.cpus_per_worker >= (options.num_cpus or usable_cores())


def _listed(out: str, folder: RunFolder, request: Request, stores: Stores, on_work: Callable[[], None]) -> Plan:
    """The plan; a folder for which there is nothing to do does not stay."""
    try:
        return list_run(out, folder, request, stores, on_work)
    except InputError:
        stores.of(folder.uri).delete_tree(folder.uri)
        raise


@dataclass(frozen=True)
class RunFacts:
    """What run.json tells beside the counts."""

    request: Request
    bundle: Bundle
    plan: Plan
    progress: Progress
    options: Options
    continues: bool


def conclude(
    ray: Any,
    folder: RunFolder,
    facts: RunFacts,
    partition: commit.Partition | None,
    stores: Stores,
    check_lock: Callable[[], None] = lambda: None,
    leave_ray: Callable[[], None] = lambda: None,
) -> Result:
    """From a part a shard to `_SUCCESS`. Raises IncompleteError when something is missing or does not add up.

    `leave_ray` is called as soon as Ray is not needed any more.
    """
    plan = facts.plan
    done = commit.commit(ray, folder, facts.bundle.info, plan, partition, stores, leave_ray)
    written = [*done.written, *(Written(**item) for item in plan.files)]
    written += _subjects(folder, written, plan, stores)
    counts = commit.verify(folder, written, plan, done.archives, stores)
    run = _document(facts, counts)
    check_lock()
    commit.finish(folder, written, run, stores)
    return Result(folder, run)


def list_run(
    out: str,
    folder: RunFolder,
    request: Request,
    stores: Stores,
    on_work: Callable[[], None] = lambda: None,
    *,
    is_dry: bool = False,
) -> Plan:
    ledger = read_ledger(out, request, stores)
    retry = read_retry(RunFolder(request.retry_of), stores) if request.retry_of else None
    return make_plan(out, folder, request, ledger, retry, stores, on_work, is_dry=is_dry)


def _describe(folder: RunFolder, plan: Plan, continues: bool) -> str:
    verb = "continuing" if continues else "starting"
    skipped = "".join(f", {count} {reason}" for reason, count in plan.skipped.items())
    problems = f", {plan.problems} could not be listed" if plan.problems else ""
    unopened = f" and {len(plan.archives)} compressed archives" if plan.archives else ""
    return (
        f"{verb} {folder.run_id}: {plan.listed} images{unopened} listed in {plan.listing_s:.1f} s{skipped}{problems}; "
        f"{plan.rows}{unopened} to score ({plan.bytes / 1e6:.1f} MB) in {plan.shards} shards"
    )


def _subjects(folder: RunFolder, written: Sequence[Written], plan: Plan, stores: Stores) -> list[Written]:
    names = [item.name for item in written if item.name.startswith("predictions/")]
    columns = ["subject_id", "probability", "decision", "image_id"]
    batches = (batch for name in names for batch in read_batches(folder.file(*name.split("/")), columns, stores))
    table = roll_up(batches, plan.run_id)
    if not table.num_rows:
        return []
    file = OutputFile(table.schema)
    file.add(table)
    return [file.write(folder, "subjects.parquet", stores)]


def _document(facts: RunFacts, counts: dict[str, Any]) -> dict[str, Any]:
    """run.json."""
    request, bundle, plan, options = facts.request, facts.bundle, facts.plan, facts.options
    info = bundle.info
    news = counts["quarantined"] - counts["quarantined_again"]
    share = news / (counts["scored"] + news) if news else 0.0
    return {
        "run_id": plan.run_id,
        "status": "too_many_errors" if share > options.max_error_share else "complete",
        "schema_version": SCHEMA_VERSION,
        "leukoray_version": __version__,
        "counts": counts,
        "error_share": round(share, 6),
        "max_error_share": options.max_error_share,
        "model": {
            "uri": bundle.uri,
            "name": info.name,
            "version": info.version,
            "sha256": info.identity(),
            "threshold": info.threshold,
            "temperature": info.temperature,
            "positive_classes": list(info.positive_classes),
            "preprocessing_digest": info.preprocessing_digest,
            "synthetic": info.synthetic,
        },
        "request": asdict(request),
        "layout": plan.layout,
        "continued": facts.continues,
        "started_at": plan.started_at,
        "finished_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "listing_s": plan.listing_s,
        "bytes": plan.bytes,
        "progress": facts.progress.report(),
        "resources": asdict(options.resources),
        "python": platform.python_version(),
        "notice": "Research software, not a medical device.",
    }
