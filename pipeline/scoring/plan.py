"""The plan of a run: its request, and the listing frozen into shard files before anything is scored.

A request is what the user asked for; its digest finds the unfinished run that the same command continues. Once
`plan.json` is written the shards never change, so a resumed run gives the rows of an unbroken one.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from pipeline import layouts
from pipeline.annotation import subject_reader
from pipeline.archives import Entry, Problem
from pipeline.errors import InputError, PlatformError, Stage
from pipeline.filters import Filters, parse_since
from pipeline.listing import Tally, base_folder, entry_row, list_sources, path_below
from pipeline.manifest import image_id, to_parquet
from pipeline.scoring.ledger import Ledger, run_folders
from pipeline.scoring.output import OutputFile
from pipeline.scoring.records import DELETED_SCHEMA, SHARD_SCHEMA, SKIPPED_SCHEMA, RunFolder, quarantine_schema
from pipeline.storage import S3Settings, Store, store_for

_SAMPLE = 2000  # paths that decide the layout, and so where subjects are read from
_MAX_META_KEYS = 64
_MAX_STREAM_ROWS = 20_000  # rows of compressed archives held back so that each archive stays in one shard


@dataclass(frozen=True)
class Request:
    """Everything that decides which rows a run gives."""

    sources: tuple[str, ...]
    model_uri: str
    model_sha256: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    since: str | None = None
    limit: int | None = None
    subject_pattern: str | None = None
    rescore: bool = False
    retry_of: str | None = None  # run whose quarantine is tried again
    max_bytes: int = 0
    max_pixels: int = 0
    partition_by: str | None = None

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass
class Plan:
    """`plan.json`: what was listed, counted while the shard files were written."""

    run_id: str
    shards: int = 0
    rows: int = 0  # in shards
    bytes: int = 0
    problems: int = 0  # quarantined while listing
    skipped: dict[str, int] = field(default_factory=dict)  # by reason
    left_out: dict[str, int] = field(default_factory=dict)  # files that are no images, by reason
    meta_keys: list[str] = field(default_factory=list)
    deleted: int = 0
    layout: str = ""
    shard_rows: list[int] = field(default_factory=list)
    started_at: str = ""
    listing_s: float = 0.0

    @property
    def listed(self) -> int:
        return self.rows + self.problems + sum(self.skipped.values())


def find_or_start(out: str, request: Request, run_id: str | None, s3: S3Settings | None) -> tuple[RunFolder, bool]:
    """(run folder, whether it continues an unfinished run of the same request).

    Raises InputError when `run_id` names a finished run, or an unfinished one of another request.
    """
    store = store_for(out, s3)
    finished = None
    for folder in run_folders(out, s3):
        if run_id is not None and folder.run_id != run_id:
            continue
        if store.head(folder.file("_SUCCESS")) is not None:
            if run_id is not None:
                raise InputError(f"{folder.uri}: this run is complete; leave out --run-id or choose another")
            finished = folder
            continue
        stored = json.loads(store.read(folder.file("_work", "request.json")).data)
        if stored["digest"] == request.digest():
            return folder, True
        if run_id is not None:
            raise InputError(
                f"{folder.uri}: an unfinished run of another request ({', '.join(stored['sources'])}, model "
                f"{stored['model_sha256'][:12]}); finish it with its own flags, or delete the folder"
            )
    if finished is not None:
        store.delete_tree(finished.work)  # left where the last run was killed between its `_SUCCESS` and its end
    name = run_id or datetime.now(UTC).strftime("run-%Y%m%d-%H%M%S-%f")[:-3]
    folder = RunFolder(f"{out}/{name}")
    document = {**asdict(request), "digest": request.digest(), "run_id": name}
    store.write(folder.file("_work", "request.json"), json.dumps(document, indent=2).encode())
    return folder, False


def read_plan(folder: RunFolder, s3: S3Settings | None) -> Plan | None:
    """The frozen plan of a run, None while its listing is not complete."""
    store = store_for(folder.uri, s3)
    if store.head(folder.plan) is None:
        return None
    return Plan(**json.loads(store.read(folder.plan).data))


def make_plan(
    folder: RunFolder,
    request: Request,
    ledger: Ledger,
    wanted: frozenset[int] | None,
    s3: S3Settings | None,
    on_work: Callable[[], None] = lambda: None,
) -> Plan:
    """List the sources and write shards, problems and skipped rows, then `plan.json`.

    `wanted`: keep only these image ids (a retry). `on_work` is called at the first image that is to be scored, so
    that Ray can start while the listing goes on. Raises InputError when nothing was found, PlatformError when
    the listing is not the sum of what was written.
    """
    store = store_for(folder.uri, s3)
    begin = datetime.now(UTC)
    plan = Plan(folder.run_id, started_at=begin.isoformat(timespec="seconds"))
    tally = Tally()
    since = parse_since(request.since) if request.since else None
    filters = Filters(request.include, request.exclude, since)
    found = list_sources(request.sources, tally, filters, s3, request.limit, drop_doubles=True)
    writer = _Writer(folder, plan, store)
    problems, skipped = OutputFile(quarantine_schema()), OutputFile(SKIPPED_SCHEMA)
    reasons: Counter[str] = Counter()
    dropped = 0
    for item, subject in _with_subjects(found, request, plan):
        if isinstance(item, Problem):
            problems.add_row(_problem_row(item, request, plan, begin))
            plan.problems += 1
            continue
        row = entry_row(item)
        if wanted is not None and row["image_id"] not in wanted:
            dropped += 1
            continue
        is_fresh = request.rescore or wanted is not None
        done = None if is_fresh else ledger.look_up(row["image_id"], item.etag, item.size_bytes)
        if done is not None:
            reasons[done[0]] += 1
            identity = {name: row[name] for name in ("image_id", "uri", "member")}
            skipped.add_row({**identity, "reason": done[0], "earlier_run": done[1]})
        else:
            if not writer.has_rows:
                on_work()
            row["subject_id"] = item.meta.get("subject_id") or subject
            row["meta"] = list(item.meta.items())
            writer.add(row)
    writer.close()
    if tally.images + tally.problems == 0:
        left = ", ".join(f"{count} {reason}" for reason, count in tally.left_out.most_common(5))
        raise InputError(f"{' '.join(request.sources)}: no images found" + (f" (left out: {left})" if left else ""))
    plan.skipped = dict(reasons)
    plan.left_out = dict(tally.left_out)
    gone = ledger.unseen() if wanted is None and request.limit is None else ledger.unseen()[:0]
    plan.deleted = len(gone)
    store.write(folder.problems, problems.finish())
    if reasons:
        skipped.write(folder, "skipped/part-000000.parquet", s3)
    if len(gone):
        deleted = pa.table({"image_id": pa.array(gone)}, schema=DELETED_SCHEMA)
        store.write(folder.file("deleted", "part-000000.parquet"), to_parquet(deleted))
    if plan.listed != tally.images + tally.problems - dropped:
        raise PlatformError(f"{folder.uri}: listed {tally.images + tally.problems}, wrote {plan.listed}; run again")
    plan.listing_s = (datetime.now(UTC) - begin).total_seconds()
    store.write(folder.plan, json.dumps(asdict(plan), indent=1).encode())
    return plan


def _problem_row(item: Problem, request: Request, plan: Plan, at: datetime) -> dict[str, Any]:
    return {
        "image_id": image_id(item.uri, item.member),
        "uri": item.uri,
        "member": item.member,
        "etag": item.etag,
        "size_bytes": item.size_bytes,
        "stage": Stage.LIST.value,
        "code": item.code.value,
        "message": item.message,
        "attempts": 1,
        "model_sha256": request.model_sha256,
        "subject_id": None,
        "scored_at": at,
        "run_id": plan.run_id,
    }


def _with_subjects(
    found: Iterator[Entry | Problem], request: Request, plan: Plan
) -> Iterator[tuple[Entry | Problem, str | None]]:
    """Each item with the subject that its path tells, by the layout of the first paths or by the user's pattern."""
    head = list(itertools.islice(found, _SAMPLE))
    base = base_folder(request.sources)
    paths = [path_below(item, base) for item in head if isinstance(item, Entry)]
    try:
        layout = layouts.recognize(paths) if paths else layouts.LAYOUTS["flat"]
    except InputError:  # several data sets side by side: fine for scoring, but their subjects stay unknown
        layout = layouts.LAYOUTS["flat"]
    plan.layout = layout.name
    read = subject_reader(request.subject_pattern) if request.subject_pattern else None
    tells = layout.block_size is None
    for item in itertools.chain(head, found):
        if isinstance(item, Problem):
            yield item, None
            continue
        path = path_below(item, base)
        if read is not None:
            yield item, read(path)
        else:
            yield item, layout.annotate(path).subject_id if tells else None


