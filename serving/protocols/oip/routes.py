"""The routes of the protocol below /v2: health, metadata, statistics, inference.

Keys, admission, limits and time are those of /predict, and so is the way of an image. Errors are `{"error": "..."}`
(serving/errors.py) with the statuses of /predict.
"""

import asyncio
import json
import re
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import JSONResponse, Response

from pipeline import __version__
from pipeline.base.errors import ImageRejected, InputError
from pipeline.base.text import problems
from serving.admission import Admission, Ticket
from serving.desk import Desk
from serving.engine import Engine
from serving.errors import HttpError, from_rejection
from serving.guard import admit
from serving.intake import check_encoding, read_body
from serving.interface import REQUEST_ID_PARAMETER, get, keys, reference, responses
from serving.limits import at_once, in_time
from serving.model import LoadedModel
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
from serving.protocols.oip.statistics import Counted
from serving.protocols.oip.tensors import Images, Said, bad_request, described, read_request, write_outputs
from serving.schemas import NOTICE, ImageAnswer, ModelInfo

HEADER_LENGTH = "Inference-Header-Content-Length"
_EXTENSIONS = ["binary_tensor_data", "statistics"]
_PLATFORMS = {"onnx": "onnx_onnxv1", "torch": "pytorch_torch"}
_INDEX_BYTES = 4096
_NO_MODEL = "no such model or version"
_REQUEST_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": reference(InferRequest)},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}


def oip_routes(engine: Engine, desk: Desk, admission: Admission) -> APIRouter:
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol v2"])
    counted = Counted()
    _add_server(router, engine, admission)

    @get(router, "/models/stats", summary="What all models, which is one, have done in the replica that answers")
    async def all_statistics() -> Statistics:
        return counted.of(engine.model)

    for place in ("/models/{name}", "/models/{name}/versions/{version}"):
        _add_model(router, engine, counted, place)
        _add_infer(router, engine, desk, admission, counted, place)
    return router


def _add_server(router: APIRouter, engine: Engine, admission: Admission) -> None:
    @get(router, "/", include_in_schema=False)  # as the specification's OpenAPI file has it
    @get(router, "", summary="The server and its extensions")
    async def server_metadata() -> ServerMetadata:
        return ServerMetadata(name="leukoray", version=__version__, extensions=_EXTENSIONS)

    @get(router, "/health/live", summary="The process answers")
    async def server_live() -> ServerLive:
        return ServerLive()

    @get(router, "/health/ready", summary="The model answers a probe image")
    async def server_ready() -> ServerReady:
        await _ready(engine)
        return ServerReady()

    @router.post(
        "/repository/index",
        summary="The models there are",
        response_model=list[IndexEntry],
        responses=responses(),
        openapi_extra={"requestBody": {"content": {"application/json": {"schema": reference(IndexRequest)}}}},
    )
    async def repository_index(request: Request) -> Response:
        return await in_time(
            engine.settings, admission, lambda ticket: read_body(request, _INDEX_BYTES, ticket), _indexed
        )

    async def _indexed(body: bytes) -> Response:
        try:
            wanted = IndexRequest.model_validate_json(body or b"{}")
        except ValidationError as error:
            raise bad_request(f"no index request of the protocol: {problems(error)}") from error
        info, reason = engine.model.info, ""
        try:
            await _ready(engine)
        except HttpError as error:
            reason = error.message
        entry = IndexEntry(
            name=info.name, version=info.version, state="UNAVAILABLE" if reason else "READY", reason=reason
        )
        return JSONResponse([] if reason and wanted.ready else [entry.model_dump()])


def _add_model(router: APIRouter, engine: Engine, counted: Counted, place: str) -> None:
    about = {"responses": {404: {"description": _NO_MODEL}}, "openapi_extra": {"parameters": _in_path(place)}}

    @get(router, place, summary="Inputs and outputs of the model", **about)
    async def model_metadata(request: Request) -> ModelMetadata:
        model = _asked_for(request, engine)
        inputs, outputs = described(model.info)
        return ModelMetadata(
            name=model.info.name,
            versions=[model.info.version],
            platform=_PLATFORMS[model.predictor.engine],
            inputs=inputs,
            outputs=outputs,
            parameters={"classes": list(model.info.classes), **_provenance(model.info)},
        )

    @get(router, f"{place}/ready", summary="The model answers a probe image", **about)
    async def model_ready(request: Request) -> ModelReady:
        model = _asked_for(request, engine)
        await _ready(engine)
        return ModelReady(name=model.info.name)

    @get(router, f"{place}/stats", summary="What the model has done in the replica that answers", **about)
    async def model_statistics(request: Request) -> Statistics:
        return counted.of(_asked_for(request, engine))


