"""Images made by code for the decoder's tests: a scene whose every corner differs, and files no encoder would write."""

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

_SIZES = {1: "B", 2: "B", 3: "H", 4: "I", 16: "Q"}


def scene(width: int = 160, height: int = 120) -> Image.Image:
    """Four corners of different colour, smooth, so that turning, mirroring and wrong channels show."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    pixels = np.stack([60 + 180 * x, 60 + 180 * y, 200 - 150 * x * y], axis=2)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def with_png_chunk(data: bytes, chunk: bytes) -> bytes:
    """`chunk` behind the header of a PNG."""
    return data[:33] + chunk + data[33:]


def with_jpeg_frame(data: bytes, marker: int = 0xC0, precision: int = 8) -> bytes:
    """A baseline JPEG that says it is of another kind."""
    at = data.index(b"\xff\xc0")
    return data[:at] + bytes([0xFF, marker]) + data[at + 2 : at + 4] + bytes([precision]) + data[at + 5 :]


def deep_png(levels: NDArray[np.uint16]) -> bytes:
    """A 16-bit colour PNG, which Pillow does not write."""
    height, width, _ = levels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), levels.astype(">u2").reshape(height, -1).view(np.uint8)], 1)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    pixels = png_chunk(b"IDAT", zlib.compress(rows.tobytes()))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + pixels + png_chunk(b"IEND", b"")


def tiff(
    samples: NDArray[Any],
    *,
    order: str = "<",
    big: bool = False,
    planar: bool = False,
    tags: Mapping[int, int | list[int]] = {},
    description: bytes = b"",
) -> bytes:
    """An uncompressed TIFF or BigTIFF of samples (H, W) or (H, W, C), written by hand; `tags` replace or add."""
    height, width, channels = (*samples.shape, 1)[:3]
    bits, kind = samples.dtype.itemsize * 8, {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    planes = np.moveaxis(samples, 2, 0) if planar else samples[None]
    strips = [plane.astype(samples.dtype.newbyteorder(order)).tobytes() for plane in planes]
    start = 16 if big else 8
    offsets = [start + sum(len(strip) for strip in strips[:index]) for index in range(len(strips))]
    values: dict[int, tuple[int, Sequence[int]]] = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * channels), 259: (3, [1]),
        262: (3, [2 if channels == 3 else 1]), 273: (16 if big else 4, offsets), 277: (3, [channels]),
        278: (4, [height]), 279: (4, [len(strip) for strip in strips]), 284: (3, [2 if planar else 1]),
        339: (3, [kind] * channels),
    }  # fmt: skip
    values |= {tag: (4, value if isinstance(value, list) else [value]) for tag, value in tags.items()} | (
        {270: (2, list(description))} if description else {}
    )
    return _tiff_file(order, big, b"".join(strips), values)


def deflated_planes(samples: NDArray[np.uint8]) -> bytes:
    """A TIFF of (H, W, 3), each row of each plane a strip, as libtiff makes them of wide images."""
    height, width, _ = samples.shape
    strips = [zlib.compress(row.tobytes(), 1) for plane in np.moveaxis(samples, 2, 0) for row in plane]
    sizes = [len(strip) for strip in strips]
    offsets = [8, *(8 + np.cumsum(sizes)[:-1]).tolist()]
    values: dict[int, tuple[int, Sequence[int]]] = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [8] * 3), 259: (3, [8]), 262: (3, [2]), 273: (4, offsets),
        277: (3, [3]), 278: (4, [1]), 279: (4, sizes), 284: (3, [2]),
    }  # fmt: skip
    return _tiff_file("<", False, b"".join(strips), values)


def jpeg_tiff(image: Image.Image, tile: int = 64, *, old: bool = False) -> bytes:
    """A TIFF of JPEG tiles, as of slide scanners; `old`: of one JPEG stream in the way of TIFF 6.0, section 22."""
    across, down = (1, 1) if old else (-(-image.width // tile), -(-image.height // tile))
    if old:
        streams = [encoded(image, "JPEG", quality=95)]
    else:
        boxes = [(x * tile, y * tile, (x + 1) * tile, (y + 1) * tile) for y in range(down) for x in range(across)]
        streams = [encoded(image.crop(box), "JPEG", quality=95) for box in boxes]
    offsets = [8 + sum(map(len, streams[:index])) for index in range(len(streams))]
    lengths = [len(stream) for stream in streams]
    values: dict[int, tuple[int, Sequence[int]]] = {
        256: (4, [image.width]), 257: (4, [image.height]), 258: (3, [8] * 3), 259: (3, [6 if old else 7]),
        262: (3, [6]), 277: (3, [3]), 284: (3, [1]), 530: (3, [2, 2]),
    }  # fmt: skip
    if old:
        values |= {273: (4, offsets), 278: (4, [image.height]), 279: (4, lengths)}
        values |= {512: (3, [1]), 513: (4, offsets), 514: (4, lengths)}
    else:
        values |= {322: (4, [tile]), 323: (4, [tile]), 324: (4, offsets), 325: (4, lengths)}
    return _tiff_file("<", False, b"".join(streams), values)


def _tiff_file(order: str, big: bool, body: bytes, values: Mapping[int, tuple[int, Sequence[int]]]) -> bytes:
    word, inline = ("Q", 8) if big else ("I", 4)
    directory = (16 if big else 8) + len(body)
    magic = b"II" if order == "<" else b"MM"
    head = magic + struct.pack(order + ("HHHQ" if big else "HI"), *((43, 8, 0, directory) if big else (42, directory)))
    entries, extra = b"", b""
    after = directory + struct.calcsize(order + ("Q" if big else "H")) + len(values) * (20 if big else 12) + inline
    for tag, (kind, numbers) in sorted(values.items()):
        packed = struct.pack(f"{order}{len(numbers)}{_SIZES[kind]}", *numbers)
        if len(packed) > inline:
            place = struct.pack(order + word, after + len(extra))
            extra += packed
        else:
            place = packed.ljust(inline, b"\0")
        entries += struct.pack(order + "HH" + word, tag, kind, len(numbers)) + place
    count = struct.pack(order + ("Q" if big else "H"), len(values))
    return head + body + count + entries + b"\0" * inline + extra


def pages(
    images: Sequence[Image.Image], description: bytes = b"", imagej: tuple[bytes, Sequence[int]] | None = None
) -> bytes:
    """A TIFF of several pages, whose first one has a description, and ImageJ's metadata with the sizes of its parts."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    if description:
        tags[270] = description.decode()
    if imagej is not None:
        tags.tagtype[50838], tags[50838] = 4, tuple(imagej[1])
        tags.tagtype[50839], tags[50839] = 1, imagej[0]
    return encoded(images[0], "TIFF", save_all=True, append_images=images[1:], tiffinfo=tags)
