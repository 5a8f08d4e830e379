"""Sources to listing rows: folders, S3 prefixes, archives, globs, manifests and tables of URIs, as one stream.

The only place that walks anything. It holds a bounded number of rows whatever the source's size: prefixes and
archives are read by a few threads side by side that hand over small batches.
"""

import fnmatch
import glob
import os
import posixpath
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from stat import S_ISDIR
from typing import Any
from urllib.parse import quote_from_bytes

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline import archives, manifest
from pipeline.archives import Entry, Found, Ignored, Problem
from pipeline.errors import Code, InputError, UsageError
from pipeline.storage import ObjectInfo, S3Settings, Store, StoreError, absolute, is_s3, join, local_etag, store_for

_THREADS = 12
_BATCH = 256
_QUEUED_BATCHES = 32


@dataclass(frozen=True)
class Filters:
    """What of a source counts. Patterns are shell globs on the path below the source, or on the file name."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    since: datetime | None = None  # only objects modified at or after it

    def refuse(self, names: Sequence[str], mtime: float) -> str | None:
        """Why something known by these names is left out, None if it is not."""
        if self.include and not _matches(names, self.include):
            return "not in --include"
        if self.exclude and _matches(names, self.exclude):
            return "in --exclude"
        if self.since is not None and mtime < self.since.timestamp():
            return "older than --since"
        return None


def parse_since(text: str) -> datetime:
    """`2026-11-01`, an ISO 8601 time (UTC unless it says so), or an age such as `36h` or `7d`."""
    units = {"m": 60, "h": 3600, "d": 86400, "w": 604800}
    try:
        if text[-1:] in units:
            return datetime.now(UTC) - timedelta(seconds=float(text[:-1]) * units[text[-1]])
        parsed = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"--since {text!r}: give a date (2026-11-01), a time, or an age (36h, 7d)") from error
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


@dataclass
class Tally:
    """What a listing saw beside its entries; `left_out` by reason."""

    images: int = 0
    problems: int = 0
    bytes: int = 0
    archives: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def list_sources(
    sources: Sequence[str],
    tally: Tally,
    filters: Filters = Filters(),
    s3: S3Settings | None = None,
    limit: int | None = None,
) -> Iterator[Entry | Problem]:
    """Every image of the sources, and every failure to list one, in no promised order.

    Raises InputError for a source that does not exist or cannot be read at all.
    """
    roots = _distinct([absolute(source) for source in sources])
    streams = [stream for root in roots for stream in _open_source(root, filters, s3)]
    for found in _side_by_side(streams):
        if isinstance(found, Ignored):
            tally.left_out[found.reason] += 1
            continue
        if isinstance(found, Problem):
            tally.problems += 1
        else:
            tally.images += 1
            tally.bytes += found.size_bytes
        yield found
        if limit is not None and tally.images + tally.problems >= limit:
            return


def entry_row(entry: Entry) -> dict[str, Any]:
    """A row of LISTING_SCHEMA."""
    return {
        "image_id": manifest.image_id(entry.uri, entry.member, entry.occurrence),
        "uri": entry.uri,
        "member": entry.member,
        "access": entry.access,
        "offset": entry.offset,
        "stored_bytes": entry.stored_bytes,
        "size_bytes": entry.size_bytes,
        "etag": entry.etag,
        "mtime": datetime.fromtimestamp(entry.mtime, UTC),
    }


def relative_path(entry: Entry, roots: Sequence[str]) -> str:
    """The path that layouts look at: below the source, `archive!/member` for members."""
    path = entry.uri
    for root in roots:
        if path.startswith(root.rstrip("/") + "/"):
            path = path[len(root.rstrip("/")) + 1 :]
            break
    else:
        path = posixpath.basename(path)
    return f"{path}{archives.NESTED}{entry.member}" if entry.member is not None else path


def _matches(names: Sequence[str], patterns: Iterable[str]) -> bool:
    candidates = {name for path in names for name in (path, posixpath.basename(path))}
    return any(fnmatch.fnmatchcase(name, pattern) for name in candidates for pattern in patterns)


def _distinct(roots: list[str]) -> list[str]:
    """Sources without those that lie inside another, so that nothing is listed twice."""
    kept: list[str] = []
    for root in sorted(set(roots), key=len):
        if not any(root.startswith(other.rstrip("/") + "/") for other in kept):
            kept.append(root)
    return kept


Stream = Callable[[], Iterator[Found]]


def _open_source(root: str, filters: Filters, s3: S3Settings | None) -> list[Stream]:
    """The streams that together list one source; its existence is checked now, its contents when they run."""
    store = store_for(root, s3)
    if not is_s3(root) and glob.has_magic(root) and not os.path.lexists(root):
        matches = sorted(glob.glob(root, recursive=True))
        if not matches:
            raise InputError(f"{root}: the pattern matches nothing; quote it, and check it with ls")
        return [stream for match in matches for stream in _open_source(match, filters, s3)]
    try:
        info = store.head(root)
        if info is not None:
            return _open_file(info, filters, store, s3)
        if not store.is_folder(root):
            raise InputError(f"{root}: does not exist or is empty; give a folder, an archive, or an s3:// prefix")
        if store.head(join(root, "manifest.json")) is not None:
            return [lambda: _from_manifest(root, s3)]
        if not is_s3(root):
            return [lambda: _walk_folder(root, filters, store)]
        return _s3_prefixes(root, filters, store)
    except StoreError as error:
        raise InputError(str(error)) from error


def _open_file(info: ObjectInfo, filters: Filters, store: Store, s3: S3Settings | None) -> list[Stream]:
    name = info.uri.lower()
    if name.endswith((".parquet", ".csv")):
        return [lambda: _from_table(info, filters, store, s3)]
    if archives.is_archive(name):
        return [lambda: _archive(info, posixpath.basename(info.uri), filters, store)]
    return [lambda: iter([_file_entry(info)])]


def _file_entry(info: ObjectInfo) -> Entry:
    return Entry(info.uri, info.size, info.etag, info.mtime)


def _archive(info: ObjectInfo, path: str, filters: Filters, store: Store) -> Iterator[Found]:
    """Members of one archive that pass the filters; patterns may name the archive, the member, or both."""
    if _matches([path], filters.exclude):
        yield Ignored(info.uri, "in --exclude")
        return
    try:
        with store.open(info.uri) as file:
            for found in archives.list_archive(info, file):
                member = found.member if isinstance(found, Entry) else None
                names = [path, member, f"{path}{archives.NESTED}{member}"] if member is not None else None
                refused = filters.refuse(names, info.mtime) if names else None
                yield Ignored(info.uri, refused) if refused else found
    except StoreError as error:
        yield Problem(info.uri, None, error.code, str(error), info.size, info.etag)


def _objects(root: str, objects: Iterable[ObjectInfo], filters: Filters, store: Store) -> Iterator[Found]:
    """Entries, archive members and ignored files among the objects below a root."""
    for info in objects:
        path = info.uri[len(root.rstrip("/")) + 1 :]
        if archives.is_junk(path):
            yield Ignored(info.uri, "file manager's own")
        elif archives.is_archive(path):
            yield from _archive(info, path, filters, store)
        elif archives.is_image(path) or (filters.include and _matches([path], filters.include)):
            refused = filters.refuse([path], info.mtime)
            yield Ignored(info.uri, refused) if refused else _file_entry(info)
        else:
            yield Ignored(info.uri, archives.suffix(path) or "no suffix")


def _walk_folder(root: str, filters: Filters, store: Store) -> Iterator[Found]:
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
                yield Problem(_path_uri(path), None, Code.NOT_FOUND, f"broken link or removed: {error.strerror}")
                continue
            if S_ISDIR(details.st_mode):
                stack.append(path)
                continue
            files.append(ObjectInfo(_path_uri(path), details.st_size, local_etag(details), details.st_mtime))
            if len(files) >= _BATCH:
                yield from _objects(root, files, filters, store)
                files = []
        yield from _objects(root, files, filters, store)


def _path_uri(path: str) -> str:
    """The path itself; a `file://` URI with percent escapes where its bytes are no UTF-8."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "file://" + quote_from_bytes(os.fsencode(path))
    return path


