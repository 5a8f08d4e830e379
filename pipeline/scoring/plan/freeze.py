"""The listing of a run, frozen into shard files before anything is scored."""

import itertools
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from pipeline.base.errors import TRANSIENT_CODES, Code, InputError, PlatformError
from pipeline.scoring.history.archives import DONE, IN_PART, NEW, skipped_rows
from pipeline.scoring.history.deleted import Met, Reach, find_deleted
from pipeline.scoring.history.ledger import read_ledger
from pipeline.scoring.history.retry import Retry, read_retry
from pipeline.scoring.plan.files import PlanFiles
from pipeline.scoring.plan.plan import Plan, write_plan
from pipeline.scoring.plan.selection import Selection
from pipeline.scoring.plan.shards import shard_row
from pipeline.scoring.plan.subject_paths import SAMPLE, SubjectPaths
from pipeline.scoring.request import Request
from pipeline.scoring.run_folder import Finished, RunFolder
from pipeline.scoring.schemas import ArchiveRow
from pipeline.sources.archives import Entry, Ignored, Problem, holds_many
from pipeline.sources.listing import Tally, base_folder, entry_id, entry_row, list_named, list_sources, path_below
from pipeline.sources.masks import MASKS, MASKS_NAMED, Masks
from pipeline.sources.objects import ListingOptions, open_archive
from pipeline.sources.opening import beginnings, local_folders
from pipeline.sources.pseudonyms import Names, names_of
from pipeline.sources.rows import Access, image_id, place_of
from pipeline.storage.stores import Stores
from pipeline.storage.types import ObjectInfo


def make_plan(finished: Finished, folder: RunFolder, request: Request, stores: Stores, *, is_dry: bool = False) -> Plan:
    """List the sources and write shards, problems and skipped rows to `folder`, then `plan.json`.

    What `finished` runs of the output did is skipped. `is_dry`: count what is in new compressed archives, which
    otherwise is left to those who score them. Raises InputError when nothing was found, PlatformError when the listing
    is not the sum of what was written.
    """
    names = names_of(stores)
    sources = tuple(map(names.real_path, request.sources))
    is_plain = request.retry_of is None and request.pseudonym_key_id is None  # else URIs may be any, or are hidden
    ledger = read_ledger(finished, request, beginnings(sources, stores) if is_plain else None)
    retry = read_retry(RunFolder.at(request.retry_of, stores), names) if request.retry_of else None
    begin, tally = datetime.now(UTC), Tally()
    options = ListingOptions(request.filters(), stores)
    base = base_folder(sources)
    meets_all = retry is None and request.limit is None
    found = _listing(request, sources, retry, tally, replace(options, opens_compressed=not meets_all), base)
    head = list(itertools.islice(found, SAMPLE))
    paths = [path_below(item, base) for item in head if isinstance(item, Entry) and item.access is not Access.ARCHIVE]
    subjects = SubjectPaths.of(paths, request.subject_pattern)
    files = PlanFiles(folder, request.model_sha256, begin)
    selection = Selection(request, ledger, retry)
    sorter = _Sorter(files, selection, subjects, base, names, Masks(request.include))
    met = Met(local_folders(sources, stores) if meets_all else ())
    for item in itertools.chain(head, found):
        met.see(item.uri)
        sorter.take(item)
        if sorter.new_images == request.limit:
            break
    is_cut = sorter.new_images == request.limit
    found.close()
    _refuse_nothing(sources, tally)
    sorter.settle_archives(options, is_dry)
    masks = sorter.settle_masks(request.limit, is_cut=is_cut)
    if meets_all:
        for table in find_deleted(ledger, Reach(sources, options.filters, sorter.unlisted | met.nothing_in, names)):
            files.deleted.add(table)
    plan = files.finish(selection.failed_before(), tally.left_out + sorter.left_out, subjects.layout.name)
    if plan.listed != sorter.listed:
        raise PlatformError(f"{folder.uri}: listed {sorter.listed}, wrote {plan.listed}; run again")
    listing_s = (datetime.now(UTC) - begin).total_seconds()
    earlier = [run.run_id for run in ledger.runs]
    plan = replace(plan, number=ledger.next_number, earlier=earlier, pixel_rules=dict(ledger.pixel_rules))
    plan = replace(plan, listing_s=listing_s, masks=masks[:MASKS_NAMED])
    write_plan(folder, plan)
    return plan


def _listing(
    request: Request, sources: Sequence[str], retry: Retry | None, tally: Tally, options: ListingOptions, base: str
) -> Generator[Entry | Problem, None, None]:  # fmt: skip
    if retry is not None:
        yield from list_named(retry.uris, base, tally, options)
        return
    yield from list_sources(
        sources, tally, options.filters, options.stores, drop_doubles=True,
        opens_compressed=options.opens_compressed,
    )  # fmt: skip


def _refuse_nothing(sources: Sequence[str], tally: Tally) -> None:
    if tally.images + tally.problems + tally.archives == 0:
        left = ", ".join(f"{count} {reason}" for reason, count in tally.left_out.most_common(5))
        raise InputError(f"{' '.join(sources)}: no images found" + (f" (left out: {left})" if left else ""))


