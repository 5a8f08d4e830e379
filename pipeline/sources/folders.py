"""Folders on disk and prefixes on S3, walked."""

import os
from collections.abc import Iterator
from stat import S_ISDIR, S_ISREG
from urllib.parse import quote_from_bytes

from pipeline.base.errors import Code
from pipeline.sources.archives import Found, Ignored, Problem, is_archive, is_image, suffix
from pipeline.sources.junk import OF_A_PROGRAM, is_junk_folder
from pipeline.sources.objects import ListingOptions, Root, Subtree, bind, objects
from pipeline.storage.local import local_etag
from pipeline.storage.types import ObjectInfo, Store, StoreError

_BATCH = 256


def walk(root: Root, options: ListingOptions) -> Iterator[Found | Subtree]:
    """Everything below a folder or prefix."""
    store = options.stores.of(root.uri)
    if store.is_remote:
        yield from _walk_prefix(root, options, store)
    else:
        yield from _walk_folder(root, options, store)


def _walk_folder(root: Root, options: ListingOptions, store: Store) -> Iterator[Found]:
    """Depth first, names sorted within a folder, symbolic links followed but no folder entered twice."""
    visited: set[tuple[int, int]] = set()
    stack = [root.uri]
    while stack:
        folder = stack.pop()
        try:
            stat = os.stat(folder)
            if (stat.st_dev, stat.st_ino) in visited:
                yield Ignored(folder, "folder reached twice by a link")
                continue
            visited.add((stat.st_dev, stat.st_ino))
            names = sorted(os.listdir(folder))  # names only: entries of a million files would take a gigabyte
        except OSError as error:
            code = Code.ACCESS_DENIED if isinstance(error, PermissionError) else Code.IO_ERROR
            yield Problem(_path_uri(folder).rstrip("/") + "/", None, code, f"folder cannot be listed: {error.strerror}")
            continue
        files: list[ObjectInfo] = []
        for name in names:
            path = os.path.join(folder, name)
            try:
                details = os.stat(path)
            except OSError as error:
                yield _unseen(path, error)
                continue
            if S_ISDIR(details.st_mode):
                if is_junk_folder(name):  # snapshots of a network disk hold the whole archive again
                    yield Ignored(path, OF_A_PROGRAM)
                else:
                    stack.append(path)
            elif not S_ISREG(details.st_mode):
                yield Ignored(path, "no regular file")  # reading a pipe or a device may never end
            else:
                files.append(ObjectInfo(_path_uri(path), details.st_size, local_etag(details), details.st_mtime))
            if len(files) >= _BATCH:
                yield from objects(root, files, options, store)
                files = []
        yield from objects(root, files, options, store)


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
