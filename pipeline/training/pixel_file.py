"""One file of images: a header that says what it holds, then an array an image that is mapped into memory, not read.

    magic, CRC-32 and length of the header     20 bytes
    header                                     Arrow IPC stream of HEADER_SCHEMA, one row an image, in id order
    zeros up to a multiple of 4096
    arrays                                     (N, ...), one an image; zeros where `code` says why there is none

The arrays are pixels, or features that a network makes of them; an `Item` says which. A file is believed as far as it
was checked: the header by its CRC and the length of the whole when it is opened, the array of an image by its CRC when
it is first taken (2 GB/s with zlib, against minutes to read a large cache at every start). Nothing in it is executed.
"""

import contextlib
import math
import os
import struct
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

TEMPORARY = ".tmp-"
_MAGIC = b"LEUKPIX\x01"  # raise the last byte with any change of the layout
_START = struct.Struct("<8sIQ")
_PAGE = 4096
_KEY = b"key"

NOTE_FIELDS = [
    pa.field("image_id", pa.int64(), nullable=False),
    pa.field("code", pa.string()),  # why it has no pixels; null where it has
    pa.field("message", pa.string()),
    pa.field("remark", pa.string()),
]
HEADER_SCHEMA = pa.schema(
    [
        *NOTE_FIELDS,
        pa.field("etag", pa.string(), nullable=False),
        pa.field("lasting", pa.bool_(), nullable=False),  # false: of this run alone; a later one decodes it again
        pa.field("crc", pa.uint32(), nullable=False),  # of its pixels
    ]
)


class UntrustedError(Exception):
    """A file that is not, or no longer, what was written."""


@dataclass(frozen=True)
class Item:
    """What is kept of each image."""

    shape: tuple[int, ...]
    dtype: type[np.generic] = np.uint8

    @classmethod
    def pixels(cls, size: int) -> "Item":
        """uint8 (S, S, 3), RGB."""
        return cls((size, size, 3))

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class PixelFile:
    """An opened file. `images` is (N, ...) of its items, read-only, mapped."""

    path: str
    header: pa.Table  # HEADER_SCHEMA
    images: NDArray[Any]

    def is_sound(self, position: int) -> bool:
        """Whether the array of one image is what was written."""
        return zlib.crc32(self.images[position]) == int(self.header["crc"][position].as_py())


def write_pixels(path: str, key: str, header: pa.Table, images: NDArray[Any]) -> None:
    """Write `images`, (N, ...), with `header`, HEADER_SCHEMA but for `crc`. Whole or not at all.

    Two who write the same file do each other no harm: the last rename stays. Raises OSError.
    """
    images = np.ascontiguousarray(images)
    crcs = pa.array([zlib.crc32(image) for image in images], pa.uint32())
    table = header.append_column(HEADER_SCHEMA.field("crc"), crcs).select(HEADER_SCHEMA.names).cast(HEADER_SCHEMA)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, HEADER_SCHEMA.with_metadata({_KEY: key.encode()})) as writer:
        writer.write_table(table)
    body = sink.getvalue().to_pybytes()
    with _whole(path) as file:
        file.write(_START.pack(_MAGIC, zlib.crc32(body), len(body)) + body)
        file.write(bytes(_pixels_at(len(body)) - file.tell()))
        file.write(images.data)


def write_copy(path: str, data: bytes) -> None:
    """Write the bytes of a file that lies on another node. Raises OSError."""
    with _whole(path) as file:
        file.write(data)


@contextlib.contextmanager
def _whole(path: str) -> Iterator[IO[bytes]]:
    """A file under a temporary name that takes its place once it is on the disk. For its owner's eyes only."""
    temporary = f"{path}{TEMPORARY}{uuid.uuid4().hex[:12]}"
    try:
        with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_header(path: str, key: str, item: Item) -> pa.Table:
    """HEADER_SCHEMA of a file that is whole. Raises UntrustedError for any other, OSError where it cannot be read."""
    with open(path, "rb") as file:
        start = file.read(_START.size)
        magic, crc, length = _START.unpack(start) if len(start) == _START.size else (b"", 0, 0)
        if magic != _MAGIC:
            raise UntrustedError(f"{path}: not a file of pixels of this version")
        whole = os.fstat(file.fileno()).st_size
        body = file.read(length) if length < whole else b""
    if len(body) != length or zlib.crc32(body) != crc:
        raise UntrustedError(f"{path}: its header is damaged")
    table = pa.ipc.open_stream(body).read_all()
    if (table.schema.metadata or {}).get(_KEY) != key.encode():
        raise UntrustedError(f"{path}: was made by other rules")
    if whole != _pixels_at(length) + table.num_rows * item.size_bytes:
        raise UntrustedError(f"{path}: its length is not what its header says")
    return table


def open_pixels(path: str, key: str, item: Item) -> PixelFile:
    """Map a file. Raises UntrustedError where it is not whole, OSError where it cannot be read."""
    header = read_header(path, key, item)
    with open(path, "rb") as file:
        length = _START.unpack(file.read(_START.size))[2]
        shape = (header.num_rows, *item.shape)
        empty = not header.num_rows  # which cannot be mapped
        images = np.zeros(shape, item.dtype) if empty else np.memmap(file, item.dtype, "r", _pixels_at(length), shape)
    return PixelFile(path, header, images)


def _pixels_at(header_bytes: int) -> int:
    return -(-(_START.size + header_bytes) // _PAGE) * _PAGE
