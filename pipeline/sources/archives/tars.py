"""Plain tars: the byte range of every member, and WebDataset sidecars beside it."""

import json
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from typing import IO, Literal, Self

from pipeline.base.errors import Code
from pipeline.sources.archives.damage import Damaged, reading
from pipeline.sources.archives.members import (
    Entry,
    Found,
    Ignored,
    OpenNested,
    Place,
    Problem,
    classify,
    is_archive,
    is_image,
    suffix,
    window,
)
from pipeline.sources.junk import is_junk
from pipeline.sources.rows import Access
from pipeline.storage.types import StoreError

_SIDECARS = {".cls", ".json", ".txt"}  # files of one sample share the name up to the first dot
_SIDECAR_LIMIT_BYTES = 64 * 1024
_EXTENSIONS = frozenset(
    {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}
)
_GNU_MAGIC = b"ustar  \0"
_FURTHER_VOLUME = b"M"  # of GNU tar
_MAX_HEADER_BYTES = 1 << 20  # of a name or other extension, which tarfile reads into memory
_MAX_STREAMED_BYTES = 1 << 36  # of a member: tarfile skips it in steps of 10 kB, however far behind the end it reaches
_MOST_PADDING = 1 << 20  # between and behind tars; more zeros are a copy that was broken off, or a hole in one
_SAMPLE_FILES = 16  # names that share much before a dot must not keep a whole archive waiting
# What was found, with its bytes, with why they cannot be had, or with neither where it is only listed.
Held = tuple[Found, bytes | Damaged | None]


class Samples:
    """Members wait here until the last file of their WebDataset sample is seen, so that sidecars reach all of them.

    Files of one sample share folder and name up to the first dot, and follow one another.
    """

    def __init__(self) -> None:
        self._waiting: list[Held] = []
        self._key = ""
        self._meta: dict[str, str] = {}

    def begin(self, name: str) -> list[Held]:
        """Say which member comes next; gives those of the sample before, when it is another."""
        folder, base = posixpath.split(name)
        key = f"{folder}/{base.split('.', 1)[0]}"
        if key == self._key:
            return self._release() if len(self._waiting) >= _SAMPLE_FILES else []
        complete = self.end()
        self._key = key
        return complete

    def end(self) -> list[Held]:
        complete = self._release()
        self._meta = {}
        return complete

    def _release(self) -> list[Held]:
        meta, held = self._meta, self._waiting
        self._waiting = []
        if not meta:
            return held
        return [(replace(item, meta=meta) if isinstance(item, Entry) else item, data) for item, data in held]

    def add(self, item: Found, data: bytes | Damaged | None = None) -> None:
        self._waiting.append((item, data))

    def add_sidecar(self, member: tarfile.TarInfo, handle: IO[bytes]) -> None:
        if suffix(member.name) in _SIDECARS and member.size <= _SIDECAR_LIMIT_BYTES:
            with reading:
                data = handle.read()
            self._meta.update(_sidecar(member.name, data))


