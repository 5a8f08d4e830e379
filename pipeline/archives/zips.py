"""Zips: where every member's local header lies, how to take its bytes from there, and what a cut zip still gives."""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

from pipeline.archives.members import Found, OpenNested, Place, classify, is_archive, is_compressed_tar, is_junk, window
from pipeline.errors import Code

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # APPNOTE 4.3.7


def list_zip(file: IO[bytes], size: int, place: Place, open_nested: OpenNested) -> Iterator[Found]:
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile:
        yield from _recover_zip(file, size, place)
        return
    with archive:
        for item in archive.infolist():
            if not item.is_dir():
                name = item.filename
                if is_archive(name) and not place.prefix and not is_junk(name):
                    yield from _nested_zip_member(file, archive, item, place, open_nested)
                else:
                    yield from _zip_member(size, place, item)


def _zip_member(size: int, place: Place, item: zipfile.ZipInfo) -> Iterator[Found]:
    name = item.filename
    refused = classify(name, place, item.file_size)
    if refused is not None:
        yield refused
    elif item.flag_bits & 0x1:
        yield place.problem(name, Code.UNSUPPORTED_FORMAT, "an encrypted zip member; unpack it first", item.file_size)
    elif item.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        message = f"zip compression method {item.compress_type}; only stored and deflated are read"
        yield place.problem(name, Code.UNSUPPORTED_FORMAT, message, item.file_size)
    elif item.header_offset + item.compress_size > size:
        yield place.problem(name, Code.TRUNCATED, "the archive ends inside this member", item.file_size)
    else:
        header = _LOCAL_HEADER.size + len(item.orig_filename.encode("utf-8", "surrogateescape")) + len(item.extra)
        yield place.entry(
            name,
            item.file_size,
            access="zip",
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
    if item.flag_bits & 0x1:
        yield place.problem(item.filename, Code.UNSUPPORTED_FORMAT, "an encrypted archive; unpack it", item.file_size)
    elif needs_unpacking(item):
        with archive.open(item) as handle:
            yield from open_nested(item.filename, handle, item.file_size, place, None)
    else:
        file.seek(item.header_offset)
        start = item.header_offset + data_start(file.read(_LOCAL_HEADER.size))
        inner = window(file, start, item.file_size)
        yield from open_nested(item.filename, inner, item.file_size, place, (place.base or 0) + start)


def data_start(header: bytes) -> int:
    """Bytes from a zip local header to the member's data. Raises zipfile.BadZipFile if it is no such header."""
    if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile("no local file header where the directory says")
    fields = _LOCAL_HEADER.unpack(header[: _LOCAL_HEADER.size])
    return _LOCAL_HEADER.size + int(fields[9]) + int(fields[10])


def zip_member(stored: bytes, size_bytes: int) -> bytes | None:
    """The image in `stored` (local header, name, extra, data); None when `stored` is too short to hold it.

    Raises zlib.error or zipfile.BadZipFile on damage.
    """
    start = data_start(stored)
    method = struct.unpack_from("<H", stored, 8)[0]
    if method == zipfile.ZIP_STORED:
        data = stored[start : start + size_bytes]
        return data if len(data) == size_bytes else None
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    data = engine.decompress(stored[start:], size_bytes + 1)
    if len(data) > size_bytes:
        raise zipfile.BadZipFile("inflates to more than the directory says")
    return data if engine.eof or len(data) == size_bytes else None


def _recover_zip(file: IO[bytes], size: int, place: Place) -> Iterator[Found]:
    """Members of a zip whose directory is missing or damaged, by walking the local headers from the front."""
    position, found = 0, 0
    while True:
        file.seek(position)
        header = file.read(_LOCAL_HEADER.size)
        if header[:4] != b"PK\x03\x04" or len(header) < _LOCAL_HEADER.size:
            break
        _, _, flags, method, _, _, _, stored, whole, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        raw = file.read(name_length)
        start = position + data_start(header)
        if flags & 0x8 or start + stored > size:  # sizes follow the data, or the data is cut
            break
        item = zipfile.ZipInfo(raw.decode("utf-8" if flags & 0x800 else "cp437", "replace") or "unnamed")
        item.flag_bits, item.compress_type, item.header_offset = flags, method, position
        item.compress_size, item.file_size, item.extra = stored, whole, b"\0" * extra_length
        if not item.is_dir():
            yield from _zip_member(size, place, item)
            found += 1
        position = start + stored
    message = f"no readable zip directory; {found} members before byte {position} of {size} are used, the rest is lost"
    yield place.problem(None, Code.TRUNCATED if found or size > 4 else Code.CORRUPT, message)
