"""One source, opened: a folder, an S3 prefix or pattern, an archive, a manifest or a table of URIs, as streams.

A stream gives what it finds piece by piece and may name further streams, which are listed beside it. The only place
that walks anything.
"""

import glob
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote_from_bytes

from pipeline import archives, manifest
from pipeline.archives import Entry, Found, Ignored, Problem
from pipeline.errors import Code, InputError, UsageError
from pipeline.filters import Filters, UriPattern, matches
from pipeline.storage import ObjectInfo, S3Settings, Store, StoreError, absolute, is_s3, join, local_etag, store_for
from pipeline.tables import is_table, read_table

if TYPE_CHECKING:
    from pipeline.s3 import S3Store

_URI_COLUMNS = ("uri", "path", "file", "filename")
_BATCH = 256
_ROWS_A_STREAM = 64  # of a table: each row costs a request on S3, so many are asked at the same time
_MANIFEST_BATCH = 4096


@dataclass(frozen=True)
class Look:
    """How sources are looked at: what of them counts, how S3 is reached, and whether compressed tars are opened."""

    filters: Filters
    s3: S3Settings | None = None
    opens_compressed: bool = True  # False: one entry of access 'archive' each; whoever scores it opens it


@dataclass(frozen=True)
class Branch:
    """Part of a source that can be listed beside the rest."""

    stream: "Stream"


Stream = Callable[[], Iterator[Found | Branch]]


@dataclass(frozen=True)
class Source:
    """What an opened source consists of. `names_images`: it names what other sources may hold as well."""

    streams: list[Stream]
    names_images: bool = False


def expand(sources: Sequence[str]) -> list[str]:
    """Absolute roots: local patterns replaced by their matches, and none that lies inside another.

    Raises InputError for a pattern without a match.
    """
    roots: list[str] = []
    for source in map(absolute, sources):
        if is_s3(source) or not glob.has_magic(source) or os.path.lexists(source):
            roots.append(source)
            continue
        found = glob.glob(source, recursive=True)
        if not found:
            raise InputError(f"{source}: the pattern matches nothing; quote it, and check it with ls")
        roots += map(os.path.normpath, found)
    kept: list[str] = []
    for root in sorted({root.rstrip("/") + "/" for root in roots}):  # what lies in a folder follows it at once
        if not kept or not root.startswith(kept[-1]):
            kept.append(root)
    return [root.rstrip("/") or "/" for root in kept]


def open_source(root: str, look: Look) -> Source:
    """Check that a source is there; what it holds is read when its streams run. Raises InputError."""
    store = store_for(root, look.s3)
    try:
        info = store.head(root)
        if info is not None:
            return _open_file(info, look, store)
        if store.is_folder(root):
            return _open_folder(root, look, store)
    except StoreError as error:
        raise InputError(str(error)) from error
    if is_s3(root) and glob.has_magic(root):
        return _open_pattern(UriPattern(root), look, cast("S3Store", store))
    raise InputError(f"{root}: does not exist or is empty; give a folder, an archive, or an s3:// prefix")


def _open_file(info: ObjectInfo, look: Look, store: Store) -> Source:
    name = info.uri.lower()
    if is_table(name):
        return Source([lambda: _table(info, look)], names_images=True)
    if archives.is_archive(name):
        return Source([lambda: open_archive(info, posixpath.basename(info.uri), look, store)])
    return Source([lambda: iter([_file_entry(info)])])


def _open_folder(root: str, look: Look, store: Store) -> Source:
    if store.head(join(root, "manifest.json")) is not None:
        return Source([lambda: _manifest(root, look)], names_images=True)
    if is_s3(root):
        return Source([lambda: _prefix(root, look, cast("S3Store", store))])
    return Source([lambda: _walk_folder(root, look, store)])


