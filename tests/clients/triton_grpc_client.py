"""`tritonclient[grpc]` against a service: triton_grpc_client.py HOST:PORT MODEL,MODEL MESSAGES IMAGE... Prints JSON.

The first MODEL is asked for in every way, each of the others once. MESSAGES is a file with the own description of the
service's messages (a FileDescriptorProto), which is held beside Triton's.
"""

import json
import sys
from pathlib import Path

import grpc
import numpy as np
import tritonclient.grpc as triton
from google.protobuf import descriptor_pb2
from tritonclient.utils import InferenceServerException

address, models, messages, *paths = sys.argv[1:]
name, *others = models.split(",")
images = [Path(path).read_bytes() for path in paths]
headers = {"x-request-id": "case/7"}
client = triton.InferenceServerClient(address)
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(name)
metadata = client.get_model_metadata(name)
[version] = metadata.versions
assert client.is_model_ready(name, version)
[given] = metadata.inputs
outputs = [output.name for output in metadata.outputs]


def asked(tensor, model=name, headers=headers, model_version=""):
    datatype = "BYTES" if tensor.dtype == np.object_ else "UINT8"
    wanted = triton.InferInput(given.name, list(tensor.shape), datatype).set_data_from_numpy(tensor)
    return client.infer(model, [wanted], model_version, request_id="case 42", headers=headers)


def refused(tensor, **how):
    try:
        asked(tensor, **how)
    except InferenceServerException as error:
        return [error.status(), error.message()]
    raise AssertionError("no error")


encoded = np.array(images, dtype=np.object_)
answer = asked(encoded, model_version=version)
assert answer.get_response().id == "case 42" and answer.get_response().model_name == name
size = given.shape[1]
pixels = np.arange(2 * size * size * 3, dtype=np.uint32).astype(np.uint8).reshape(2, size, size, 3)
classes = next(output.shape[1] for output in metadata.outputs if output.name == "class_probabilities")
assert asked(pixels).as_numpy("class_probabilities").shape == (2, classes)

# typed contents, which Triton's client has no function for, by its own messages
typed = triton.service_pb2.ModelInferRequest(model_name=name)
tensor = typed.inputs.add(name=given.name, datatype="BYTES", shape=[len(images)])
tensor.contents.bytes_contents.extend(images)
stub = triton.service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(address))
in_values, call = stub.ModelInfer.with_call(typed, metadata=list(headers.items()))
values = {output.name: output.contents for output in in_values.outputs}
assert [text.decode() for text in values["decision"].bytes_contents] == answer.as_numpy("decision").astype(str).tolist()
assert not in_values.raw_output_contents


def fields(kinds, before=""):
    """Every field of messages and of those within, as (message, field, number, kind, repeated, type)."""
    for kind in kinds:
        name = before + kind.name
        yield from ((name, one.name, one.number, one.type, one.label, one.type_name) for one in kind.field)
        yield from fields(kind.nested_type, f"{name}.")


ours = descriptor_pb2.FileDescriptorProto.FromString(Path(messages).read_bytes())
theirs = descriptor_pb2.FileDescriptorProto.FromString(triton.service_pb2.DESCRIPTOR.serialized_pb)
assert ours.package == theirs.package and not set(fields(ours.message_type)) - set(fields(theirs.message_type))

print(
    json.dumps(
        {
            "outputs": outputs,
            "probability": answer.as_numpy("probability").tolist(),
            "typed": list(values["probability"].fp32_contents),
            "decision": [text.decode() for text in answer.as_numpy("decision").tolist()],
            "others": {other: asked(encoded, other).as_numpy("probability").tolist() for other in others},
            "index": sorted(entry.name for entry in client.get_model_repository_index().models),
            "trailing": dict(call.trailing_metadata()),
            "refused": {
                "image": refused(np.array([b"no image"], dtype=np.object_)),
                "name": refused(encoded, model="another"),
                "version": refused(encoded, model_version="1"),
            },
        }
    )
)