def _add_infer(
    router: APIRouter, engine: Engine, desk: Desk, admission: Admission, counted: Counted, place: str
) -> None:
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
        visit = await admit(desk, request)
        check_encoding(request.headers)
        model = _asked_for(request, engine)

        async def read(ticket: Ticket) -> bytes:
            settings = engine.settings
            # held twice, as it came and as images: what never can be is no matter of waiting
            limit = min(settings.max_request_bytes, settings.max_in_flight_bytes // 2)
            body = await read_body(request, limit, ticket)
            await ticket.hold(len(body))
            return body

        async def answer(body: bytes) -> Response:
            header = request.headers.get(HEADER_LENGTH)
            asked, images = await engine.decoding(read_request, body, header, model.info, engine.settings)
            await visit.spend(len(images))
            return _response(asked, model.info, await _said(engine, model, images))

        with counted.request(model):
            return await in_time(engine.settings, admission, read, visit.recorded(answer))


def _in_path(place: str) -> list[dict[str, Any]]:
    """The path's parameters, as OpenAPI has them."""
    schema = {"type": "string", "minLength": 1}
    return [
        {"name": name, "in": "path", "required": True, "schema": schema} for name in re.findall(r"\{(\w+)\}", place)
    ]


def _asked_for(request: Request, engine: Engine) -> LoadedModel:
    """The model that answers, if that is the one in the path. Raises HttpError 404."""
    model, asked = engine.model, request.path_params
    if asked["name"] != model.info.name:
        raise HttpError(404, "not_found", f"no model {asked['name'][:80]!r}; there is {model.info.name!r}")
    version = asked.get("version")
    if version not in (None, model.info.version):
        raise HttpError(404, "not_found", f"no version {version[:80]!r}; there is {model.info.version!r}")
    return model


async def _ready(engine: Engine) -> None:
    try:
        async with asyncio.timeout(engine.settings.request_timeout_s):
            await engine.check()
    except (InputError, TimeoutError) as error:
        headers = {"Retry-After": str(engine.settings.retry_after_s)}
        raise HttpError(503, "not_ready", "the model does not answer its probe", headers) from error


async def _said(engine: Engine, model: LoadedModel, images: Images) -> list[Said]:
    """Raises HttpError for the first image that is refused."""

    async def of(image: Any) -> Said | HttpError:
        try:
            if isinstance(image, bytes):
                return _from_answer(await engine.answer(model, image))
            said = await engine.predict(model, image)
        except ImageRejected as error:
            return from_rejection(error)
        except HttpError as error:  # no room for it
            return error
        return Said(said.probability, said.classes, said.class_name, said.decision, said.is_ood, said.ood_score)

    said: list[Said] = []
    for place, outcome in enumerate(await at_once(of, images)):
        if isinstance(outcome, HttpError):
            outcome.message = f"image {place}: {outcome.message}" if len(images) > 1 else outcome.message
            raise outcome
        said.append(outcome)
    return said


def _from_answer(said: ImageAnswer) -> Said:
    classes = tuple(said.classes.values())
    return Said(said.probability, classes, said.class_name, said.decision, said.is_ood, said.ood_score)


def _provenance(info: ModelInfo) -> dict[str, Any]:
    return {"sha256": info.sha256, "threshold": info.threshold, "synthetic": info.synthetic, "notice": NOTICE}


def _response(request: InferRequest, info: ModelInfo, said: list[Said]) -> Response:
    outputs, blobs = write_outputs(request, info, said)
    body: dict[str, Any] = {"model_name": info.name, "model_version": info.version}
    if request.id is not None:
        body["id"] = request.id
    body["parameters"] = _provenance(info)
    body["outputs"] = outputs
    text = json.dumps(body, separators=(",", ":")).encode()
    if not blobs:
        return Response(text, media_type="application/json")
    headers = {HEADER_LENGTH: str(len(text))}
    return Response(b"".join([text, *blobs]), headers=headers, media_type="application/octet-stream")
