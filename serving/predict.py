"""POST /predict: one image as the body, or several as multipart/form-data."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from pipeline.base.errors import ImageRejected
from serving.engine import Engine
from serving.errors import PROBLEM, HttpError, from_rejection
from serving.guard import check_key
from serving.intake import (
    MULTIPART,
    Admission,
    ReceivedFile,
    Ticket,
    check_encoding,
    media_type,
    read_files,
    read_raw,
)
from serving.interface import REQUEST_BODY, REQUEST_ID_PARAMETER, keys, responses
from serving.model import LoadedModel
from serving.schemas import BatchBody, BatchFailure, FileAnswer, PredictionBody
from serving.settings import ServingSettings

_Body = TypeVar("_Body")
_Item = TypeVar("_Item")
_Outcome = TypeVar("_Outcome")
_FILES_AT_ONCE = 4  # of one request, so that other requests are not left behind all of them


def prediction_routes(engine: Engine, admission: Admission) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/predict",
        summary="Predict one image, or several",
        response_model=PredictionBody | BatchBody,
        responses=responses(),
        openapi_extra={"requestBody": REQUEST_BODY, "parameters": [REQUEST_ID_PARAMETER]},
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

        async def read(ticket: Ticket) -> bytes | list[ReceivedFile]:
            if media_type(request.headers) == MULTIPART:
                return await read_files(request, settings, ticket)
            return await read_raw(request, settings, ticket)

        async def answer(body: bytes | list[ReceivedFile]) -> Response:
            if isinstance(body, bytes):
                return await _answer_image(request, engine, body, started)
            return await _answer_files(request, engine, body, started)

        return await in_time(settings, admission, read, answer)

    return router


async def in_time(
    settings: ServingSettings,
    admission: Admission,
    read: Callable[[Ticket], Awaitable[_Body]],
    answer: Callable[[_Body], Awaitable[Response]],
) -> Response:
    """One request from its place to its answer.

    Raises HttpError 503 when there is no place, 408 when the client was too slow, 504 when we were.
    """
    has_body = False
    try:
        with admission.enter() as ticket:
            async with asyncio.timeout(settings.request_timeout_s):
                body = await read(ticket)
                has_body = True
                return await answer(body)
    except TimeoutError as error:
        limit = f"{settings.request_timeout_s:g} s"
        if has_body:
            raise HttpError(504, "timeout", f"no answer within {limit}; try again, or send fewer images") from error
        raise HttpError(408, "body_timeout", f"the body did not arrive within {limit}") from error


async def at_once(work: Callable[[_Item], Awaitable[_Outcome]], items: Sequence[_Item]) -> list[_Outcome]:
    """`work` on a few items of one request at a time, its outcomes in order."""
    places = asyncio.Semaphore(_FILES_AT_ONCE)

    async def in_turn(item: _Item) -> _Outcome:
        async with places:
            return await work(item)

    return list(await asyncio.gather(*map(in_turn, items)))


def _provenance(request: Request, model: LoadedModel, started: float) -> dict[str, Any]:
    return {
        "model": model.info,
        "request_id": request.state.request_id,
        "elapsed_ms": round((time.perf_counter() - started) * 1e3, 3),
    }


async def _answer_image(request: Request, engine: Engine, data: bytes, started: float) -> Response:
    model = engine.model
    try:
        answer = await engine.answer(model, data)
    except ImageRejected as error:
        raise from_rejection(error) from error
    body = PredictionBody(**dict(answer), threshold=model.info.threshold, **_provenance(request, model, started))
    return Response(body.model_dump_json(), media_type="application/json")


async def _answer_files(request: Request, engine: Engine, files: list[ReceivedFile], started: float) -> Response:
    model = engine.model
    request_id = str(request.state.request_id)
    outcomes = await at_once(lambda file: _answer_file(engine, model, file), files)
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
        **_provenance(request, model, started),
    }
    if len(errors) < len(results):
        return Response(BatchBody(**said).model_dump_json(), media_type="application/json")
    request.state.error_code = errors[0].code
    failure = BatchFailure(**said, **errors[0].problem(request.scope))
    return Response(failure.model_dump_json(), status_code=errors[0].status, media_type=PROBLEM)


async def _answer_file(engine: Engine, model: LoadedModel, file: ReceivedFile) -> Any:
    """`ImageAnswer`, or the `HttpError` that this file alone would have got."""
    if file.data is None:
        message = f"{file.size_bytes} bytes, limit {engine.settings.max_bytes}; send a smaller image"
        return HttpError(413, "too_large", message)
    try:
        return await engine.answer(model, file.data)
    except ImageRejected as error:
        return from_rejection(error)
