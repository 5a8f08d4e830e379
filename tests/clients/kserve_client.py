"""`kserve`'s InferenceRESTClient against a service: kserve_client.py URL MODEL IMAGE... Prints JSON."""

import asyncio
import json
import sys
from pathlib import Path

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

url, name, *paths = sys.argv[1:]


async def main():
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await client.is_server_live(url) and await client.is_server_ready(url)
    assert await client.is_model_ready(url, name) and not await client.is_model_ready(url, "another")
    images = np.array([Path(path).read_bytes() for path in paths], dtype=np.object_)
    told = {}
    for binary_out in (False, True):
        tensor = InferInput("image", [len(images)], "BYTES")
        tensor.set_data_from_numpy(images, binary_data=True)
        parameters = {"binary_data_output": binary_out}
        request = InferRequest(name, [tensor], request_id="case 42", parameters=parameters)
        answer = await client.infer(url, request, model_name=name)
        assert (answer.model_name, answer.id) == (name, "case 42")
        told[str(binary_out)] = {output.name: output.as_numpy().tolist() for output in answer.outputs}["probability"]
    try:
        await client.infer(url, {"inputs": []}, model_name=name)
        raise AssertionError("no error")
    except httpx.HTTPStatusError as error:
        told["refused"] = str(error)
    await client.close()
    print(json.dumps(told))


asyncio.run(main())
