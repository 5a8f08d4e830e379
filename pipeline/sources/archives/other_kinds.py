"""Archives that are not read, known by the ends of their names: what each is, and what to do with it."""

import re

_KINDS = (
    (re.compile(r"\.z\d\d+$"), "a part of a split zip; join the parts: zip -s 0 NAME.zip --out whole.zip"),
    (re.compile(r"\.(?:zip|7z|rar)\.\d{3,}$"), "a part of a split archive; join the parts: cat NAME.0* > NAME"),
    (re.compile(r"\.tar[-.]\d+$"), "a volume of a tar; unpack all of them with tar -xM and pack them anew"),
    (
        re.compile(r"\.tar\.(?:lz|lz4|lzma|lzo|z|br)$|\.t(?:lz|az)$"),
        "a tar of an unread compression; use gzip",
    ),
    (re.compile(r"\.(?:7z|rar|iso|dmg|cab|cpio)$"), "an archive of a kind that is not read; pack it as tar or zip"),
)
_LIKE_THEM = re.compile(r"\.(?:z?\d\d+|lz|lz4|lzma|lzo|z|br|tlz|taz|7z|rar|iso|dmg|cab|cpio)$|\.tar[-.]\d+$")


def unread_archive(name: str) -> str | None:
    """What an archive is that is not read, and what to do with it; None for anything else."""
    lower = name.lower()
    if not _LIKE_THEM.search(lower):  # one test for the many names that are none
        return None
    return next((what for ending, what in _KINDS if ending.search(lower)), None)
