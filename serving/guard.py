"""Around every request: its id, its key, the headers of its answer, and no exception that leaves unseen.

Header rules follow RFC 9110; the content security policy follows CSP Level 3 (https://www.w3.org/TR/CSP3/).
"""

import logging
import re
import time
import uuid
from collections.abc import Sequence
from typing import Any

from ray.exceptions import TaskCancelledError
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import tracing
from serving.access import log_access, method_of, route_of, without_words
from serving.desk import Desk, Visit
from serving.errors import HttpError, error_response
from serving.monitoring.recorder import Recorder

log = logging.getLogger("ray.serve")
REQUEST_ID = "x-request-id"
_VALID_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}\Z")
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware. `adds_id=False` behind Serve's proxy, which copies the id to the answer by itself."""

    def __init__(self, app: ASGIApp, recorder: Recorder, adds_id: bool = True) -> None:
        self.app = app
        self.recorder = recorder
        self.adds_id = adds_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await _refuse_websocket(scope, receive, send)
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        self.recorder.request_begins()
        has_valid_id = set_request_id(scope)
        trace = tracing.begin(scope)
        status = 0  # of an answer that has begun

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._add_headers(MutableHeaders(scope=message), scope["state"]["request_id"])
            await send(message)

        try:
            if not has_valid_id:
                raise invalid_id()
            await self.app(scope, receive, send_guarded)
        except HttpError as error:
            await error_response(error, scope)(scope, receive, send_guarded)
        except (ClientDisconnect, TaskCancelledError):  # the second is how Serve tells of it
            scope["state"]["error_code"] = "client_gone"
        except Exception as error:
            log.error("request %s failed:\n%s", scope["state"]["request_id"], without_words(error))
            if status:  # the server ends the connection, and logs this
                raise RuntimeError("an answer broke off") from None
            failure = HttpError(500, "internal", "the request failed here, not by its own fault; quote its id")
            await error_response(failure, scope)(scope, receive, send_guarded)
        finally:
            seconds = time.perf_counter() - started
            code = scope["state"].get("error_code")
            self.recorder.request_ends(route_of(scope), method_of(scope), status, code, seconds)
            log_access(scope, status, seconds)
            tracing.end(trace, scope, status, code)

    def _add_headers(self, headers: MutableHeaders, request_id: str) -> None:
        for name, value in SECURITY_HEADERS.items():
            headers.setdefault(name, value)
        if self.adds_id:
            headers[REQUEST_ID] = request_id


def has_valid_id(scope: Scope) -> bool:
    """Whether the request has no id of its own, or one that may be copied into logs and answers."""
    given = Headers(scope=scope).getlist(REQUEST_ID)
    return not given or (len(given) == 1 and _VALID_ID.match(given[0]) is not None)


def set_request_id(scope: Scope) -> bool:
    """Give the request its id, the client's own where that is valid. False where the client's is not."""
    is_valid = has_valid_id(scope)
    given = Headers(scope=scope).get(REQUEST_ID) if is_valid else None
    scope.setdefault("state", {})["request_id"] = given or uuid.uuid4().hex
    return is_valid


def invalid_id() -> HttpError:
    return HttpError(400, "invalid_request_id", "X-Request-ID: expected 1 to 128 of A-Z a-z 0-9 . _ : / + = -")


async def _refuse_websocket(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a WebSocket's opening handshake (RFC 6455, section 4.2.2) with an error as for any other request.

    By the ASGI extension 'WebSocket Denial Response'; a server without it answers a bare 403.
    """
    has_valid_id = set_request_id(scope)
    error = HttpError(400, "no_websocket", "there are no WebSockets here; send a plain HTTP request, see /docs")
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008})
        return
    response = error_response(error if has_valid_id else invalid_id(), scope)
    response.headers.update({**SECURITY_HEADERS, REQUEST_ID: scope["state"]["request_id"]})
    await response(scope, receive, send)


def given_keys(headers: Headers) -> list[str]:
    """`Authorization: Bearer KEY` (RFC 6750), `X-API-Key: KEY`; who sends both has both checked."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = [headers.get("x-api-key", ""), token.strip() if scheme.lower() == "bearer" else ""]
    return [key for key in given if key]


async def admit(desk: Desk, request: Request) -> Visit:
    """A request for predictions. Raises HttpError 401, 403, 429 and 503."""
    return await desk.admit(given_keys(request.headers), request.state.request_id, route_of(request.scope))


def cors_options(origins: Sequence[str]) -> dict[str, Any]:
    """What pages of `origins` may do here (https://fetch.spec.whatwg.org/#http-cors-protocol): anything, no cookies."""
    return {
        "allow_origins": list(origins),
        "allow_methods": ["GET", "POST"],
        "allow_headers": ["Authorization", "Content-Type", "Inference-Header-Content-Length", "X-API-Key", REQUEST_ID],
        "expose_headers": [REQUEST_ID, "Retry-After", "Inference-Header-Content-Length"],
        "max_age": 600,
    }
