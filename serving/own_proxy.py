"""What has to happen in Serve's own proxy, before it looks at a request: `middlewares` is its callback.

`leukoray serve` names it to a Ray of its own (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH); on a cluster the variable
has to be set where nodes start. The proxy copies an X-Request-ID into the answer whatever it is, and fails on one that
is not ASCII; it leaves a WebSocket's handshake with a body unanswered for ever.
"""

import contextlib
import os
from collections.abc import Iterator

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.errors import error_response
from serving.guard import REQUEST_ID, SECURITY_HEADERS, has_valid_id, invalid_id, set_request_id

_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"


class Front:
    """ASGI middleware around the proxy: a request without a valid id does not get in."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or has_valid_id(scope):
            await self.app(scope, receive, send)
            return
        set_request_id(scope)
        response = error_response(invalid_id(), scope)
        response.headers.update({**SECURITY_HEADERS, REQUEST_ID: scope["state"]["request_id"]})
        await response(scope, receive, send)


def middlewares() -> list[Middleware]:
    """For the proxy. WebSockets are off in it: uvicorn takes a handshake for the plain request that it also is."""
    import uvicorn.protocols.websockets.auto as websockets

    websockets.AutoWebSocketsProtocol = None
    return [Middleware(Front)]


@contextlib.contextmanager
def hardened() -> Iterator[None]:
    """A Ray that is started in the block calls `middlewares`, unless the environment names another callback."""
    is_free = _VARIABLE not in os.environ
    if is_free:
        os.environ[_VARIABLE] = f"{__name__}.{middlewares.__name__}"
    try:
        yield
    finally:
        if is_free:
            del os.environ[_VARIABLE]