def shard_size(rows_before: int) -> int:
    """Rows of the next shard: small at first, so that a small run spreads over all workers and reports early."""
    if rows_before < 2048:
        return 64
    return 256 if rows_before < 500_000 else 2048


class _Writer:
    """Cuts rows into shard files. Rows of one compressed archive stay together: it is read front to back."""

    def __init__(self, folder: RunFolder, plan: Plan, store: Store) -> None:
        self._folder, self._plan, self._store = folder, plan, store
        self._rows: list[dict[str, Any]] = []
        self._streams: dict[str, list[dict[str, Any]]] = {}
        self._streamed = 0
        self._meta_keys: set[str] = set()

    @property
    def has_rows(self) -> bool:
        return bool(self._plan.rows or self._rows or self._streamed)

    def add(self, row: dict[str, Any]) -> None:
        self._meta_keys.update(key for key, _ in row["meta"] if key != "subject_id")
        if row["access"] == "stream":
            self._streams.setdefault(row["uri"], []).append(row)
            self._streamed += 1
            if self._streamed > _MAX_STREAM_ROWS:
                longest = max(self._streams, key=lambda uri: len(self._streams[uri]))
                self._write(self._take(longest))
            return
        self._rows.append(row)
        if len(self._rows) >= shard_size(self._plan.rows):
            self._write(self._rows)
            self._rows = []

    def _take(self, uri: str) -> list[dict[str, Any]]:
        rows = self._streams.pop(uri)
        self._streamed -= len(rows)
        return rows

    def _write(self, rows: list[dict[str, Any]]) -> None:
        number = self._plan.shards
        self._store.write(self._folder.shard(number), to_parquet(pa.Table.from_pylist(rows, SHARD_SCHEMA)))
        self._plan.shards += 1
        self._plan.rows += len(rows)
        self._plan.shard_rows.append(len(rows))
        self._plan.bytes += sum(row["size_bytes"] for row in rows)

    def close(self) -> None:
        if self._rows:
            self._write(self._rows)
        for uri in list(self._streams):
            self._write(self._take(uri))
        self._plan.meta_keys = sorted(self._meta_keys)[:_MAX_META_KEYS]
