"""Serve's gRPC servers, in its proxies and, behind HAProxy, in the replicas: what they take, where they listen.

Imported where nothing else of this package is needed, so it imports little.
"""

import os
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from ray import serve
from ray.serve.exceptions import RayServeException

from serving.front import FIRST, GRPC_HOST, HAS_FIRST, NO_REPLICA
from serving.protocols.oip.rpc.messages import METHODS, SERVICE

_APPLICATION = "application"  # the metadata by which Serve chooses one
_NO_APPLICATION = "Ping /ray.serve."  # in Serve's words for one that it does not know
_Unary = Callable[[Any, Any], Awaitable[Any]]


def add_to_server(servicer: Any, server: Any) -> None:
    """Named by `grpc_options.grpc_servicer_functions`. Messages stay bytes on their way; `servicer` is Serve's mock."""
    methods = {name: grpc.unary_unary_rpc_method_handler(getattr(servicer, name)) for name in METHODS}
    generic = grpc.method_handlers_generic_handler(SERVICE, methods)
    server.add_generic_rpc_handlers((generic,))  # which puts Serve's own functions in the places of the servicer's
    if not _is_replica():
        handlers = generic._method_handlers
        for path, handler in handlers.items():
            handlers[path] = handler._replace(unary_unary=_to_the_first(handler.unary_unary))


def _is_replica() -> bool:
    try:
        serve.get_replica_context()
    except RayServeException:
        return False
    return True


def _to_the_first(handle: _Unary) -> _Unary:
    """Serve's proxy knows no way for a call that names no application, where there are several."""

    async def unary_unary(request: Any, context: Any) -> Any:
        return await handle(request, _Named(context))

    return unary_unary


class _Named:
    """The context of a call, which names an application in any case."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
        given = list(self._context.invocation_metadata() or ())
        return given if any(key == _APPLICATION for key, _ in given) else [*given, (_APPLICATION, FIRST)]

    def set_details(self, details: str) -> None:
        """Where the first application is always, it comes or goes while Serve does not know it."""
        if _NO_APPLICATION in details and os.environ.get(HAS_FIRST) == "1":
            self._context.set_code(grpc.StatusCode.UNAVAILABLE)
            details = NO_REPLICA
        self._context.set_details(details)


def listen_at_host() -> None:
    """Make Serve's gRPC servers of this process listen at $LEUKORAY_GRPC_HOST; by itself they do at every address."""
    host = os.environ.get(GRPC_HOST)
    if not host:
        return
    from ray.serve._private import default_impl

    def add_address(server: Any, address: str) -> None:
        port = address.rpartition(":")[2]
        server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")

    default_impl.add_grpc_address = add_address
