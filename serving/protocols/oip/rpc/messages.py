"""The messages of the protocol, by the names and numbers of its open_inference_grpc.proto, made at run time.

Generated code would be bound to one release of protobuf, and Ray takes many. Fields stand in the order of their
numbers, from 1; `*` is repeated, `map` one of InferParameter by text. RepositoryIndex is Triton's extension
(https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md).
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
METHODS = (
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "RepositoryIndex",
    "ModelInfer",
)
_TENSOR = "string name, string datatype, int64* shape, map parameters, InferTensorContents contents"
_FIELDS = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready",
    "ModelReadyRequest": "string name, string version",
    "ModelReadyResponse": "bool ready",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "string name, string version, string* extensions",
    "ModelMetadataRequest": "string name, string version",
    "ModelMetadataResponse.TensorMetadata": "string name, string datatype, int64* shape",
    "ModelMetadataResponse": "string name, string* versions, string platform, ModelMetadataResponse.TensorMetadata* "
    "inputs, ModelMetadataResponse.TensorMetadata* outputs",
    "RepositoryIndexRequest": "string repository_name, bool ready",
    "RepositoryIndexResponse.ModelIndex": "string name, string version, string state, string reason",
    "RepositoryIndexResponse": "RepositoryIndexResponse.ModelIndex* models",
    "InferParameter": "bool bool_param, int64 int64_param, string string_param, double double_param, "
    "uint64 uint64_param",
    "InferTensorContents": "bool* bool_contents, int32* int_contents, int64* int64_contents, uint32* uint_contents, "
    "uint64* uint64_contents, float* fp32_contents, double* fp64_contents, bytes* bytes_contents",
    "ModelInferRequest.InferInputTensor": _TENSOR,
    "ModelInferRequest.InferRequestedOutputTensor": "string name, map parameters",
    "ModelInferRequest": "string model_name, string model_version, string id, map parameters, "
    "ModelInferRequest.InferInputTensor* inputs, ModelInferRequest.InferRequestedOutputTensor* outputs, "
    "bytes* raw_input_contents",
    "ModelInferResponse.InferOutputTensor": _TENSOR,
    "ModelInferResponse": "string model_name, string model_version, string id, map parameters, "
    "ModelInferResponse.InferOutputTensor* outputs, bytes* raw_output_contents",
}
_ONE_OF = {"InferParameter": "parameter_choice"}
_Field = descriptor_pb2.FieldDescriptorProto


def described() -> descriptor_pb2.FileDescriptorProto:
    """The protocol as protobuf describes a file."""
    file = descriptor_pb2.FileDescriptorProto(name="leukoray/open_inference.proto", package=PACKAGE, syntax="proto3")
    known: dict[str, descriptor_pb2.DescriptorProto] = {}
    for name in sorted(_FIELDS, key=lambda name: name.count(".")):  # what holds others first
        parent, _, own = name.rpartition(".")
        made = known[name] = known[parent].nested_type.add(name=own) if parent else file.message_type.add(name=own)
        if name in _ONE_OF:
            made.oneof_decl.add(name=_ONE_OF[name])
        for number, field in enumerate(filter(None, _FIELDS[name].split(", ")), 1):
            _add_field(made, name, number, *field.split())
    service = file.service.add(name=SERVICE.removeprefix(f"{PACKAGE}."))
    for method in METHODS:
        request, response = f".{PACKAGE}.{method}Request", f".{PACKAGE}.{method}Response"
        service.method.add(name=method, input_type=request, output_type=response)
    return file


def _add_field(made: descriptor_pb2.DescriptorProto, name: str, number: int, kind: str, field: str) -> None:
    if kind == "map":  # as protobuf has it: repeated entries of key and value
        entry = made.nested_type.add(name=f"{field.capitalize()}Entry")
        entry.options.map_entry = True
        _add_field(entry, "", 1, "string", "key")
        _add_field(entry, "", 2, "InferParameter", "value")
        kind = f"{name}.{entry.name}*"
    added = made.field.add(name=field, number=number, label=_Field.LABEL_OPTIONAL)
    if kind.endswith("*"):
        added.label = _Field.LABEL_REPEATED
    plain = kind.removesuffix("*")
    if plain.islower() or plain[-2:].isdigit():
        added.type = getattr(_Field, f"TYPE_{plain.upper()}")
    else:
        added.type, added.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{plain}"
    if name in _ONE_OF:
        added.oneof_index = 0


def _classes() -> dict[str, Any]:
    pool = descriptor_pool.Default()  # that of all: Serve's reflection looks there
    pool.AddSerializedFile(described().SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
        for name in _FIELDS
        if "." not in name
    }


CLASSES = _classes()
