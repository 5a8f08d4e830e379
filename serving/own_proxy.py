"""What has to happen before Serve's own code looks at a request: `middlewares` is its callback.

Serve calls it in its own proxy and, behind HAProxy, in each replica; `serving.front` names it to Ray. Serve copies an
X-Request-ID into the answer whatever it is, and fails on one that is not ASCII; it leaves a WebSocket's handshake with
a body unanswered for ever.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.errors import error_response
from serving.guard import REQUEST_ID, SECURITY_HEADERS, has_valid_id, invalid_id, set_request_id


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
    """For the proxy. WebSockets are off in it: uvicorn takes a handshake for the plain request that it also is.

    Serve asks for them before it starts a gRPC server, which is told here where to listen.
    """
    import uvicorn.protocols.websockets.auto as websockets

    from serving.protocols.oip.rpc.server import listen_at_host

    listen_at_host()
    websockets.AutoWebSocketsProtocol = None
    return [Middleware(Front)]
