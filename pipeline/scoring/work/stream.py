"""A compressed tar as a shard: read once from its front, listed and fetched in the same pass.

What this pass finds is the listing of the archive: each image, and each failure to give one, counted as it comes.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from pipeline.base.errors import TRANSIENT_CODES, ImageRejected, Stage
from pipeline.images.load import Limits
from pipeline.scoring.plan.shards import shard_row
from pipeline.scoring.plan.subject_paths import SubjectPaths
from pipeline.scoring.request import Request
from pipeline.scoring.schemas import ShardRow
from pipeline.sources.archives import Damaged, Entry, Found, Ignored, Problem, read_archive
from pipeline.sources.fetch import Fetched
from pipeline.sources.filters import NO_FILTERS, Filters
from pipeline.sources.listing import base_folder, entry_row, path_below
from pipeline.sources.masks import MASKS, Masks
from pipeline.sources.objects import filtered
from pipeline.sources.outage import assert_up
from pipeline.sources.pseudonyms import names_of
from pipeline.sources.rows import Access, image_id
from pipeline.storage.stores import Stores
from pipeline.storage.types import ObjectInfo, StoreError, as_listed

_SAMPLE = 64  # images held back until their paths have told the layout


@dataclass(frozen=True)
class ReadRules:
    """How the images of a shard are read: what is too large, and what a listing would have done with members."""

    limits: Limits = field(default_factory=Limits)
    filters: Filters = NO_FILTERS
    base: str = ""  # the folder that paths are read from
    subject_pattern: str | None = None

    @classmethod
    def of(cls, request: Request, stores: Stores = Stores()) -> "ReadRules":
        """Without `since`: which archives are young enough was decided when they were listed."""
        filters = Filters(request.include, request.exclude)
        base = base_folder(list(map(names_of(stores).real_path, request.sources)))
        return cls(request.limits, filters, base, request.subject_pattern)


class ArchiveStream:
    """Iterate once: a `Fetched` for every image and every failure. The counters are whole when it has ended."""

    def __init__(self, row: ShardRow, rules: ReadRules, stores: Stores) -> None:
        self._row, self._rules, self._stores = row, rules, stores
        self._names = names_of(stores)
        self._path = str(self._names.real_member(dict(row.meta)["path"]))
        self.listed = 0
        self.left_out: Counter[str] = Counter()
        self.meta_keys: set[str] = set()
        self.is_complete = True  # nothing in it is worth another try while the archive stays the same
        self.bytes_read = 0  # of the archive as it is stored
        self.has_ended = False
        self.masks: dict[int, str] = {}  # by id, and where each lies; known at the end

    def __iter__(self) -> Iterator[Fetched[ShardRow]]:
        found = self._fetched()
        head = list(itertools.islice(found, _SAMPLE))
        paths = [self._path_of(item) for item in head if item.row.member is not None]
        rule = SubjectPaths.of(paths, self._rules.subject_pattern)
        masks, suspects = Masks(self._rules.filters.include), list[tuple[str, ShardRow]]()
        for item in itertools.chain(head, found):
            path = self._path_of(item)
            subject = item.row.subject_id or (rule.subject(path) if item.row.member else None)
            self.listed += 1
            is_image = item.rejected is None or item.rejected.stage is not Stage.LIST
            if item.row.member is not None and is_image and masks.is_suspect(path):
                suspects.append((path, item.row))
            yield replace(item, row=replace(item.row, subject_id=self._names.subject(subject)))
        are_masks = masks.find(path for path, _ in suspects)
        self.masks = {row.image_id: row.place for (_, row), is_mask in zip(suspects, are_masks, strict=True) if is_mask}
        self.listed -= len(self.masks)
        self.left_out += Counter({MASKS: len(self.masks)})
        self.has_ended = True

    def _path_of(self, item: Fetched[ShardRow]) -> str:
        row = item.row
        uri, member = self._names.real_path(row.uri), self._names.real_member(row.member)
        return path_below(Entry(uri, 0, "", 0.0, member=member), self._rules.base)

    def _fetched(self) -> Iterator[Fetched[ShardRow]]:
        uri, etag = self._row.uri, self._row.etag
        try:
            store = self._stores.of(uri)
            info = as_listed(store, uri, etag)
            with store.open(uri, lambda error: assert_up(uri, self._stores)) as file:
                for item, data in read_archive(info, file, self._rules.limits.max_bytes):
                    self.bytes_read = file.tell()
                    yield from self._one(item, data, info)
        except StoreError as error:
            whole = Problem(self._names.real_path(uri), None, error.code, str(error), self._row.size_bytes, etag)
            yield self._failed(whole, Stage.FETCH, error.attempts)

    def _one(self, item: Found, data: bytes | Damaged | None, info: ObjectInfo) -> Iterator[Fetched[ShardRow]]:
        item = filtered(item, self._path, info.mtime, self._rules.filters)
        if isinstance(item, Ignored):
            self.left_out[self._names.reason(item.reason)] += 1
        elif isinstance(item, Problem):
            yield self._failed(item, Stage.LIST)
        else:
            yield self._entry(self._names.found(item), data)

    def _entry(self, entry: Entry, data: bytes | Damaged | None) -> Fetched[ShardRow]:
        self.meta_keys.update(entry.meta)
        row = shard_row(entry_row(entry), entry.meta.get("subject_id"), entry.meta)
        if isinstance(data, bytes):
            return Fetched(row, data, None, entry.etag, 1)
        if data is None:
            refused = self._rules.limits.too_large(entry.size_bytes, Stage.FETCH)
        else:
            refused = ImageRejected(data.code, f"damaged inside its archive: {data}", Stage.FETCH)
        return Fetched(row, None, refused, entry.etag, 1)

    def _failed(self, problem: Problem, stage: Stage, attempts: int = 1) -> Fetched[ShardRow]:
        problem = self._names.found(problem)
        self.is_complete = self.is_complete and problem.code not in TRANSIENT_CODES
        uri, member, etag = self._row.uri, problem.member, self._row.etag
        size = problem.size_bytes if member is not None else self._row.size_bytes
        number = image_id(uri, member, problem.occurrence)
        row = ShardRow(number, uri, member, Access.STREAM, None, None, size, etag, None, None, ())
        return Fetched(row, None, ImageRejected(problem.code, problem.message, stage, attempts), etag, attempts)
