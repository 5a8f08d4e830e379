"""Sources to listing rows, as one stream: every image, every failure to list one, and a count of what is neither.

It holds a bounded number of rows whatever the sources' size: prefixes, archives and rows of tables are read by a few
threads side by side that hand over small batches.
"""

import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pipeline.sources import archives
from pipeline.sources.archives import Entry, Found, Ignored, Problem
from pipeline.sources.filters import Filters, UriPattern
from pipeline.sources.objects import ListingOptions, Source
from pipeline.sources.opening import expand, open_named, open_source
from pipeline.sources.pseudonyms import Names, names_of
from pipeline.sources.rows import Access, ListingRow, image_id, place_of
from pipeline.sources.side_by_side import side_by_side
from pipeline.sources.tables import is_table
from pipeline.storage.stores import Stores
from pipeline.storage.uris import common_folder, is_s3, local_path, readable_path

_LATEST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


@dataclass
class Tally:
    """What a listing saw beside its entries; `left_out` by reason."""

    images: int = 0
    archives: int = 0  # that were not opened
    problems: int = 0
    bytes: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def list_sources(
    sources: Sequence[str],
    tally: Tally,
    filters: Filters = Filters(),
    stores: Stores = Stores(),
    limit: int | None = None,
    *,
    drop_doubles: bool = False,
    opens_compressed: bool = True,
) -> Iterator[Entry | Problem]:
    """Every image of the sources, and every failure to list one, in no promised order.

    Folders inside one another are listed once. What a table, a manifest or an S3 pattern names may lie in another
    source as well: `drop_doubles` gives it once, at 60 bytes of memory an image that is named. Compressed tars have to
    be read from end to end to be listed: without `opens_compressed` each is one entry of access 'archive'.

    Raises InputError for a source that does not exist or cannot be read at all.
    """
    options = ListingOptions(filters, stores, opens_compressed)
    opened = []
    for root in expand(sources, stores):
        opened.append(open_source(root, options))
        if not opened[-1].names_images and not is_s3(root.uri):
            options.places[os.path.realpath(local_path(root.uri))] = root
    found = _distinct(opened) if drop_doubles else _all_of(opened)
    yield from _counted(found, tally, limit, names_of(stores))


def list_named(uris: Sequence[str], base: str, tally: Tally, options: ListingOptions) -> Iterator[Entry | Problem]:
    """As `list_sources`, of single objects; what is missing is a Problem. Filters see their paths below `base`."""
    yield from _counted(_all_of([open_named(uris, base, options)]), tally, None, names_of(options.stores))


def _counted(items: Iterator[Found], tally: Tally, limit: int | None, names: Names) -> Iterator[Entry | Problem]:
    for found in items:
        if isinstance(found, Ignored):
            tally.left_out[names.reason(found.reason)] += 1
            continue
        if isinstance(found, Problem):
            tally.problems += 1
        else:
            tally.images += found.access != Access.ARCHIVE
            tally.archives += found.access == Access.ARCHIVE
            tally.bytes += found.size_bytes
        yield found
        if limit is not None and tally.images + tally.problems >= limit:
            return


def entry_id(entry: Entry) -> int:
    """The image's id: the one that a manifest gave it, else by where it lies."""
    if entry.image_id is not None:
        return entry.image_id
    return image_id(entry.uri, entry.member, entry.occurrence)


def entry_row(entry: Entry) -> ListingRow:
    mtime = datetime.fromtimestamp(min(entry.mtime, _LATEST), UTC)
    return ListingRow(
        entry_id(entry), entry.uri, entry.member, entry.access, entry.offset, entry.stored_bytes, entry.size_bytes,
        entry.etag, mtime,
    )  # fmt: skip


def base_folder(sources: Sequence[str]) -> str:
    """The folder that paths are read from: the source itself, or what several sources have in common.

    With `data/healthy data/leukemia` it is `data`, so that the folder names still tell the class. Empty where sources
    have nothing in common.
    """
    folders = []
    for source in sources:
        is_here = not is_s3(source) and os.path.lexists(source)
        if UriPattern(source).literal != source and not is_here:
            folders.append(UriPattern(source).folder)
            continue
        is_file = archives.is_archive(source) or is_table(source) or posixpath.splitext(source)[1] == ".txt"
        is_file = is_file or (is_here and os.path.isfile(source))
        folders.append(posixpath.dirname(source) if is_file else source)
    return common_folder(folders)


def path_below(entry: Entry, base: str) -> str:
    """The path that layouts look at: below `base`, else the whole URI; `archive!/member` for members."""
    path, base = readable_path(entry.uri), readable_path(base)
    top = base if base.endswith("/") else base + "/"
    if base and path.startswith(top):
        path = path[len(top) :]
    return place_of(path, entry.member)


def _all_of(opened: Sequence[Source]) -> Iterator[Found]:
    return side_by_side([stream for source in opened for stream in source.streams])


def _distinct(opened: Sequence[Source]) -> Iterator[Found]:
    """Each image once: sources that name images come first, the others leave out what was named."""
    naming = [source for source in opened if source.names_images]
    if not naming or len(opened) == 1:
        yield from _all_of(opened)
        return
    named: set[int] = set()
    for found in _all_of(naming):
        if not isinstance(found, Ignored):
            if _found_id(found) in named:
                yield Ignored(found.uri, "in two of the sources")
                continue
            named.add(_found_id(found))
        yield found
    for found in _all_of([source for source in opened if not source.names_images]):
        doubled = not isinstance(found, Ignored) and _found_id(found) in named
        yield Ignored(found.uri, "in two of the sources") if doubled else found


def _found_id(found: Entry | Problem) -> int:
    if isinstance(found, Entry):
        return entry_id(found)
    return image_id(found.uri, found.member, found.occurrence)
