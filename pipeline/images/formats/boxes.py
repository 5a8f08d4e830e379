"""Boxes: how JPEG 2000 files (ISO/IEC 15444-1, annex I), AVIF and HEIC (ISO/IEC 14496-12) are laid out."""

from collections.abc import Iterator
from dataclasses import dataclass

_MOST = 4096  # at one level; files have a dozen


@dataclass(frozen=True)
class Box:
    """`start` and `end` of what is in it, in bytes of the file; `end` may lie behind the last one."""

    kind: bytes
    start: int
    end: int


def boxes(data: bytes, start: int = 0) -> Iterator[Box]:
    """Those of the outermost level, in order; none more where the bytes end inside a box's header."""
    at = start
    for _ in range(_MOST):
        if at + 8 > len(data):
            return
        length, kind, body = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], at + 8
        if length == 1:
            length, body = int.from_bytes(data[at + 8 : at + 16], "big"), at + 16
        end = len(data) if length == 0 else at + length
        if end < body:
            return
        yield Box(kind, body, end)
        at = end


def is_complete(data: bytes) -> bool:
    """Whether a file of images in boxes has its pixels (`mdat`) and reaches the end of each box."""
    found = list(boxes(data))
    return any(box.kind == b"mdat" for box in found) and all(box.end <= len(data) for box in found)
