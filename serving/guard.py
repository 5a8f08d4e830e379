"""Around every request: its id, its key, the headers of its answer, and no exception that leaves unseen.

Header rules follow RFC 9110; the content security policy follows CSP Level 3 (https://www.w3.org/TR/CSP3/).
"""

import hashlib
import hmac
import logging
import re
import uuid
from collections.abc import Sequence

from ray.exceptions import TaskCancelledError
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import HttpError, error_response

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

    def __init__(self, app: ASGIApp, adds_id: bool = True) -> None:
        self.app = app
        self.adds_id = adds_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID)
        is_valid = given is None or _VALID_ID.match(given) is not None
        request_id = given if given is not None and is_valid else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        has_started = False

        async def send_guarded(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                self._add_headers(MutableHeaders(scope=message), request_id)
            await send(message)

        try:
            if not is_valid:
                message = "X-Request-ID: expected 1 to 128 of A-Z a-z 0-9 . _ : / + = -"
                raise HttpError(400, "invalid_request_id", message)
            await self.app(scope, receive, send_guarded)
        except HttpError as error:
            await error_response(error, request_id)(scope, receive, send_guarded)
        except (ClientDisconnect, TaskCancelledError):  # the second is how Serve tells of it
            log.info("request %s: the client went away", request_id)
        except Exception:
            log.exception("request %s failed", request_id)
            if has_started:
                raise
            failure = HttpError(500, "internal", "the request failed here, not by its own fault; quote its id")
            await error_response(failure, request_id)(scope, receive, send_guarded)

    def _add_headers(self, headers: MutableHeaders, request_id: str) -> None:
        for name, value in SECURITY_HEADERS.items():
            headers.setdefault(name, value)
        if self.adds_id:
            headers[REQUEST_ID] = request_id


def check_key(headers: Headers, accepted_sha256: Sequence[str]) -> None:
    """Let a request pass that carries one of the keys. Raises HttpError 401 (no key) or 403 (another key).

    `Authorization: Bearer KEY` (RFC 6750) or `X-API-Key: KEY`. Every digest is compared, each in constant time.
    """
    if not accepted_sha256:
        return
    scheme, _, token = headers.get("authorization", "").partition(" ")
    key = headers.get("x-api-key") or (token.strip() if scheme.lower() == "bearer" else "")
    if not key:
        message = "this service asks for a key: Authorization: Bearer KEY, or X-API-Key: KEY"
        raise HttpError(401, "key_missing", message, {"WWW-Authenticate": "Bearer"})
    digest = hashlib.sha256(key.encode()).hexdigest()
    matches = [hmac.compare_digest(digest, accepted) for accepted in accepted_sha256]
    if not any(matches):
        raise HttpError(403, "key_refused", "this key is not accepted here")
