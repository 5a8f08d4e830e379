"""The JSON objects of the protocol, with its names: `$inference_request`, `$metadata_model_response` and so on."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, WithJsonSchema
from pydantic_core import PydanticUseDefault


def _or_default(value: Any) -> Any:
    if value is None:
        raise PydanticUseDefault
    return value


Datatype = Literal["UINT8", "BYTES", "FP32", "BOOL"]
Parameters = dict[str, Any]
_Item = TypeVar("_Item")
_Few = Annotated[list[_Item], FailFast(), Field(max_length=16)]  # one error is enough: a million would take a gigabyte
_Kind = TypeVar("_Kind")
_Size = Annotated[int, Field(ge=-(2**63), lt=2**63)]  # int64: a number of 5,000 digits fails where it is told of
# Clients in typed languages send null for what they leave out.
_Given = Annotated[_Kind, BeforeValidator(_or_default)]
_KINDS = [{"type": kind} for kind in ("number", "string", "boolean", "null")]
_ITEMS = {"anyOf": [*_KINDS, {"type": "array", "items": {}}]}
_Data = Annotated[
    list[Any], WithJsonSchema({"type": "array", "items": _ITEMS})
]  # told in detail, looked at as a whole by tensors.py


class _Object(BaseModel):
    """Fields that are not named here are the extensions of others, and are passed over."""

    model_config = ConfigDict(frozen=True, strict=True, protected_namespaces=())


class RequestInput(_Object):
    name: str
    shape: _Few[_Size]
    datatype: str
    parameters: _Given[Parameters] = {}
    data: _Data | None = Field(None, description="nested or flat; left out where it follows in binary")


class RequestOutput(_Object):
    name: str
    parameters: _Given[Parameters] = {}


class InferRequest(_Object):
    """One input, `image`: UINT8 [n, S, S, 3] for a model of input size S, RGB, or BYTES [n] of encoded images."""

    id: str | None = None
    parameters: _Given[Parameters] = {}
    inputs: _Few[RequestInput]
    outputs: _Given[_Few[RequestOutput]] = Field([], description="which to give; none: all")


class ResponseOutput(_Object):
    name: str
    shape: list[int]
    datatype: Datatype
    parameters: Parameters | None = None
    data: _Data | None = None


class InferResponse(_Object):
    model_name: str
    model_version: str
    id: str | None = None
    parameters: Parameters
    outputs: list[ResponseOutput]


class Tensor(_Object):
    """-1 in a shape: as many as are sent."""

    name: str
    datatype: Datatype
    shape: list[int]


class ModelMetadata(_Object):
    name: str
    versions: list[str]
    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    parameters: Parameters


class ServerMetadata(_Object):
    name: str
    version: str
    extensions: list[str]


class ServerLive(_Object):
    live: Literal[True] = True


class ServerReady(ServerLive):
    """`ready` is what KServe's client reads, `live` what the specification names."""

    ready: Literal[True] = True


class ModelReady(_Object):
    name: str
    ready: Literal[True] = True


class IndexRequest(_Object):
    ready: bool = Field(False, description="only models that answer")


class IndexEntry(_Object):
    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class Duration(_Object):
    count: int = 0
    ns: int = 0


class InferenceStats(_Object):
    """A count of 0 where nothing is measured."""

    success: Duration
    fail: Duration
    queue: Duration = Duration()
    compute_input: Duration = Duration()
    compute_infer: Duration
    compute_output: Duration = Duration()
    cache_hit: Duration = Duration()
    cache_miss: Duration = Duration()


class ModelStats(_Object):
    name: str
    version: str
    last_inference: int = Field(description="milliseconds since the epoch; 0: none yet")
    inference_count: int = Field(description="images")
    execution_count: int = Field(description="forward passes")
    inference_stats: InferenceStats
    batch_stats: list[Any] = []


class Statistics(_Object):
    """Of the replica that answers, since it took this model."""

    model_stats: list[ModelStats]
