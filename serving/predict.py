"""POST /predict: one image as the body, or several as multipart/form-data."""

import functools
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from pipeline.base.errors import ImageRejected
from serving.admission import Admission, Ticket
from serving.answers import prediction_response, provenance
from serving.engine import Engine
from serving.errors import PROBLEM, HttpError, from_rejection
from serving.explain import explained
from serving.guard import check_key
from serving.intake import MULTIPART, check_encoding, media_type, read_files, read_raw
from serving.interface import NO_MAP, REQUEST_BODY, REQUEST_ID_PARAMETER, keys, responses
from serving.limits import at_once, in_time
from serving.model import LoadedModel
from serving.multipart import ReceivedFile
from serving.schemas import BatchBody, BatchFailure, ErrorBody, FileAnswer, ImageAnswer, PredictionBody

_EXPLAIN = {
    "name": "explain",
    "in": "query",
    "required": False,
    "description": "1: with a map of where the image speaks for its class, as /explain gives",
    "schema": {"type": "integer", "enum": [0, 1]},
}
_Answering = Callable[[LoadedModel, bytes], Awaitable[ImageAnswer]]


def prediction_routes(engine: Engine, admission: Admission) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/predict",
        summary="Predict one image, or several",
        response_model=PredictionBody | BatchBody,
        responses={**responses(), 409: {"model": ErrorBody, "description": NO_MAP}},
        openapi_extra={"requestBody": REQUEST_BODY, "parameters": [REQUEST_ID_PARAMETER, _EXPLAIN]},
        dependencies=keys(engine.settings),
    )
    async def predict(request: Request) -> Response:
        """One image as the body gives one prediction. Its format is what the bytes say, whatever Content-Type says.

        `multipart/form-data` with one or several files gives `results`, in the order sent, each with a prediction
        or an error. Its status is 200 as soon as one file was predicted, else that of the first file's error.
        """
        check_key(request.headers, engine.settings.api_key_sha256)
        check_encoding(request.headers)
        settings, started = engine.settings, time.perf_counter()
        answer_one = _answering(request, engine)

        async def read(ticket: Ticket) -> bytes | list[ReceivedFile]:
            if media_type(request.headers) == MULTIPART:
                return await read_files(request, settings, ticket)
            return await read_raw(request, settings, ticket)

        async def answer(body: bytes | list[ReceivedFile]) -> Response:
            if isinstance(body, bytes):
                return await _answer_image(request, engine.model, answer_one, body, started)
            return await _answer_files(request, engine, answer_one, body, started)

        return await in_time(settings, admission, read, answer)

    return router


def _answering(request: Request, engine: Engine) -> _Answering:
    """What answers an image: with a map where `?explain=1` asks for one."""
    asked = request.query_params.get("explain", "0")
    if asked not in ("0", "1"):
        raise HttpError(400, "bad_request", f"explain={asked[:20]}: expected 0 or 1")
    return engine.answer if asked == "0" else functools.partial(explained, engine)


async def _answer_image(
    request: Request, model: LoadedModel, answer_one: _Answering, data: bytes, started: float
) -> Response:
    try:
        answer = await answer_one(model, data)
    except ImageRejected as error:
        raise from_rejection(error) from error
    return prediction_response(request, model, answer, started)


async def _answer_files(
    request: Request, engine: Engine, answer_one: _Answering, files: list[ReceivedFile], started: float
) -> Response:
    model = engine.model
    request_id = str(request.state.request_id)
    outcomes = await at_once(lambda file: _answer_file(engine, model, file, answer_one), files)
    results, errors = [], []
    for file, outcome in zip(files, outcomes, strict=True):
        if isinstance(outcome, HttpError):
            errors.append(outcome)
            results.append(FileAnswer(filename=file.filename, error=outcome.detail(request_id)))
        else:
            results.append(FileAnswer(filename=file.filename, prediction=outcome))
    said = {
        "results": results,
        "predicted": len(results) - len(errors),
        "failed": len(errors),
        **provenance(request, model, started),
    }
    if len(errors) < len(results):
        return Response(BatchBody(**said).model_dump_json(), media_type="application/json")
    request.state.error_code = errors[0].code
    failure = BatchFailure(**said, **errors[0].problem(request.scope))
    return Response(failure.model_dump_json(), status_code=errors[0].status, media_type=PROBLEM)


async def _answer_file(engine: Engine, model: LoadedModel, file: ReceivedFile, answer_one: _Answering) -> Any:
    """`ImageAnswer`, or the `HttpError` that this file alone would have got."""
    if file.data is None:
        message = f"{file.size_bytes} bytes, limit {engine.settings.max_bytes}; send a smaller image"
        return HttpError(413, "too_large", message)
    try:
        return await answer_one(model, file.data)
    except ImageRejected as error:
        return from_rejection(error)
    except HttpError as error:  # no room for it
        return error