def _open_pattern(pattern: UriPattern, look: Look, store: "S3Store") -> Source:
    """The objects of a store that fit a pattern. Raises InputError where none does."""
    fits = pattern.compiled()
    found = (info for info in store.beginning_with(pattern.literal) if fits.match(info.uri))
    try:
        first = next(found, None)
    except StoreError as error:
        raise InputError(str(error)) from error
    if first is None:
        raise InputError(f"{pattern.uri}: the pattern matches nothing; check it with aws s3 ls {pattern.literal}")

    def stream() -> Iterator[Found]:
        yield from _objects(pattern.folder, [first], look, store)
        try:
            yield from _objects(pattern.folder, found, look, store)
        except StoreError as error:
            yield Problem(pattern.uri, None, error.code, f"cannot be listed further: {error}")

    return Source([stream], names_images=True)


# ---- objects -----------------------------------------------------------------------------------------------


def _file_entry(info: ObjectInfo) -> Entry:
    return Entry(info.uri, info.size, info.etag, info.mtime)


def open_archive(info: ObjectInfo, path: str, look: Look, store: Store) -> Iterator[Found]:
    """Members of one archive that pass the filters, or the archive itself where its scorer is to open it.

    `path` is what filters know the archive by.
    """
    filters = look.filters
    if matches([path], filters.exclude):
        yield Ignored(info.uri, "in --exclude")
    elif filters.is_too_old(info.mtime):
        yield Ignored(info.uri, "older than --since")
    elif not look.opens_compressed and archives.is_compressed_tar(path):
        yield Entry(info.uri, info.size, info.etag, info.mtime, access=archives.WHOLE, meta={"path": path})
    else:
        yield from _members(info, path, filters, store)


def _members(info: ObjectInfo, path: str, filters: Filters, store: Store) -> Iterator[Found]:
    try:
        with store.open(info.uri) as file:
            for found in archives.list_archive(info, file):
                refused = None
                if isinstance(found, Entry) and found.member is not None:
                    refused = filters.refuse_member(path, found.member, info.mtime)
                yield Ignored(info.uri, refused) if refused else found
    except StoreError as error:
        yield Problem(info.uri, None, error.code, str(error), info.size, info.etag)


def _objects(root: str, objects: Iterable[ObjectInfo], look: Look, store: Store) -> Iterator[Found]:
    """Entries, archive members and ignored files among the objects below a root."""
    for info in objects:
        path = info.uri[len(root.rstrip("/")) + 1 :]
        if archives.is_junk(path):
            yield Ignored(info.uri, "file manager's own")
        elif archives.is_archive(path):
            yield from open_archive(info, path, look, store)
        elif archives.is_image(path) or (look.filters.include and matches([path], look.filters.include)):
            refused = look.filters.refuse([path], info.mtime)
            yield Ignored(info.uri, refused) if refused else _file_entry(info)
        else:
            yield Ignored(info.uri, archives.suffix(path) or "no suffix")


# ---- folders and prefixes ----------------------------------------------------------------------------------


def _walk_folder(root: str, look: Look, store: Store) -> Iterator[Found]:
    """Depth first, names sorted within a folder, symbolic links followed but no folder entered twice."""
    visited: set[tuple[int, int]] = set()
    stack = [root]
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
            yield Problem(_path_uri(folder), None, code, f"folder cannot be listed: {error.strerror}")
            continue
        files: list[ObjectInfo] = []
        for name in names:
            path = os.path.join(folder, name)
            try:
                details = os.stat(path)
            except OSError as error:
                is_denied = isinstance(error, PermissionError)
                code = Code.ACCESS_DENIED if is_denied else Code.NOT_FOUND
                what = "cannot be looked at" if is_denied else "broken link or removed"
                yield Problem(_path_uri(path), None, code, f"{what}: {error.strerror}")
                continue
            if S_ISDIR(details.st_mode):
                stack.append(path)
            elif not S_ISREG(details.st_mode):
                yield Ignored(path, "no regular file")  # reading a pipe or a device may never end
            else:
                files.append(ObjectInfo(_path_uri(path), details.st_size, local_etag(details), details.st_mtime))
            if len(files) >= _BATCH:
                yield from _objects(root, files, look, store)
                files = []
        yield from _objects(root, files, look, store)


