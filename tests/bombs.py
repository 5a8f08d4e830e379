"""Files that are small or plain to look at and cost far more to decode than images of their kind do; made by code."""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from pydicom import uid

from tests.dicoms import dicom, with_codestream, with_jpeg
from tests.images import encoded, png_chunk, scene, tiff, with_png_chunk

MEGA = 1 << 20
_HEAD = b"\x89PNG\r\n\x1a\n"
_END = png_chunk(b"IEND", b"")


@dataclass(frozen=True)
class Bomb:
    """`codes`: what it may be refused with; `is_sound`: it is an image after all, which may be answered as one."""

    make: Callable[[], bytes]
    codes: frozenset[str]
    is_sound: bool = False


def _flat(kind: str, side: int, **options: Any) -> bytes:
    return encoded(Image.new("RGB", (side, side), (210, 160, 200)), kind, **options)


# ---- PNG (ISO/IEC 15948) --------------------------------------------------------------------------------------


def _flat_png(side: int) -> bytes:
    """Of one level: deflate gives a thousandth."""
    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * side)
    pixels = b"".join([packer.compress(row) for _ in range(side)]) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return _HEAD + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels) + _END


def _png_of_chunks(chunk: bytes, number: int, *, behind: bool = False) -> bytes:
    data = encoded(scene(), "PNG")
    if behind:  # the pixels
        return data[:-12] + chunk * number + data[-12:]
    return with_png_chunk(data, chunk * number)


