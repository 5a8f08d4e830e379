"""The client generated from the protocol's OpenAPI file against a service: URL MODEL VERSION IMAGE... Prints JSON."""

import base64
import json
import sys
from pathlib import Path

from open_inference.openapi.client import OpenInferenceClient
from open_inference.openapi.core.api_error import ApiError
from open_inference.openapi.types import InferenceRequest, RequestInput, RequestOutput

url, name, version, *paths = sys.argv[1:]
client = OpenInferenceClient(base_url=url)
client.check_server_liveness()
client.check_server_readiness()
client.check_model_readiness(name)
client.check_model_version_readiness(name, version)
server = client.read_server_metadata()
metadata = client.read_model_version_metadata(name, version)
data = [base64.b64encode(Path(path).read_bytes()).decode() for path in paths]
tensor = RequestInput(name=metadata.inputs[0].name, shape=[len(data)], datatype="BYTES", data=data)
request = InferenceRequest(id="case 42", inputs=[tensor], outputs=[RequestOutput(name="probability")])
answers = [client.model_infer(name, request=request), client.model_version_infer(name, version, request=request)]
assert all((answer.id, answer.model_name) == ("case 42", name) for answer in answers)
try:
    client.model_infer("another", request=request)
    raise AssertionError("no error")
except ApiError as error:
    refused = [error.status_code, str(error.body)]
print(
    json.dumps(
        {
            "server": server.name,
            "probability": [[output.data.__root__ for output in answer.outputs] for answer in answers],
            "refused": refused,
        }
    )
)
