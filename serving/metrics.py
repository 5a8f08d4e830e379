"""GET /metrics: what all replicas have done, as Prometheus text. The same whichever replica answers."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from serving.errors import HttpError
from serving.guard import check_key
from serving.interface import ERRORS, RETRY_AFTER, get, keys
from serving.monitoring.exposition import CONTENT_TYPE, written
from serving.monitoring.sharing import NotGathered
from serving.monitoring.state import State
from serving.schemas import ErrorBody
from serving.settings import ServingSettings

_TEXT = {"text/plain": {"schema": {"type": "string"}}}


def metrics_routes(settings: ServingSettings, total: Callable[[], Awaitable[State]]) -> APIRouter:
    """`total` gives the counts; it may raise NotGathered."""
    router = APIRouter()
    accepted = settings.api_key_sha256 if settings.metrics_need_key else ()
    answers: dict[int | str, dict[str, Any]] = {
        200: {"content": _TEXT},
        503: {"model": ErrorBody, "headers": RETRY_AFTER},
        **({status: {"model": ErrorBody, "description": ERRORS[status]} for status in (401, 403)} if accepted else {}),
    }

    @get(
        router, "/metrics", summary="Counts of all replicas, as Prometheus text", responses=answers,
        response_class=Response, dependencies=keys(settings) if accepted else [],
    )  # fmt: skip
    async def metrics(request: Request) -> Response:
        check_key(request.headers, accepted)
        try:
            state = await total()
        except NotGathered as error:
            headers = {"Retry-After": str(settings.retry_after_s)}
            message = "the counts of all replicas cannot be had now; try again"
            raise HttpError(503, "no_counts", message, headers) from error
        return Response(written(state), media_type=CONTENT_TYPE)

    return router
