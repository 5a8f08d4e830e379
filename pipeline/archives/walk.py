"""Walking an archive: to list it, and to read members that have no random access in one pass."""

import bz2
import functools
import gzip
import lzma
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import IO, cast

from pipeline.archives.members import (
    COMPRESSED,
    DAMAGE,
    Entry,
    Found,
    Place,
    classify,
    is_archive,
    is_compressed_tar,
    is_junk,
    suffix,
    window,
)  # fmt: skip
from pipeline.archives.tars import list_tar
from pipeline.archives.zips import list_zip, needs_unpacking, zip_member
from pipeline.errors import Code
from pipeline.storage import ObjectInfo

_NESTED_LIMIT_BYTES = 2 << 30


def list_archive(info: ObjectInfo, file: IO[bytes]) -> Iterator[Found]:
    """Everything in one archive. Damage ends as a Problem after the members that could be read."""
    seen: dict[str, int] = {}
    for item in _guarded(info.uri, file, info.size, Place(info)):
        if isinstance(item, Entry):
            occurrence = seen.get(item.member or "", 0)
            seen[item.member or ""] = occurrence + 1
            yield replace(item, occurrence=occurrence) if occurrence else item
        else:
            yield item


def _guarded(name: str, file: IO[bytes], size: int, place: Place) -> Iterator[Found]:
    if size == 0:
        yield place.problem(None, Code.EMPTY, f"{name}: an archive of zero bytes")
        return
    try:
        if is_compressed_tar(name):
            yield from (found for found, _ in _walk_stream(name, file, place))
        else:
            read = list_zip if suffix(name) == ".zip" else list_tar
            yield from read(file, size, place, _open_nested)
    except DAMAGE as error:
        yield place.damage(name, error)


def _open_nested(name: str, file: IO[bytes], size: int, place: Place, base: int | None) -> Iterator[Found]:
    """Members of an archive inside another: with random access where it is stored as plain bytes at `base`."""
    if base is None or is_compressed_tar(name):
        yield from (found for found, _ in _walk_hidden(name, file, size, place.inside(name)))
    else:
        yield from _guarded(name, file, size, place.inside(name, base))


Hidden = tuple[Found, Callable[[], bytes] | None]


def _decompressed(name: str, file: IO[bytes]) -> IO[bytes]:
    kind = COMPRESSED[suffix(name)]
    if kind == "gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=file))
    return cast(IO[bytes], bz2.BZ2File(file) if kind == "bz2" else lzma.LZMAFile(file))


def _walk_stream(name: str, file: IO[bytes], place: Place) -> Iterator[Hidden]:
    """Members of a compressed tar front to back; a reader is good until the next step."""
    with tarfile.open(fileobj=_decompressed(name, file), mode="r|") as archive:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]
            handle = archive.extractfile(member) if member.isreg() else None
            if handle is None:
                continue
            if is_archive(member.name) and not place.prefix and not is_junk(member.name):
                yield from _walk_hidden(member.name, handle, member.size, place.inside(member.name))
                continue
            refused = classify(member.name, place, member.size)
            if refused is not None:
                yield refused, None
            else:
                yield place.entry(member.name, member.size, access="stream", offset=next(place.ordinals)), handle.read


def _walk_hidden(name: str, handle: IO[bytes], size: int, place: Place) -> Iterator[Hidden]:
    """Members of a nested archive that can only be read by unpacking it, with damage turned into Problems."""
    if size > _NESTED_LIMIT_BYTES:
        message = f"a compressed archive of {size} bytes inside an archive; unpack it"
        yield place.problem(None, Code.TOO_LARGE, message, size), None
        return
    try:
        if is_compressed_tar(name):
            yield from _walk_stream(name, handle, place)
            return
        with tempfile.SpooledTemporaryFile(max_size=64 << 20) as spool:
            shutil.copyfileobj(handle, spool, 1 << 20)
            file = cast(IO[bytes], spool)
            unpacked = spool.tell()
            spool.seek(0)
            for found in _guarded(name, file, unpacked, replace(place, base=0)):
                if isinstance(found, Entry):
                    reader = functools.partial(_read_spooled, file, found)
                    ordinal = next(place.ordinals)
                    yield replace(found, access="stream", offset=ordinal, stored_bytes=None), reader
                else:
                    yield found, None
    except DAMAGE as error:
        yield place.damage(name, error), None


def _read_spooled(file: IO[bytes], entry: Entry) -> bytes:
    file.seek(entry.offset or 0)
    stored = file.read(entry.stored_bytes or 0)
    if entry.access == "range":
        return stored
    data = zip_member(stored, entry.size_bytes)
    if data is None:
        raise EOFError("the archive ends inside this member")
    return data


def stream_members(info: ObjectInfo, file: IO[bytes], wanted: set[int]) -> Iterator[tuple[int, bytes]]:
    """(ordinal, bytes) of the wanted `stream` members of an archive, in one pass that ends after the last of them.

    Raises one of the exceptions of tarfile, zipfile and the decompressors where the archive is damaged.
    """
    left = len(wanted)
    for found, reader in _walk_outer(info, file):
        if reader is not None and isinstance(found, Entry) and found.offset in wanted:
            yield int(found.offset), reader()
            left -= 1
            if not left:
                return


def _walk_outer(info: ObjectInfo, file: IO[bytes]) -> Iterator[Hidden]:
    """All members without random access, in the order in which listing counted them."""
    place = Place(info)
    if is_compressed_tar(info.uri):
        yield from _walk_stream(info.uri, file, place)
    elif suffix(info.uri) == ".zip":
        with zipfile.ZipFile(file) as archive:
            for item in archive.infolist():
                if needs_unpacking(item):
                    with archive.open(item) as handle:
                        yield from _walk_hidden(item.filename, handle, item.file_size, place.inside(item.filename))
    else:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]
                if member.isreg() and is_compressed_tar(member.name) and not is_junk(member.name):
                    inner = window(file, member.offset_data, member.size)
                    yield from _walk_hidden(member.name, inner, member.size, place.inside(member.name))
