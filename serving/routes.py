"""The HTTP face of one replica, as a FastAPI application that needs no Ray: what is asked, what is answered.

POST /predict   one image as the body, or several as multipart/form-data
GET  /healthz   the process answers      GET /readyz   the model answers
GET  /model     which model, and whether it was shown to be better than chance
GET  /          the page                 GET /docs     this interface; /openapi.json for programs
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

from pipeline import __version__
from pipeline.base.errors import ImageRejected, InputError
from serving.engine import Engine
from serving.errors import HttpError, error_response, from_rejection
from serving.guard import Guard, check_key
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
from serving.model import LoadedModel
from serving.pages import docs_page, front_page
from serving.schemas import (
    NOTICE,
    Alive,
    BatchBody,
    ErrorBody,
    ErrorDetail,
    FileAnswer,
    ModelBody,
    PredictionBody,
    Ready,
)

Handler = Callable[..., Any]
_NAMES = {404: "not_found", 405: "method_not_allowed"}
_ERRORS = {
    400: "empty or malformed body, or an invalid X-Request-ID",
    401: "no API key, where one is asked for",
    403: "an API key that is not accepted",
    408: "the body did not arrive in time",
    413: "too many bytes, or too many files",
    415: "a Content-Type or an image format that is not read here",
    422: "a truncated or corrupt image, or one with too many pixels",
    500: "an error of the service",
    503: "overloaded or not ready; Retry-After tells when to try again",
    504: "the answer took too long",
}
_TEXT = {"type": "string"}
_REQUEST_ID_HEADER = {"X-Request-ID": {"description": "of this request, as sent or made here", "schema": _TEXT}}
_RETRY_AFTER = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
_REQUEST_ID_PARAMETER = {
    "name": "X-Request-ID",
    "in": "header",
    "required": False,
    "description": "comes back in the answer",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:/+=-]{1,128}$"},
}
# Described only: `check_key` is what checks, and `needs_api_key` in /readyz tells whether it does.
_KEYS = [Depends(HTTPBearer(auto_error=False)), Depends(APIKeyHeader(name="X-API-Key", auto_error=False))]
_FILES_AT_ONCE = 4  # of one request, so that other requests are not left behind all of them
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BODIES = ("application/dicom", "application/octet-stream")  # beside image/*
_REQUEST_BODY = {
    "required": True,
    "content": {
        "image/*": _BINARY,
        **dict.fromkeys(_BODIES, _BINARY),
        MULTIPART: {
            "schema": {
                "type": "object",
                "properties": {"files": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        },
    },
}


def create_app(engine: Engine, *, behind_serve: bool = False) -> FastAPI:
    """The application of one engine. `behind_serve`: Serve's proxy adds X-Request-ID to the answer by itself."""
    app = FastAPI(
        title="leukoray",
        version=__version__,
        description=f"Leukemia detection in microscope images of blood cells. {NOTICE}",
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(Guard, adds_id=not behind_serve)
    app.add_exception_handler(HttpError, _on_http_error)
    app.add_exception_handler(HTTPException, _on_starlette_error)
    app.include_router(_prediction_routes(engine))
    app.include_router(_state_routes(engine))
    _add_pages(app)
    return app


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return error_response(error, request.state.request_id)


async def _on_starlette_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}; see /docs"
    code = _NAMES.get(error.status_code, "http_error")
    failure = HttpError(error.status_code, code, message, dict(error.headers or {}))
    return error_response(failure, request.state.request_id)


def _prediction_routes(engine: Engine) -> APIRouter:
    router = APIRouter()
    admission = Admission(engine.settings)

    @router.post(
        "/predict",
        summary="Predict one image, or several",
        response_model=PredictionBody | BatchBody,
        responses=_responses(),
        openapi_extra={"requestBody": _REQUEST_BODY, "parameters": [_REQUEST_ID_PARAMETER]},
        dependencies=_KEYS,
    )
    async def predict(request: Request) -> Response:
        """One image as the body (`image/*`, `application/dicom` or `application/octet-stream`) gives one prediction.

        `multipart/form-data` with one or several files gives `results`, in the order sent, each with a prediction
        or an error. Its status is 200 as soon as one file was predicted, else that of the first file's error.
        """
        check_key(request.headers, engine.settings.api_key_sha256)
        check_encoding(request.headers)
        with admission.enter() as ticket:
            return await _answer_in_time(request, engine, ticket)

    return router


def _responses() -> dict[int | str, dict[str, Any]]:
    """What may come back beside 200. Of several files that all failed, the body lists each with its error."""
    of_files = (400, 413, 415, 422)
    found: dict[int | str, dict[str, Any]] = {200: {"headers": _REQUEST_ID_HEADER}}
    for status, text in _ERRORS.items():
        headers = {**_REQUEST_ID_HEADER, **(_RETRY_AFTER if status == 503 else {})}
        model = ErrorBody | BatchBody if status in of_files else ErrorBody
        found[status] = {"model": model, "description": text, "headers": headers}
    return found


