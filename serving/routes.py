"""The HTTP face of one replica, as a FastAPI application that needs no Ray: what is asked, what is answered.

POST /predict   one image as the body, or several as multipart/form-data
POST /explain   where one image speaks for its class
GET  /healthz   the process answers      GET /readyz   the model answers
GET  /metrics   counts for Prometheus
GET  /model     which model, and whether it was shown to be better than chance
     /v2...     the Open Inference Protocol
POST /admin/...  orders, where administrators have keys
GET  /          the page                 GET /docs     this interface; /openapi.json for programs
"""

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import HTMLResponse, Response

from pipeline import __version__
from serving.admission import Admission
from serving.agreed import Outcome
from serving.desk import Desk
from serving.engine import Engine
from serving.errors import HttpError, error_response
from serving.explain import explain_routes
from serving.gate import Gated
from serving.guard import Guard, cors_options
from serving.interface import codes, describe, get, operation_id
from serving.lifecycle.admin import admin_routes
from serving.metrics import metrics_routes
from serving.monitoring.state import State
from serving.pages import docs_page, front_page
from serving.predict import prediction_routes
from serving.protocols.oip.answering import Answering
from serving.protocols.oip.elsewhere import Elsewhere
from serving.protocols.oip.routes import oip_routes
from serving.protocols.oip.schemas import IndexRequest, InferRequest
from serving.schemas import NOTICE, FhirResource
from serving.state import state_routes

_NAMES = {404: "not_found", 405: "method_not_allowed"}


def create_app(
    engine: Engine,
    *,
    behind_serve: bool = False,
    order: Callable[[str], Awaitable[Outcome]] | None = None,
    total: Callable[[], Awaitable[State]] | None = None,
    answering: Answering | None = None,
) -> FastAPI:
    """The application of one engine. `behind_serve`: Serve's proxy adds X-Request-ID to the answer by itself.
    `order`: carries out what administrators order. `total`: the counts of all replicas; without it the engine's own.
    `answering`: what gRPC answers by as well, with the replica's keys and limits; without it one that counts alone.
    """
    if answering is None:
        answering = Answering(engine, Desk(engine.settings, engine.recorder), Admission(engine.settings))
    desk, admission = answering.desk, answering.admission
    app = FastAPI(
        title="leukoray",
        version=__version__,
        description=f"Leukemia detection in microscope images of blood cells. {NOTICE}",
        docs_url=None,
        redoc_url=None,
        # FastAPI's own tells paths, queries and hosts as they were sent, where the environment names a collector
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        generate_unique_id_function=operation_id,
        redirect_slashes=False,  # it would redirect to whatever the Host header names
    )
    app.add_middleware(Gated, gate=engine.gate)
    app.add_middleware(Elsewhere, answering=answering)
    app.add_middleware(Guard, recorder=engine.recorder, adds_id=not behind_serve)
    if engine.settings.cors_origins:
        app.add_middleware(CORSMiddleware, **cors_options(engine.settings.cors_origins))  # around errors as well
    app.add_exception_handler(HttpError, _on_http_error)
    app.add_exception_handler(HTTPException, _on_starlette_error)
    app.include_router(prediction_routes(engine, desk, admission))
    app.include_router(explain_routes(engine, desk, admission))
    app.include_router(oip_routes(answering))
    app.include_router(state_routes(engine, desk, total or engine.counts))
    app.include_router(metrics_routes(engine.settings, desk, total or engine.counts))
    if order is not None and engine.settings.may_have_admins:
        app.include_router(admin_routes(engine.settings, desk, order))
    description = describe(app, FhirResource, InferRequest, IndexRequest)
    app.openapi = lambda: description  # type: ignore[method-assign]  # as FastAPI's documentation extends it
    _add_pages(app)
    return app


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return error_response(error, request.scope)


async def _on_starlette_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}; see /docs"
    code = _NAMES.get(error.status_code, "http_error")
    failure = HttpError(error.status_code, code, message, dict(error.headers or {}))
    return error_response(failure, request.scope)


def _add_pages(app: FastAPI) -> None:
    front = front_page()
    docs = docs_page(app.openapi(), codes())

    @get(app.router, "/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(front.html, headers=front.headers)

    @get(app.router, "/docs", include_in_schema=False)
    async def documentation() -> HTMLResponse:
        return HTMLResponse(docs.html, headers=docs.headers)