def _s3_prefixes(root: str, filters: Filters, store: Any) -> list[Stream]:
    """One stream a sub-prefix of the first level that branches, so that they are listed side by side."""
    prefix = root
    direct: list[ObjectInfo] = []
    subfolders: list[str] = []
    while True:
        subfolders, objects = store.children(prefix)
        direct += list(objects)
        if len(subfolders) != 1:
            break
        prefix = subfolders[0]
    streams: list[Stream] = [_bind(_objects, root, direct, filters, store)]
    for folder in subfolders:
        streams.append(_bind(_prefix_objects, root, folder, filters, store))
    return streams


def _prefix_objects(root: str, folder: str, filters: Filters, store: Store) -> Iterator[Found]:
    try:
        yield from _objects(root, store.walk(folder), filters, store)
    except StoreError as error:
        yield Problem(folder, None, error.code, f"prefix cannot be listed: {error}")


def _bind(function: Callable[..., Iterator[Found]], *arguments: Any) -> Stream:
    return lambda: function(*arguments)


def _from_manifest(root: str, s3: S3Settings | None) -> Iterator[Found]:
    for row in _manifest_rows(root, s3):
        yield Entry(
            row["uri"], row["size_bytes"], row["etag"], row["mtime"].timestamp(), row["member"], row["access"],
            row["offset"], row["stored_bytes"], meta={"subject_id": row["subject_id"]} if row["subject_id"] else {},
        )  # fmt: skip