async def _answer_in_time(request: Request, engine: Engine, ticket: Ticket) -> Response:
    """The answer, or 408 when the client was too slow, or 504 when we were."""
    started = time.perf_counter()
    kind = media_type(request.headers)
    settings = engine.settings
    has_body = False
    try:
        async with asyncio.timeout(settings.request_timeout_s):
            if kind == MULTIPART:
                files = await read_files(request, settings, ticket)
                has_body = True
                return await _answer_files(request, engine, files, started)
            if kind and kind not in _BODIES and not kind.startswith("image/"):
                message = f"Content-Type {kind[:80]!r}: expected image/*, {', '.join(_BODIES)} or {MULTIPART}"
                raise HttpError(415, "unsupported_media_type", message)
            data = await read_raw(request, settings, ticket)
            has_body = True
            return await _answer_image(request, engine, data, started)
    except TimeoutError as error:
        limit = f"{settings.request_timeout_s:g} s"
        if has_body:
            raise HttpError(504, "timeout", f"no answer within {limit}; try again, or send fewer images") from error
        raise HttpError(408, "body_timeout", f"the body did not arrive within {limit}") from error


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
    places = asyncio.Semaphore(_FILES_AT_ONCE)

    async def in_turn(file: ReceivedFile) -> Any:
        async with places:
            return await _answer_file(engine, model, file)

    outcomes = await asyncio.gather(*map(in_turn, files))
    results, errors = [], []
    for file, outcome in zip(files, outcomes, strict=True):
        if isinstance(outcome, HttpError):
            errors.append(outcome)
            results.append(FileAnswer(filename=file.filename, error=outcome.detail(request_id)))
        else:
            results.append(FileAnswer(filename=file.filename, prediction=outcome))
    is_failure = len(errors) == len(results)
    first: ErrorDetail | None = errors[0].detail(request_id) if is_failure else None
    body = BatchBody(
        results=results,
        predicted=len(results) - len(errors),
        failed=len(errors),
        error=first,
        **_provenance(request, model, started),
    )
    status = errors[0].status if is_failure else 200
    return Response(body.model_dump_json(), status_code=status, media_type="application/json")


async def _answer_file(engine: Engine, model: LoadedModel, file: ReceivedFile) -> Any:
    """`ImageAnswer`, or the `HttpError` that this file alone would have got."""
    if file.data is None:
        message = f"{file.size_bytes} bytes, limit {engine.settings.max_bytes}; send a smaller image"
        return HttpError(413, "too_large", message)
    try:
        return await engine.answer(model, file.data)
    except ImageRejected as error:
        return from_rejection(error)


def _get(router: APIRouter, path: str, **options: Any) -> Callable[[Handler], Handler]:
    """GET, and HEAD as RFC 9110 asks for; described once."""

    def add(handler: Handler) -> Handler:
        router.add_api_route(path, handler, methods=["GET"], **options)
        router.add_api_route(path, handler, methods=["HEAD"], **{**options, "include_in_schema": False})
        return handler

    return add


def _state_routes(engine: Engine) -> APIRouter:
    router = APIRouter()

    @_get(router, "/healthz", summary="The process answers")
    async def healthz() -> Alive:
        return Alive()

    not_ready: dict[int | str, dict[str, Any]] = {503: {"model": ErrorBody, "headers": _RETRY_AFTER}}

    @_get(router, "/readyz", summary="The model answers a probe image", responses=not_ready)
    async def readyz() -> Ready:
        settings = engine.settings
        try:
            async with asyncio.timeout(settings.request_timeout_s):
                await engine.check()
        except (InputError, TimeoutError) as error:
            headers = {"Retry-After": str(settings.retry_after_s)}
            raise HttpError(503, "not_ready", "the model does not answer its probe", headers) from error
        return Ready(
            model=engine.model.info,
            max_bytes=settings.max_bytes,
            max_pixels=settings.max_pixels,
            max_files=settings.max_files,
            max_request_bytes=settings.max_request_bytes,
            needs_api_key=bool(settings.api_key_sha256),
            refused=engine.refused,
        )

    @_get(router, "/model", summary="The model that answers now, and whether it was shown to be better than chance")
    async def model() -> ModelBody:
        current = engine.model
        judged = current.predictor.info.against_chance
        text = None if judged is None else str(judged)
        return ModelBody(**dict(current.info), against_chance=judged, against_chance_text=text)

    return router


def _add_pages(app: FastAPI) -> None:
    front = front_page()
    docs = docs_page(app.openapi())

    @_get(app.router, "/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(front.html, headers=front.headers)

    @_get(app.router, "/docs", include_in_schema=False)
    async def documentation() -> HTMLResponse:
        return HTMLResponse(docs.html, headers=docs.headers)
