"""The head of the cluster that this process has joined: whether it answers, and what happens when it is lost."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.base.errors import PlatformError

_ANSWER_S = 10.0
_LOOK_EVERY_S, _LOOK_S = 2.0, 3.0
_SHARE = 2 / 3  # of Ray's patience; the rest is for a busy machine
_RAYS_PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"
_WAY_ON = "what is done is kept: run the same command again, with the address of a living head"

_end: Callable[[PlatformError], None] | None = None


def on_lost_head(end: Callable[[PlatformError], None]) -> None:
    """Say what ends this process when the head is lost; without it, Ray does what it does.

    Calls into Ray do not return then, and after a minute Ray ends the process without a word. So nothing can be raised
    where the work is done: `end` is called in another thread.
    """
    global _end
    _end = end


@contextlib.contextmanager
def head_watched(ray: Any) -> Iterator[None]:
    """Look at the head's port. It may stay away for two thirds of the time that Ray itself waits for it."""
    address = ray.get_runtime_context().gcs_address
    patience_s = _SHARE * float(os.environ.get(_RAYS_PATIENCE, "60"))
    over = threading.Event()

    def watch() -> None:
        seen = time.monotonic()
        while not over.wait(_LOOK_EVERY_S):
            try:
                assert_answers(address, _LOOK_S)
                seen = time.monotonic()
            except OSError:
                if time.monotonic() - seen > patience_s and _end is not None and not over.is_set():
                    _end(PlatformError(f"Ray's head at {address} is gone; {_WAY_ON}"))
                    return

    threading.Thread(target=watch, daemon=True, name="head").start()
    try:
        yield
    finally:
        over.set()


def assert_answers(target: str | None, timeout_s: float = _ANSWER_S) -> None:
    """Ray itself tries for minutes to reach an address where nothing listens. Raises OSError."""
    host, _, port = (target or "").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()