class _Sorter:
    """Puts each thing that was listed where it belongs: to be scored, done already, a problem, or not asked for."""

    def __init__(
        self,
        files: PlanFiles,
        selection: Selection,
        subjects: SubjectPaths,
        base: str,
        names: Names,
        masks: Masks,
    ) -> None:
        self._files, self._selection, self._subjects, self._base = files, selection, subjects, base
        self._names, self._masks = names, masks
        self._suspects: list[Entry] = []  # masks, perhaps
        self.listed = 0  # images and problems that were asked for, whatever becomes of them
        self.new_images = 0  # to be scored, without those that an earlier run has tried
        self.left_out: Counter[str] = Counter()  # in archives that were opened after the listing
        self.unlisted: set[str] = set()  # folders and archives that could not be listed to their end
        self._archives: list[Entry] = []  # compressed, not opened

    def take(self, item: Entry | Problem) -> None:
        if isinstance(item, Problem):
            if holds_many(item.uri, item.member):
                self.unlisted.add(item.uri)
            shown = self._names.found(item)
            number = image_id(shown.uri, shown.member, shown.occurrence)
            if self._is_open(number, item.uri, shown):
                self._files.add_problem(number, shown)
        elif item.access is Access.ARCHIVE:
            self._archives.append(item)
        elif item.image_id is None and self._masks.is_suspect(path_below(item, self._base)):
            self._suspects.append(item)
        else:
            self._take_image(item)

    def _take_image(self, item: Entry) -> None:
        named = self._names.found(item)
        row = entry_row(named)
        if self._is_open(row.image_id, item.uri, named):
            self.new_images += self._selection.is_new(row.image_id, named)
            self._files.shards.add(shard_row(row, self._subject(row.image_id, item), named.meta))

    def _is_open(self, number: int, uri: str, item: Entry | Problem) -> bool:
        """Asked for, and not done by an earlier run. `uri`: where it lies; `item`: as outputs name it."""
        if not self._selection.wants(number, uri):
            return False
        self.listed += 1
        done = self._selection.done(number, item)
        if done is not None:
            self._files.skip(number, item, *done)
        return done is None

    def _subject(self, number: int, item: Entry) -> str | None:
        known = self._selection.subject(number)
        if known is not None:
            return known
        return self._names.subject(
            item.meta.get("subject_id") or self._subjects.subject(path_below(item, self._base))
        )  # fmt: skip

    def settle_archives(self, options: ListingOptions, is_dry: bool) -> None:
        """Compressed archives: skipped where earlier runs did all of one, listed where a part, else left to workers."""
        etags = {self._names.path(entry.uri): entry.etag for entry in self._archives}
        verdicts = self._selection.judge_archives(etags)
        done = {uri: etag for uri, etag in etags.items() if verdicts[uri] == DONE}
        for table in skipped_rows(self._selection.ledger, done) if done else ():
            for number in table["image_id"].to_pylist():
                self._selection.ledger.see(number)
            self.listed += table.num_rows
            self._files.skip_all(table)
        for entry in self._archives:
            named = self._names.found(entry)
            if verdicts[named.uri] == IN_PART or (is_dry and verdicts[named.uri] == NEW):
                self._open(entry, options)
            elif verdicts[named.uri] == NEW:
                self.unlisted.add(entry.uri)  # what it holds is not known yet
                self._files.shards.add_archive(shard_row(entry_row(named), None, named.meta))

    def settle_masks(self, limit: int | None, *, is_cut: bool) -> list[str]:
        """Suspects: those that are masks are left out, and named here; the others are images.

        Of a listing that was cut short what is no mask for sure waits for a later one.
        """
        of_archives: Counter[str] = Counter()
        left_out: list[str] = []
        are_masks = self._masks.find(path_below(item, self._base) for item in self._suspects)
        for item, is_mask in zip(self._suspects, are_masks, strict=True):
            named = self._names.found(item)
            if is_mask:
                self._selection.ledger.see(entry_id(named))
                left_out.append(place_of(named.uri, named.member))
                of_archives[named.uri] += 1
            elif not is_cut and self.new_images != limit:
                self._take_image(item)
        self.left_out += Counter({MASKS: len(left_out)})
        self._files.opened = [replace(row, images=row.images - of_archives[row.uri]) for row in self._files.opened]
        return left_out

    def _open(self, entry: Entry, options: ListingOptions) -> None:
        info = ObjectInfo(entry.uri, entry.size_bytes, entry.etag, entry.mtime)
        listed, codes = 0, set[Code]()
        for found in open_archive(info, entry.meta["path"], options, options.stores.of(entry.uri)):
            if isinstance(found, Ignored):
                self.left_out[self._names.reason(found.reason)] += 1
                continue
            if isinstance(found, Problem):
                codes.add(found.code)
            listed += 1
            self.take(found)
        is_complete = not codes & TRANSIENT_CODES
        uri = self._names.path(entry.uri)
        self._files.opened.append(ArchiveRow(uri, entry.etag, entry.size_bytes, listed, is_complete))
