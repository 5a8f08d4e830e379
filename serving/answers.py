"""The JSON answer to one image, and what every answer says of where it comes from."""

import time
from typing import Any

from fastapi import Request
from starlette.responses import Response

from serving.model import LoadedModel
from serving.schemas import ImageAnswer, PredictionBody


def provenance(request: Request, model: LoadedModel, started: float) -> dict[str, Any]:
    return {
        "model": model.info,
        "request_id": request.state.request_id,
        "elapsed_ms": round((time.perf_counter() - started) * 1e3, 3),
    }


def prediction_response(request: Request, model: LoadedModel, answer: ImageAnswer, started: float) -> Response:
    body = PredictionBody(**dict(answer), threshold=model.info.threshold, **provenance(request, model, started))
    return Response(body.model_dump_json(), media_type="application/json")
