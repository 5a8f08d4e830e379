"""GET /metrics: what all replicas have done, as Prometheus text. The same whichever replica answers."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from serving.desk import Desk
from serving.errors import HttpError
from serving.guard import given_keys
from serving.interface import ERRORS, RETRY_AFTER, get, keys
from serving.monitoring.exposition import CONTENT_TYPE, written
from serving.monitoring.sharing import NotGathered
from serving.monitoring.state import State
from serving.schemas import ErrorBody
from serving.settings import ServingSettings

_TEXT = {"text/plain": {"schema": {"type": "string"}}}


def metrics_routes(settings: ServingSettings, desk: Desk, total: Callable[[], Awaitable[State]]) -> APIRouter:
    """`total` gives the counts; it may raise NotGathered."""
    router = APIRouter()
    needs_key = settings.metrics_need_key and settings.asks_key
    answers: dict[int | str, dict[str, Any]] = {
        200: {"content": _TEXT},
        503: {"model": ErrorBody, "headers": RETRY_AFTER},
        **({status: {"model": ErrorBody, "description": ERRORS[status]} for status in (401, 403)} if needs_key else {}),
    }

    @get(
        router, "/metrics", summary="Counts of all replicas, as Prometheus text", responses=answers,
        response_class=Response, dependencies=keys(settings) if needs_key else [],
    )  # fmt: skip
    async def metrics(request: Request) -> Response:
        if needs_key:
            desk.check(given_keys(request.headers))
        try:
            state = await total()
        except NotGathered as error:
            headers = {"Retry-After": str(settings.retry_after_s)}
            message = "the counts of all replicas cannot be had now; try again"
            raise HttpError(503, "no_counts", message, headers) from error
        return Response(written(state), media_type=CONTENT_TYPE)

    return router
