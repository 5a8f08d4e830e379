"""Tensors of a request to images, predictions to tensors of an answer, as values and in binary.

Binary data is little-endian and row-major; an element of BYTES is a four-byte length and its bytes. In JSON an element
of BYTES is text, so that encoded images are base64 there, as MLServer's codec of that name sends them.
"""

import base64
import binascii
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline.base.text import problems
from serving.errors import HttpError
from serving.intake import whole_number
from serving.protocols.oip.schemas import Datatype, InferRequest, RequestInput, Tensor
from serving.schemas import ModelInfo
from serving.settings import ServingSettings

INPUT = "image"
_LENGTH = struct.Struct("<I")
# Images of a request whose pixels are numbers, each of which takes up to 32 bytes. As binary data it may be more.
_AS_NUMBERS = 4
_OTHER_VALUES = 10_000  # beside the elements of the tensor
_DTYPES = {"FP32": np.dtype("<f4"), "BOOL": np.dtype("?")}
Images = list[bytes] | list[NDArray[np.uint8]]  # encoded, or pixels (S, S, 3)


@dataclass(frozen=True)
class Said:
    """What the model says of one image, by the names of outputs."""

    probability: float
    class_probabilities: Sequence[float]
    class_name: str
    decision: str | None
    is_ood: bool | None
    ood_score: float | None


@dataclass(frozen=True)
class _Output:
    name: str
    datatype: Datatype
    width: int | None  # of a row; None: one value an image
    of: Callable[[Said], Any]

    def shape(self, count: int) -> list[int]:
        return [count] if self.width is None else [count, self.width]


def outputs_of(model: ModelInfo) -> dict[str, _Output]:
    """What this model can say; what it has no rule for is no output of it."""
    found = [
        _Output("probability", "FP32", None, lambda said: said.probability),
        _Output("class_probabilities", "FP32", len(model.classes), lambda said: list(said.class_probabilities)),
        _Output("class", "BYTES", None, lambda said: said.class_name),
    ]
    if model.positive_classes:
        found.append(_Output("decision", "BYTES", None, lambda said: said.decision))
    if model.ood is not None:
        found.append(_Output("ood_score", "FP32", None, lambda said: said.ood_score))
    if model.ood is not None and model.ood.threshold is not None:
        found.append(_Output("is_ood", "BOOL", None, lambda said: said.is_ood))
    return {output.name: output for output in found}


def wanted_outputs(request: InferRequest, model: ModelInfo) -> set[str]:
    """Names of the outputs that the answer is to have."""
    return {one.name for one in request.outputs} or set(outputs_of(model))


