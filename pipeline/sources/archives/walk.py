"""Walking an archive: to list it, and to read members that have no random access in one pass."""

import bz2
import functools
import gzip
import itertools
import lzma
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import IO, cast

import pyarrow as pa

from pipeline.base.errors import Code
from pipeline.sources.archives.damage import Damaged, reading
from pipeline.sources.archives.directories import read_directories
from pipeline.sources.archives.members import (
    COMPRESSED,
    Entry,
    Found,
    Ignored,
    Place,
    classify,
    is_archive,
    is_compressed_tar,
    is_image,
    other_kind,
    suffix,
    text_instead,
    window,
)
from pipeline.sources.archives.tars import Held, Links, Samples, Tar, list_tar
from pipeline.sources.archives.zips import list_zip, needs_unpacking, open_member, read_zip_member
from pipeline.sources.archives.zstd import HEADER_BYTES, refuse_long_window
from pipeline.sources.junk import is_junk
from pipeline.sources.rows import Access
from pipeline.storage.local import translated
from pipeline.storage.types import ObjectInfo, StoreError

_NESTED_LIMIT_BYTES = 2 << 30
_HEAD_BYTES = 512


# What is wanted of a member that is reached in one pass: its bytes, or None where it is only to be listed.
Take = Callable[[Entry, Callable[[], bytes]], bytes | None]


def _only_list(entry: Entry, read: Callable[[], bytes]) -> bytes | None:
    return None


def list_archive(info: ObjectInfo, file: IO[bytes]) -> Iterator[Found]:
    """Everything in one archive. Damage ends as a Problem after the members that could be read."""
    yield from (
        item for item, _ in _numbered((found, None) for found in _guarded(info.uri, file, info.size, Place(info)))
    )


def read_archive(info: ObjectInfo, file: IO[bytes], max_bytes: int) -> Iterator[Held]:
    """Everything in one compressed tar, in one pass: what `list_archive` gives, each entry with its bytes.

    Entries of more than `max_bytes` come without, damaged members of a zip inside with the exception. Damage ends as a
    Problem. Raises StoreError.
    """
    place = Place(info)

    def take(entry: Entry, read: Callable[[], bytes]) -> bytes | None:
        return read() if entry.size_bytes <= max_bytes else None

    def walk() -> Iterator[Held]:
        try:
            yield from _walk(info.uri, file, info.size, place, take)
        except Damaged as error:
            yield place.damage(info.uri, error), None

    return _numbered(walk())


def _numbered(held: Iterable[Held]) -> Iterator[Held]:
    """Images and failures told apart where several members have one name."""
    seen: dict[str, int] = {}
    for item, data in held:
        if isinstance(item, Ignored):
            yield item, data
            continue
        occurrence = seen.get(item.member or "", 0)
        seen[item.member or ""] = occurrence + 1
        yield (replace(item, occurrence=occurrence) if occurrence else item), data


def _guarded(name: str, file: IO[bytes], size: int, place: Place) -> Iterator[Found]:
    """Everything in one archive, only listed; what ends it early as a Problem."""
    try:
        yield from (found for found, _ in _walk(name, file, size, place, _only_list))
    except (Damaged, StoreError) as error:
        yield place.damage(name, error)


def _walk(name: str, file: IO[bytes], size: int, place: Place, take: Take) -> Iterator[Held]:
    """Everything in one archive; `take` is asked of a compressed tar alone, the others have random access."""
    if size == 0:
        yield place.problem(None, Code.EMPTY, f"{name}: an archive of zero bytes"), None
        return
    with reading:
        head = file.read(_HEAD_BYTES)
        kind = other_kind(name, head)
        file.seek(0)
    if (what := text_instead(head)) is not None:
        yield place.problem(None, Code.UNSUPPORTED_FORMAT, f"{name}: {what}"), None
    elif kind is not None:
        message = f"{name}: holds {kind} data; rename it by what it is, or pack it anew"
        yield place.problem(None, Code.UNSUPPORTED_FORMAT, message), None
    elif is_compressed_tar(name):
        yield from _walk_stream(name, file, place, take)
    else:
        read = list_zip if suffix(name) == ".zip" else list_tar
        yield from ((found, None) for found in read(file, size, place, _open_nested))


def _open_nested(name: str, file: IO[bytes], size: int, place: Place, base: int | None) -> Iterator[Found]:
    """Members of an archive inside another: with random access where it is stored as plain bytes at `base`."""
    if base is None or is_compressed_tar(name):
        yield from (found for found, _ in _walk_hidden(name, file, size, place.inside(name), _only_list))
    else:
        yield from _guarded(name, file, size, place.inside(name, base))


