"""Archives: which images lie in a tar or zip, and where, so that each can be read by byte range.

    access   where the bytes are                              `offset`
    file     the whole object                                 null
    range    plain bytes inside `uri` (tar)                   first byte of the image
    zip      a zip member, stored or deflated                 its local header
    stream   behind a compression that allows no random       ordinal among such members
             access (.tar.gz/.bz2/.xz, also inside another
             archive; an archive deflated inside a zip)

Nothing is ever extracted to disk by name. Archives inside archives are opened one deep. Formats: POSIX.1-2001 pax
and GNU tar; PKWARE APPNOTE 6.3 (zip64 included).
"""

import bz2
import functools
import gzip
import io
import json
import lzma
import posixpath
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import IO, Any, cast

from pipeline.errors import Code
from pipeline.images import IMAGE_SUFFIXES
from pipeline.storage import ObjectInfo, StoreError

_COMPRESSED = {
    ".tar.gz": "gz", ".tgz": "gz", ".tar.bz2": "bz2", ".tbz2": "bz2", ".tbz": "bz2", ".tar.xz": "xz", ".txz": "xz",
}  # fmt: skip
_PLAIN = {".tar": "tar", ".zip": "zip"}
_SIDECARS = {".cls", ".json", ".txt"}  # WebDataset: files of one sample share the name up to the first dot
_SIDECAR_LIMIT_BYTES = 64 * 1024
_NESTED_LIMIT_BYTES = 2 << 30
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # APPNOTE 4.3.7
NESTED = "!/"
_DAMAGE = (
    StoreError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
    OSError, ValueError, NotImplementedError, RuntimeError,
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One image that was found, before labels: a listing row."""

    uri: str
    size_bytes: int
    etag: str
    mtime: float  # seconds since 1970, UTC
    member: str | None = None
    access: str = "file"
    offset: int | None = None
    stored_bytes: int | None = None
    occurrence: int = 0  # how many members of the same name came before it
    meta: dict[str, str] = field(default_factory=dict)  # WebDataset sidecars


@dataclass(frozen=True)
class Problem:
    """Something that should have given an image or several and could not: a quarantine row of stage 'list'."""

    uri: str
    member: str | None
    code: Code
    message: str
    size_bytes: int = 0
    etag: str = ""


@dataclass(frozen=True)
class Ignored:
    """A file that is no image and no archive; only counted."""

    uri: str
    reason: str


Found = Entry | Problem | Ignored


def suffix(name: str) -> str:
    """`.tar.gz` for compressed tars, the last suffix in lower case otherwise."""
    lower = name.lower()
    for ending in _COMPRESSED:
        if lower.endswith(ending):
            return ending
    return posixpath.splitext(lower)[1]


def is_archive(name: str) -> bool:
    return suffix(name) in _COMPRESSED or suffix(name) in _PLAIN


def is_compressed_tar(name: str) -> bool:
    return suffix(name) in _COMPRESSED


def is_image(name: str) -> bool:
    return suffix(name) in IMAGE_SUFFIXES


def is_junk(name: str) -> bool:
    """Resource forks and thumbnails that file managers leave beside images."""
    base = posixpath.basename(name)
    return base.startswith("._") or base in (".DS_Store", "Thumbs.db") or "__MACOSX/" in name


def list_archive(info: ObjectInfo, file: IO[bytes]) -> Iterator[Found]:
    """Everything in one archive. Damage ends as a Problem after the members that could be read."""
    seen: dict[str, int] = {}
    for item in _guarded(info.uri, file, info.size, _Place(info)):
        if isinstance(item, Entry):
            occurrence = seen.get(item.member or "", 0)
            seen[item.member or ""] = occurrence + 1
            yield replace(item, occurrence=occurrence) if occurrence else item
        else:
            yield item


@dataclass
class _Place:
    """Where the archive being read lies inside the outermost object."""

    info: ObjectInfo
    prefix: str = ""  # member path of the enclosing archive, with `!/`
    base: int | None = 0  # its first byte in `info.uri`; None behind a compression
    ordinals: Iterator[int] = field(default_factory=lambda: iter(range(1 << 62)))

    def inside(self, member: str, base: int | None = None) -> "_Place":
        return _Place(self.info, readable(self.prefix + member) + NESTED, base, self.ordinals)

    def problem(self, member: str | None, code: Code, message: str, size: int = 0) -> Problem:
        name = readable(self.prefix + member) if member is not None else (self.prefix.removesuffix(NESTED) or None)
        return Problem(self.info.uri, name, code, message, size, self.info.etag)

    def damage(self, name: str, error: Exception) -> Problem:
        if isinstance(error, StoreError):
            return self.problem(None, error.code, str(error))
        cut = isinstance(error, EOFError) or any(word in str(error).lower() for word in ("end of data", "ended before"))
        code = Code.TRUNCATED if cut else Code.CORRUPT
        return self.problem(None, code, f"{name}: {error or 'ends too early'}; the members before the damage are used")

    def entry(self, member: str, size: int, **where: Any) -> Entry:
        return Entry(
            self.info.uri, size, self.info.etag, self.info.mtime, readable(self.prefix + member), **where
        )  # fmt: skip


def readable(name: str) -> str:
    """A name that Parquet can hold: bytes that are no UTF-8 become U+FFFD. Members are read by offset, not name."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _guarded(name: str, file: IO[bytes], size: int, place: _Place) -> Iterator[Found]:
    if size == 0:
        yield place.problem(None, Code.EMPTY, f"{name}: an archive of zero bytes")
        return
    kind = _COMPRESSED.get(suffix(name)) or _PLAIN[suffix(name)]
    reader = {"tar": _list_tar, "zip": _list_zip}.get(kind, _list_stream)
    try:
        yield from reader(file, size, place)
    except _DAMAGE as error:
        yield place.damage(name, error)


def _is_unsafe(member: str) -> bool:
    parts = member.replace("\\", "/").split("/")
    return member.startswith("/") or ".." in parts or (len(member) > 1 and member[1] == ":")


def _classify(member: str, place: _Place, size: int) -> Problem | Ignored | None:
    """Why a member is not an image to read, None if it is one."""
    if is_archive(member) and not is_junk(member):
        return place.problem(member, Code.UNSUPPORTED_FORMAT, "archives nested deeper than one; unpack a level", size)
    if is_junk(member) or not is_image(member):
        return Ignored(f"{place.info.uri}{NESTED}{readable(place.prefix + member)}", suffix(member) or "no suffix")
    if _is_unsafe(member):
        return place.problem(member, Code.UNSAFE_PATH, "member name leaves the archive; rename it", size)
    return None


# --- tar ---------------------------------------------------------------------------------------------------------


def _list_tar(file: IO[bytes], size: int, place: _Place) -> Iterator[Found]:
    with tarfile.open(fileobj=file, mode="r:") as archive:
        group: list[Found] = []  # waits for sidecars that may follow
        key, meta = "", dict[str, str]()
        try:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                if not member.isreg():
                    continue
                this_key = _sample_key(member.name)
                if this_key != key:
                    yield from _with_meta(group, meta)
                    group, key, meta = [], this_key, {}
                if suffix(member.name) in _SIDECARS and member.size <= _SIDECAR_LIMIT_BYTES:
                    handle = archive.extractfile(member)
                    meta.update(_sidecar(member.name, handle.read() if handle else b""))
                group.extend(_tar_member(file, size, place, member))
        except _DAMAGE:
            yield from _with_meta(group, meta)
            raise
        yield from _with_meta(group, meta)
        yield from _tar_end(file, size, archive.offset, place)


def _tar_member(file: IO[bytes], size: int, place: _Place, member: tarfile.TarInfo) -> Iterator[Found]:
    whole = member.offset_data + member.size <= size
    if is_archive(member.name) and not place.prefix and not is_junk(member.name):
        if whole:
            yield from _nested(_window(file, member.offset_data, member.size), member, place)
        else:
            yield place.problem(member.name, Code.TRUNCATED, "the archive ends inside this member", member.size)
        return
    refused = _classify(member.name, place, member.size)
    if refused is not None:
        yield refused
    elif member.issparse():
        yield place.problem(member.name, Code.UNSUPPORTED_FORMAT, "a sparse tar member; pack it plainly", member.size)
    elif not whole:
        yield place.problem(member.name, Code.TRUNCATED, "the archive ends inside this member", member.size)
    else:
        offset = (place.base or 0) + member.offset_data
        yield place.entry(member.name, member.size, access="range", offset=offset, stored_bytes=member.size)


def _nested(window: IO[bytes], member: tarfile.TarInfo, place: _Place) -> Iterator[Found]:
    """An archive stored as plain bytes: its members keep random access, unless it is compressed itself."""
    if is_compressed_tar(member.name):
        yield from (found for found, _ in _walk_hidden(member.name, window, member.size, place.inside(member.name)))
        return
    inner = place.inside(member.name, (place.base or 0) + member.offset_data)
    yield from _guarded(member.name, window, member.size, inner)


def _tar_end(file: IO[bytes], size: int, offset: int, place: _Place) -> Iterator[Found]:
    """tarfile takes a damaged header after the first for the end; only a zero block really is."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if not block or (len(block) < tarfile.BLOCKSIZE and offset + len(block) >= size):
        yield place.problem(
            None, Code.TRUNCATED, "no end-of-archive mark: the archive was cut; what was before is used"
        )
    elif block.strip(b"\0"):
        yield place.problem(None, Code.CORRUPT, f"damaged tar header at byte {offset}; the members before it are used")


def _sample_key(name: str) -> str:
    folder, base = posixpath.split(name)
    return f"{folder}/{base.split('.', 1)[0]}"


def _sidecar(name: str, data: bytes) -> dict[str, str]:
    text = data.decode("utf-8", "replace").strip()
    ending = suffix(name)
    if ending != ".json":
        return {ending[1:]: text}
    try:
        loaded = json.loads(text)
    except ValueError:
        return {"json": text}
    if not isinstance(loaded, dict):
        return {"json": text}
    return {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in loaded.items() if v is not None}


def _with_meta(group: list[Found], meta: dict[str, str]) -> list[Found]:
    if not meta:
        return group
    return [replace(item, meta=meta) if isinstance(item, Entry) else item for item in group]


# --- members without random access -------------------------------------------------------------------------------

Hidden = tuple[Found, Callable[[], bytes] | None]


def _list_stream(file: IO[bytes], size: int, place: _Place) -> Iterator[Found]:
    return (found for found, _ in _walk_stream(place.info.uri, file, place))


def _decompressed(name: str, file: IO[bytes]) -> IO[bytes]:
    kind = _COMPRESSED[suffix(name)]
    if kind == "gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=file))
    return cast(IO[bytes], bz2.BZ2File(file) if kind == "bz2" else lzma.LZMAFile(file))


def _walk_stream(name: str, file: IO[bytes], place: _Place) -> Iterator[Hidden]:
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
            refused = _classify(member.name, place, member.size)
            if refused is not None:
                yield refused, None
            else:
                yield place.entry(member.name, member.size, access="stream", offset=next(place.ordinals)), handle.read


def _walk_hidden(name: str, handle: IO[bytes], size: int, place: _Place) -> Iterator[Hidden]:
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
    except _DAMAGE as error:
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
    place = _Place(info)
    if is_compressed_tar(info.uri):
        yield from _walk_stream(info.uri, file, place)
    elif suffix(info.uri) == ".zip":
        with zipfile.ZipFile(file) as archive:
            for item in archive.infolist():
                if _needs_unpacking(item):
                    with archive.open(item) as handle:
                        yield from _walk_hidden(item.filename, handle, item.file_size, place.inside(item.filename))
    else:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]
                if member.isreg() and is_compressed_tar(member.name) and not is_junk(member.name):
                    window = _window(file, member.offset_data, member.size)
                    yield from _walk_hidden(member.name, window, member.size, place.inside(member.name))


# --- zip ---------------------------------------------------------------------------------------------------------


def _list_zip(file: IO[bytes], size: int, place: _Place) -> Iterator[Found]:
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
                    yield from _nested_zip_member(file, archive, item, place)
                else:
                    yield from _zip_member(size, place, item)


def _zip_member(size: int, place: _Place, item: zipfile.ZipInfo) -> Iterator[Found]:
    name = item.filename
    refused = _classify(name, place, item.file_size)
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


def _needs_unpacking(item: zipfile.ZipInfo) -> bool:
    """Whether a zip member is an archive whose own members have no random access."""
    if not is_archive(item.filename) or is_junk(item.filename) or item.flag_bits & 0x1:
        return False
    return item.compress_type != zipfile.ZIP_STORED or is_compressed_tar(item.filename)


def _nested_zip_member(
    file: IO[bytes], archive: zipfile.ZipFile, item: zipfile.ZipInfo, place: _Place
) -> Iterator[Found]:
    if item.flag_bits & 0x1:
        yield place.problem(item.filename, Code.UNSUPPORTED_FORMAT, "an encrypted archive; unpack it", item.file_size)
    elif _needs_unpacking(item):
        with archive.open(item) as handle:
            inner = place.inside(item.filename)
            yield from (found for found, _ in _walk_hidden(item.filename, handle, item.file_size, inner))
    else:
        file.seek(item.header_offset)
        start = item.header_offset + data_start(file.read(_LOCAL_HEADER.size))
        inner = place.inside(item.filename, (place.base or 0) + start)
        yield from _guarded(item.filename, _window(file, start, item.file_size), item.file_size, inner)


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


def _recover_zip(file: IO[bytes], size: int, place: _Place) -> Iterator[Found]:
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


class _Window(io.RawIOBase):
    """Bytes `start .. start + size` of a seekable file, as a file."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file, self._start, self._size, self._position = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self._size - self._position)
        if size <= 0:
            return 0
        self._file.seek(self._start + self._position)
        data = self._file.read(size)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _window(file: IO[bytes], start: int, size: int) -> IO[bytes]:
    return cast(IO[bytes], _Window(file, start, size))
