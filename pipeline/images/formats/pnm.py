"""PBM, PGM and PPM, plain and raw (netpbm's own specifications), read here: Pillow takes minutes for a large one."""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import Code, ImageRejected
from pipeline.images.depth import count_levels, depth_of
from pipeline.images.formats.parts import MOST_PARTS, too_many_parts

_NUMBER = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])+(\d{1,9})")
_NUMBERS = re.compile(rb"[\s\d]*")
_NO_BITS = bytes(sorted(set(range(256)) - set(b"01")))
_HEADER_BYTES = 4096
_CHANNELS = {1: 1, 2: 1, 3: 3}  # by the digit of the plain kind: bits, gray, colour


@dataclass(frozen=True)
class Header:
    """`kind` is 1 to 3 (bits, gray, colour), whether plain or raw; `top` the sample that is white."""

    kind: int
    is_plain: bool
    width: int
    height: int
    top: int
    start: int  # of the samples

    @property
    def samples(self) -> int:
        return self.width * self.height * _CHANNELS[self.kind]


def read_header(data: bytes) -> Header:
    """Raises ImageRejected."""
    digit, head = int(data[1:2]), data[:_HEADER_BYTES]
    kind = digit if digit <= 3 else digit - 3
    numbers, at = list[int](), 2
    while len(numbers) < (2 if kind == 1 else 3):
        found = _NUMBER.match(head, at)
        if found is None:
            code = Code.TRUNCATED if len(data) < _HEADER_BYTES else Code.CORRUPT
            raise ImageRejected(code, "a PNM without width, height and depth in its header")
        numbers.append(int(found[1]))
        at = found.end()
    width, height, top = (*numbers, 1)[:3]
    if not width or not height or not 0 < top < 65536:
        raise ImageRejected(Code.CORRUPT, f"a PNM of {width}x{height} pixels up to {top}")
    return Header(kind, digit <= 3, width, height, top, at + 1)


def decode(data: bytes, bit_depth: int | None = None) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """(H, W, 3) RGB, and what was noticed. `bit_depth`: of 16-bit samples, those that count. Raises ImageRejected."""
    header = read_header(data)
    samples = _plain(data, header) if header.is_plain else _raw(data, header)
    if samples.size < header.samples:
        message = f"pnm ends too early ({len(data)} bytes): {samples.size} of {header.samples} samples"
        raise ImageRejected(Code.TRUNCATED, message)
    shaped = samples[: header.samples].reshape(header.height, header.width, -1)
    remarks: tuple[str, ...] = ()
    if header.top == 65535:  # what writers put who do not know
        depth = depth_of(count_levels([shaped]), fixed=bit_depth, can_guess=header.kind != 3)
        shaped, remarks = depth.levels(shaped), depth.remarks
    elif header.top != 255:
        shaped = (np.minimum(shaped, header.top).astype(np.uint32) * 255 // header.top).astype(np.uint8)
    if header.kind == 1:  # 1 is black
        shaped = 255 - shaped
    return np.ascontiguousarray(np.broadcast_to(shaped, (header.height, header.width, 3)), np.uint8), remarks


def _raw(data: bytes, header: Header) -> NDArray[np.integer]:
    body = data[header.start :]
    if header.kind == 1:
        row_bytes = (header.width + 7) // 8
        rows = np.frombuffer(body[: len(body) // row_bytes * row_bytes], np.uint8).reshape(-1, row_bytes)
        return np.unpackbits(rows[: header.height], axis=1)[:, : header.width].reshape(-1)
    if header.top < 256:
        return np.frombuffer(body, np.uint8)
    return np.frombuffer(body[: len(body) // 2 * 2], ">u2")


def _plain(data: bytes, header: Header) -> NDArray[np.integer]:
    if data.count(b"#", header.start) > MOST_PARTS:
        raise too_many_parts()
    text = re.sub(rb"#[^\r\n]*", b"", data[header.start :])
    if header.kind == 1:  # bits need no space between them
        return np.frombuffer(text.translate(None, _NO_BITS), np.uint8) - ord("0")
    if not _NUMBERS.fullmatch(text):  # numpy would end there with a warning
        raise ImageRejected(Code.CORRUPT, "a plain PNM with something else than numbers among its samples")
    return np.fromstring(text.strip(), np.int64, sep=" ").clip(0, 65535).astype(np.uint16)
