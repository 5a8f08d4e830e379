"""The routes of the protocol below /v2: health, metadata, statistics, inference.

Keys, admission, limits and time are those of /predict, and so is the way of an image. Errors are `{"error": "..."}`
(serving/errors.py) with the statuses of /predict.
"""

import json
import re
from collections.abc import Awaitable
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import JSONResponse, Response

from pipeline.base.text import problems
from serving.admission import Ticket
from serving.guard import admit
from serving.intake import check_encoding, read_body
from serving.interface import REQUEST_ID_PARAMETER, get, keys, reference, responses
from serving.limits import in_time
from serving.model import LoadedModel
from serving.protocols.oip.answering import Answering, Wanted, provenance
from serving.protocols.oip.schemas import (
    IndexEntry,
    IndexRequest,
    InferRequest,
    InferResponse,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
    Statistics,
)
from serving.protocols.oip.tensors import Said, bad_request, read_request, wanted_outputs, write_outputs
from serving.schemas import ModelInfo

HEADER_LENGTH = "Inference-Header-Content-Length"
_INDEX_BYTES = 4096
_NO_MODEL = "no such model or version"
_REQUEST_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": reference(InferRequest)},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}


def oip_routes(answering: Answering) -> APIRouter:
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol v2"])
    _add_server(router, answering)

    @get(router, "/models/stats", summary="What all models, which is one, have done in the replica that answers")
    async def all_statistics() -> Statistics:
        return answering.counted.of(answering.engine.model)

    for place in ("/models/{name}", "/models/{name}/versions/{version}"):
        _add_model(router, answering, place)
        _add_infer(router, answering, place)
    return router


def _add_server(router: APIRouter, answering: Answering) -> None:
    @get(router, "/", include_in_schema=False)  # as the specification's OpenAPI file has it
    @get(router, "", summary="The server and its extensions")
    async def server_metadata() -> ServerMetadata:
        return answering.server("binary_tensor_data", "statistics")

    @get(router, "/health/live", summary="The process answers")
    async def server_live() -> ServerLive:
        return ServerLive()

    @get(router, "/health/ready", summary="The model answers a probe image")
    async def server_ready() -> ServerReady:
        await answering.engine.refuse_unready()
        return ServerReady()

    @router.post(
        "/repository/index",
        summary="The models there are",
        response_model=list[IndexEntry],
        responses=responses(),
        openapi_extra={"requestBody": {"content": {"application/json": {"schema": reference(IndexRequest)}}}},
    )
    async def repository_index(request: Request) -> Response:
        def read(ticket: Ticket) -> Awaitable[bytes]:
            return read_body(request, _INDEX_BYTES, ticket)

        return await in_time(answering.engine.settings, answering.admission, read, _indexed)

    async def _indexed(body: bytes) -> Response:
        try:
            wanted = IndexRequest.model_validate_json(body or b"{}")
        except ValidationError as error:
            raise bad_request(f"no index request of the protocol: {problems(error)}") from error
        return JSONResponse([entry.model_dump() for entry in await answering.index(wanted.ready)])


def _add_model(router: APIRouter, answering: Answering, place: str) -> None:
    about = {"responses": {404: {"description": _NO_MODEL}}, "openapi_extra": {"parameters": _in_path(place)}}

    @get(router, place, summary="Inputs and outputs of the model", **about)
    async def model_metadata(request: Request) -> ModelMetadata:
        return answering.metadata(_asked_for(request, answering))

    @get(router, f"{place}/ready", summary="The model answers a probe image", **about)
    async def model_ready(request: Request) -> ModelReady:
        model = _asked_for(request, answering)
        await answering.engine.refuse_unready()
        return ModelReady(name=model.info.name)

    @get(router, f"{place}/stats", summary="What the model has done in the replica that answers", **about)
    async def model_statistics(request: Request) -> Statistics:
        return answering.counted.of(_asked_for(request, answering))


def _add_infer(router: APIRouter, answering: Answering, place: str) -> None:
    engine = answering.engine

    @router.post(
        f"{place}/infer",
        summary="Predict images",
        response_model=InferResponse,
        responses={**responses(), 404: {"description": _NO_MODEL}},
        openapi_extra={"requestBody": _REQUEST_BODY, "parameters": [*_in_path(place), REQUEST_ID_PARAMETER]},
        dependencies=keys(engine.settings),
    )
    async def model_infer(request: Request) -> Response:
        """UINT8 [n, S, S, 3], RGB, in the model's size S, or BYTES [n] of encoded images, as input `image`.

        Either in JSON (encoded images as base64), or as binary data behind it. An image that is refused refuses all.
        """
        visit = await admit(answering.desk, request)
        check_encoding(request.headers)
        model = _asked_for(request, answering)

        async def read(ticket: Ticket) -> bytes:
            body = await read_body(request, answering.limit_bytes, ticket)
            await ticket.hold(len(body))
            return body

        async def answer(body: bytes) -> Response:
            header = request.headers.get(HEADER_LENGTH)
            asked, images = await engine.decoding(read_request, body, header, model.info, engine.settings)
            await visit.spend(len(images))
            version = request.path_params.get("version")
            wanted = Wanted(request.state.request_id, version, wanted_outputs(asked, model.info))
            return _response(asked, model.info, *await answering.answered(model, wanted, images, visit))

        with answering.counted.request(model):
            return await in_time(engine.settings, answering.admission, read, visit.recorded(answer))


def _in_path(place: str) -> list[dict[str, Any]]:
    """The path's parameters, as OpenAPI has them."""
    schema = {"type": "string", "minLength": 1}
    return [
        {"name": name, "in": "path", "required": True, "schema": schema} for name in re.findall(r"\{(\w+)\}", place)
    ]


def _asked_for(request: Request, answering: Answering) -> LoadedModel:
    """The model that answers, if that is the one in the path. Raises HttpError 404."""
    return answering.asked_for(request.path_params["name"], request.path_params.get("version"))


def _response(request: InferRequest, asked: ModelInfo, by: LoadedModel, said: list[Said]) -> Response:
    """With the outputs of the model that was asked for, whoever answers in its place."""
    outputs, blobs = write_outputs(request, asked, said)
    body: dict[str, Any] = {"model_name": asked.name, "model_version": by.info.version}
    if request.id is not None:
        body["id"] = request.id
    body["parameters"] = provenance(by.info)
    body["outputs"] = outputs
    text = json.dumps(body, separators=(",", ":")).encode()
    if not blobs:
        return Response(text, media_type="application/json")
    headers = {HEADER_LENGTH: str(len(text))}
    return Response(b"".join([text, *blobs]), headers=headers, media_type="application/octet-stream")