def _path_uri(path: str) -> str:
    """The path itself; a `file://` URI with percent escapes where its bytes are no UTF-8."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "file://" + quote_from_bytes(os.fsencode(path))
    return path


def _prefix(root: str, look: Look, store: "S3Store") -> Iterator[Found | Branch]:
    """What lies directly at the first level that branches, with a branch for each of its sub-prefixes."""
    prefix = root
    try:
        pages = store.levels(prefix)
        page = next(pages)
        while len(page.folders) == 1 and not page.is_truncated:
            yield from _objects(root, page.objects, look, store)
            prefix = page.folders[0]
            pages = store.levels(prefix)
            page = next(pages)
        while True:
            for folder in page.folders:
                yield Branch(_bind(_below, root, folder, look, store))
            yield from _objects(root, page.objects, look, store)
            if not page.is_truncated:
                return
            page = next(pages)
    except StoreError as error:
        yield Problem(prefix, None, error.code, f"prefix cannot be listed: {error}")


def _below(root: str, folder: str, look: Look, store: Store) -> Iterator[Found]:
    try:
        yield from _objects(root, store.walk(folder), look, store)
    except StoreError as error:
        yield Problem(folder, None, error.code, f"prefix cannot be listed: {error}")


def _bind(function: Callable[..., Iterator[Found]], *arguments: Any) -> Stream:
    return lambda: function(*arguments)


# ---- manifests and tables ----------------------------------------------------------------------------------


def _manifest(root: str, look: Look) -> Iterator[Found]:
    for batch in manifest.read_manifest(root, look.s3).table.to_batches(max_chunksize=_MANIFEST_BATCH):
        for row in batch.to_pylist():
            mtime = row["mtime"].timestamp() if row["mtime"] is not None else 0.0
            names = [row["uri"], *([row["member"]] if row["member"] is not None else [])]
            refused = look.filters.refuse(names, mtime)
            if refused:
                yield Ignored(row["uri"], refused)
                continue
            yield Entry(
                row["uri"], row["size_bytes"], row["etag"], mtime, row["member"], row["access"], row["offset"],
                row["stored_bytes"], meta={"subject_id": row["subject_id"]} if row["subject_id"] else {},
                image_id=row["image_id"],
            )  # fmt: skip


def _table(info: ObjectInfo, look: Look) -> Iterator[Found | Branch]:
    """A table of URIs in a column `uri`, `path` or `file`; relative ones lie beside the table."""
    table = read_table(info.uri, look.s3)
    by_name = {name.strip().casefold(): name for name in reversed(table.column_names)}
    column = next((by_name[name] for name in _URI_COLUMNS if name in by_name), None)
    if column is None:
        raise InputError(f"{info.uri}: no column uri, path or file; found {', '.join(table.column_names)}")
    folder = posixpath.dirname(info.uri)
    seen: set[str] = set()
    for start in range(0, table.num_rows, _ROWS_A_STREAM):
        uris: list[str] = []
        for value in table[column].slice(start, _ROWS_A_STREAM).to_pylist():
            uri = _full_uri(str(value), folder) if value not in (None, "") else ""
            if not uri:
                yield Ignored(info.uri, "row of the table without a URI")
            elif uri in seen:
                yield Ignored(uri, "named twice in the table")
            else:
                seen.add(uri)
                uris.append(uri)
        yield Branch(_bind(_named, uris, look))


def _full_uri(text: str, folder: str) -> str:
    uri = text if "://" in text or text.startswith("/") else join(folder, text)
    try:
        return absolute(uri)
    except UsageError:  # a kind of store that is not read; said when its turn comes
        return uri


def _named(uris: Sequence[str], look: Look) -> Iterator[Found]:
    for uri in uris:
        try:
            store = store_for(absolute(uri), look.s3)
            info = store.head(uri)
            is_folder = info is None and store.is_folder(uri)
        except (StoreError, UsageError) as error:
            code = error.code if isinstance(error, StoreError) else Code.NOT_FOUND
            yield Problem(uri, None, code, str(error))
            continue
        if info is None:
            what = "is a folder; name its files, or give the folder as a source" if is_folder else "does not exist"
            yield Problem(uri, None, Code.NOT_FOUND, f"named in the table but {what}")
        elif archives.is_archive(uri):
            yield from open_archive(info, posixpath.basename(uri), look, store)
        else:
            refused = look.filters.refuse([uri], info.mtime)
            yield Ignored(uri, refused) if refused else _file_entry(info)
