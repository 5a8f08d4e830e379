"""How sources are looked at, and what one object gives: an image, the members of an archive, or nothing."""

import posixpath
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.base.errors import Code
from pipeline.images.formats.sniff import DICOM_HEAD_BYTES, is_dicom
from pipeline.sources import archives
from pipeline.sources.archives import Entry, Found, Ignored, Problem
from pipeline.sources.filters import Filters, matches
from pipeline.sources.junk import OF_A_PROGRAM, is_junk
from pipeline.sources.rows import Access
from pipeline.storage.stores import Stores
from pipeline.storage.types import ObjectInfo, Store, StoreError


@dataclass(frozen=True)
class ListingOptions:
    """How sources are looked at: what of them counts, how S3 is reached, and whether compressed tars are opened."""

    filters: Filters
    stores: Stores = field(default_factory=Stores)
    opens_compressed: bool = True  # False: one entry of access 'archive' each; whoever scores it opens it


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
        below = self.base.rstrip("/") + "/"
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
        elif _is_wanted(info, path, options.filters, store):
            yield from one_object(info, path, options, store)
        else:
            yield Ignored(info.uri, archives.suffix(path) or "no suffix")


def _is_wanted(info: ObjectInfo, path: str, filters: Filters, store: Store) -> bool:
    if archives.is_image(path) or archives.is_archive(path) or archives.unread(path) is not None:
        return True
    return matches([path], filters.include) if filters.include else _is_dicom(info, path, store)


def _is_dicom(info: ObjectInfo, path: str, store: Store) -> bool:
    """By content, where names tell nothing: on disk alone, since on S3 each such look is a request that is paid."""
    if store.is_remote or archives.suffix(path) or info.size < DICOM_HEAD_BYTES:
        return False
    try:
        return is_dicom(store.read_range(info.uri, 0, DICOM_HEAD_BYTES).data)
    except StoreError:
        return False


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
