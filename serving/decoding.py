"""Where an image is decoded: small ones in threads beside each other, large ones one at a time where it can be ended.

What counts as large follows from the header (`pipeline/images/cost.py`). So a small image waits for no large one, and
of those the shortest goes first. Pixels are those of batch scoring wherever they are made: it is one function.
"""

import asyncio
import contextlib
import heapq
import itertools
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from pipeline.images.cost import worst_seconds
from pipeline.images.load import Header, LoadedImage, decode_image, read_header
from serving import tracing
from serving.admission import overloaded
from serving.monitoring.recorder import Recorder
from serving.settings import ServingSettings

_T = TypeVar("_T")
_LARGE_SHARE = 0.5  # of the places in work that large images may take
SMALL_S = 0.15  # 11 megapixels of JPEG, 3 of PNG or TIFF, a quarter of JPEG 2000


class LargeDecoder(Protocol):
    """Decodes one large image at a time."""

    async def decode(self, data: bytes, header: Header, size: int, bit_depth: int | None) -> LoadedImage:
        """Raises ImageRejected, also where it takes too long or too much memory; HttpError 503 without a process."""


class ThreadDecoder:
    """In a thread of this process, which nothing can end: for the application without Ray."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "decode-large")

    async def decode(self, data: bytes, header: Header, size: int, bit_depth: int | None) -> LoadedImage:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, decode_image, data, header, size, bit_depth)


class Decoding:
    """The lanes of one replica."""

    def __init__(self, settings: ServingSettings, recorder: Recorder, large: LargeDecoder | None = None) -> None:
        self._settings, self._recorder = settings, recorder
        self._small = ThreadPoolExecutor(settings.decode_threads, "decode")
        self._large = large or ThreadDecoder()
        self._line = Line()
        self._running = set[asyncio.Task[LoadedImage]]()

    async def beside(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """`work`, of milliseconds, in the threads of small images."""
        return await asyncio.get_running_loop().run_in_executor(self._small, work, *arguments)

    async def load(self, data: bytes, size: int, bit_depth: int | None) -> LoadedImage:
        """As `load_image` of scoring. Raises ImageRejected, and HttpError 503 where there is no room for it."""
        asked = time.perf_counter()
        began, found = await self.beside(self._load_timed, data, size, bit_depth)
        if isinstance(found, Header):
            return await self._load_large(data, found, size, bit_depth, asked)
        self._record(asked, began)
        return found

    def later(self, work: Callable[..., _T], *arguments: Any) -> Future[_T]:
        """`beside`, without waiting for it."""
        return self._small.submit(work, *arguments)

    def _record(self, asked: float, began: float) -> None:
        ended = time.perf_counter()
        self._recorder.stage("queue", began - asked)
        self._recorder.stage("decode", ended - began)
        tracing.stage("queue", asked, began)
        tracing.stage("decode", began, ended)

    def _load_timed(self, data: bytes, size: int, bit_depth: int | None) -> tuple[float, LoadedImage | Header]:
        """And when it began."""
        return time.perf_counter(), self._load_small(data, size, bit_depth)

    def _load_small(self, data: bytes, size: int, bit_depth: int | None) -> LoadedImage | Header:
        """The header alone where the image is large."""
        header = read_header(data, self._settings.limits)
        if worst_seconds(header, len(data)) > SMALL_S:
            return header
        return decode_image(data, header, size, bit_depth)

    async def _load_large(
        self, data: bytes, header: Header, size: int, bit_depth: int | None, asked: float
    ) -> LoadedImage:
        seconds = worst_seconds(header, len(data))
        self._check_room(seconds)
        async with self._line.turn(seconds) as turn:
            began = time.perf_counter()
            decoding = self._large.decode(data, header, size, bit_depth)
            task = asyncio.ensure_future(decoding)
            self._running.add(task)  # it keeps its turn until it ends, also where its client is gone
            task.add_done_callback(self._running.discard)
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # heard, if nobody waits for it
            turn.keep_until(task)
            loaded = await asyncio.shield(task)
            self._record(asked, began)
            return loaded

    def _check_room(self, seconds: float) -> None:
        """One alone is always taken. Raises HttpError 503 where a large image would wait longer than its request may,
        or small ones would find no place in work for large ones."""
        line, settings = self._line, self._settings
        if line.images and line.seconds + seconds > settings.request_timeout_s:
            raise overloaded(settings, f"large images that take {line.seconds:.0f} s are in work")
        if line.images >= max(1, int(settings.max_in_flight * _LARGE_SHARE)):
            raise overloaded(settings, f"{line.images} large images are in work")


class Turn:
    """The turn of one image; it ends with the block that took it, or with what it is kept for."""

    def __init__(self, line: "Line", seconds: float) -> None:
        self._line, self._seconds = line, seconds
        self.is_kept = False

    def keep_until(self, task: "asyncio.Task[LoadedImage]") -> None:
        self.is_kept = True
        task.add_done_callback(lambda _: self.end())

    def end(self) -> None:
        self._line.leave(self._seconds)


class Line:
    """One at a time, of those who wait the shortest first."""

    def __init__(self) -> None:
        self.images, self.seconds = 0, 0.0  # of all who wait or have their turn
        self._is_taken = False
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._number = itertools.count()

    @contextlib.asynccontextmanager
    async def turn(self, seconds: float) -> AsyncIterator[Turn]:
        self._count(1, seconds)
        try:
            await self._enter(seconds)
        except BaseException:
            self._count(-1, -seconds)
            raise
        turn = Turn(self, seconds)
        try:
            yield turn
        finally:
            if not turn.is_kept:
                turn.end()

    async def _enter(self, seconds: float) -> None:
        if not self._is_taken:
            self._is_taken = True
            return
        called = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (seconds, next(self._number), called))
        try:
            await called
        except asyncio.CancelledError:
            if called.done() and not called.cancelled():  # called and gone in one round of the loop
                self._call_next()
            raise

    def leave(self, seconds: float) -> None:
        self._count(-1, -seconds)
        self._call_next()

    def _count(self, images: int, seconds: float) -> None:
        self.images += images
        self.seconds = self.seconds + seconds if self.images else 0.0

    def _call_next(self) -> None:
        while self._waiting:
            *_, called = heapq.heappop(self._waiting)
            if not called.done():
                called.set_result(None)
                return
        self._is_taken = False
