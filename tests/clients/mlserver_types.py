"""MLServer's types and codecs against a service: mlserver_types.py URL MODEL IMAGE... Prints JSON."""

import json
import sys
import urllib.request
from pathlib import Path

from mlserver.codecs import Base64Codec, NumpyCodec, StringCodec
from mlserver.types import (
    InferenceRequest,
    InferenceResponse,
    MetadataModelResponse,
    MetadataServerResponse,
    RequestOutput,
)

url, name, *paths = sys.argv[1:]


def got(path, body=None):
    request = urllib.request.Request(f"{url}{path}", body, {"Content-Type": "application/json"})
    return urllib.request.urlopen(request, timeout=30).read()


server = MetadataServerResponse.model_validate_json(got("/v2"))
metadata = MetadataModelResponse.model_validate_json(got(f"/v2/models/{name}"))
images = [Path(path).read_bytes() for path in paths]
tensor = Base64Codec.encode_input(metadata.inputs[0].name, images, use_bytes=False)
wanted = [RequestOutput(name="probability"), RequestOutput(name="class")]
request = InferenceRequest(id="case 42", inputs=[tensor], outputs=wanted)
for left_out in (True, False):  # null, else, for all that is not given
    body = request.model_dump_json(exclude_none=left_out).encode()
    answer = InferenceResponse.model_validate_json(got(f"/v2/models/{name}/infer", body))
assert (answer.id, answer.model_version) == ("case 42", metadata.versions[0])
probability, classes = answer.outputs
print(
    json.dumps(
        {
            "server": server.name,
            "probability": NumpyCodec.decode_output(probability).ravel().tolist(),
            "class": StringCodec.decode_output(classes),
        }
    )
)
