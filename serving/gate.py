"""Where new requests wait for the milliseconds in which all replicas take another model. ASGI middleware.

A replica that was not heard by the keeper for so long that the others may have gone on without it (it was stopped, its
machine was overloaded) asks first: so it never answers with a model that the others have left.
"""

import asyncio
import time

from starlette.types import ASGIApp, Receive, Scope, Send

from serving.errors import HttpError

LATE_S = 9.0  # since it asked: more than two of a member's POLL_S, less than the keeper's GONE_S
_WAIT_S = 5.0


class Gate:
    """Open; held for a switch; or shut, where this replica cannot answer with the agreed model."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._is_watched = False  # whether there is a keeper that may go on without this replica
        self._heard_at = 0.0
        self.shut: str | None = None  # why nothing is answered here

    def hold(self) -> None:
        """Let new requests wait."""
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def heard(self, asked_at: float) -> None:
        """What the keeper answered is done. It counts from when it was asked: an answer may have lain here unread."""
        self._is_watched, self._heard_at = True, asked_at
        if not self.is_late():
            self.open()

    def alone(self) -> None:
        """There is no keeper now: whatever this replica answers with is right."""
        self._is_watched = False
        self.open()

    async def enter(self) -> None:
        """Returns when a request may begin. Raises HttpError 503 where this replica cannot answer."""
        if self.is_late():
            self.hold()  # whoever hears the keeper opens it
        if not self._open.is_set():
            try:
                await asyncio.wait_for(self._open.wait(), _WAIT_S)
            except TimeoutError:  # nobody says what the others do: answering goes before agreeing
                self.alone()
        if self.shut is not None:
            raise HttpError(503, "not_ready", "this replica cannot load the model of the others", {"Retry-After": "1"})

    def is_late(self) -> bool:
        """Whether the others may have gone on without this replica."""
        return self._is_watched and time.monotonic() - self._heard_at > LATE_S


class Gated:
    """Lets every HTTP request pass the gate."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self.app = app
        self.gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self.gate.enter()
        await self.app(scope, receive, send)
