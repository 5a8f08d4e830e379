"""Listing rows to encoded bytes: from files, archive members by byte range, and compressed tars in one pass.

Many requests are in flight for stores with latency, few for local disks; what is read ahead is bounded in bytes.
Neighbours in an archive on a remote store share a request: S3 is paid by the request and slow by the request.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Generic, Protocol

from pipeline.base.errors import Code, ImageRejected, Stage
from pipeline.images.load import Limits
from pipeline.sources.archives import SLACK_BYTES, Damaged, read_zip_member, stream_members
from pipeline.sources.rows import Access, ListingRow, Row
from pipeline.storage.stores import Stores
from pipeline.storage.types import Bytes, ObjectInfo, Store, StoreError, as_listed

_REMOTE_THREADS, _LOCAL_THREADS = 48, 1
_LOCAL_CHUNK = 16
_AHEAD_BYTES = 64 << 20
_SPAN_BYTES, _SPAN_GAP_BYTES = 2 << 20, 32 << 10  # of members read at once, and of what between them is thrown away


class Reader(Protocol):
    """What one row is read from: a store, or a stretch of an archive that is in memory."""

    def read(self, uri: str) -> Bytes: ...
    def read_range(self, uri: str, offset: int, size: int, etag: str | None = None) -> Bytes: ...


@dataclass(frozen=True)
class Fetched(Generic[Row]):
    """The outcome for one row: `data` or `rejected`, with the version of the object that was read."""

    row: Row
    data: bytes | None
    rejected: ImageRejected | None
    etag: str
    attempts: int

    def bytes_or_raise(self) -> bytes:
        """`data`. Raises the ImageRejected that stands in its place."""
        if self.data is None:
            assert self.rejected is not None
            raise self.rejected
        return self.data


def fetch(row: Row, store: Reader, limits: Limits = Limits()) -> Fetched[Row]:
    """Bytes of one row that has random access. Never raises for what is wrong with this one image."""
    try:
        if row.size_bytes > limits.max_bytes:
            raise limits.too_large(row.size_bytes, Stage.FETCH)
        got = _read(row, store)
    except StoreError as error:
        rejected = ImageRejected(error.code, str(error), Stage.FETCH, error.attempts)
        return Fetched(row, None, rejected, row.etag, error.attempts)
    except ImageRejected as error:
        return Fetched(row, None, error, row.etag, error.attempts)
    return Fetched(row, got.data, None, got.etag, got.attempts)


def _read(row: ListingRow, store: Reader) -> Bytes:
    if row.access is Access.FILE:
        return store.read(row.uri)
    if row.access is Access.RANGE:
        got = store.read_range(row.uri, row.start, row.end - row.start, row.etag)
        if row.start + len(got.data) < row.end:
            raise ImageRejected(Code.TRUNCATED, "the archive ends inside this member", Stage.FETCH)
        return got
    return _read_zip_member(row, store)


def _read_zip_member(row: ListingRow, store: Reader) -> Bytes:
    answers: list[Bytes] = []

    def read(size: int) -> bytes:
        answers.append(store.read_range(row.uri, row.start, size, row.etag))
        return answers[-1].data

    try:
        data = read_zip_member(read, row.end - row.start, row.size_bytes)
        return Bytes(data, answers[-1].etag, answers[-1].attempts)
    except Damaged as error:
        message = str(error) if error.code is Code.TRUNCATED else f"damaged zip member: {error}"
        raise ImageRejected(error.code, message, Stage.FETCH) from error


def fetch_rows(rows: Sequence[Row], stores: Stores = Stores(), limits: Limits = Limits()) -> Iterator[Fetched[Row]]:
    """Exactly one `Fetched` a row, in no promised order."""
    for streamed, group in itertools.groupby(rows, key=lambda row: row.uri if row.access is Access.STREAM else None):
        if streamed is None:
            yield from _ahead(list(group), stores, limits)
        else:
            yield from _stream(streamed, list(group), stores.of(streamed), limits)


class _Span:
    """Neighbours in one archive, read in one request when the first is asked for, then cut from memory.

    A failed request fails all of them: each would have gone through the same retries on the same object.
    """

    def __init__(self, rows: Sequence[ListingRow], store: Store) -> None:
        self._store = store
        self._start, self._end = rows[0].start, _end(rows[-1])
        self._got: Bytes | StoreError | None = None

    def read(self, uri: str) -> Bytes:
        return self._store.read(uri)

    def read_range(self, uri: str, offset: int, size: int, etag: str | None = None) -> Bytes:
        if offset < self._start or offset + size > self._end:
            return self._store.read_range(uri, offset, size, etag)
        if self._got is None:
            try:
                self._got = self._store.read_range(uri, self._start, self._end - self._start, etag)
            except StoreError as error:
                self._got = error
        if isinstance(self._got, StoreError):
            raise self._got
        cut = offset - self._start
        return Bytes(self._got.data[cut : cut + size], self._got.etag, self._got.attempts)


def _end(row: ListingRow) -> int:
    return row.end + (SLACK_BYTES if row.access is Access.ZIP else 0)


def _spans(rows: Sequence[Row], limits: Limits) -> Iterator[list[Row]]:
    """Rows as they are to be read from a remote store: a file alone, near members of one archive together."""
    span: list[Row] = []
    for row in rows:
        if span and not _joins(row, span, limits):
            yield span
            span = []
        span.append(row)
    if span:
        yield span


def _joins(row: ListingRow, span: Sequence[ListingRow], limits: Limits) -> bool:
    last = span[-1]
    return (
        row.access is not Access.FILE
        and (row.uri, row.access, row.etag) == (last.uri, last.access, last.etag)
        and max(row.size_bytes, last.size_bytes) <= limits.max_bytes
        and abs(row.start - last.end) <= _SPAN_GAP_BYTES
        and _end(row) - span[0].start <= _SPAN_BYTES
    )


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """One pool a process, shared by all that fetch at the same time."""
    return ThreadPoolExecutor(threads, thread_name_prefix=f"fetch-{threads}")


def _ahead(rows: list[Row], stores: Stores, limits: Limits) -> Iterator[Fetched[Row]]:
    """Fetch ahead of the consumer; from a remote store in the order of arrival, so that none waits for a slow one."""
    remote = stores.of(rows[0].uri).is_remote
    threads = _REMOTE_THREADS if remote else _LOCAL_THREADS
    local_chunks = (rows[start : start + _LOCAL_CHUNK] for start in range(0, len(rows), _LOCAL_CHUNK))
    chunks = _spans(rows, limits) if remote else local_chunks
    waiting: dict[Future[list[Fetched[Row]]], int] = {}

    def read(chunk: list[Row]) -> list[Fetched[Row]]:
        span = _Span(chunk, stores.of(chunk[0].uri)) if remote and len(chunk) > 1 else None
        return [fetch(row, span or stores.of(row.uri), limits) for row in chunk]

    try:
        while True:
            while len(waiting) < 2 * threads and (not waiting or sum(waiting.values()) < _AHEAD_BYTES):
                chunk = next(chunks, None)
                if chunk is None:
                    break
                weight = sum(min(row.size_bytes, limits.max_bytes) for row in chunk)
                waiting[_pool(threads).submit(read, chunk)] = weight
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                del waiting[future]
                yield from future.result()
    finally:
        for future in waiting:
            future.cancel()


def _stream(uri: str, rows: list[Row], store: Store, limits: Limits) -> Iterator[Fetched[Row]]:
    """Members of one archive without random access, in one pass."""
    by_ordinal = {row.start: row for row in rows}
    done: set[int] = set()
    failure: ImageRejected | None = None
    etag = rows[0].etag
    try:
        info = as_listed(store, uri, etag)
        for ordinal, data in _members(info, store, set(by_ordinal), limits.max_bytes):
            row = by_ordinal[ordinal]
            done.add(ordinal)
            if isinstance(data, Damaged):
                damage = ImageRejected(data.code, f"damaged inside its archive: {data}", Stage.FETCH)
                yield Fetched(row, None, damage, etag, 1)
            elif data is None:
                yield Fetched(row, None, limits.too_large(row.size_bytes, Stage.FETCH), etag, 1)
            else:
                yield Fetched(row, data, None, etag, 1)
    except StoreError as error:
        failure = ImageRejected(error.code, str(error), Stage.FETCH, error.attempts)
    except Damaged as error:
        failure = ImageRejected(error.code, f"{uri}: damaged before this member: {error}", Stage.FETCH)
    missing = failure or ImageRejected(Code.CHANGED, f"{uri}: no longer holds this member; run again", Stage.FETCH)
    for ordinal, row in by_ordinal.items():
        if ordinal not in done:
            yield Fetched(row, None, missing, etag, missing.attempts)


def _members(
    info: ObjectInfo, store: Store, wanted: set[int], max_bytes: int
) -> Iterator[tuple[int, bytes | Damaged | None]]:
    with store.open(info.uri) as file:
        yield from stream_members(info, file, wanted, max_bytes)
