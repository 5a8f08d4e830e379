"""POST /explain: where an image speaks for a class, drawn over it or as numbers; and the same for /predict?explain=1.

The map is a second pass through the bundle's own graph (pipeline/model/class_maps.py), without torch.
"""

import io
import json
import time
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from starlette.datastructures import Headers
from starlette.responses import Response

from pipeline.base.errors import ImageRejected
from pipeline.images.load import LoadedImage
from pipeline.model.overlay import WHAT_IT_IS, overlaid, told
from pipeline.model.prediction import Prediction, mapped_class
from serving.admission import Admission, Ticket
from serving.answers import prediction_response
from serving.clinical import SUBJECT_PARAMETER, read_subject
from serving.desk import Desk
from serving.engine import Engine, Mapped, NoMap
from serving.errors import HttpError, from_rejection
from serving.guard import admit
from serving.intake import check_encoding, read_raw
from serving.interface import IMAGE_BODY, NO_MAP, REQUEST_ID_PARAMETER, keys, responses
from serving.limits import in_time
from serving.model import LoadedModel, to_answer
from serving.schemas import NOTICE, ErrorBody, Explanation, ImageAnswer, PredictionBody

_ANSWERS = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
SIDE = 512  # pixels of the drawn image, square as the model sees it
_COMPRESSION = 3  # 17 ms of a processor where 6, the default, takes 43, for 9 % more bytes
_DIGITS = 4  # of a share: finer than any eye, and than the network's grid


async def explained(engine: Engine, model: LoadedModel, data: bytes) -> ImageAnswer:
    """As `Engine.answer`, with the map. Raises ImageRejected, and HttpError 409 where the model has none."""
    loaded, said, class_name, mapped = await _mapped(engine, model, data)
    explanation = Explanation(
        of=class_name,
        peak=mapped.peak,
        map=[[round(value, _DIGITS) for value in row] for row in mapped.shares.tolist()],
        text=f"{told(class_name, mapped.shares)}. {WHAT_IT_IS}",
    )
    return to_answer(model, said, loaded, len(data)).model_copy(update={"explanation": explanation})


async def drawn(engine: Engine, model: LoadedModel, data: bytes) -> bytes:
    """PNG of the image with its map, and what the model says of it as text inside. Raises as `explained`."""
    _, said, class_name, mapped = await _mapped(engine, model, data)
    about = {
        "probability": said.probability,
        "class_name": said.class_name,
        "decision": said.decision,
        "is_ood": said.is_ood,
        "map_of": class_name,
        "peak": mapped.peak,
        "model": f"{model.info.name} {model.info.version}",
        "sha256": model.info.sha256,
    }
    shown = await engine.load(model, data, SIDE)
    return await engine.decoding(_drawn, shown.pixels, mapped, about)


def _drawn(shown: NDArray[np.uint8], mapped: Mapped, about: dict[str, Any]) -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", NOTICE)
    text.add_text("Description", json.dumps(about))
    buffer = io.BytesIO()
    picture = Image.fromarray(overlaid(shown, mapped.shares))
    picture.save(buffer, "PNG", pnginfo=text, compress_level=_COMPRESSION)
    return buffer.getvalue()


async def _mapped(engine: Engine, model: LoadedModel, data: bytes) -> tuple[LoadedImage, Prediction, str, Mapped]:
    loaded = await engine.load(model, data)
    said = await engine.predict(model, loaded.pixels, data)
    class_name = mapped_class(model.predictor.info, said)
    try:
        return loaded, said, class_name, await engine.map_of(model, loaded.pixels, class_name, data)
    except NoMap as error:
        raise HttpError(409, "no_map", f"this model has no map: {error}") from error


def explain_routes(engine: Engine, desk: Desk, admission: Admission) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/explain",
        summary="Where one image speaks for the class that the model names",
        response_model=PredictionBody,
        responses={**responses(), 200: _ANSWERS, 409: {"model": ErrorBody, "description": NO_MAP}},
        openapi_extra={
            "requestBody": {"required": True, "content": IMAGE_BODY},
            "parameters": [REQUEST_ID_PARAMETER, SUBJECT_PARAMETER],
        },
        dependencies=keys(engine.settings),
    )
    async def explain(request: Request) -> Response:
        """PNG of the image in gray with the map in orange, square, as the model sees it.

        With `Accept: application/json` what `/predict?explain=1` gives. Of two classes the map is of the second.
        """
        visit = await admit(desk, request)
        check_encoding(request.headers)
        subject, started = read_subject(request), time.perf_counter()

        async def read(ticket: Ticket) -> bytes:
            return await read_raw(request, engine.settings, ticket)

        async def answer(data: bytes) -> Response:
            await visit.spend(1)

            async def by(model: LoadedModel) -> Response:
                try:
                    if not wants_json(request.headers):
                        return Response(await drawn(engine, model, data), media_type="image/png")
                    said = await explained(engine, model, data)
                except ImageRejected as error:
                    raise from_rejection(error) from error
                return prediction_response(request, model, said, started)

            return await engine.by_share(subject or request.state.request_id, by)

        return await in_time(engine.settings, admission, read, visit.recorded(answer))

    return router


def wants_json(headers: Headers) -> bool:
    """Whether JSON is asked for rather than a picture (RFC 9110, section 12.5.1, without weights)."""
    accepted = [kind.partition(";")[0].strip() for kind in headers.get("accept", "").lower().split(",")]
    return "application/json" in accepted and "image/png" not in accepted
