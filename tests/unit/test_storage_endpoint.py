"""What is said where an endpoint is no S3: at once, and never that a store is out or a bucket is missing."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import botocore.exceptions as failures
import pytest

from pipeline.base.errors import PlatformError
from pipeline.storage.s3 import S3Store
from pipeline.storage.types import EndpointError, S3Settings

URI = "s3://lab/scores/x"


class _Console(BaseHTTPRequestHandler):
    """The page of a console, or of a hospital's login, whatever is asked for."""

    def _page(self) -> None:
        page = b"<!doctype html><p>Please log in"
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page)

    do_GET = do_HEAD = _page  # noqa: N815 - called so by http.server

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Settings]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    with HTTPServer(("127.0.0.1", 0), _Console) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield S3Settings(endpoint=f"http://127.0.0.1:{server.server_port}", region="us-east-1")
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.head(URI),
        lambda store: store.read(URI),
        lambda store: store.open(URI),
    ],
)
def test_a_page_is_no_object(console: S3Settings, ask: Callable[[S3Store], object]) -> None:
    with pytest.raises(EndpointError, match=f"endpoint {console.endpoint}.*: what answers there is no S3") as raised:
        ask(S3Store(console))
    assert raised.value.attempts == 1 and isinstance(raised.value.refusal(), PlatformError)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", "minio.clinic.example", "localhost:9000/"])
def test_an_endpoint_without_its_protocol_is_named_and_not_the_path(endpoint: str) -> None:
    with pytest.raises(EndpointError, match=f"Invalid endpoint: {endpoint}; an S3 endpoint is an address such as"):
        S3Store(S3Settings(endpoint=endpoint, region="us-east-1")).head(URI)


@pytest.mark.parametrize(
    ("said", "is_final"),
    [
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate", True),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number", True),
        ("EOF occurred in violation of protocol", False),
    ],
)
def test_a_certificate_that_is_not_trusted_is_no_outage(said: str, is_final: bool) -> None:
    store = S3Store(S3Settings(endpoint="https://s3.clinic", region="us-east-1", max_attempts=2))
    asked = []

    def fail(client: object) -> None:
        asked.append(client)
        raise failures.SSLError(endpoint_url="https://s3.clinic", error=said)

    with pytest.raises(Exception, match=r"s3\.clinic") as raised:
        store._retry(URI, fail)
    assert isinstance(raised.value, EndpointError) == ("AWS_CA_BUNDLE=FILE" in str(raised.value)) == is_final
    assert len(asked) == (1 if is_final else 2)
