"""`tritonclient[http]` against a service: triton_client.py URL IMAGE... Prints what it was told, as JSON."""

import json
import sys
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

url, *paths = sys.argv[1:]
images = [Path(path).read_bytes() for path in paths]
client = triton.InferenceServerClient(urlsplit(url).netloc)
assert client.is_server_live() and client.is_server_ready()
entry = client.get_model_repository_index()[0]  # that of the application that was asked
name, version = entry["name"], entry["version"]
assert client.is_model_ready(name) and client.is_model_ready(name, version)
assert not client.is_model_ready("another")
metadata = client.get_model_metadata(name, version)
[given] = metadata["inputs"]
names = [output["name"] for output in metadata["outputs"]]


def asked(tensor, binary, outputs=None):
    datatype = "BYTES" if tensor.dtype == np.object_ else "UINT8"
    wanted = triton.InferInput(given["name"], list(tensor.shape), datatype).set_data_from_numpy(tensor, binary)
    return client.infer(name, [wanted], version, outputs, request_id="case 42")


def answered():
    """Requests so far, those of others before this client's too."""
    [stats] = client.get_inference_statistics(name)["model_stats"]
    assert client.get_inference_statistics()["model_stats"] == [stats]
    return stats["inference_stats"]["success"]["count"]


before = answered()
encoded = np.array(images, dtype=np.object_)
in_binary = asked(encoded, True)
in_json = asked(encoded, True, [triton.InferRequestedOutput(output, binary_data=False) for output in names])
assert in_binary.get_response()["id"] == in_json.get_response()["id"] == "case 42"
for output in names:
    first, second = (answer.as_numpy(output) for answer in (in_binary, in_json))
    if first.dtype == np.object_:  # JSON has text where binary data has bytes
        assert first.astype(str).tolist() == second.astype(str).tolist(), (output, first, second)
    else:  # two requests: another batch may round otherwise
        assert first.dtype == second.dtype and np.allclose(first, second, rtol=1e-5), (output, first, second)
size = given["shape"][1]
pixels = np.arange(2 * size * size * 3, dtype=np.uint32).astype(np.uint8).reshape(2, size, size, 3)
for binary in (True, False):
    assert asked(pixels, binary).as_numpy("class_probabilities").shape == (2, metadata["outputs"][1]["shape"][1])
try:
    asked(np.array([b"no image"], dtype=np.object_), True)
    raise AssertionError("no error")
except InferenceServerException as error:
    refused = [error.status(), error.message()]
print(
    json.dumps(
        {
            "probability": in_binary.as_numpy("probability").tolist(),
            "decision": [text.decode() for text in in_binary.as_numpy("decision").tolist()],
            "refused": refused,
            "answered": answered() - before,
            "extensions": client.get_server_metadata()["extensions"],
        }
    )
)