def described(model: ModelInfo) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs, as metadata has them. BYTES [-1] is taken for the input as well."""
    size = model.input_size
    inputs = [Tensor(name=INPUT, datatype="UINT8", shape=[-1, size, size, 3])]
    outputs = outputs_of(model).values()
    return inputs, [Tensor(name=one.name, datatype=one.datatype, shape=one.shape(-1)) for one in outputs]


def bad_request(message: str) -> HttpError:
    return HttpError(400, "bad_request", message)


def read_request(
    body: bytes, header_length: str | None, model: ModelInfo, settings: ServingSettings
) -> tuple[InferRequest, Images]:
    """A request without its inputs, and its images: held as text and as images they would be held once too often.

    `header_length`: of Inference-Header-Content-Length, where some data is binary.

    Raises HttpError 400 or 413.
    """
    size = len(body)
    if header_length is not None:
        announced = whole_number(header_length)
        if announced is None or not 0 < announced <= len(body):
            raise bad_request(f"Inference-Header-Content-Length {header_length[:20]!r}: the body has {len(body)} bytes")
        size = announced
    if sum(body.count(mark, 0, size) for mark in (b",", b"[", b"{")) > most_values(model):
        raise too_many_numbers()
    try:
        request = InferRequest.model_validate_json(body[:size])
    except ValidationError as error:
        raise bad_request(f"no inference request of the protocol: {problems(error)}") from error
    given = checked_input(request, model)
    data = _binary(given, memoryview(body)[size:])
    images = images_of(given, given.data or [] if data is None else data, model, settings, _from_base64)
    return request.model_copy(update={"inputs": []}), images


def most_values(model: ModelInfo) -> int:
    """Beside binary data: the numbers of a few images, twice, as they may be nested as deep as can be, and others."""
    return 2 * _AS_NUMBERS * model.input_size**2 * 3 + _OTHER_VALUES


def too_many_numbers() -> HttpError:
    message = f"more numbers than {_AS_NUMBERS} images have; send them as binary data, or as encoded images"
    return HttpError(413, "too_large", message)


def checked_input(request: InferRequest, model: ModelInfo) -> RequestInput:
    """The one input of a request that asks for outputs of this model. Raises HttpError 400."""
    if len(request.inputs) != 1 or request.inputs[0].name != INPUT:
        names = ", ".join(repr(given.name[:40]) for given in request.inputs[:4]) or "none"
        raise bad_request(f"inputs {names}: expected one, {INPUT!r}")
    _check_outputs(request, model)
    return request.inputs[0]


def _check_outputs(request: InferRequest, model: ModelInfo) -> None:
    known = outputs_of(model)
    for wanted in request.outputs:
        if wanted.name not in known:
            raise bad_request(f"output {wanted.name[:40]!r}: this model has {', '.join(known)}")
        if "classification" in wanted.parameters or "shared_memory_region" in wanted.parameters:
            raise bad_request(f"output {wanted.name!r}: neither classification nor shared memory is known here")


def images_of(
    given: RequestInput,
    data: memoryview | list[Any],
    model: ModelInfo,
    settings: ServingSettings,
    elements_of: Callable[[list[Any], int], list[bytes]],
) -> Images:
    """The images of an input, from binary data or from values; `elements_of` makes values of BYTES so many images.

    Raises HttpError 400 or 413.
    """
    size = model.input_size
    is_encoded = given.datatype == "BYTES" and (len(given.shape) == 1 or given.shape[1:] == [1])
    if not is_encoded and not (given.datatype == "UINT8" and given.shape[1:] == [size, size, 3]):
        raise bad_request(
            f"input {given.datatype[:20]} {str(given.shape)[:60]}: expected UINT8 [n, {size}, {size}, 3], RGB, or "
            "BYTES [n] of encoded images"
        )
    count = given.shape[0]
    if count < 1:
        raise bad_request(f"shape {given.shape}: no image")
    if count > settings.max_files:
        raise HttpError(413, "too_many_files", f"{count} images, limit {settings.max_files}; send several requests")
    if is_encoded:
        elements = list(_split(data)) if isinstance(data, memoryview) else elements_of(data, count)
        _check_count(len(elements), count)
        for place, element in enumerate(elements):
            if len(element) > settings.max_bytes:
                message = f"image {place}: {len(element)} bytes, limit {settings.max_bytes}; send a smaller image"
                raise HttpError(413, "too_large", message)
        return elements
    if isinstance(data, list) and count > _AS_NUMBERS:
        raise too_many_numbers()
    values = _numbers(data, given.shape) if isinstance(data, list) else np.frombuffer(data, np.uint8)
    _check_count(values.size, math.prod(given.shape))
    return list(values.reshape(given.shape))


def _binary(given: RequestInput, binary: memoryview) -> memoryview | None:
    """The input's bytes behind the JSON; None where its data is in the JSON."""
    if "shared_memory_region" in given.parameters:
        raise bad_request("shared memory is not known here")
    announced = given.parameters.get("binary_data_size")
    if announced is None:
        if len(binary):
            raise bad_request(f"{len(binary)} bytes behind the JSON, but no binary_data_size of the input")
        return None
    if given.data is not None:
        raise bad_request("both data and binary_data_size; give one")
    if type(announced) is not int or announced != len(binary):
        is_told = isinstance(announced, str) or (isinstance(announced, int) and abs(announced) < 2**63)
        said = str(announced)[:20] if is_told else "that is no size"  # of too many digits str() itself fails
        raise bad_request(f"binary_data_size {said}, but {len(binary)} bytes follow the JSON")
    return binary


