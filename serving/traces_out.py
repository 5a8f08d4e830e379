"""Where spans go: to a collector by OTLP over HTTP, https://opentelemetry.io/docs/specs/otlp/#otlphttp, in batches.

Serve calls `processors` in each of its processes where `tracing_config.exporter_import_path` names it. Address, headers
and the rest are the standard's variables, OTEL_EXPORTER_OTLP_ENDPOINT and so on. Needs the extra `tracing`.
"""

from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext, Status

_OURS = "leukoray"
# Of Serve's own: neither path nor ids nor headers of a request, which are in its other attributes, and in names
_SAFE = frozenset(
    {"app", "deployment", "replica_id", "call_method", "request_method", "http.method", "http.status_code"}
)


def processors() -> list[SpanProcessor]:
    """Sends what a process tells, in a thread of its own; where the collector is out, spans are lost and no request."""
    return [BatchSpanProcessor(Discreet(OTLPSpanExporter()))]


class Discreet(SpanExporter):
    """Sends spans without what a client put into them through Serve."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._exporter.export([_discreet(span) for span in spans])

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def _discreet(span: ReadableSpan) -> ReadableSpan:
    scope, attributes, name = span.instrumentation_scope, span.attributes or {}, span.name
    own = span.get_span_context()
    if scope is None or scope.name != _OURS:
        attributes = {key: value for key, value in attributes.items() if key in _SAFE}
        name = " ".join(word for word in name.split(" ")[:2] if "/" not in word)  # Serve's name for it, the deployment
    elif own is None or not own.trace_state:
        return span
    return ReadableSpan(
        name=name,
        context=None if own is None else SpanContext(own.trace_id, own.span_id, own.is_remote, own.trace_flags),
        parent=span.parent,
        resource=span.resource,
        attributes=attributes,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=scope,
    )