def _manifest_rows(root: str, s3: S3Settings | None) -> Iterator[dict[str, Any]]:
    for batch in manifest.read_manifest(root, s3).table.to_batches(max_chunksize=4096):
        yield from batch.to_pylist()


def _from_table(info: ObjectInfo, filters: Filters, store: Store, s3: S3Settings | None) -> Iterator[Found]:
    """A Parquet or CSV of URIs in a column `uri`, `path` or `file`; relative ones lie beside the table."""
    try:
        with store.open(info.uri) as file:
            table = pq.read_table(file) if info.uri.lower().endswith(".parquet") else pa.csv.read_csv(file)
    except (pa.ArrowException, OSError, StoreError) as error:
        raise InputError(f"{info.uri}: cannot be read as a table of URIs ({error})") from error
    column = next((name for name in ("uri", "path", "file", "filename") if name in table.column_names), None)
    if column is None:
        raise InputError(f"{info.uri}: no column uri, path or file; found {', '.join(table.column_names)}")
    seen: set[str] = set()
    for value in table[column].to_pylist():
        uri = str(value)
        if "://" not in uri and not uri.startswith("/"):
            uri = join(posixpath.dirname(info.uri), uri)
        if uri in seen:
            yield Ignored(uri, "named twice in the table")
            continue
        seen.add(uri)
        yield from _named(uri, filters, s3)


def _named(uri: str, filters: Filters, s3: S3Settings | None) -> Iterator[Found]:
    try:
        uri = absolute(uri)
        store = store_for(uri, s3)
        found = store.head(uri)
    except (StoreError, UsageError) as error:
        yield Problem(uri, None, error.code if isinstance(error, StoreError) else Code.NOT_FOUND, str(error))
        return
    if found is None:
        yield Problem(uri, None, Code.NOT_FOUND, "named in the table but does not exist")
    elif archives.is_archive(uri):
        yield from _archive(found, posixpath.basename(uri), filters, store)
    else:
        yield _file_entry(found)


def _side_by_side(streams: list[Stream]) -> Iterator[Found]:
    """All items of all streams, produced by a few threads, with a bounded number waiting."""
    if len(streams) == 1:
        yield from streams[0]()
        return
    todo: queue.SimpleQueue[Stream] = queue.SimpleQueue()
    for stream in streams:
        todo.put(stream)
    ready: queue.Queue[list[Found] | BaseException | None] = queue.Queue(_QUEUED_BATCHES)
    stop = threading.Event()
    threads = [
        threading.Thread(target=_produce, args=(todo, ready, stop), daemon=True)
        for _ in range(min(_THREADS, len(streams)))
    ]
    for thread in threads:
        thread.start()
    running = len(threads)
    try:
        while running:
            batch = ready.get()
            if batch is None:
                running -= 1
            elif isinstance(batch, BaseException):
                raise batch
            else:
                yield from batch
    finally:
        stop.set()


def _produce(
    todo: "queue.SimpleQueue[Stream]", ready: "queue.Queue[list[Found] | BaseException | None]", stop: threading.Event
) -> None:
    def hand_over(item: list[Found] | BaseException | None) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    try:
        while not stop.is_set():
            try:
                stream = todo.get_nowait()
            except queue.Empty:
                break
            batch: list[Found] = []
            for found in stream():
                batch.append(found)
                if len(batch) >= _BATCH:
                    hand_over(batch)
                    batch = []
                    if stop.is_set():
                        return
            if batch:
                hand_over(batch)
    except BaseException as error:  # re-raised by the consumer
        hand_over(error)
    finally:
        hand_over(None)
