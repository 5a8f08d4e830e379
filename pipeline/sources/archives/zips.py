"""Zips: where every member's local header lies, how to take its bytes from there, and what a cut zip still gives."""

import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from pipeline.base.errors import Code
from pipeline.sources.archives.damage import Damaged, reading
from pipeline.sources.archives.directories import IS_UTF8, decoded_name, read_at, read_directories
from pipeline.sources.archives.members import (
    Found,
    OpenNested,
    Place,
    classify,
    is_archive,
    is_compressed_tar,
    window,
)
from pipeline.sources.junk import is_junk
from pipeline.sources.rows import Access

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # APPNOTE 4.3.7
_MEMBER_MARK = b"PK\x03\x04"
SLACK_BYTES = 256  # a local header may carry more extra fields than the directory
_MOST_SLACK_BYTES = 1 << 17  # two extra fields of the greatest length there is


def list_zip(file: IO[bytes], size: int, place: Place, open_nested: OpenNested) -> Iterator[Found]:
    """Members of all zips in a file, and of what lies before them where that begins as a zip and has no directory."""
    directories = read_directories(file, size)
    begin = directories[0].begin if directories else size
    if not directories or (begin > 0 and _begins_with_member(file)):
        recovered, reached = _headers(file, size)
        over = [item for item, start in recovered if item.header_offset < begin < start + item.compress_size]
        is_inside = any(is_archive(item.filename) for item in over)  # the directory is that of a zip inside
        if over and not is_inside:  # this zip is cut, and another follows
            reached = over[0].header_offset
            recovered = [(item, start) for item, start in recovered if item.header_offset < reached]
        yield from _recover_zip(file, size, recovered, reached, place, open_nested)
        if is_inside:
            return
    for directory in directories:
        for item in directory.members:
            name = item.filename
            if not name:
                yield place.problem("", Code.CORRUPT, "a member without a name; pack it anew", item.file_size)
            elif name.endswith("/"):
                continue
            elif is_archive(name) and not place.prefix and not is_junk(name):
                yield from _nested_zip_member(file, directory.archive, item, place, open_nested)
            else:
                yield from _zip_member(size, place, item)


def _begins_with_member(file: IO[bytes]) -> bool:
    return read_at(file, 0, 4) == _MEMBER_MARK


def _zip_member(size: int, place: Place, item: zipfile.ZipInfo) -> Iterator[Found]:
    name = item.filename
    refused = classify(name, place, item.file_size)
    if refused is not None:
        yield refused
    elif item.flag_bits & 0x1:
        yield place.problem(name, Code.UNSUPPORTED_FORMAT, "an encrypted zip member; unpack it first", item.file_size)
    elif item.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        message = f"zip compression method {item.compress_type}; only stored and deflated are read: pack it anew"
        yield place.problem(name, Code.UNSUPPORTED_FORMAT, message, item.file_size)
    elif item.header_offset + item.compress_size > size:
        yield place.problem(name, Code.TRUNCATED, "the archive ends inside this member", item.file_size)
    else:
        header = _LOCAL_HEADER.size + len(item.orig_filename.encode("utf-8", "surrogateescape")) + len(item.extra)
        yield place.entry(
            name,
            item.file_size,
            access=Access.ZIP,
            offset=(place.base or 0) + item.header_offset,
            stored_bytes=header + item.compress_size,
        )


def needs_unpacking(item: zipfile.ZipInfo) -> bool:
    """Whether a zip member is an archive whose own members have no random access."""
    if not is_archive(item.filename) or is_junk(item.filename) or item.flag_bits & 0x1:
        return False
    return item.compress_type != zipfile.ZIP_STORED or is_compressed_tar(item.filename)


def _nested_zip_member(
    file: IO[bytes], archive: zipfile.ZipFile, item: zipfile.ZipInfo, place: Place, open_nested: OpenNested
) -> Iterator[Found]:
    """Members of an archive in a zip; damage there leaves the rest of the zip as it is."""
    if item.flag_bits & 0x1:
        yield place.problem(item.filename, Code.UNSUPPORTED_FORMAT, "an encrypted archive; unpack it", item.file_size)
        return
    try:
        if needs_unpacking(item):
            with open_member(archive, item) as handle:
                yield from open_nested(item.filename, handle, item.file_size, place, None)
            return
        start = item.header_offset + data_start(read_at(file, item.header_offset, _LOCAL_HEADER.size))
    except Damaged as error:
        yield place.problem(item.filename, Code.CORRUPT, f"an archive that cannot be opened: {error}", item.file_size)
        return
    inner = window(file, start, item.file_size)
    yield from open_nested(item.filename, inner, item.file_size, place, (place.base or 0) + start)


def open_member(archive: zipfile.ZipFile, item: zipfile.ZipInfo) -> IO[bytes]:
    """A member as a file, its contents unpacked. Raises Damaged where it cannot be opened."""
    with reading:
        return archive.open(item)


