"""Directories of zips: which zips a file holds, and where the directory of each ends (PKWARE APPNOTE 4.3.16).

A file may hold several zips, joined by `cat`; a program or other bytes before its first member (a self-extracting
archive); and in a comment anything at all, the mark of a directory included.
"""

import struct
import zipfile
from dataclasses import dataclass
from typing import IO, cast

from pipeline.base.errors import Code
from pipeline.sources.archives.damage import Damaged, reading
from pipeline.storage.ranged import RangedFile

_END = struct.Struct("<4s4H2LH")  # signature, disk, disk of the directory, entries here, entries, size, offset, comment
_END_MARK, _ZIP64_MARK, _ENTRY_MARK = b"PK\x05\x06", b"PK\x06\x07", b"PK\x01\x02"
_ZIP64_LOCATOR_BYTES = 20
_MOST_COMMENT_BYTES = 0xFFFF
_MADE_BY_DOS = 0  # also what Windows writes: APPNOTE 4.4.2
IS_UTF8 = 0x800  # flag of a member: APPNOTE appendix D


@dataclass(frozen=True)
class Directory:
    """One zip of a file: its members, and where it begins."""

    archive: zipfile.ZipFile
    members: list[zipfile.ZipInfo]
    begin: int


def read_directories(file: IO[bytes], size: int) -> list[Directory]:
    """The zips that follow one another in a file; empty where it ends in none.

    Raises Damaged, of code unsupported_format for a part of a split zip.
    """
    found: list[Directory] = []
    end = size
    while end > 0 and (last := _last_zip(file, end, size)) is not None:
        archive, at = last
        members = members_of(archive)
        begin = min((item.header_offset for item in members), default=at)
        found.insert(0, Directory(archive, members, begin))
        if begin >= end:  # offsets that lead nowhere
            break
        end = begin
    return found


def _last_zip(file: IO[bytes], end: int, size: int) -> tuple[zipfile.ZipFile, int] | None:
    """(the zip that ends at `end`, where its end record lies). Looks as seldom as it can: each look is a request."""
    at = end - _END.size
    if end == size and at >= 0:
        record = read_at(file, at, _END.size)
        is_usual = record[:8] == _END_MARK + bytes(4) and record[12:16] != bytes(4) and record[20:] == bytes(2)
        if is_usual and (archive := _opened(file)) is not None:
            return archive, at
    found = _end_record(file, end, is_last=end == size)
    if found is None:
        return None
    archive = _opened(_cut(file, found, size))
    return (archive, found) if archive is not None else None


def _opened(file: IO[bytes]) -> zipfile.ZipFile | None:
    with reading:
        try:
            return zipfile.ZipFile(file)
        except zipfile.BadZipFile:
            return None


def members_of(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The directory of a zip, with its names as they were meant."""
    members = archive.infolist()
    for item in members:
        if not item.flag_bits & IS_UTF8 and not item.filename.isascii():
            item.filename = decoded_name(item.filename.encode("cp437", "replace"), is_marked=False)
        item.filename = with_slashes(item.filename, item.create_system)
    return members


def with_slashes(name: str, system: int) -> str:
    """Older programs of Windows part folders by backslashes (against APPNOTE 4.4.17), which would hide the classes."""
    return name.replace("\\", "/") if system == _MADE_BY_DOS and "/" not in name else name


def decoded_name(raw: bytes, *, is_marked: bool) -> str:
    """A member's name. Without the mark for UTF-8 it may be UTF-8 all the same (macOS writes so), else it is cp437."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("utf-8" if is_marked else "cp437", "replace")


def read_at(file: IO[bytes], offset: int, size: int) -> bytes:
    with reading:
        file.seek(offset)
        return file.read(size)


def _cut(file: IO[bytes], at: int, size: int) -> IO[bytes]:
    """The file up to the end record at `at`, as if that had no comment: zipfile takes what a comment holds for one."""
    end = at + _END.size
    if end == size:
        return file

    def read(offset: int, length: int) -> bytes:
        data = bytearray(read_at(file, offset, length))
        for index in range(max(offset, end - 2), min(offset + len(data), end)):
            data[index - offset] = 0
        return bytes(data)

    return cast(IO[bytes], RangedFile(end, read))


def _end_record(file: IO[bytes], end: int, *, is_last: bool) -> int | None:
    """Where the end record of the zip that ends at `end` lies; of the last, bytes behind it are passed over."""
    first = max(0, end - _END.size)
    record = read_at(file, first, _END.size)
    if record[8:16] != bytes(8) and _is_end_record(file, record, first, end, is_last=is_last):
        return first
    first = max(0, end - _END.size - _MOST_COMMENT_BYTES)
    tail = read_at(file, first, end - first)
    at, empty = len(tail), None
    while (at := tail.rfind(_END_MARK, 0, at)) >= 0:
        record = tail[at : at + _END.size]
        if _is_end_record(file, record, first + at, end, is_last=is_last):
            if record[8:16] != bytes(8):
                return first + at
            empty = first + at  # a zip without members, or the end of a comment of zeros
    return empty


def _is_end_record(file: IO[bytes], record: bytes, at: int, end: int, *, is_last: bool) -> bool:
    """Whether a directory lies where these bytes say. Raises Damaged for the end of a split zip."""
    if len(record) < _END.size or record[:4] != _END_MARK:
        return False
    _, disk, _, _, entries, size, _, comment = _END.unpack(record)
    reaches = at + _END.size + comment
    if not (reaches == end or (is_last and reaches < end)):
        return False
    if at > _ZIP64_LOCATOR_BYTES and read_at(file, at - _ZIP64_LOCATOR_BYTES, 4) == _ZIP64_MARK:
        return True
    if not entries:
        return bool(size == 0 and reaches == end)
    is_there = at >= size and read_at(file, at - size, 4) == _ENTRY_MARK
    if disk and (is_there or at < size):
        message = f"the last of {disk + 1} parts of a split zip; join them: zip -s 0 NAME.zip --out whole.zip"
        raise Damaged(Code.UNSUPPORTED_FORMAT, message)
    return is_there