class _Header(tarfile.TarInfo):
    """tarfile takes damaged headers for the end, and follows sizes to anywhere; here they are damage."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        prefix = tarfile.nts(buf[345:500], encoding, errors)  # type: ignore[attr-defined]
        if buf[257:265] == _GNU_MAGIC and prefix:  # there GNU tar keeps times, in incremental archives
            header.name = header.name.removeprefix(prefix + "/")
        if header.size < 0:
            raise tarfile.InvalidHeaderError("negative size")  # type: ignore[attr-defined]
        if header.type in _EXTENSIONS and header.size > _MAX_HEADER_BYTES:
            raise tarfile.InvalidHeaderError(f"a name of {header.size} bytes")  # type: ignore[attr-defined]
        return header

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        assert isinstance(tar, Tar)
        try:
            header = super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tar.has_end = True
            tar.padding += tarfile.BLOCKSIZE
            if tar.padding > _MOST_PADDING:
                message = f"nothing but zeros up to byte {tar.offset}, as where a copy was broken off"
                raise tarfile.ReadError(f"unexpected end of data, {message}") from None
            raise
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.TruncatedHeaderError:  # type: ignore[attr-defined]
            if tar.has_end:  # less than a block of padding behind the end
                raise tarfile.EOFHeaderError("end") from None  # type: ignore[attr-defined]
            raise tarfile.ReadError("unexpected end of data inside a header") from None
        except tarfile.HeaderError as error:
            where = "behind the end-of-archive mark, no tar" if tar.has_end else "damaged header"
            raise tarfile.ReadError(f"{where} at byte {tar.offset} ({error})") from None
        if not 0 <= header.size <= tar.max_bytes:  # extended headers may say another size
            raise tarfile.ReadError(f"damaged header at byte {tar.offset} (a size of {header.size} bytes)")
        tar.has_end, tar.padding = False, 0
        return header


class Tar(tarfile.TarFile):
    """Reads on behind an end-of-archive mark: tars are joined by cat. `has_end`: one was the last thing seen.

    `over`, `files` and `contents` raise Damaged.
    """

    tarinfo = _Header
    has_end = False
    padding = 0  # bytes of zeros since the last member
    max_bytes = (1 << 63) - 1

    @classmethod
    def over(cls, file: IO[bytes], mode: Literal["r:", "r|"]) -> "Tar":
        kind = _StreamedTar if mode == "r|" else Tar
        with reading:
            return kind.open(fileobj=file, mode=mode, ignore_zeros=True)

    def files(self) -> Iterator[tarfile.TarInfo]:
        """Members one by one; tarfile would keep every header."""
        while True:
            with reading:
                member = self.next()
            if member is None:
                return
            self.members: list[tarfile.TarInfo] = []
            yield member

    def contents(self, member: tarfile.TarInfo) -> IO[bytes] | None:
        """The bytes of a member as a file, None for one that has none, as a link or a folder."""
        with reading:
            return self.extractfile(member) if member.isreg() else None

    def end(self, place: Place) -> Iterator[Problem]:
        """What to say when there are no more members."""
        if not self.has_end:
            yield place.problem(
                None,
                Code.TRUNCATED,
                "no end-of-archive mark: the archive was cut, or goes on in another volume; what was before is used",
            )


class _StreamedTar(Tar):
    max_bytes = _MAX_STREAMED_BYTES


class Links:
    """Images that are links to files of other names, which hold the bytes: their targets come before or after them.

    A link to an image is only counted: the image is listed under the name that has the bytes. Messages leave targets
    out: they are names of others, which nobody would know to hide.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._others: dict[str, tuple[int, int]] = {}  # files that are no images: first byte, length
        self._waiting: list[tuple[str, str, bool]] = []  # name, target, whether it is a hard link

    def add_file(self, member: tarfile.TarInfo) -> None:
        """A file that is no image by its name."""
        if suffix(member.name) not in _SIDECARS and not is_archive(member.name) and not is_junk(member.name):
            self._others[posixpath.normpath(member.name)] = (member.offset_data, member.size)

    def add(self, member: tarfile.TarInfo) -> Iterator[Problem | Ignored]:
        """A member that is no file."""
        if member.type == _FURTHER_VOLUME:
            message = "a further volume of a tar; unpack all volumes with tar -xM and pack them anew"
            yield self._place.problem(None, Code.TRUNCATED, message)
        elif not is_image(member.name) or member.isdir() or is_junk(member.name):
            return
        elif not (member.islnk() or member.issym()):
            yield self._place.ignored(member.name, "link inside an archive")
        else:
            folder = "" if member.islnk() else posixpath.dirname(member.name)
            target = posixpath.normpath(posixpath.join(folder, member.linkname))
            self._waiting.append((member.name, target, member.islnk()))

    def settle(self, size: int, *, is_streamed: bool) -> Iterator[Found]:
        """What the links are, once all files are known. `size`: of the archive."""
        for name, target, is_hard in self._waiting:
            start, length = self._others.get(target, (0, 0))
            if target in self._others and is_streamed:
                message = "a link to a file whose name is no image's; unpack the archive, or rename that file"
                yield self._place.problem(name, Code.UNSUPPORTED_FORMAT, message, length)
            elif target in self._others and start + length <= size:
                at, refused = (self._place.base or 0) + start, classify(name, self._place, length)
                where = {"access": Access.RANGE, "offset": at, "stored_bytes": length}
                yield refused or self._place.entry(name, length, **where)
            elif is_hard and not is_image(target):
                message = "a hard link to what is not in the archive; pack it anew"
                yield self._place.problem(name, Code.TRUNCATED, message)
            else:
                yield self._place.ignored(name, "link inside an archive")


def list_tar(file: IO[bytes], size: int, place: Place, open_nested: OpenNested) -> Iterator[Found]:
    samples, links = Samples(), Links(place)
    with Tar.over(file, "r:") as archive:
        try:
            for member in archive.files():
                if not member.isreg():
                    yield from links.add(member)
                    continue
                if not is_image(member.name):
                    links.add_file(member)
                yield from (item for item, _ in samples.begin(member.name))
                if suffix(member.name) in _SIDECARS and (handle := archive.contents(member)):
                    samples.add_sidecar(member, handle)
                for item in _tar_member(file, size, place, member, open_nested):
                    samples.add(item)
        except (Damaged, StoreError):
            yield from (item for item, _ in samples.end())
            raise
        yield from (item for item, _ in samples.end())
        yield from links.settle(size, is_streamed=False)
        yield from archive.end(place)


def _tar_member(
    file: IO[bytes], size: int, place: Place, member: tarfile.TarInfo, open_nested: OpenNested
) -> Iterator[Found]:
    whole = member.offset_data + member.size <= size
    if is_archive(member.name) and not place.prefix and not is_junk(member.name):
        if whole:
            inner = window(file, member.offset_data, member.size)
            base = (place.base or 0) + member.offset_data
            yield from open_nested(member.name, inner, member.size, place, base)
        else:
            yield place.problem(member.name, Code.TRUNCATED, "the archive ends inside this member", member.size)
        return
    refused = classify(member.name, place, member.size)
    if refused is not None:
        yield refused
    elif member.issparse():
        yield place.problem(member.name, Code.UNSUPPORTED_FORMAT, "a sparse tar member; pack it plainly", member.size)
    elif not whole:
        yield place.problem(member.name, Code.TRUNCATED, "the archive ends inside this member", member.size)
    else:
        offset = (place.base or 0) + member.offset_data
        yield place.entry(member.name, member.size, access=Access.RANGE, offset=offset, stored_bytes=member.size)


def _sidecar(name: str, data: bytes) -> dict[str, str]:
    text = data.decode("utf-8", "replace").strip()
    ending = suffix(name)
    if ending != ".json":
        return {ending[1:]: text}
    try:
        loaded = json.loads(text)
        if not isinstance(loaded, dict):
            return {"json": text}
        found = {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in loaded.items() if v is not None}
    except (ValueError, RecursionError):
        return {"json": text}
    return {_storable(key): _storable(value) for key, value in found.items()}


def _storable(text: str) -> str:
    """JSON may escape half a surrogate pair, which Parquet cannot hold."""
    return text.encode("utf-8", "replace").decode()