def data_start(header: bytes) -> int:
    """Bytes from a zip local header to the member's data. Raises Damaged if it is no such header."""
    if len(header) < _LOCAL_HEADER.size or header[:4] != _MEMBER_MARK:
        raise Damaged(Code.CORRUPT, "no local file header where the directory says")
    fields = _LOCAL_HEADER.unpack(header[: _LOCAL_HEADER.size])
    return _LOCAL_HEADER.size + int(fields[9]) + int(fields[10])


def read_zip_member(read: Callable[[int], bytes], stored_bytes: int, size_bytes: int) -> bytes:
    """The image of a member; `read(n)` gives up to n bytes from its local header on. Raises Damaged."""
    for slack in (SLACK_BYTES, _MOST_SLACK_BYTES):
        stored = read(stored_bytes + slack)
        data = _member(stored, size_bytes)
        if data is not None:
            return data
        if len(stored) < stored_bytes:
            break
    raise Damaged(Code.TRUNCATED, "the archive ends inside this member")


def _member(stored: bytes, size_bytes: int) -> bytes | None:
    """The image in `stored` (local header, name, extra, data); None when `stored` is too short to hold it.

    Raises Damaged.
    """
    start = data_start(stored)
    flags, method = struct.unpack_from("<HH", stored, 6)
    if method == zipfile.ZIP_STORED:
        end = start + size_bytes
        data = stored[start:end]
        if len(data) != size_bytes:
            return None
    else:
        engine = zlib.decompressobj(-zlib.MAX_WBITS)
        with reading:
            data = engine.decompress(stored[start:], size_bytes + 1)
        if len(data) > size_bytes:
            raise Damaged(Code.CORRUPT, "inflates to more than the directory says")
        if not engine.eof and len(data) != size_bytes:
            return None
        end = len(stored) - len(engine.unused_data) if engine.eof else len(stored)
    expected = _check_sum(stored, flags, end)
    if expected is not None and zlib.crc32(data) != expected:
        raise Damaged(Code.CORRUPT, "its check sum is another")
    return data


def _check_sum(stored: bytes, flags: int, end: int) -> int | None:
    """CRC-32 of a member: in its local header, or behind its data where it was packed in one pass (APPNOTE 4.3.9)."""
    if not flags & 0x8:
        return int(struct.unpack_from("<I", stored, 14)[0])
    at = end + 4 if stored[end : end + 4] == b"PK\x07\x08" else end
    return int(struct.unpack_from("<I", stored, at)[0]) if at + 4 <= len(stored) else None


def _headers(file: IO[bytes], size: int) -> tuple[list[tuple[zipfile.ZipInfo, int]], int]:
    """([member, first byte of its data], where no more follow), by walking the local headers from the front."""
    position, found = 0, list[tuple[zipfile.ZipInfo, int]]()
    while True:
        header = read_at(file, position, _LOCAL_HEADER.size)
        if header[:4] != _MEMBER_MARK or len(header) < _LOCAL_HEADER.size:
            return found, position
        _, _, flags, method, _, _, _, stored, whole, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        raw = read_at(file, position + _LOCAL_HEADER.size, name_length)
        start = position + data_start(header)
        if flags & 0x8 or start + stored > size:  # sizes follow the data, or the data is cut
            return found, position
        item = zipfile.ZipInfo(decoded_name(raw, is_marked=bool(flags & IS_UTF8)) or "unnamed")
        item.flag_bits, item.compress_type, item.header_offset = flags, method, position
        item.compress_size, item.file_size, item.extra = stored, whole, b"\0" * extra_length
        found.append((item, start))
        position = start + stored


def _recover_zip(
    file: IO[bytes],
    size: int,
    members: Sequence[tuple[zipfile.ZipInfo, int]],
    reached: int,
    place: Place,
    open_nested: OpenNested,
) -> Iterator[Found]:
    """Members of a zip whose directory is missing or damaged, as `_headers` found them."""
    for item, start in members:
        if is_archive(item.filename) and not place.prefix and not is_junk(item.filename):
            yield from _recovered_archive(file, item, start, place, open_nested)
        elif not item.filename.endswith("/"):
            yield from _zip_member(size, place, item)
    found = len(members)
    message = f"no readable zip directory; {found} members before byte {reached} of {size} are used, the rest is lost"
    yield place.problem(None, Code.TRUNCATED if found or size > 4 else Code.CORRUPT, message)


def _recovered_archive(
    file: IO[bytes], item: zipfile.ZipInfo, start: int, place: Place, open_nested: OpenNested
) -> Iterator[Found]:
    if needs_unpacking(item):
        message = "a compressed archive in a zip without directory; repair the zip (zip -FF)"
        yield place.problem(item.filename, Code.TRUNCATED, message, item.file_size)
        return
    inner = window(file, start, item.file_size)
    yield from open_nested(item.filename, inner, item.file_size, place, (place.base or 0) + start)
