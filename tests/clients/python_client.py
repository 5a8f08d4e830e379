"""A program with the client that openapi-python-client makes of /openapi.json: URL IMAGE... Prints JSON.

mypy looks at it as well: what it takes for granted of a type is what the description promises.
"""

import io
import json
import sys
from pathlib import Path

from leukoray_client import Client
from leukoray_client.api.default import explain, model, predict
from leukoray_client.api.open_inference_protocol_v_2 import model_metadata
from leukoray_client.models import (
    BatchBody,
    BatchFailure,
    Decision,
    ErrorBody,
    Explanation,
    ModelMetadata,
    PredictFilesBody,
    PredictionBody,
)
from leukoray_client.types import File


def file(data: bytes, name: str | None = None) -> File:
    return File(payload=io.BytesIO(data), file_name=name)


url, *paths = sys.argv[1:]
images = [Path(path).read_bytes() for path in paths]
with Client(base_url=url) as client:
    probability: list[float] = []
    decisions: list[Decision | None] = []
    for image in images:
        one = predict.sync(client=client, body=file(image), x_request_id="case-1")
        assert isinstance(one, PredictionBody) and one.request_id == "case-1"
        probability.append(one.probability)
        decisions.append(one.decision)
    files = [file(image, f"{place}.img") for place, image in enumerate(images)]
    many = predict.sync(client=client, body=PredictFilesBody(files=[*files, file(b"no image", "last.txt")]))
    assert isinstance(many, BatchBody)
    refused = predict.sync_detailed(client=client, body=file(b"no image"))
    assert isinstance(refused.parsed, ErrorBody)
    all_refused = predict.sync(client=client, body=PredictFilesBody(files=[file(b"no image", "a"), file(b"", "b")]))
    assert isinstance(all_refused, BatchFailure)
    about = model.sync(client=client)
    assert about is not None and not isinstance(about, ErrorBody)
    spoken = model_metadata.sync(about.name, client=client)
    assert isinstance(spoken, ModelMetadata)
    # of two kinds of answer the generator knows JSON
    mapped = explain.sync(client=client.with_headers({"Accept": "application/json"}), body=file(images[0]))
    assert isinstance(mapped, PredictionBody) and isinstance(mapped.explanation, Explanation)
    answers = [item.prediction for item in many.results if item.prediction]
    errors = [item.error.code for item in many.results if item.error]
    print(
        json.dumps(
            {
                "probability": probability,
                "decision": [decision and decision.value for decision in decisions],
                "of files": [answer.probability for answer in answers],
                "errors": errors,
                "refused": [refused.status_code, refused.parsed.error.code],
                "all refused": [item.error.code for item in all_refused.results if item.error],
                "model": about.sha256,
                "inputs": [tensor.name for tensor in spoken.inputs],
                "map": [len(row) for row in mapped.explanation.map_],
            }
        )
    )
