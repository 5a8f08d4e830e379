"""Archives that are not read, known by the ends of their names: what each is, and what to do with it."""

import posixpath
import re

_ARCHIVE = r"\.(?:tar(?:\.(?:gz|bz2|xz|zst))?|tgz|tbz2?|txz|tzst|zip|7z|rar)"
_KINDS = (
    (re.compile(r"\.z\d\d+$"), "a part of a split zip; join the parts: zip -s 0 NAME.zip --out whole.zip"),
    (re.compile(r"\.(?:zip|7z|rar)\.\d{3,}$"), "a part of a split archive; join the parts: cat NAME.0* > NAME"),
    (re.compile(r"\.tar[-.]\d+$"), "a volume of a tar; unpack all of them with tar -xM and pack them anew"),
    (
        re.compile(r"\.tar\.(?:lz|lz4|lzma|lzo|z|br|bz)$|\.t(?:lz|az)$"),
        "a tar of an unread compression; use gzip",
    ),
    (
        re.compile(_ARCHIVE + r"[._-]?(?:(?:part|x)?[a-d][a-z]|(?:[._-]|part)\d+)$"),
        "a part of a split archive, or an old copy; join the parts (cat NAME.* > NAME), or rename it",
    ),
    (
        re.compile(r"\.(?:7z|rar|r\d\d|iso|dmg|cab|cpio|zipx|wim|sqfs|sqsh|squashfs|sitx?|arj|lzh|lha|ace|pax)$"),
        "an archive of a kind that is not read; pack it as tar or zip",
    ),
)
_LIKE_THEM = re.compile(
    r"\.(?:[zr]?\d\d+|lz|lz4|lzma|lzo|z|br|bz|tlz|taz|7z|rar|iso|dmg|cab|cpio|zipx|wim|sqfs|sqsh|squashfs|sitx?|arj|lzh"
    r"|lha|ace|pax)$|" + _ARCHIVE + r"[^/]{1,12}$"
)
_COMPRESSED, _ENCRYPTED, _HALF = (
    "compressed by itself; unpack it",
    "encrypted; decrypt it",
    "half a download; get it again",
)
_WRAPPERS = {
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".lz4", ".lzma", ".br", ".z"), _COMPRESSED),
    **dict.fromkeys((".gpg", ".pgp", ".age", ".enc", ".aes", ".p7m", ".crypt"), _ENCRYPTED),
    **dict.fromkeys((".part", ".partial", ".filepart", ".crdownload", ".download"), _HALF),
}
_IS_ARCHIVE = re.compile(_ARCHIVE + "$")
_TELLS_NOTHING = re.compile(r"(?:^|/)[^./]+(?:\.\d{4,})?$")  # `night`, `night.2024`: behind a `.gz` there may be a tar


def unread_archive(name: str) -> str | None:
    """What an archive is that is not read, and what to do with it; None for anything else."""
    lower = name.lower()
    found = None
    if _LIKE_THEM.search(lower):  # one test for the many names that are none
        found = next((what for ending, what in _KINDS if ending.search(lower)), None)
    return found or _wrapped_archive(lower)


def _wrapped_archive(lower: str) -> str | None:
    inner, what = unwrapped(lower)
    if what is None or (what is _COMPRESSED and inner.endswith(".tar")):  # those are read
        return None
    is_one = _IS_ARCHIVE.search(inner) or (what is _COMPRESSED and _TELLS_NOTHING.search(inner))
    return f"an archive, perhaps, {what}" if is_one else None


def unwrapped(name: str) -> tuple[str, str | None]:
    """(the name below, what lies around it and what to do) of a file that another program has wrapped."""
    inner, ending = posixpath.splitext(name)
    what = _WRAPPERS.get(ending.lower())
    return (inner, what) if what is not None else (name, None)