def _png_in_bytes() -> bytes:
    """Each byte of the pixels in a chunk of its own, as the specification allows."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8))
    data = encoded(noise, "PNG")
    pixels, at = b"", 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        pixels += data[at + 8 : at + 8 + length] if data[at + 4 : at + 8] == b"IDAT" else b""
        at += 12 + length
    chunks = [png_chunk(b"IDAT", pixels[index : index + 1]) for index in range(len(pixels))]
    return data[:33] + b"".join(chunks) + _END


def _png_film(frames: int) -> bytes:
    """One frame more in each chunk pair than a patient reader would have."""
    data = encoded(scene(), "PNG")
    control = png_chunk(b"acTL", struct.pack(">II", frames, 0))
    frame = png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 160, 120, 0, 0, 1, 10, 0, 0))
    return with_png_chunk(data, control)[:-12] + frame * frames + data[-12:]


# ---- JPEG (ITU-T T.81) ----------------------------------------------------------------------------------------


def _jpeg_with(extra: bytes, before: bytes) -> bytes:
    """`extra` before the first marker of this kind."""
    data = encoded(scene(), "JPEG")
    at = data.index(before)
    return data[:at] + extra + data[at:]


def _jpeg_cut() -> bytes:
    """In the middle of its tables, before the frame header."""
    data = encoded(scene(), "JPEG")
    return data[: data.index(b"\xff\xdb")]


def _segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


_TURNED = _segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0")
_EXIF = _segment(0xE1, b"Exif\0\0" + bytes(65_000))
_PHOTOSHOP = _segment(0xED, b"Photoshop 3.0\0" + (b"8BIM" + struct.pack(">HBxI", 1000, 0, 0)) * 5000)


def _jpeg_of_scans(side: int, scans: int) -> bytes:
    """A progressive file whose last scan is repeated."""
    data = encoded(Image.new("RGB", (side, side), (210, 160, 200)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def sound_jpeg_of_scans(side: int, full: int, empty: int) -> bytes:
    """Gray, whose coefficients are said anew by each of `full` scans, and of which none is by each of `empty` ones.

    No decoder has a reason to warn: the bits of a coefficient may be said again once all are known.
    """
    blocks = (side // 8) ** 2
    signs = np.zeros((blocks * 63, 2), np.uint8)  # a code of one bit: one coefficient of size 1; and its sign
    signs[:, 1] = np.random.default_rng(0).integers(0, 2, len(signs))
    header = _segment(0xDB, b"\0" + bytes([1] * 64)) + _segment(
        0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0"
    )
    scan = _segment(0xDA, b"\1\1\0\1\x3f\0")
    start = header + _one_code(0x00, 0) + _segment(0xDA, b"\1\1\0\0\0\0") + bytes(-(-blocks // 8))
    coded, nothing = scan + np.packbits(signs).tobytes(), scan + bytes(-(-blocks // 8))
    parts = [b"\xff\xd8", start, _one_code(0x10, 1), coded * full, _one_code(0x10, 0), nothing * empty, b"\xff\xd9"]
    return b"".join(parts)


def _scans_behind_a_comment(side: int, scans: int) -> bytes:
    """A comment before the first scan that holds an end mark."""
    data = sound_jpeg_of_scans(side, 1, scans)
    at = data.index(b"\xff\xda")
    return data[:at] + _segment(0xFE, b"\xff\xd9") + data[at:]


def _one_code(table: int, symbol: int) -> bytes:
    """A Huffman table whose one code is a bit, 0."""
    return _segment(0xC4, bytes([table, 1]) + bytes(15) + bytes([symbol]))


# ---- TIFF 6.0 -------------------------------------------------------------------------------------------------


def _tiff_of_pages(number: int, *, is_cyclic: bool = False) -> bytes:
    """A chain of directories without an end, or with one far off."""
    data = bytearray(tiff(np.asarray(scene())))
    (first,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, first)
    following = first + 2 + 12 * entries
    if is_cyclic:
        data[following : following + 4] = struct.pack("<I", first)
        return bytes(data)
    start, whole = len(data), bytes(data[first:following])
    data[following : following + 4] = struct.pack("<I", start)
    for index in range(1, number + 1):
        data += whole + struct.pack("<I", start + index * (len(whole) + 4) if index < number else 0)
    return bytes(data)


def _tiff_of_tags(tags: int, megabytes: int) -> bytes:
    """Unknown tags that all take the same bytes of the file as their value."""
    data = bytearray(tiff(np.asarray(scene()))) + bytes(megabytes * MEGA)
    (first,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, first)
    rows = bytes(data[first + 2 : first + 2 + 12 * entries])
    rows += b"".join(struct.pack("<HHII", 60000 + index, 7, megabytes * MEGA, 8) for index in range(tags))
    data[4:8] = struct.pack("<I", len(data))
    return bytes(data) + struct.pack("<H", entries + tags) + rows + bytes(4)


def _tiff_of_twins(tags: int, values: int) -> bytes:
    """The offsets of strips, again and again, which all take the same bytes of the file."""
    data = bytearray(tiff(np.asarray(scene())))
    (first,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, first)
    rows = struct.pack("<HHII", 273, 4, values, len(data)) * tags + bytes(data[first + 2 : first + 2 + 12 * entries])
    data += bytes(4 * values)
    data[4:8] = struct.pack("<I", len(data))
    return bytes(data) + struct.pack("<H", entries + tags) + rows + bytes(4)


def _big_tiff(directories: int, entries: int, values: int) -> bytes:
    """Of big-endian bytes; directories whose unknown tags all take the same values."""
    size = 8 + 20 * (entries + 10) + 8
    shared = 16 + directories * size
    data = bytearray(b"MM\0+" + struct.pack(">HHQ", 8, 0, 16))
    needed = {256: 160, 257: 120, 258: 8, 259: 1, 262: 1, 273: 0, 277: 1, 278: 120, 279: 19_200, 284: 1}
    for index in range(directories):
        data += struct.pack(">Q", entries + len(needed))
        data += b"".join(struct.pack(">HHQQ", tag, 16, 1, value) for tag, value in needed.items())
        data += struct.pack(">HHQQ", 60_000, 16, values, shared) * entries
        data += struct.pack(">Q", 16 + (index + 1) * size if index + 1 < directories else 0)
    return bytes(data) + bytes(8 * max(values, 2400))


def _tiff_of_strips(height: int) -> bytes:
    """One pixel a row, one row a strip, all of one byte."""
    tags: dict[int, int | list[int]] = {257: height, 278: 1, 273: [8] * height, 279: [1] * height}
    return tiff(np.zeros((1, 1), np.uint8), tags=tags)


def _tiff_of_tiles(side: int) -> bytes:
    return tiff(np.asarray(scene()), tags={322: side, 323: side, 324: 8, 325: 57600})


# ---- GIF 89a, BMP, WebP, PNM ----------------------------------------------------------------------------------


def _gif_of_frames(number: int) -> bytes:
    """Frames of one pixel."""
    data = encoded(scene().quantize(8), "GIF")
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return data[:-1] + frame * number + b";"


def _gif_of_blocks(kind: int, number: int) -> bytes:
    """An extension (comment or application) in blocks of one byte before the first frame."""
    data = encoded(scene().quantize(8), "GIF")
    at = data.index(b",", 13 + 3 * 8)
    return data[:at] + b"!" + bytes([kind]) + b"\x01a" * number + b"\0" + data[at:]


def _bmp_of_runs(width: int, height: int, coded: bytes) -> bytes:
    """RLE8 (BITMAPINFOHEADER, biCompression 1)."""
    start = 14 + 40 + 1024
    size = start + len(coded)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(coded), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", size, 0, 0, start) + info + bytes(1024) + coded


def _plain_pnm(side: int) -> bytes:
    return f"P2 {side} {side} 255\n".encode() + b"1 " * (side * side)


# ---- JPEG 2000 (ISO/IEC 15444-1, annex A.5.1) ------------------------------------------------------------------


def _jp2_of_pieces(side: int, at_byte: int) -> bytes:
    """As small as can be, from a byte of COD on (annex A.6.1): 10 for code blocks, 14 for precincts."""
    data = bytearray(encoded(scene(64, 64), "JPEG2000", no_jp2=True, num_resolutions=1, precinct_size=(32, 32)))
    struct.pack_into(">8I", data, data.index(b"\xff\x51") + 6, side, side, 0, 0, side, side, 0, 0)
    at = data.index(b"\xff\x52")
    (length,) = struct.unpack_from(">H", data, at + 2)
    end = at + 2 + length if at_byte == 14 else at + 12
    data[at + at_byte : end] = bytes(end - at - at_byte)
    return bytes(data)


def _jp2_of_tiles(side: int, tile: int) -> bytes:
    """A small image whose header says that it is large and cut into tiles."""
    data = bytearray(encoded(scene(64, 64), "JPEG2000", no_jp2=True))
    at = data.index(b"\xff\x51") + 6
    struct.pack_into(">8I", data, at, side, side, 0, 0, tile, tile, 0, 0)
    return bytes(data)


def _commented_pnm(comments: int) -> bytes:
    return b"P1 10 10\n" + b"#\n" * comments + b"1" * 100


# ---- DICOM (PS3.5) --------------------------------------------------------------------------------------------


def _dicom_of_elements(number: int) -> bytes:
    """Private elements without a value, before the pixels."""
    data = dicom(np.asarray(scene()))
    at = data.index(b"\xe0\x7f\x10\x00")
    return data[:at] + struct.pack("<HH2sH", 0x0029, 0x1001, b"LO", 0) * number + data[at:]


def _dicom_of_meta(number: int) -> bytes:
    """Elements without a value in the group that comes first (PS3.10, section 7.1)."""
    data = dicom(np.asarray(scene()))
    return data[:132] + struct.pack("<HH2sH", 0x0002, 0x0102, b"LO", 0) * number + data[132:]


def _dicom_of_nothing(megabytes: int) -> bytes:
    """RLE (PS3.5, annex G) whose fifteen segments are the same bytes, which all say nothing."""
    ends = struct.pack("<I", 15) + struct.pack("<II", 64, 64 + megabytes * MEGA) * 8
    return with_codestream(ends[:64] + b"\x80" * megabytes * MEGA, (120, 160, 3), uid.RLELossless)


def _dicom_of_sequences(depth: int) -> bytes:
    """Sequences in one another, none of which says where it ends."""
    data = dicom(np.asarray(scene()))
    at = data.index(b"\xe0\x7f\x10\x00")
    opened = struct.pack("<HH2sHI", 0x0040, 0x0275, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    closed = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return data[:at] + opened * depth + closed * depth + data[at:]


def _dicom_of_fragments(number: int) -> bytes:
    """A JPEG in pieces of two bytes, and pieces of none behind them."""
    data = with_jpeg(scene())
    at = data.index(b"\xff\xd8\xff") - 8  # the item that holds the whole stream
    (length,) = struct.unpack_from("<I", data, at + 4)
    stream, item = data[at + 8 : at + 8 + length], b"\xfe\xff\x00\xe0"
    pieces = [item + b"\2\0\0\0" + stream[index : index + 2] for index in range(0, length, 2)]
    return data[:at] + b"".join(pieces) + (item + bytes(4)) * number + data[at + 8 + length :]


_ANY = frozenset({"unsupported_format", "too_many_pixels", "too_many_frames", "corrupt", "truncated"})
_PIXELS = frozenset({"too_many_pixels"})
_PARTS = frozenset({"unsupported_format"})
_FRAMES = frozenset({"too_many_frames"})

BOMBS: dict[str, Bomb] = {
    "webp of 9990x9990, lossless": Bomb(lambda: _flat("WEBP", 9990, lossless=True, method=0), _PIXELS),
    "webp of 9990x9990": Bomb(lambda: _flat("WEBP", 9990, method=0), _PIXELS, True),
    "png of 9999x9999": Bomb(lambda: _flat_png(9999), _PIXELS, True),
    "png of 60000x60000": Bomb(lambda: with_png_size(60_000), _PIXELS),
    "png of a million empty chunks": Bomb(lambda: _png_of_chunks(png_chunk(b"teSt", b""), 1_000_000), _PARTS),
    "png of a million texts": Bomb(lambda: _png_of_chunks(png_chunk(b"tEXt", b"a\0"), 1_000_000), _PARTS),
    "png of a million chunks behind its pixels": Bomb(
        lambda: _png_of_chunks(png_chunk(b"teSt", b""), 1_000_000, behind=True), _PARTS
    ),
    "png of five million chunks behind a bad header": Bomb(
        lambda: encoded(scene(), "PNG")[:32] + b"?" + png_chunk(b"IDAT", b"") * 5_000_000, _ANY
    ),
    "png of chunks of a byte": Bomb(_png_in_bytes, _PARTS),
    "png of a million frames": Bomb(lambda: _png_film(1_000_000), _FRAMES),
    "png with texts that inflate": Bomb(
        lambda: _png_of_chunks(png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(MEGA - 9))), 3000), _ANY, True
    ),
    "png with a text that inflates": Bomb(
        lambda: _png_of_chunks(png_chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(512 * MEGA))), 1), _ANY, True
    ),
    "png with a profile that inflates": Bomb(
        lambda: _png_of_chunks(png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(512 * MEGA))), 1), _ANY, True
    ),
    "jpeg of fill bytes and no more": Bomb(lambda: b"\xff\xd8" + b"\xff" * MEGA, frozenset({"truncated"})),
    "jpeg of fill bytes behind a header": Bomb(lambda: _jpeg_cut() + b"\xff" * MEGA, frozenset({"truncated"})),
    "jpeg of fill bytes behind its Exif": Bomb(
        lambda: encoded(scene(), "JPEG")[:2] + _TURNED + b"\xff" * MEGA, frozenset({"truncated"})
    ),
    "jpeg of fill bytes before its frame": Bomb(lambda: _jpeg_with(b"\xff" * 60 * MEGA, b"\xff\xc0"), _ANY, True),
    "jpeg of fill bytes before its scan": Bomb(lambda: _jpeg_with(b"\xff" * 60 * MEGA, b"\xff\xda"), _ANY, True),
    "jpeg of zero bytes before its frame": Bomb(lambda: _jpeg_with(bytes(60 * MEGA), b"\xff\xc0"), _ANY, True),
    "jpeg of empty comments": Bomb(lambda: _jpeg_with(b"\xff\xfe\0\2" * 15 * MEGA, b"\xff\xc0"), _PARTS),
    "jpeg of restart markers": Bomb(lambda: _jpeg_with(b"\xff\xd0" * 30 * MEGA, b"\xff\xc0"), _PARTS),
    "jpeg of tables": Bomb(lambda: _jpeg_with(_quantization() * 900_000, b"\xff\xc0"), _PARTS),
    "jpeg of Exif": Bomb(lambda: _jpeg_with(b"\xff\xe1\0\x08Exif\0\0" * 6 * MEGA, b"\xff\xc0"), _PARTS),
    "jpeg of large Exif": Bomb(lambda: _jpeg_with(_EXIF * 950, b"\xff\xc0"), _PARTS),
    "jpeg of Photoshop blocks": Bomb(lambda: _jpeg_with(_TURNED + _PHOTOSHOP * 950, b"\xff\xc0"), _ANY, True),
    "jpeg of 5,000 scans": Bomb(lambda: _jpeg_of_scans(2000, 5000), _PIXELS),
    "jpeg of scans within limits": Bomb(lambda: sound_jpeg_of_scans(1000, 238, 480), frozenset(), True),
    "jpeg of scans above limits": Bomb(lambda: sound_jpeg_of_scans(1000, 1, 720), _PIXELS),
    "jpeg of scans behind a mark in a comment": Bomb(lambda: _scans_behind_a_comment(1000, 800), _PIXELS),
    "tiff in a circle": Bomb(lambda: _tiff_of_pages(0, is_cyclic=True), _FRAMES, True),
    "tiff of 300,000 directories": Bomb(lambda: _tiff_of_pages(300_000), _FRAMES),
    "tiff of tags that share a value": Bomb(lambda: _tiff_of_tags(5000, 32), _ANY, True),
    "tiff of a million strips": Bomb(lambda: _tiff_of_strips(1_000_000), _PARTS),
    "tiff of twins": Bomb(lambda: _tiff_of_twins(1000, 1_000_000), _ANY, True),
    "big-endian BigTIFF of a million tags": Bomb(lambda: _big_tiff(1, 1_000_000, 1), _PARTS),
    "big-endian BigTIFF of many pages": Bomb(lambda: _big_tiff(900, 2000, 1), _PARTS),
    "big-endian BigTIFF of tags that share values": Bomb(lambda: _big_tiff(1, 5000, 200_000), _PARTS),
    "tiff of huge tiles": Bomb(lambda: _tiff_of_tiles(65520), _PIXELS),
    "gif of a million frames": Bomb(lambda: _gif_of_frames(1_000_000), _FRAMES),
    "gif of a comment in bytes": Bomb(lambda: _gif_of_blocks(254, 10_000_000), _PARTS),
    "gif of an extension in bytes": Bomb(lambda: _gif_of_blocks(255, 10_000_000), _PARTS),
    "bmp of runs of a pixel": Bomb(lambda: _bmp_of_runs(5000, 5000, b"\x01\x07" * 25_000_000), _PARTS),
    "bmp of leaps": Bomb(lambda: _bmp_of_runs(3_000_000, 10, b"\0\2\xff\xff" * 100), _ANY, True),
    "pnm in text": Bomb(lambda: _plain_pnm(5600), _ANY, True),
    "pnm of letters": Bomb(lambda: b"P1 10 10\n" + b"a" * 60 * MEGA, _ANY),
    "pnm of comments": Bomb(lambda: _commented_pnm(30_000_000), _PARTS),
    "jp2 of tiles of a pixel": Bomb(lambda: _jp2_of_tiles(250, 1), _PARTS),
    "jp2 of precincts of a pixel": Bomb(lambda: _jp2_of_pieces(3000, 14), _PARTS),
    "jp2 of blocks of four pixels": Bomb(lambda: _jp2_of_pieces(5000, 10), _PARTS),
    "dicom of precincts of a pixel": Bomb(
        lambda: with_codestream(_jp2_of_pieces(3000, 14), (3000, 3000, 3), uid.JPEG2000Lossless), _PARTS
    ),
    "jp2 of 9990x9990": Bomb(lambda: _jp2_of_tiles(9990, 9990), _ANY),
    "avif of 9990x9990": Bomb(lambda: _flat("AVIF", 9990, speed=10), _PIXELS, True),
    "dicom of a million elements": Bomb(lambda: _dicom_of_elements(1_000_000), _PARTS),
    "dicom of a million elements of its head": Bomb(lambda: _dicom_of_meta(7_000_000), _PARTS),
    "dicom of runs that say nothing": Bomb(lambda: _dicom_of_nothing(56), frozenset({"corrupt"})),
    "dicom of sequences in one another": Bomb(lambda: _dicom_of_sequences(3000), _ANY, True),
    "dicom of a million fragments": Bomb(lambda: _dicom_of_fragments(1_000_000), _PARTS),
    "a page in front of an image": Bomb(lambda: b"<!doctype html><html>" + encoded(scene(), "JPEG"), _PARTS),
    "a zip in front of an image": Bomb(lambda: b"PK\x03\x04" + bytes(26) + encoded(scene(), "PNG"), _PARTS),
    "an image in front of a zip": Bomb(lambda: encoded(scene(), "JPEG") + b"PK\x03\x04" + bytes(60), _ANY, True),
}  # fmt: skip


def with_png_size(side: int) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return _HEAD + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(1000))) + _END


def _quantization() -> bytes:
    return b"\xff\xdb\0\x43\0" + bytes([1] * 64)
