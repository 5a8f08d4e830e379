"""The listing of a run, frozen into shard files before anything is scored; what needs no scoring goes straight out."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from pipeline.base.errors import TRANSIENT_CODES, Code, InputError, PlatformError, Stage
from pipeline.scoring.history.archives import DONE, IN_PART, NEW, judge, skipped_rows
from pipeline.scoring.history.deleted import Reach, find_deleted
from pipeline.scoring.history.ledger import Ledger
from pipeline.scoring.history.retry import Retry
from pipeline.scoring.output import OutputFile, OutputSeries
from pipeline.scoring.plan.plan import Plan
from pipeline.scoring.plan.shards import Shards, shard_row
from pipeline.scoring.plan.subject_paths import SAMPLE, SubjectPaths
from pipeline.scoring.request import Request
from pipeline.scoring.run_folder import RunFolder
from pipeline.scoring.schemas import ARCHIVES_SCHEMA, DELETED_SCHEMA, SKIPPED_SCHEMA, quarantine_schema
from pipeline.sources.archives import Entry, Ignored, Problem
from pipeline.sources.listing import Tally, base_folder, entry_row, list_named, list_sources, path_below
from pipeline.sources.objects import ListingOptions, open_archive
from pipeline.sources.rows import Access, image_id
from pipeline.storage.parquet import to_parquet
from pipeline.storage.stores import Stores
from pipeline.storage.types import ObjectInfo


def make_plan(
    out: str,
    folder: RunFolder,
    request: Request,
    ledger: Ledger,
    retry: Retry | None,
    stores: Stores,
    on_work: Callable[[], None] = lambda: None,
    *,
    is_dry: bool = False,
) -> Plan:
    """List the sources and write shards, problems and skipped rows, then `plan.json`.

    `retry`: keep only what it wants. `on_work` is called at the first image that is to be scored, so
    that Ray can start while the listing goes on. `is_dry`: count what is in new compressed archives, which otherwise
    is left to those who score them. Raises InputError when nothing was found, PlatformError when the listing is not
    the sum of what was written.
    """
    begin = datetime.now(UTC)
    tally = Tally()
    filters = request.filters()
    takes_all = retry is None and request.limit is None
    base = base_folder(request.sources)
    if retry is not None:
        found = list_named(retry.uris, base, tally, ListingOptions(filters, stores))
    else:
        found = list_sources(
            request.sources, tally, filters, stores, request.limit, drop_doubles=True, opens_compressed=not takes_all
        )
    head = list(itertools.islice(found, SAMPLE))
    paths = [path_below(item, base) for item in head if isinstance(item, Entry) and item.access is not Access.ARCHIVE]
    subjects = SubjectPaths.of(paths, request.subject_pattern)
    frozen = _Frozen(folder, request, ledger, retry, subjects, base, stores, begin)
    for item in itertools.chain(head, found):
        if frozen.take(item):
            on_work()
    if tally.images + tally.problems + tally.archives == 0:
        left = ", ".join(f"{count} {reason}" for reason, count in tally.left_out.most_common(5))
        raise InputError(f"{' '.join(request.sources)}: no images found" + (f" (left out: {left})" if left else ""))
    frozen.settle_archives(out, ListingOptions(filters, stores), is_dry)
    if takes_all:
        frozen.note_deleted(find_deleted(out, ledger, Reach(request.sources, filters, frozen.unlisted), stores))
    plan = frozen.finish()
    plan.left_out = dict(tally.left_out + frozen.left_out)
    if plan.listed != tally.images + tally.problems - frozen.dropped + frozen.in_archives:
        raise PlatformError(f"{folder.uri}: listed {tally.images + tally.problems}, wrote {plan.listed}; run again")
    plan.listing_s = (datetime.now(UTC) - begin).total_seconds()
    stores.of(folder.uri).write(folder.plan, json.dumps(asdict(plan), indent=1).encode())
    return plan


class _Frozen:
    """Sorts what was found: shards to score, rows that are done, problems, and what is gone."""

    def __init__(
        self,
        folder: RunFolder,
        request: Request,
        ledger: Ledger,
        retry: Retry | None,
        subjects: SubjectPaths,
        base: str,
        stores: Stores,
        begin: datetime,
    ) -> None:
        self._folder, self._request, self._ledger, self._retry, self._begin = folder, request, ledger, retry, begin
        self._subjects, self._base, self._stores = subjects, base, stores
        self._store = stores.of(folder.uri)
        for kind in ("skipped", "deleted"):  # of a listing that was cut short
            self._store.delete_tree(folder.file(kind))
        self.plan = Plan(folder.run_id, layout=subjects.layout.name, started_at=begin.isoformat(timespec="seconds"))
        self.dropped = 0  # listed, but not among the wanted
        self.in_archives = 0  # found in compressed archives after the listing
        self.left_out: Counter[str] = Counter()  # in them
        self.unlisted: set[str] = set()  # folders and archives that could not be listed to their end
        self._shards = Shards(folder, self.plan, self._store)
        self._problems = OutputFile(quarantine_schema())
        self._skipped = OutputSeries(folder, "skipped", SKIPPED_SCHEMA, stores)
        self._deleted = OutputSeries(folder, "deleted", DELETED_SCHEMA, stores)
        self._reasons: Counter[str] = Counter()
        self._archives: list[Entry] = []  # compressed, not opened

    def take(self, item: Entry | Problem) -> bool:
        """True for the first image that is to be scored."""
        if isinstance(item, Problem):
            self._take_problem(item)
            return False
        if item.access is Access.ARCHIVE:
            self._archives.append(item)
            return len(self._archives) == 1 and not self._ledger.runs
        row = entry_row(item)
        if self._is_dropped(row.image_id, item.uri) or self._is_done(row.image_id, item):
            return False
        is_first = not self._shards.has_rows
        self._shards.add(shard_row(item, self._subject(row.image_id, item)))
        return is_first

    def _take_problem(self, item: Problem) -> None:
        self.unlisted.add(item.uri)
        row = _problem_row(item, self._request, self.plan, self._begin)
        if self._is_dropped(row["image_id"], item.uri) or self._is_done(row["image_id"], item):
            return
        self._problems.add_row(row)
        self.plan.problems += 1

    def _is_dropped(self, image_id: int, uri: str) -> bool:
        """Listed, but not what a retry is about."""
        if self._retry is None or self._retry.wants(image_id) or self._retry.may_want(uri):
            return False
        self.dropped += 1
        return True

    def _is_done(self, image_id: int, item: Entry | Problem) -> bool:
        """Skip what an earlier run did; note what an earlier run failed to do."""
        self._ledger.see(image_id)
        if self._request.rescore or (self._retry is not None and self._retry.wants(image_id)):
            return False
        done = self._ledger.look_up(image_id, item.etag, item.size_bytes)
        if done is None:
            return False
        self._reasons[done[0]] += 1
        identity = {"image_id": image_id, "uri": item.uri, "member": item.member}
        self._skipped.add_row({**identity, "reason": done[0], "earlier_run": done[1]})
        return True

    def _subject(self, image_id: int, item: Entry) -> str | None:
        if self._retry is not None and self._retry.subjects.get(image_id) is not None:
            return self._retry.subjects[image_id]
        return item.meta.get("subject_id") or self._subjects.subject(path_below(item, self._base))

    def settle_archives(self, out: str, options: ListingOptions, is_dry: bool) -> None:
        """Compressed archives: skipped where earlier runs did all of one, listed where a part, else left to workers."""
        etags = {entry.uri: entry.etag for entry in self._archives}
        verdicts = dict.fromkeys(etags, NEW)
        if not self._request.rescore and self._ledger.runs and etags:
            verdicts = judge(out, self._ledger, etags, self._stores)
        done = {uri: etag for uri, etag in etags.items() if verdicts[uri] == DONE}
        for table in skipped_rows(out, self._ledger, done, self._stores) if done else ():
            self._skip(table)
        for entry in self._archives:
            if verdicts[entry.uri] == IN_PART or (is_dry and verdicts[entry.uri] == NEW):
                self._open(entry, options)
            elif verdicts[entry.uri] == NEW:
                self.unlisted.add(entry.uri)  # what it holds is not known yet
                self._shards.add_archive(shard_row(entry, None))

    def _skip(self, table: pa.Table) -> None:
        self.in_archives += table.num_rows
        self._reasons.update(table["reason"].to_pylist())
        for each in table["image_id"].to_pylist():
            self._ledger.see(each)
        self._skipped.add(table)

    def _open(self, entry: Entry, options: ListingOptions) -> None:
        info = ObjectInfo(entry.uri, entry.size_bytes, entry.etag, entry.mtime)
        listed, codes = 0, set[Code]()
        for found in open_archive(info, entry.meta["path"], options, self._stores.of(entry.uri)):
            if isinstance(found, Ignored):
                self.left_out[found.reason] += 1
                continue
            if isinstance(found, Problem):
                codes.add(found.code)
            listed += 1
            self.take(found)
        self.in_archives += listed
        is_complete = not codes & TRANSIENT_CODES
        values = (entry.uri, entry.etag, entry.size_bytes, listed, is_complete)
        self.plan.opened.append(dict(zip(ARCHIVES_SCHEMA.names, values, strict=True)))

    def note_deleted(self, tables: Iterator[pa.Table]) -> None:
        for table in tables:
            self.plan.deleted += table.num_rows
            self._deleted.add(table)

    def finish(self) -> Plan:
        """The plan, once everything it names is written."""
        self._shards.close()
        self._store.write(self._folder.problems, self._problems.finish())
        asks_anew = self._request.rescore or self._retry is not None  # else what fails as before is no news
        before = pa.table({"image_id": pa.array([] if asks_anew else self._ledger.failed(), pa.int64())})
        self._store.write(self._folder.failed_before, to_parquet(before))
        self.plan.skipped = dict(self._reasons)
        self.plan.files = [asdict(written) for series in (self._skipped, self._deleted) for written in series.finish()]
        return self.plan


def _problem_row(item: Problem, request: Request, plan: Plan, at: datetime) -> dict[str, Any]:
    return {
        "image_id": image_id(item.uri, item.member, item.occurrence),
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
