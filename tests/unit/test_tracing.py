"""Traces: what a collector is told of a request, and what it is not told."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

from pipeline.model.bundle import Bundle
from serving.engine import Engine
from serving.model import load_model
from serving.settings import ServingSettings
from serving.traces_out import Discreet
from tests.asgi import call, picture
from tests.bundles import make_mapped_bundle
from tests.collector import Collector, Told, collecting

TRACE, CLIENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SENT = {"traceparent": f"00-{TRACE}-{CLIENT}-01", "tracestate": "lab=secret-subject", "x-request-id": "secret-id"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_mapped_bundle(tmp_path_factory.mktemp("bundle"), size=32)


@pytest.fixture
def engine(bundle: Bundle) -> Engine:
    settings = ServingSettings(model=bundle.uri)
    return Engine(settings, load_model(bundle.uri, settings))


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture
def provider(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Iterator[TracerProvider]:
    """As Serve makes one, but at once instead of in batches, and for this test alone."""
    made = TracerProvider(sampler=ParentBasedTraceIdRatio(1.0))
    exporter = Discreet(OTLPSpanExporter(endpoint=f"{collector.url}/v1/traces"))
    made.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: made)
    collector.spans.clear()
    collector.bodies.clear()
    yield made
    made.shutdown()


def names(spans: list[Told], parent: str) -> list[str]:
    return sorted(span.name for span in spans if span.parent == parent)


def the(spans: list[Told], name: str) -> Told:
    [found] = [span for span in spans if span.name == name]
    return found


@pytest.mark.usefixtures("provider")
def test_a_request_goes_on_with_the_clients_trace(engine: Engine, bundle: Bundle, collector: Collector) -> None:
    files = [("files", (f"secret-{seed}.png", picture("PNG", seed))) for seed in range(2)]
    path = "/predict?subject=secret-subject&explain=1"
    assert call(engine, "POST", path, files=files, headers=SENT).status_code == 200
    spans = collector.of(TRACE, 10)
    request = the(spans, "POST /predict")
    assert request.parent == CLIENT and not request.is_error
    assert request.attributes == {
        "http.request.method": "POST", "http.route": "/predict", "http.response.status_code": 200,
    }  # fmt: skip
    stages = [*["queue", "decode", "predict", "map"] * 2, "answer"]
    assert names(spans, request.id) == sorted(stages) and len(spans) == 10
    for span in spans:
        assert 0 <= span.seconds <= request.seconds + 0.001
        if span.name == "predict":
            assert span.attributes == {"leukoray.model.sha256": engine.model.info.sha256, "leukoray.batch.images": 1}
    assert not any(b"secret" in body for body in collector.bodies)


@pytest.mark.usefixtures("provider")
@pytest.mark.parametrize(
    ("options", "status", "told"),
    [
        ({"content": b"secret words"}, 415, {"decode": "unsupported_format", "POST /predict": "unsupported_format"}),
        ({"content": b""}, 400, {"POST /predict": "empty"}),
    ],
)
def test_a_refused_image_says_its_code(
    engine: Engine, collector: Collector, options: dict[str, Any], status: int, told: dict[str, str]
) -> None:
    assert call(engine, "POST", "/predict", headers=SENT, **options).status_code == status
    spans = collector.of(TRACE, len(told))
    assert {span.name: span.attributes["error.type"] for span in spans if "error.type" in span.attributes} == told
    assert the(spans, "POST /predict").attributes["http.response.status_code"] == status
    assert not any(span.is_error for span in spans), "the client's fault is none of the server's"


@pytest.mark.usefixtures("provider")
def test_a_failed_model_is_an_error(tmp_path: Path, collector: Collector) -> None:
    uri = make_mapped_bundle(tmp_path, size=32).uri
    settings = ServingSettings(model=uri)
    engine = Engine(settings, load_model(uri, settings))
    engine.model.predictor.predict_each = lambda images: 1 / 0  # type: ignore[assignment, return-value, method-assign]
    assert call(engine, "POST", "/predict", content=picture("PNG"), headers=SENT).status_code == 500
    spans = collector.of(TRACE, 4)
    assert the(spans, "POST /predict").is_error
    assert the(spans, "predict").attributes["error.type"] == "predict_failed"


@pytest.mark.usefixtures("provider")
@pytest.mark.parametrize("traceparent", ["", "00-secret", f"00-{TRACE}-{CLIENT}-00", "caf\xe9"])
def test_what_is_no_trace_starts_one_and_what_is_not_sampled_is_not_told(
    engine: Engine, collector: Collector, traceparent: str
) -> None:
    headers = [(b"traceparent", traceparent.encode("latin-1"))]
    assert call(engine, "GET", "/secret", headers=headers).status_code == 404
    if traceparent.endswith("-00"):
        assert not collector.spans
    else:
        [span] = collector.spans
        assert (span.name, span.parent, span.attributes["error.type"]) == ("GET -", "", "not_found")


def test_spans_of_serve_lose_what_a_client_sent(provider: TracerProvider, collector: Collector, engine: Engine) -> None:
    serve = provider.get_tracer("ray.serve._private.tracing_utils")
    with serve.start_as_current_span("proxy_http_request") as around:
        around.update_name("proxy_http_request LeukorayReplica POST /secret")
        around.set_attributes({"request_id": "secret", "deployment": "LeukorayReplica", "http.route": "/secret"})
        around.record_exception(ValueError("secret"))
        assert call(engine, "GET", "/healthz", headers=SENT).status_code == 200
    outer, inner = the(collector.spans, "proxy_http_request LeukorayReplica"), the(collector.spans, "GET /healthz")
    assert (outer.attributes, inner.parent) == ({"deployment": "LeukorayReplica"}, outer.id)
    assert not any(b"secret" in body for body in collector.bodies)


def test_nothing_is_told_where_nobody_asked(engine: Engine, collector: Collector) -> None:
    collector.spans.clear()
    assert call(engine, "POST", "/predict", content=picture("PNG"), headers=SENT).status_code == 200
    assert not collector.spans
