"""Spans of a request's way through a replica for OpenTelemetry: the request, queue, decode, predict, map, answer.

Serve's own tracing says whether there are any and where they go (serving/traces_out.py is its exporter); without it
nothing here does anything. A client's trace goes on (https://www.w3.org/TR/trace-context/). Attributes are named as in
https://opentelemetry.io/docs/specs/semconv/http/http-spans/; none holds what a client sent.
"""

import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING

from starlette.types import Scope

from serving.access import method_of, route_of

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

Attributes = Mapping[str, str | int]
EXPORTER = "serving.traces_out:processors"
ERROR, SHA256, BATCH = "error.type", "leukoray.model.sha256", "leukoray.batch.images"
_SDK = "opentelemetry.sdk.trace"


class Trace:
    """The span of one request that is recorded."""

    def __init__(self, tracer: "Tracer", span: "Span") -> None:
        self._tracer, self._span = tracer, span
        self._epoch_ns = time.time_ns() - time.perf_counter_ns()
        self._told_until: float | None = None
        self.is_over = False
        self._token: Token[Trace | None] = _current.set(self)

    def stage(self, name: str, began: float, ended: float, attributes: Attributes) -> None:
        """See the function."""
        from opentelemetry.trace import set_span_in_context

        within, start = set_span_in_context(self._span), self._ns(began)
        span = self._tracer.start_span(name, within, attributes=dict(attributes), start_time=start)
        span.end(self._ns(ended))
        self._told_until = ended

    def end(self, scope: Scope, status: int, code: str | None) -> None:
        """What came after the last stage is the making and sending of the answer."""
        from opentelemetry.trace import StatusCode

        if self._told_until is not None and status:
            self.stage("answer", self._told_until, time.perf_counter(), {})
        self.is_over = True
        _current.reset(self._token)
        method, route = method_of(scope), route_of(scope)
        self._span.update_name(f"{method} {route}")
        self._span.set_attributes({"http.request.method": method, "http.route": route})
        if status:
            self._span.set_attribute("http.response.status_code", status)
        if code is not None:
            self._span.set_attribute(ERROR, code)
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()

    def _ns(self, moment: float) -> int:
        """Since 1970, of what time.perf_counter said."""
        return self._epoch_ns + round(moment * 1e9)


_current: ContextVar[Trace | None] = ContextVar("trace", default=None)


def begin(scope: Scope) -> Trace | None:
    """The span of this request, to be ended with `end`; None where nobody records it."""
    tracer = _tracer()
    if tracer is None:
        return None
    from opentelemetry.trace import SpanKind, get_current_span

    is_within = get_current_span().get_span_context().is_valid  # in a span of Serve's, which has looked at headers
    kind = SpanKind.INTERNAL if is_within else SpanKind.SERVER
    span = tracer.start_span("request", None if is_within else _sent(scope), kind=kind)
    return Trace(tracer, span) if span.is_recording() else None


def stage(name: str, began: float, ended: float | None = None, attributes: Attributes | None = None) -> None:
    """What the request of this task did from `began` until now, or until `ended`: seconds of time.perf_counter."""
    trace = _current.get()
    if trace is not None and not trace.is_over:  # a task that a request left behind is no part of it
        trace.stage(name, began, time.perf_counter() if ended is None else ended, attributes or {})


def end(trace: Trace | None, scope: Scope, status: int, code: str | None) -> None:
    """End what `begin` gave; `scope` after the request, `status` 0 where the client left before there was an answer."""
    if trace is not None:
        trace.end(scope, status, code)


def predicted(began: float, ended: float, sha256: str, images: int, code: str | None) -> None:
    """The stage of an image's forward pass in a batch of so many `images`; `code`: of what went wrong."""
    if _current.get() is not None:
        wrong = {} if code is None else {ERROR: code}
        stage("predict", began, ended, {SHA256: sha256, BATCH: images, **wrong})


def _tracer() -> "Tracer | None":
    if _SDK not in sys.modules:
        return None
    from opentelemetry import trace

    provider = trace.get_tracer_provider()
    return provider.get_tracer("leukoray") if isinstance(provider, sys.modules[_SDK].TracerProvider) else None


def _sent(scope: Scope) -> "Context":
    """The span of the client that asks, where it names one; of what it says beside nothing is taken."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    named = [value.decode("latin-1") for name, value in scope["headers"] if name == b"traceparent"]
    return TraceContextTextMapPropagator().extract({"traceparent": named[0]} if len(named) == 1 else {})


def settings(environment: Mapping[str, str], url: str) -> dict[str, str]:
    """What a Ray needs in its environment to send traces to a collector. What is set there counts."""
    wanted = {
        "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": EXPORTER,
        "RAY_SERVE_TRACING_SAMPLING_RATIO": "1",  # Serve's default is one of a hundred
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_SERVICE_NAME": "leukoray",
    }
    return {name: value for name, value in wanted.items() if name not in environment}
