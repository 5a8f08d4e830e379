"""A replica as a member: it asks the keeper what to do, does it, and says so. For one event loop."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from pipeline.base.errors import InputError
from serving.agreed import Agreed, CandidateWish, Joined, KeeperLost, KeeperSilent, News, Order, Report, Trials, Wish
from serving.engine import Engine
from serving.lifecycle.finding import why
from serving.lifecycle.follower import Follower
from serving.lifecycle.switch import POLL_S
from serving.model import LoadedModel, load_bundle

log = logging.getLogger("ray.serve")


class Line(Protocol):
    """The way to the keeper's methods. Raises KeeperLost, or what the method raised."""

    async def call(self, method: str, *arguments: Any) -> Any: ...


class Member:
    """`name`: of this replica. `on_news` is called with everything that the keeper says."""

    def __init__(self, name: str, engine: Engine, line: Line, on_news: Callable[[News], None] = lambda news: None):
        self._name = name
        self._engine = engine
        self._line = line
        self._on_news = on_news
        self._report = Report()
        self._next: tuple[int, LoadedModel] | None = None  # prepared
        self._asked: Wish | str | None = None
        self._candidate: CandidateWish | None = None  # that the configuration asks for
        self._follower = Follower(engine, line.call, self._say, self._tell)
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening: asyncio.Task[None] | None = None

    async def ask(self, asked: Wish | str, candidate: CandidateWish | None = None) -> None:
        """Tell what the configuration asks for: at start wait for the model, later go on with the one at hand.

        Raises InputError at start, when nothing is agreed on and the wish is refused.
        """
        is_new = (asked, candidate) != (self._asked, self._candidate)
        self._asked, self._candidate = asked, candidate
        if self._listening is None:
            await self._start(asked)
        elif is_new:
            self._run(self._wish(asked))

    async def order(self, method: str) -> Any:
        """An administrator's: `reload`, `rollback`, `promote` or `drop`. Raises KeeperLost."""
        return await self._line.call(method)

    def check(self) -> None:
        """Raises what ended the listening."""
        if self._listening is not None and self._listening.done():
            self._listening.result()
            raise InputError("this replica no longer listens to the keeper")
        if self._engine.gate.shut is not None:
            raise InputError(f"the agreed model cannot be loaded here: {self._engine.gate.shut}")

    async def stop(self) -> None:
        """Listen no more; for tests, a replica simply ends."""
        for task in [*self._tasks, *([self._listening] if self._listening else [])]:
            task.cancel()

    async def _start(self, asked: Wish | str) -> None:
        joined: Joined = await self._line.call("join", self._engine.settings, asked, self._candidate)
        if joined.agreed is None:
            raise InputError(joined.refused or "no model")
        while self._report.generation == 0 or await self._step(0.0) is not Order.STAY:
            if self._report.generation == 0:
                await self._take(joined.agreed.generation, joined.agreed)
        await self._follower.loaded()  # so that a request's id gets the same model here as elsewhere
        self._listening = asyncio.create_task(self._listen())

    async def _wish(self, asked: Wish | str) -> None:
        """A wish that could not be told is told again; a newer one takes its place."""
        candidate = self._candidate
        while (asked, candidate) == (self._asked, self._candidate):
            try:
                await self._line.call("join", self._engine.settings, asked, candidate)
                return
            except KeeperLost as error:
                log.warning("the keeper could not be told of another model: %s", error)
                await asyncio.sleep(POLL_S)

    async def _listen(self) -> None:
        while True:
            try:
                await self._step(POLL_S)
            except KeeperSilent as error:  # the gate decides how long requests wait for an answer
                log.warning("the keeper does not answer: %s", error)
            except KeeperLost as error:  # one is started anew and asks what was agreed on
                log.warning("nobody tells which model to answer with, %s goes on: %s", self._report.generation, error)
                self._next = None  # it may be another attempt's
                self._say(is_holding=False, preparing=0, prepared=0, failed=0)
                self._engine.gate.alone()
                await asyncio.sleep(POLL_S / 4)

    async def _step(self, patience_s: float) -> Order:
        """One report, one order."""
        report, asked_at = self._report, time.monotonic()
        news: News = await self._line.call("news", self._name, report, patience_s)
        self._say(agreed=news.agreed or report.agreed, told=news.told, trials=news.trials)
        self._engine.hear(news)
        self._on_news(news)
        self._follower.follow(news.trials)
        await self._obey(news)
        if not (self._report.is_holding or news.order is Order.WAIT):
            self._engine.gate.heard(asked_at)
        return news.order

    async def _obey(self, news: News) -> None:
        gate = self._engine.gate
        if news.order is Order.PREPARE:
            self._say(preparing=news.generation)
            self._run(self._prepare(news.generation))
        elif news.order is Order.HOLD:
            gate.hold()
            self._say(is_holding=True)
        elif news.order is Order.WAIT:
            gate.hold()
        elif news.order is Order.RELEASE:
            self._say(is_holding=False)
            if news.generation == self._report.generation:  # not now, and not later
                self._next = None
                self._say(prepared=0, preparing=0)
        elif news.order is Order.TAKE:
            await self._take(news.generation, news.agreed)
        elif news.order is Order.GIVE:
            own = self._engine.model.predictor.bundle
            await self._line.call("give", self._engine.settings, news.generation, own, self._follower.held())

    async def _prepare(self, generation: int) -> None:
        try:
            self._next = generation, await self._load(generation)
            self._say(prepared=generation)
        except Exception as error:
            reason = why(error)
            self._say(failed=generation, reason=reason)
        await self._tell()

    async def _tell(self) -> None:
        try:
            await self._line.call("tell", self._name, self._report)
        except KeeperLost:
            return  # the next report says it

    async def _take(self, generation: int, agreed: Agreed | None) -> None:
        """Answer with a generation from now on. Where it was not prepared, requests wait until it is loaded."""
        gate, engine = self._engine.gate, self._engine
        gate.hold()
        try:
            is_ready = self._next is not None and self._next[0] == generation
            model = self._next[1] if self._next is not None and is_ready else await self._load(generation)
            if agreed is not None and model.info.sha256 != agreed.chosen.sha256:  # prepared for a keeper that was lost
                model = await self._load(generation)
            engine.take(model)
        except KeeperLost:
            raise
        except Exception as error:
            if self._listening is None:
                raise
            gate.shut = str(error)  # `check` says so, and Serve replaces this replica
            log.error("generation %d cannot be loaded here, this replica ends: %s", generation, error)
        self._next = None
        self._say(generation=generation, prepared=0, preparing=0, is_holding=False)

    async def _load(self, generation: int) -> LoadedModel:
        bundle = await self._line.call("bundle", generation)
        return await asyncio.to_thread(load_bundle, bundle, self._engine.settings)

    def _say(self, **changes: int | str | bool | Agreed | Trials | None) -> None:
        self._report = self._report.model_copy(update=changes)

    def _run(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
