"""A collector of OpenTelemetry traces: OTLP over HTTP, https://opentelemetry.io/docs/specs/otlp/#otlphttp."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Told:
    """One span. Ids are hex; `parent` is empty where there is none."""

    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    seconds: float
    is_error: bool


@dataclass
class Collector:
    url: str = ""
    spans: list[Told] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def of(self, trace: str, count: int, wait_s: float = 60) -> list[Told]:
        """The spans of one trace, `count` of them at least, once they are there."""
        end = time.monotonic() + wait_s
        while len(found := [span for span in self.spans if span.trace == trace]) < count:
            assert time.monotonic() < end, f"{count} spans were not told in {wait_s} s, but {found}"
            time.sleep(0.05)
        return found

    def take(self, body: bytes) -> None:
        self.bodies.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    attributes = {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}
                    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                    seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
                    self.spans.append(Told(span.name, *ids, attributes, seconds, span.status.code == 2))


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces" and not self.headers.get("Content-Encoding")
            collector.take(body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
