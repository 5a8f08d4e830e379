"""What archives give: typed records, which names count as what, and where an archive lies inside another."""

import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any, cast

from pipeline.base.errors import Code
from pipeline.images.formats import foreign
from pipeline.images.load import IMAGE_SUFFIXES
from pipeline.sources.archives.damage import Damaged
from pipeline.sources.archives.other_kinds import unread_archive, unwrapped
from pipeline.sources.junk import OF_A_PROGRAM, is_junk
from pipeline.sources.rows import NESTED, Access, place_of
from pipeline.storage.ranged import RangedFile
from pipeline.storage.types import ObjectInfo, StoreError

COMPRESSED = {
    ".tar.gz": "gz", ".tgz": "gz", ".tar.bz2": "bz2", ".tbz2": "bz2", ".tbz": "bz2", ".tar.xz": "xz", ".txz": "xz",
    ".tar.zst": "zst", ".tzst": "zst",
}  # fmt: skip
_COMPRESSED_ENDINGS = tuple(COMPRESSED)
PLAIN = {".tar": "tar", ".zip": "zip"}
# IM000001, or a UID, before which receivers put the modality (`SC.1.2.840...`)
_DICOM_NAME = re.compile(r"(?:IM|IMG|IMAGE)[-_]?\d+|(?:[A-Z]{2,4}[._-])?\d+(?:\.\d+){5,}", re.IGNORECASE)
_VERSION = re.compile(r";\d+$")  # what CDs have behind each name (ISO 9660)
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")  # none of a text; all archives begin with some
_MAX_INT64 = 2**63 - 1
_MAGICS = {
    b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zst", b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!": "rar", b"\x1f\x9d": "compress",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One image that was found, before labels: a listing row."""

    uri: str
    size_bytes: int
    etag: str
    mtime: float  # seconds since 1970, UTC
    member: str | None = None
    access: Access = Access.FILE
    offset: int | None = None
    stored_bytes: int | None = None
    occurrence: int = 0  # how many members of the same name came before it
    meta: dict[str, str] = field(default_factory=dict)  # WebDataset sidecars
    image_id: int | None = None  # where a manifest has given it


@dataclass(frozen=True)
class Problem:
    """Something that should have given an image or several and could not: a quarantine row of stage 'list'."""

    uri: str
    member: str | None
    code: Code
    message: str
    size_bytes: int = 0
    etag: str = ""
    occurrence: int = 0  # as of an entry

    @property
    def place(self) -> str:
        """Where it lies, for a person."""
        return place_of(self.uri, self.member)


@dataclass(frozen=True)
class Ignored:
    """A file that is no image and no archive; only counted."""

    uri: str
    reason: str


Found = Entry | Problem | Ignored


def suffix(name: str) -> str:
    """`.tar.gz` for compressed tars, the last suffix in lower case otherwise; without what media put behind it."""
    lower = plain(name).lower()
    if lower.endswith(_COMPRESSED_ENDINGS):  # one test for the many names that are none
        return next(ending for ending in COMPRESSED if lower.endswith(ending))
    return posixpath.splitext(lower)[1]


def plain(name: str) -> str:
    """The name without blanks and a version of a CD behind it, which say nothing of the kind of a file."""
    name = name.rstrip()
    return _VERSION.sub("", name) if ";" in name else name


def is_archive(name: str) -> bool:
    ending = suffix(name)
    return ending in COMPRESSED or ending in PLAIN


def is_compressed_tar(name: str) -> bool:
    return suffix(name) in COMPRESSED


def holds_many(uri: str, member: str | None) -> bool:
    """Whether what failed stands for an unknown number of images: an archive, or a folder, named with a slash."""
    name = uri if member is None else member
    return name.endswith("/") or is_archive(name) or unread_archive(name) is not None


def is_image(name: str) -> bool:
    """Whether a file is read for its name; those of DICOM files are often without a suffix."""
    return suffix(name) in IMAGE_SUFFIXES or _DICOM_NAME.fullmatch(posixpath.basename(plain(name))) is not None


def unread(name: str) -> str | None:
    """What an image or an archive is that is not read, by its name, and what to do; None for all other files."""
    return foreign.by_suffix(suffix(name)) or unread_archive(name) or _wrapped(name)


def _wrapped(name: str) -> str | None:
    """What a single image is that lies behind a compression, a cipher, or half a download: `x.dcm.gz`, `x.jpg.gpg`."""
    inner, what = unwrapped(name)
    ending = suffix(inner) if what is not None else ""
    return what if ending in IMAGE_SUFFIXES or foreign.by_suffix(ending) is not None else None


@dataclass
class Place:
    """Where the archive being read lies inside the outermost object."""

    info: ObjectInfo
    prefix: str = ""  # member path of the enclosing archive, with `!/`
    base: int | None = 0  # its first byte in `info.uri`; None behind a compression
    ordinals: Iterator[int] = field(default_factory=lambda: iter(range(1 << 62)))

    def inside(self, member: str, base: int | None = None) -> "Place":
        return Place(self.info, readable(self.prefix + member) + NESTED, base, self.ordinals)

    def problem(self, member: str | None, code: Code, message: str, size: int = 0) -> Problem:
        """Of a member, or of the archive as a whole, whose length is then that of the object."""
        name = readable(self.prefix + member) if member is not None else (self.prefix.removesuffix(NESTED) or None)
        size = self.info.size if name is None else size
        return Problem(self.info.uri, name, code, message, min(size, _MAX_INT64), self.info.etag)

    def ignored(self, member: str, reason: str) -> Ignored:
        return Ignored(place_of(self.info.uri, readable(self.prefix + member)), reason)

    def damage(self, name: str, error: Damaged | StoreError) -> Problem:
        if isinstance(error, StoreError):
            return self.problem(None, error.code, str(error))
        return self.problem(None, error.code, f"{name}: {error}; the members before the damage are used")

    def entry(self, member: str, size: int, **where: Any) -> Entry:
        return Entry(self.info.uri, size, self.info.etag, self.info.mtime, readable(self.prefix + member), **where)


def readable(name: str) -> str:
    """A name that Parquet can hold: one whose bytes are no UTF-8 is read as Latin-1, in which every byte is a letter.

    Names stay different so, which tell classes apart. Members are read by offset, not name.
    """
    raw = name.encode("utf-8", "surrogateescape")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _is_unsafe(member: str) -> bool:
    path = member.replace("\\", "/")
    return path.startswith("/") or ".." in path.split("/") or re.match(r"[A-Za-z]:/", path) is not None


def other_kind(name: str, head: bytes) -> str | None:
    """What the first bytes of an archive say it is, where that is not what its name says."""
    found = next((kind for magic, kind in _MAGICS.items() if head.startswith(magic)), None)
    found = "tar" if found is None and head[257:262] == b"ustar" else found
    ending = suffix(name)
    expected = COMPRESSED.get(ending) or PLAIN.get(ending)
    return found if found is not None and found != expected else None


def text_instead(head: bytes) -> str | None:
    """What text takes the place of an archive that begins so, as a Git LFS pointer or a server's page; None else."""
    return None if _CONTROL.search(head) else foreign.by_content(head)


def classify(member: str, place: Place, size: int) -> Problem | Ignored | None:
    """Why a member is not an image to read, None if it is one."""
    if is_archive(member) and not is_junk(member):
        return place.problem(member, Code.UNSUPPORTED_FORMAT, "archives nested deeper than one; unpack a level", size)
    if is_junk(member):
        return place.ignored(member, OF_A_PROGRAM)
    if not is_image(member):
        what = unread(member)
        if what is not None:
            return place.problem(member, Code.UNSUPPORTED_FORMAT, what, size)
        return place.ignored(member, suffix(readable(member)) or "no suffix")
    if _is_unsafe(member):
        return place.problem(member, Code.UNSAFE_PATH, "member name leaves the archive; rename it", size)
    return None


def window(file: IO[bytes], start: int, size: int) -> IO[bytes]:
    """Bytes `start .. start + size` of a seekable file, as a file."""

    def read_at(offset: int, size: int) -> bytes:
        file.seek(start + offset)
        return file.read(size)

    return cast(IO[bytes], RangedFile(size, read_at))


# Opens an archive found inside another: (name, bytes, size, place of the outer one, first byte in the outermost
# object or None where there is no random access).
OpenNested = Callable[[str, IO[bytes], int, Place, int | None], Iterator[Found]]
