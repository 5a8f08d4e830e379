"""A stretch of bytes that is read range by range, as a seekable file."""

import io
from collections.abc import Callable
from typing import Any


class RangedFile(io.RawIOBase):
    """`read_at(offset, size)` gives the bytes from `offset` on: `size` at most, and never asked for beyond the end."""

    def __init__(self, size: int, read_at: Callable[[int, int], bytes]) -> None:
        self._size, self._read_at, self._position = size, read_at, 0

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
        data = self._read_at(self._position, size)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
