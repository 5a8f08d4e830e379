"""Folders on disk and prefixes on S3, walked."""

import os
from collections.abc import Iterator, Mapping
from stat import S_ISDIR, S_ISLNK, S_ISREG
from urllib.parse import quote_from_bytes

from pipeline.base.errors import Code
from pipeline.sources.archives import Found, Ignored, Problem, is_archive, is_image, suffix
from pipeline.sources.filters import Filters
from pipeline.sources.junk import OF_A_PROGRAM, is_junk, is_junk_folder
from pipeline.sources.objects import ListingOptions, Root, Subtree, bind, objects
from pipeline.storage.local import local_etag
from pipeline.storage.types import ObjectInfo, Store, StoreError
from pipeline.storage.uris import local_path

_BATCH = 256
_TWICE = "folder reached twice by a link"


def walk(root: Root, options: ListingOptions) -> Iterator[Found | Subtree]:
    """Everything below a folder or prefix."""
    store = options.stores.of(root.uri)
    if store.is_remote:
        yield from _walk_prefix(root, options, store)
    else:
        yield from _walk_folder(root, options, store)


def _walk_folder(root: Root, options: ListingOptions, store: Store) -> Iterator[Found]:
    """Depth first, names sorted within a folder. Symbolic links are followed but to what is listed by its own path:

    a link to the latest image would give it a second row, and another name whenever it moves.
    """
    visited: set[tuple[int, int]] = set()
    stack = [local_path(root.uri)]
    places = {**options.places, os.path.realpath(stack[0]): root}
    while stack:
        folder = stack.pop()
        try:
            stat = os.stat(folder)
            if (stat.st_dev, stat.st_ino) in visited:
                yield Ignored(folder, _TWICE)
                continue
            visited.add((stat.st_dev, stat.st_ino))
            names = sorted(os.listdir(folder))  # names only: entries of a million files would take a gigabyte
        except OSError as error:
            code = Code.ACCESS_DENIED if isinstance(error, PermissionError) else Code.IO_ERROR
            yield Problem(_path_uri(folder).rstrip("/") + "/", None, code, f"folder cannot be listed: {error.strerror}")
            continue
        files: list[ObjectInfo] = []
        for name in names:
            found = _looked_at(os.path.join(folder, name), places, options.filters)
            if isinstance(found, ObjectInfo):
                files.append(found)
            elif isinstance(found, str):
                stack.append(found)
            else:
                yield found
            if len(files) >= _BATCH:
                yield from objects(root, files, options, store)
                files = []
        yield from objects(root, files, options, store)


def _looked_at(path: str, places: Mapping[str, Root], filters: Filters) -> ObjectInfo | Problem | Ignored | str:
    """What a name in a folder is: a file, why it is none, or the path of a folder to be entered."""
    again = None
    try:
        details = os.lstat(path)
        if S_ISLNK(details.st_mode):
            details = os.stat(path)
            again = _again(path, details, places, filters)
    except OSError as error:
        return _unseen(path, error)
    if again is not None:
        return Ignored(path, again)
    if S_ISDIR(details.st_mode):  # snapshots of a network disk hold the whole archive again
        return Ignored(path, OF_A_PROGRAM) if is_junk_folder(os.path.basename(path)) else path
    if not S_ISREG(details.st_mode):
        return Ignored(path, "no regular file")  # reading a pipe or a device may never end
    return ObjectInfo(_path_uri(path), details.st_size, local_etag(details), details.st_mtime)


def _again(path: str, details: os.stat_result, places: Mapping[str, Root], filters: Filters) -> str | None:
    """Why a link is left out: it leads to what is listed without it. None where it does not."""
    real = place = os.path.realpath(path)
    while place not in places:
        if place == os.path.dirname(place):
            return None
        place = os.path.dirname(place)
    root, below = places[place], os.path.relpath(real, place)
    if S_ISDIR(details.st_mode):
        return None if is_junk_folder(below) else _TWICE
    own = root.path(_path_uri(os.path.normpath(os.path.join(local_path(root.uri), below))))
    is_listed = (
        (is_image(own) or is_archive(own)) and not is_junk(own) and filters.refuse([own], details.st_mtime) is None
    )
    return "link to a file that is listed" if is_listed else None


def _unseen(path: str, error: OSError) -> Problem | Ignored:
    """What is named in a folder and cannot be looked at. By its name it may be an image, or hold many."""
    is_denied, ending = isinstance(error, PermissionError), suffix(path)
    if not (is_image(path) or is_archive(path)) and ending:
        return Ignored(path, ending)
    code = Code.ACCESS_DENIED if is_denied else Code.NOT_FOUND
    what = "cannot be looked at" if is_denied else "broken link or removed"
    uri = _path_uri(path) if ending else _path_uri(path) + "/"  # perhaps a folder
    return Problem(uri, None, code, f"{what}: {error.strerror}")


def _path_uri(path: str) -> str:
    """The path itself; a `file://` URI with percent escapes where its bytes are no UTF-8."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "file://" + quote_from_bytes(os.fsencode(path))
    return path


def _walk_prefix(root: Root, options: ListingOptions, store: Store) -> Iterator[Found | Subtree]:
    """What lies directly at the first level that branches, with a branch for each of its sub-prefixes."""
    prefix = root.uri
    try:
        pages = store.levels(prefix)
        page = next(pages)
        while len(page.folders) == 1 and not page.is_truncated:
            yield from objects(root, page.objects, options, store)
            prefix = page.folders[0]
            pages = store.levels(prefix)
            page = next(pages)
        while True:
            for folder in page.folders:
                yield Subtree(bind(_below, root, folder, options, store))
            yield from objects(root, page.objects, options, store)
            if not page.is_truncated:
                return
            page = next(pages)
    except StoreError as error:
        yield Problem(prefix, None, error.code, f"prefix cannot be listed: {error}")


def _below(root: Root, folder: str, options: ListingOptions, store: Store) -> Iterator[Found]:
    try:
        yield from objects(root, store.walk(folder), options, store)
    except StoreError as error:
        yield Problem(folder, None, error.code, f"prefix cannot be listed: {error}")
