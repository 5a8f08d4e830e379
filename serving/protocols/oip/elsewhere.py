"""Requests below /v2/models/NAME for a model of another application of the service: they are answered there.

ASGI middleware here, and there `ask`, one request to the application without a socket.
"""

from types import SimpleNamespace
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.admission import Ticket
from serving.errors import speaks_oip
from serving.guard import REQUEST_ID, given_keys
from serving.intake import read_body
from serving.limits import in_time
from serving.protocols.oip.answering import Answering

FORWARDED = "forwarded_http"  # the replica's method that another application calls
_MODELS = "/v2/models/"
_ROUTE = SimpleNamespace(path=f"{_MODELS}{{name}} of another application")
_OF_A_CONNECTION = ("connection", "content-length", "host", "transfer-encoding", REQUEST_ID)
_Headers = list[tuple[str, str]]


class Asked(NamedTuple):
    """A request as it is handed on."""

    method: str
    path: str
    query: bytes
    headers: _Headers
    body: bytes


class Answered(NamedTuple):
    status: int
    headers: _Headers
    body: bytes


class Elsewhere:
    def __init__(self, app: ASGIApp, answering: Answering) -> None:
        self._app = app
        self._answering = answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = _model_in(scope)
        if name is None or scope["state"].get("is_forwarded") or not await self._answering.is_elsewhere(name):
            await self._app(scope, receive, send)
            return
        scope["route"] = _ROUTE
        response = await self._forwarded(name, Request(scope, receive))
        await response(scope, receive, send)

    async def _forwarded(self, name: str, request: Request) -> Response:
        settings = self._answering.engine.settings
        if request.method == "POST":
            self._answering.desk.check(given_keys(request.headers))  # before bytes of strangers go any further
        kept = [(key, value) for key, value in request.headers.items() if key not in _OF_A_CONNECTION]
        headers = [*kept, (REQUEST_ID, request.state.request_id)]
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))

        async def read(ticket: Ticket) -> bytes:
            return await read_body(request, self._answering.limit_bytes, ticket)

        async def answer(body: bytes) -> Response:
            asked = Asked(request.method, path, request.scope["query_string"], headers, body)
            said: Answered = await self._answering.others.ask(name, FORWARDED, asked)
            told = {key: value for key, value in said.headers if key not in _OF_A_CONNECTION}
            return Response(said.body, said.status, told)

        return await in_time(settings, self._answering.admission, read, answer)


def _model_in(scope: Scope) -> str | None:
    """The name in a path below /v2/models; None where it is another path."""
    if scope["type"] != "http":
        return None
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    if not speaks_oip(path) or not path.startswith(_MODELS):
        return None
    name, _, rest = path.removeprefix(_MODELS).partition("/")
    return None if name == "stats" and not rest else name


async def ask(app: ASGIApp, asked: Asked) -> Answered:
    """The answer of `app`, which hands the request on no further."""
    status, headers, body = 0, Headers(), bytearray()
    sent = [{"type": "http.request", "body": asked.body, "more_body": False}]

    async def receive() -> Message:
        return sent.pop() if sent else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status, headers = message["status"], Headers(raw=message["headers"])
        elif message["type"] == "http.response.body":
            body.extend(message.get("body", b""))

    raw = [(key.encode("latin-1"), value.encode("latin-1")) for key, value in asked.headers]
    raw.append((b"content-length", str(len(asked.body)).encode()))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": asked.method,
        "scheme": "http",
        "path": asked.path,
        "raw_path": asked.path.encode(),
        "root_path": "",
        "query_string": asked.query,
        "headers": raw,
        "client": None,
        "server": None,
        "state": {"is_forwarded": True},
    }
    await app(scope, receive, send)
    return Answered(status, list(headers.items()), bytes(body))
