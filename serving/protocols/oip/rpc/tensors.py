"""A ModelInferRequest to images, predictions to a ModelInferResponse.

As over REST, but for this: encoded images among values (`bytes_contents`) are bytes, no base64; binary data is
`raw_input_contents`, and who sends it gets `raw_output_contents`.
"""

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import DecodeError
from pydantic import ValidationError

from pipeline.base.text import problems
from serving.model import LoadedModel
from serving.protocols.oip.answering import provenance
from serving.protocols.oip.rpc.messages import CLASSES
from serving.protocols.oip.rpc.wire import without_raw
from serving.protocols.oip.schemas import InferRequest
from serving.protocols.oip.tensors import (
    Images,
    Said,
    bad_request,
    checked_input,
    images_of,
    most_values,
    write_outputs,
)
from serving.schemas import ModelInfo
from serving.settings import ServingSettings

_VALUES = {"UINT8": "uint_contents", "FP32": "fp32_contents", "BOOL": "bool_contents", "BYTES": "bytes_contents"}


def parsed(name: str, message: bytes) -> Any:
    """Raises HttpError 400."""
    try:
        return CLASSES[name].FromString(message)
    except DecodeError as error:
        raise bad_request(f"no {name} of the protocol: protobuf cannot be read") from error


def read_infer(message: bytes, model: ModelInfo, settings: ServingSettings) -> tuple[InferRequest, Images]:
    """A request without its inputs, and its images. Raises HttpError 400 or 413."""
    small, raw = without_raw(message, most_values(model))
    asked = parsed("ModelInferRequest", small)
    request = _as_object(asked, is_binary=bool(raw))
    given = checked_input(request, model)
    contents = asked.inputs[0].contents
    if not raw:
        values = list(getattr(contents, _VALUES.get(given.datatype, "bytes_contents")))
        return request.model_copy(update={"inputs": []}), images_of(given, values, model, settings, _as_sent)
    if len(raw) != 1:
        raise bad_request(f"{len(raw)} raw_input_contents, expected one for the one input")
    if contents.ByteSize():
        raise bad_request("both contents and raw_input_contents; give one")
    return request.model_copy(update={"inputs": []}), images_of(given, raw[0], model, settings, _as_sent)


def _as_object(asked: Any, is_binary: bool) -> InferRequest:
    """What REST has as JSON. Of parameters only whether there are some is looked at."""
    inputs = [
        {
            "name": one.name,
            "datatype": one.datatype,
            "shape": list(one.shape),
            "parameters": dict.fromkeys(one.parameters),
        }
        for one in asked.inputs
    ]
    outputs = [
        {"name": one.name, "parameters": {**dict.fromkeys(one.parameters), "binary_data": is_binary}}
        for one in asked.outputs
    ]
    try:
        return InferRequest.model_validate(
            {
                "id": asked.id or None,
                "parameters": {"binary_data_output": is_binary},
                "inputs": inputs,
                "outputs": outputs,
            }
        )
    except ValidationError as error:
        raise bad_request(f"no ModelInferRequest of the protocol: {problems(error)}") from error


def _as_sent(values: list[Any], count: int) -> list[bytes]:
    return values


def write_infer(request: InferRequest, asked: ModelInfo, by: LoadedModel, said: Sequence[Said]) -> bytes:
    """The ModelInferResponse. Raises HttpError 400 where an output cannot be given."""
    outputs, blobs = write_outputs(request, asked, said)
    answer = CLASSES["ModelInferResponse"](
        model_name=asked.name, model_version=by.info.version, id=request.id or "", raw_output_contents=blobs
    )
    for name, value in provenance(by.info).items():
        kind = {bool: "bool_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(answer.parameters[name], kind, value)
    for output in outputs:
        tensor = answer.outputs.add(name=output["name"], datatype=output["datatype"], shape=output["shape"])
        if "data" in output:
            values = [_as_value(value) for value in output["data"]]
            getattr(tensor.contents, _VALUES[output["datatype"]]).extend(values)
    return bytes(answer.SerializeToString())


def _as_value(value: Any) -> Any:
    if value is None:  # a score that is no number
        return float("nan")
    return value.encode() if isinstance(value, str) else value