def _decompressed(name: str, file: IO[bytes]) -> IO[bytes]:
    kind = COMPRESSED[suffix(name)]
    with reading:
        if kind == "gz":
            return cast(IO[bytes], gzip.GzipFile(fileobj=file))
        if kind == "zst":
            refuse_long_window(_head(file))
            return cast(IO[bytes], pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"))
        return cast(IO[bytes], bz2.BZ2File(file) if kind == "bz2" else lzma.LZMAFile(file))


def _head(file: IO[bytes]) -> bytes:
    """The first bytes, which stay to be read; not all files here can seek."""
    peek = getattr(file, "peek", None)
    if peek is not None:
        return bytes(peek(HEADER_BYTES)[:HEADER_BYTES])
    head = file.read(HEADER_BYTES)
    file.seek(0)
    return head


def _walk_stream(name: str, file: IO[bytes], place: Place, take: Take) -> Iterator[Held]:
    """Members of a compressed tar front to back."""
    samples, links = Samples(), Links(place)
    with Tar.over(_decompressed(name, file), "r|") as archive:
        try:
            for member in archive.files():
                handle = archive.contents(member)
                if handle is None:
                    yield from ((item, None) for item in links.add(member))
                    continue
                if not is_image(member.name):
                    links.add_file(member)
                yield from samples.begin(member.name)
                if is_archive(member.name) and not place.prefix and not is_junk(member.name):
                    yield from _walk_hidden(member.name, handle, member.size, place.inside(member.name), take)
                    continue
                refused = classify(member.name, place, member.size)
                if refused is None:
                    entry = place.entry(member.name, member.size, access=Access.STREAM, offset=next(place.ordinals))
                    try:
                        samples.add(entry, take(entry, functools.partial(_whole, handle)))
                    except (Damaged, StoreError) as error:  # it was listed: its bytes are what is missing
                        samples.add(entry, error if isinstance(error, Damaged) else None)
                        raise
                    continue
                samples.add(refused)
                samples.add_sidecar(member, handle)
        except (Damaged, StoreError):
            yield from samples.end()
            raise
        yield from samples.end()
        yield from ((item, None) for item in links.settle(0, is_streamed=True))
        yield from ((problem, None) for problem in archive.end(place))


def _whole(handle: IO[bytes]) -> bytes:
    with reading:
        return handle.read()


def _walk_hidden(name: str, handle: IO[bytes], size: int, place: Place, take: Take) -> Iterator[Held]:
    """Members of a nested archive that can only be read by unpacking it, with damage turned into Problems."""
    if size > _NESTED_LIMIT_BYTES:
        message = f"a compressed archive of {size} bytes inside an archive; unpack it"
        yield place.problem(None, Code.TOO_LARGE, message, size), None
        return
    try:
        if is_compressed_tar(name):
            yield from _walk_stream(name, handle, place, take)
            return
        with tempfile.SpooledTemporaryFile(max_size=64 << 20) as spool:
            file = cast(IO[bytes], spool)
            _unpack(handle, file)
            unpacked = spool.tell()
            spool.seek(0)
            for found in _guarded(name, file, unpacked, replace(place, base=0)):
                if isinstance(found, Entry):
                    data = _taken(found, file, take)
                    yield replace(found, access=Access.STREAM, offset=next(place.ordinals), stored_bytes=None), data
                else:
                    yield found, None
    except Damaged as error:
        yield place.damage(name, error), None


def _unpack(handle: IO[bytes], spool: IO[bytes]) -> None:
    """All bytes of a nested archive into a file of ours. Raises PlatformError where the disk is full."""
    while True:
        with reading:
            piece = handle.read(1 << 20)
        if not piece:
            return
        try:
            spool.write(piece)
        except OSError as error:
            raise translated(error, tempfile.gettempdir()) from error


def _taken(entry: Entry, file: IO[bytes], take: Take) -> bytes | Damaged | None:
    """Damage of one member of a zip leaves the others, and their ordinals, as they are."""
    try:
        return take(entry, functools.partial(_read_spooled, file, entry))
    except Damaged as error:
        return error


def _read_spooled(file: IO[bytes], entry: Entry) -> bytes:
    def read(size: int) -> bytes:
        with reading:
            file.seek(entry.offset or 0)
            return file.read(size)

    stored_bytes = entry.stored_bytes or 0
    return read(stored_bytes) if entry.access is Access.RANGE else read_zip_member(read, stored_bytes, entry.size_bytes)


def stream_members(
    info: ObjectInfo, file: IO[bytes], wanted: set[int], max_bytes: int
) -> Iterator[tuple[int, bytes | Damaged | None]]:
    """(ordinal, bytes or damage) of the wanted `stream` members of an archive, in one pass that ends after the last.

    None instead of more than `max_bytes`. Raises Damaged where nothing more can be read.
    """
    left = len(wanted)
    counter = itertools.count()  # takes come in the order in which listing gave the ordinals

    def take(entry: Entry, read: Callable[[], bytes]) -> bytes | None:
        return read() if next(counter) in wanted and entry.size_bytes <= max_bytes else None

    for found, data in _walk_outer(info, file, take):
        if isinstance(found, Entry) and found.offset in wanted:
            yield int(found.offset or 0), data
            left -= 1
            if not left:
                return


def _walk_outer(info: ObjectInfo, file: IO[bytes], take: Take) -> Iterator[Held]:
    """All members without random access, in the order in which listing counted them."""
    place = Place(info)
    if is_compressed_tar(info.uri):
        yield from _walk_stream(info.uri, file, place, take)
    elif suffix(info.uri) == ".zip":
        for directory in read_directories(file, info.size):
            for item in filter(needs_unpacking, directory.members):
                with open_member(directory.archive, item) as handle:
                    yield from _walk_hidden(item.filename, handle, item.file_size, place.inside(item.filename), take)
    else:
        with Tar.over(file, "r:") as tar:
            for member in tar.files():
                if member.isreg() and is_compressed_tar(member.name) and not is_junk(member.name):
                    inner = window(file, member.offset_data, member.size)
                    yield from _walk_hidden(member.name, inner, member.size, place.inside(member.name), take)
