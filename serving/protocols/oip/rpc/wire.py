"""A message of protobuf looked at before it is parsed (https://protobuf.dev/programming-guides/encoding/).

Parsed numbers take up to eight times, empty elements more than their bytes: what is small in a good request is held to
be small, and binary data is taken out without a copy.
"""

from collections.abc import Iterator
from typing import NamedTuple

from serving.protocols.oip.tensors import bad_request, too_many_numbers

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_MOST_FIELDS = 4096  # of a message and those within that are looked at
_NAME, _VERSION, _INPUTS, _RAW_INPUTS = 1, 2, 5, 7  # of ModelInferRequest
_CONTENTS, _BYTES_CONTENTS = 5, 8  # of InferInputTensor, of InferTensorContents


class _Field(NamedTuple):
    number: int
    is_bytes: bool
    begin: int  # with its tag
    start: int  # of the value
    end: int


def names_in(message: bytes) -> tuple[str, str]:
    """Name and version of the model that is asked for, fields 1 and 2. Raises HttpError 400."""
    found = {_NAME: "", _VERSION: ""}
    for field in _fields(memoryview(message), [_MOST_FIELDS]):
        if field.number in found and field.is_bytes:
            try:
                found[field.number] = message[field.start : field.end].decode()
            except UnicodeDecodeError as error:
                raise bad_request("a model's name or version that is no UTF-8") from error
    return found[_NAME], found[_VERSION]


def without_raw(message: bytes, most: int) -> tuple[bytes, list[memoryview]]:
    """A ModelInferRequest without its raw_input_contents, and these.

    Raises HttpError 400, or 413 where it has more than `most` bytes beside them and bytes_contents.
    """
    view, left = memoryview(message), [_MOST_FIELDS]
    kept: list[memoryview] = []
    raw: list[memoryview] = []
    loose = 0
    for field in _fields(view, left):
        if field.number == _RAW_INPUTS and field.is_bytes:
            raw.append(view[field.start : field.end])
            continue
        kept.append(view[field.begin : field.end])
        loose += field.end - field.begin
        if field.number == _INPUTS and field.is_bytes:
            loose -= _bytes_contents(view[field.start : field.end], left)
    if loose > most:
        raise too_many_numbers()
    return b"".join(kept), raw


def _bytes_contents(tensor: memoryview, left: list[int]) -> int:
    """How many bytes of an input are elements of BYTES."""
    size = 0
    for field in _fields(tensor, left):
        if field.number == _CONTENTS and field.is_bytes:
            inner = tensor[field.start : field.end]
            size += sum(
                one.end - one.start for one in _fields(inner, left) if one.number == _BYTES_CONTENTS and one.is_bytes
            )
    return size


def _fields(data: memoryview, left: list[int]) -> Iterator[_Field]:
    """The fields of one message. `left`: how many more may come, which is counted down."""
    place = 0
    while place < len(data):
        left[0] -= 1
        if left[0] < 0:
            raise bad_request(f"more than {_MOST_FIELDS} fields in a message; numbers are sent packed")
        begin = place
        tag, place = _varint(data, place)
        number, kind = tag >> 3, tag & 7
        start = place
        if kind == _VARINT:
            _, end = _varint(data, place)
        elif kind == _BYTES:
            size, start = _varint(data, place)
            end = start + size
        elif kind in (_FIXED64, _FIXED32):
            end = place + (8 if kind == _FIXED64 else 4)
        else:
            raise _malformed()
        if end > len(data) or number == 0:
            raise _malformed()
        yield _Field(number, kind == _BYTES, begin, start, end)
        place = end


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """A number and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            break
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise _malformed()


def _malformed() -> Exception:
    return bad_request("no message of the protocol: protobuf cannot be read")
