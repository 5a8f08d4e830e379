"""One line in the log for every request: INFO where it was answered, WARNING for 4xx, ERROR for 5xx.

Never what a client sent, beside the id that it chose: no path (it may hold a name), no file name, no subject, no byte
of an image. Lines go to Serve's logger: its `logging_config` decides where they go, from which level on (`log_level`),
and whether they are JSON (`encoding`: the fields are fields then).
"""

import logging
import traceback
from collections.abc import Iterator

from starlette.types import Scope

log = logging.getLogger("ray.serve.access")


def log_access(scope: Scope, status: int, seconds: float) -> None:
    """`scope` after the request; `status` is 0 where the client left before there was an answer."""
    level = logging.ERROR if status >= 500 else logging.WARNING if status >= 400 else logging.INFO
    if not log.isEnabledFor(level):
        return
    state = scope["state"]
    fields = {
        "method": method_of(scope),
        "route": route_of(scope),
        "status": status,
        "ms": round(seconds * 1e3, 1),
        "code": state.get("error_code", "-"),
    }
    text = " ".join(f"{name}={value}" for name, value in {**fields, "request": state["request_id"]}.items())
    log.log(level, text, extra=fields)


def without_words(error: BaseException) -> str:
    """Where and as what a request failed, those that led to it first. Not the words: they may quote what was sent."""
    parts = (
        f"{''.join(traceback.format_tb(one.__traceback__))}{type(one).__module__}.{type(one).__qualname__}"
        for one in reversed([*_led_to(error)])
    )
    return "\n".join(parts)


def _led_to(error: BaseException | None) -> Iterator[BaseException]:
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def route_of(scope: Scope) -> str:
    """As declared, /v2/models/{name}, not as asked for."""
    return str(getattr(scope.get("route"), "path", "-"))


def method_of(scope: Scope) -> str:
    return str(scope["method"]) if scope["method"] in _METHODS else "-"


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "gRPC"})
