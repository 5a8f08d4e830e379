"""How many parts a file may have: chunks, segments, directories, blocks, strips, elements.

Each costs its reader a step, however few bytes it takes: a PNG of a million chunks is 12 MB and seconds. Writers make a
few thousand at most, so this is no option. Where no reader of ours counts them, what a library asks for is counted.
"""

import io

from pipeline.base.errors import Code, ImageRejected

MOST_PARTS = 20_000
_READS_A_PART = 4  # a chunk of PNG: length, kind, content, check sum
_BLOCK_BYTES = 128  # of GIF, whose blocks of 255 bytes take two reads
_RUNS = 1_000_000  # of BMP, which are read one by one, at half a microsecond
_TIMES_READ, _FREE_READ = 16, 1 << 20  # of all bytes, by one that opens, looks for pages and decodes


def too_many_parts() -> ImageRejected:
    """What a file of more is refused with."""
    message = "a file in more pieces (chunks, segments, blocks) than any program writes; save it anew as PNG or TIFF"
    return ImageRejected(Code.UNSUPPORTED_FORMAT, message)


class CountedBytes(io.BytesIO):
    """The bytes of a file, for readers that we did not write. `read` raises ImageRejected when they read on and on."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._reads_left = _READS_A_PART * MOST_PARTS
        if data.startswith(b"GIF"):
            self._reads_left += len(data) // _BLOCK_BYTES
        elif data.startswith(b"BM"):
            self._reads_left += _RUNS
        self._bytes_left = _TIMES_READ * len(data) + _FREE_READ  # tags of a TIFF may all name the same bytes

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self._reads_left -= 1
        self._bytes_left -= len(found)
        if self._reads_left < 0 or self._bytes_left < 0:
            raise too_many_parts()
        return found
