"""How sources are looked at, and what one object gives: an image, the members of an archive, or nothing."""

import posixpath
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.base.errors import Code
from pipeline.images.formats.sniff import DICOM_HEAD_BYTES, sniff
from pipeline.sources import archives
from pipeline.sources.archives import Entry, Found, Ignored, Problem
from pipeline.sources.filters import Filters, matches
from pipeline.sources.junk import OF_A_PROGRAM, is_junk
from pipeline.sources.rows import Access
from pipeline.storage.stores import Stores
from pipeline.storage.types import ObjectInfo, Store, StoreError
from pipeline.storage.uris import readable_path

# What lies beside images by the thousand and is none; `.ovr` and `.thm` are small copies of an image.
NO_IMAGES = frozenset({
    ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".xmp", ".yaml", ".yml", ".md", ".html", ".htm", ".pdf", ".log",
    ".ini", ".db", ".parquet", ".npy", ".npz", ".mat", ".h5", ".cls", ".xyc", ".py", ".ipynb", ".xls", ".xlsx", ".doc",
    ".docx", ".ovr", ".thm",
})  # fmt: skip


@dataclass(frozen=True)
class ListingOptions:
    """How sources are looked at: what of them counts, how S3 is reached, and whether compressed tars are opened."""

    filters: Filters
    stores: Stores = field(default_factory=Stores)
    opens_compressed: bool = True  # False: one entry of access 'archive' each; whoever scores it opens it
    places: "dict[str, Root]" = field(default_factory=dict)  # what is listed on disk, by its path without links


@dataclass(frozen=True)
class Subtree:
    """Part of a source that can be listed beside the rest."""

    stream: "Stream"


Stream = Callable[[], Iterator[Found | Subtree]]


@dataclass(frozen=True)
class Source:
    """What an opened source consists of. `names_images`: it names what other sources may hold as well."""

    streams: list[Stream]
    names_images: bool = False


@dataclass(frozen=True)
class Root:
    """A folder, object or pattern to be listed. Paths are relative to `base`."""

    uri: str
    base: str

    def path(self, uri: str) -> str:
        """What filters know a file by: its path below the base, its name where it is the root itself."""
        uri, below = readable_path(uri), readable_path(self.base).rstrip("/") + "/"
        return uri[len(below) :] if uri.startswith(below) else posixpath.basename(uri)


def open_archive(info: ObjectInfo, path: str, options: ListingOptions, store: Store) -> Iterator[Found]:
    """Members of one archive that pass the filters, or the archive itself where its scorer is to open it.

    `path` is what filters know the archive by.
    """
    filters = options.filters
    if matches([path], filters.exclude):
        yield Ignored(info.uri, "in --exclude")
    elif filters.is_too_old(info.mtime):
        yield Ignored(info.uri, "older than --since")
    elif not options.opens_compressed and archives.is_compressed_tar(path):
        yield Entry(info.uri, info.size, info.etag, info.mtime, access=Access.ARCHIVE, meta={"path": path})
    elif (what := archives.unread_archive(path)) is not None:
        yield Problem(info.uri, None, Code.UNSUPPORTED_FORMAT, what, info.size, info.etag)
    else:
        yield from _members(info, path, filters, store)


def _members(info: ObjectInfo, path: str, filters: Filters, store: Store) -> Iterator[Found]:
    try:
        with store.open(info.uri) as file:
            for found in archives.list_archive(info, file):
                yield filtered(found, path, info.mtime, filters)
    except StoreError as error:
        yield Problem(info.uri, None, error.code, str(error), info.size, info.etag)


def filtered(found: Found, path: str, mtime: float, filters: Filters) -> Found:
    """What was found in the archive at `path`, as filters leave it. They know of images, also of those that are not
    read; other problems may hide any number of images and stay, unless they are excluded by name."""
    if isinstance(found, Ignored) or found.member is None:
        return found
    if isinstance(found, Problem) and (archives.unread(found.member) is None or archives.holds_many("", found.member)):
        filters = Filters(exclude=filters.exclude)
    refused = filters.refuse_member(path, found.member, mtime)
    return Ignored(found.uri, refused) if refused else found


def objects(root: Root, infos: Iterable[ObjectInfo], options: ListingOptions, store: Store) -> Iterator[Found]:
    """Entries, archive members and ignored files among the objects below a root."""
    for info in infos:
        path = root.path(info.uri)
        if is_junk(path):
            yield Ignored(info.uri, OF_A_PROGRAM)
        elif _is_wanted(path, options.filters):
            yield from one_object(info, path, options, store)
        else:
            yield from _by_content(info, path, options, store)


def _is_wanted(path: str, filters: Filters) -> bool:
    """Whether a file is looked at for its name."""
    if archives.is_image(path) or archives.is_archive(path) or archives.unread(path) is not None:
        return True
    return bool(filters.include) and matches([path], filters.include)


def _by_content(info: ObjectInfo, path: str, options: ListingOptions, store: Store) -> Iterator[Found]:
    """A file whose name is no image's: one without a suffix is read where its first bytes are, another is named."""
    ending = archives.suffix(path)
    kind = None if options.filters.include or ending in NO_IMAGES else _sniffed(info, store)
    if kind is None:
        yield Ignored(info.uri, ending or "no suffix")
    elif kind == "dicom" or not ending:
        yield from one_object(info, path, options, store)
    elif refused := options.filters.refuse([path], info.mtime):
        yield Ignored(info.uri, refused)
    else:
        message = f"{kind} by its first bytes, but not by its name; rename it, or leave it out with --exclude"
        yield Problem(info.uri, None, Code.UNSUPPORTED_FORMAT, message, info.size, info.etag)


def _sniffed(info: ObjectInfo, store: Store) -> str | None:
    """The format that the first bytes name: on disk alone, since on S3 each such look is a request that is paid."""
    if store.is_remote or not info.size:
        return None
    try:
        kind = sniff(store.read_range(info.uri, 0, min(info.size, DICOM_HEAD_BYTES)).data)
    except StoreError:
        return None
    return kind if kind != "pnm" else None  # text may begin so


def one_object(info: ObjectInfo, path: str, options: ListingOptions, store: Store) -> Iterator[Found]:
    if archives.is_archive(path) or archives.unread_archive(path) is not None:
        yield from open_archive(info, path, options, store)
        return
    refused = options.filters.refuse([path], info.mtime)
    if refused:
        yield Ignored(info.uri, refused)
    elif (what := archives.unread(path)) is not None:
        yield Problem(info.uri, None, Code.UNSUPPORTED_FORMAT, what, info.size, info.etag)
    else:
        yield Entry(info.uri, info.size, info.etag, info.mtime)


def bind(function: Callable[..., Iterator[Found | Subtree]], *arguments: Any) -> Stream:
    return lambda: function(*arguments)