def _split(data: memoryview) -> Iterator[bytes]:
    place = 0
    while place < len(data):
        if place + _LENGTH.size > len(data):
            raise bad_request("BYTES end within the four bytes of a length")
        [length] = _LENGTH.unpack_from(data, place)
        place += _LENGTH.size
        if place + length > len(data):
            raise bad_request(
                f"an element of BYTES announces {length} bytes and {len(data) - place} are left; each begins with its "
                "length in four bytes, little-endian"
            )
        yield bytes(data[place : place + length])
        place += length


def _from_base64(data: list[Any], count: int) -> list[bytes]:
    """Takes each text out of `data` as it goes, so that no image is held as both."""
    elements: list[bytes] = []
    data.reverse()
    while data:
        [text] = item if isinstance(item := data.pop(), list) and len(item) == 1 else [item]  # [n, 1] is nested so
        if len(elements) == count:
            raise _too_many(count)
        try:
            elements.append(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError, TypeError) as error:
            message = f"image {len(elements)} is no base64; encoded images are base64 in JSON, or go as binary data"
            raise bad_request(message) from error
    return elements


def _numbers(data: list[Any], shape: list[int]) -> NDArray[np.uint8]:
    """Flat. Nothing but lists and whole numbers gets as far as an array: NumPy makes room for the longest of texts."""
    values = bytearray()
    nested = _gather(data, values, math.prod(shape))
    if len(nested) > 1 and list(nested) != shape:
        raise bad_request(f"data is nested as {list(nested)[:8]}, the shape is {shape}; give it so, or flat")
    return np.frombuffer(values, np.uint8)


def _gather(part: list[Any], values: bytearray, most: int) -> tuple[int, ...]:
    """The shape of nested lists, whose numbers are put behind `values`."""
    kinds = set(map(type, part))
    if list in kinds:
        shapes = {_gather(each, values, most) if isinstance(each, list) else () for each in part}
        if len(shapes) > 1:
            raise bad_request("data is nested unevenly")
        return (len(part), *shapes.pop())
    if len(values) + len(part) > most:
        raise _too_many(most)
    try:
        if not kinds <= {int}:  # bytes() takes true and false as well
            raise TypeError
        values += bytes(part)
    except (TypeError, ValueError, OverflowError) as error:
        raise bad_request("data of UINT8: expected whole numbers of 0 to 255") from error
    return (len(part),)


def _too_many(expected: int) -> HttpError:
    return bad_request(f"data has more elements than the shape, {expected}")


def _check_count(found: int, expected: int) -> None:
    if found != expected:
        raise bad_request(f"data has {found} elements, the shape {expected}")


def write_outputs(
    request: InferRequest, model: ModelInfo, said: Sequence[Said]
) -> tuple[list[dict[str, Any]], list[bytes]]:
    """The outputs that were asked for (`$response_output`), in that order, and the binary data of those wanted so."""
    known = outputs_of(model)
    are_binary = request.parameters.get("binary_data_output") is True
    wanted = {one.name: one.parameters.get("binary_data", are_binary) is True for one in request.outputs}
    outputs: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, is_binary in (wanted or dict.fromkeys(known, are_binary)).items():
        output = known[name]
        rows = [output.of(one) for one in said]
        if output.datatype == "BOOL" and None in rows:  # a graph of an older version gives nothing to judge by
            if name in wanted:
                raise bad_request(f"output {name!r}: this model's graph gives nothing to tell it by")
            continue
        about = {"name": name, "datatype": output.datatype, "shape": output.shape(len(said))}
        if is_binary:
            blobs.append(_to_binary(output.datatype, rows))
            outputs.append({**about, "parameters": {"binary_data_size": len(blobs[-1])}})
        else:
            flat = rows if output.width is None else [value for row in rows for value in row]
            outputs.append({**about, "data": flat})
    return outputs, blobs


def _to_binary(datatype: Datatype, rows: list[Any]) -> bytes:
    if datatype == "BYTES":
        texts = [row.encode() for row in rows]
        return b"".join(part for text in texts for part in (_LENGTH.pack(len(text)), text))
    return np.asarray(rows, _DTYPES[datatype]).tobytes()  # None, a score that is no number, becomes NaN
