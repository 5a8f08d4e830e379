"""One target in a process of its own, started by `tests.fuzz`: `python -m tests.fuzz.target NAME CORPUS [FLAGS]`.

libFuzzer, by atheris, mutates what covers new lines of ours, of Pillow's plug-ins and of pydicom. It ends the process
at an exception that escapes, at a crash, at an input that takes too long or too much memory, and keeps that input.
"""

import gzip
import io
import struct
import sys
import zlib
from collections.abc import Callable

import atheris

with atheris.instrument_imports(include=["pipeline", "PIL", "pydicom", "tarfile", "zipfile"]):
    from pipeline.base.errors import ImageRejected
    from pipeline.images.formats import foreign
    from pipeline.images.formats.sniff import is_complete, sniff
    from pipeline.images.load import Limits, load_image
    from pipeline.sources.archives import Entry, list_archive, read_archive
    from pipeline.sources.fetch import fetch_rows
    from pipeline.sources.listing import entry_row
    from pipeline.storage.stores import Stores
    from pipeline.storage.types import Bytes, ObjectInfo

SIZE, LIMITS = 32, Limits(max_bytes=1 << 20, max_pixels=1 << 16, max_frames=100)
NAMES = ("jpeg", "png", "tiff", "bmp", "gif", "webp", "jp2", "avif", "heic")


def image(data: bytes) -> None:
    try:
        assert load_image(data, SIZE, LIMITS).pixels.shape == (SIZE, SIZE, 3)
    except ImageRejected as error:
        assert error.message


def header(data: bytes) -> None:
    """Every reader of headers, also of a kind that the file is not."""
    sniff(data)
    foreign.by_content(data)
    for name in NAMES:
        is_complete(data, name)


class _Memory:
    """A store of one object."""

    is_remote = False

    def __init__(self, data: bytes) -> None:
        self._data = data

    def head(self, uri: str) -> ObjectInfo:
        return ObjectInfo(uri, len(self._data), "etag", 0.0)

    def open(self, uri: str, on_failure: object = None) -> io.BytesIO:
        return io.BytesIO(self._data)

    def read_range(self, uri: str, offset: int, size: int, etag: str | None = None) -> Bytes:
        return Bytes(self._data[offset : offset + size], "etag", 1)


def archive(name: str) -> Callable[[bytes], None]:
    """All members listed, and each read as scoring would."""

    def run(data: bytes) -> None:
        uri = f"/fuzz/x.{name}"
        packed = gzip.compress(data, 1) if name == "tgz" else data
        info = ObjectInfo(uri, len(packed), "etag", 0.0)
        found = list(list_archive(info, io.BytesIO(packed)))
        rows = [entry_row(item) for item in found if isinstance(item, Entry)]
        rows = [row for row in rows if row.size_bytes <= LIMITS.max_bytes]
        assert len(list(fetch_rows(rows, _Stores(packed), LIMITS))) == len(rows)
        if name == "tgz":
            assert len(list(read_archive(info, io.BytesIO(packed), LIMITS.max_bytes))) >= len(rows)

    return run


class _Stores(Stores):
    def __init__(self, data: bytes) -> None:
        object.__setattr__(self, "_store", _Memory(data))

    def of(self, uri: str) -> _Memory:  # type: ignore[override]
        return self._store  # type: ignore[attr-defined,no-any-return]


# ---- check sums put right, or nothing behind them would be reached --------------------------------------------


def with_png_sums(data: bytes) -> bytes:
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        (length,) = struct.unpack(">I", out[at : at + 4])
        end = at + 8 + length
        if end + 4 > len(out):
            break
        out[end : end + 4] = struct.pack(">I", zlib.crc32(out[at + 4 : end]))
        at = end + 4
    return bytes(out)


def with_tar_sums(data: bytes) -> bytes:
    out = bytearray(data)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            block = out[at : at + 148] + b" " * 8 + out[at + 156 : at + 512]
            out[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    return bytes(out)


REPAIRS = {"png": with_png_sums, "tar": with_tar_sums, "tgz": with_tar_sums}


def main() -> None:
    name = sys.argv.pop(1)
    target = archive(name) if name in ("zip", "tar", "tgz") else header if name == "header" else image
    repair = REPAIRS.get(name)

    def mutated(data: bytes, max_size: int, seed: int) -> bytes:
        found = atheris.Mutate(data, max_size)
        return repair(found)[:max_size] if repair is not None and seed % 4 else found

    atheris.Setup(sys.argv, target, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
