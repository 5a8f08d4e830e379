"""What a replica takes on at a time: a budget of bodies that arrive, and one of work, which a slow body costs nothing.

A body has to keep up (`min_body_rate`), else 408. Where bodies fill their
places or the bytes, the slowest one is ended for a newcomer: clients that send next to nothing cannot keep others out.
"""

import asyncio
import contextlib
import ctypes
import time
from collections.abc import AsyncIterator, Iterator

from serving.errors import HttpError
from serving.settings import ServingSettings

_GRACE_S = 5.0  # before the rate counts: a handshake, a sleeping radio
_SLOW_AFTER_S = 1.0  # nobody younger is ended for another; the span over which a rate is taken, at least
_SLOW_TIMES = 16  # the rate that has to be kept up, below which one may be ended for another
_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES = -3, 4 << 20
_ROUNDS = 8  # of the event loop, in which one that was ended gives back its bytes


class Ticket:
    """A request's bytes, held until its answer is there."""

    def __init__(self, admission: "Admission") -> None:
        self._admission = admission
        self.size_bytes = 0
        self.began = time.monotonic()
        self._seen = self._before = (self.began, 0)  # when so many bytes were there
        self.scope: asyncio.Timeout | None = None  # while it arrives
        self.is_ended = False

    def arriving(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Around what reads the body. Raises HttpError 408 when it is too slow, 503 when there is no place."""
        return self._admission.arrive(self)

    async def hold(self, size_bytes: int) -> None:
        """More of it is here. Raises HttpError 503 when the replica cannot hold them."""
        await self._admission.add(self, size_bytes)

    def grow(self, size_bytes: int) -> None:
        self.size_bytes += size_bytes
        now = time.monotonic()
        if now > self._seen[0] + _SLOW_AFTER_S:
            self._before, self._seen = self._seen, (now, self.size_bytes)

    @property
    def is_over(self) -> bool:
        """Whether its time is up, and what ends it is under way."""
        return self.scope is None or self.scope.expired()

    @property
    def rate(self) -> float:
        """Bytes a second, of late."""
        since, size_bytes = self._before
        return (self.size_bytes - size_bytes) / max(time.monotonic() - since, 1e-3)


class Admission:
    """The budgets of one replica. What does not fit is refused at once with 503 and Retry-After, not queued."""

    def __init__(self, settings: ServingSettings) -> None:
        self._settings = settings
        self._arriving: set[Ticket] = set()
        self.working = 0
        self.held_bytes = 0
        _give_back_large_blocks()

    @contextlib.contextmanager
    def hold(self) -> Iterator[Ticket]:
        """A request's bytes, none yet."""
        body = Ticket(self)
        try:
            yield body
        finally:
            self.held_bytes -= body.size_bytes

    @contextlib.asynccontextmanager
    async def arrive(self, body: Ticket) -> AsyncIterator[None]:
        """See `Ticket.arriving`."""
        if len(self._arriving) >= self._settings.max_receiving and not self._end_slowest():
            raise overloaded(self._settings, f"{len(self._arriving)} bodies are arriving")
        try:
            async with asyncio.timeout(_GRACE_S) as body.scope:
                self._arriving.add(body)
                yield
        except TimeoutError as error:
            raise self._too_slow(body) from error
        finally:
            self._arriving.discard(body)
            body.scope = None

    async def add(self, body: Ticket, size_bytes: int) -> None:
        """See `Ticket.hold`."""
        while self.held_bytes + size_bytes > self._settings.max_in_flight_bytes:
            if not self._end_slowest(but=body):
                raise overloaded(self._settings, f"{self.held_bytes} bytes of requests are held")
            for _ in range(_ROUNDS):
                await asyncio.sleep(0)
        self.held_bytes += size_bytes
        body.grow(size_bytes)
        if body.scope is not None and not (body.is_over or body.is_ended):
            allowed = _GRACE_S + body.size_bytes / self._settings.min_body_rate
            body.scope.reschedule(asyncio.get_running_loop().time() + body.began + allowed - time.monotonic())

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """A place in work, for a request whose body is whole. Raises HttpError 503 when there is none."""
        if self.working >= self._settings.max_in_flight:
            raise overloaded(self._settings, f"{self.working} requests are in work")
        self.working += 1
        try:
            yield
        finally:
            self.working -= 1

    def _end_slowest(self, but: Ticket | None = None) -> bool:
        """Make room by ending the slowest body that arrives; False where none is slow.

        None has to be where the time of one is up: its place is free, its bytes are in the next rounds of the loop.
        """
        if over := {body for body in self._arriving if body.is_over and body is not but}:
            self._arriving -= over
            return True
        oldest = time.monotonic() - _SLOW_AFTER_S
        old = [body for body in self._arriving if body.began < oldest and body is not but]
        ended = min(old, key=lambda body: body.rate, default=None)
        if ended is None or ended.rate > _SLOW_TIMES * self._settings.min_body_rate:
            return False
        ended.is_ended = True
        self._arriving.discard(ended)
        assert ended.scope is not None
        ended.scope.reschedule(0)
        return True

    def _too_slow(self, body: Ticket) -> HttpError:
        seconds = time.monotonic() - body.began
        reason = "others needed its place" if body.is_ended else "that is too slow"
        message = f"{body.size_bytes} bytes arrived in {seconds:.1f} s, {reason}; send it again over a faster network"
        return HttpError(408, "body_timeout", message, {"Retry-After": str(self._settings.retry_after_s)})


def _give_back_large_blocks() -> None:
    """Make glibc give freed bodies and pixels back at once, and let them grow without a copy (mallopt(3)).

    By itself it takes to keeping blocks of up to 32 MiB, in an arena a thread: memory for twice the bytes held.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)


def overloaded(settings: ServingSettings, reason: str) -> HttpError:
    seconds = settings.retry_after_s
    message = f"{reason}, no room for another; try again in {seconds} s"
    return HttpError(503, "overloaded", message, {"Retry-After": str(seconds)})
