"""A keeper and its members in one process, without Ray: the parts of a service that agree."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from serving.agreed import CandidateWish, KeeperLost, Wish
from serving.engine import Engine
from serving.lifecycle.keeper import Keeper
from serving.lifecycle.member import Member
from serving.lifecycle.tending import Tending
from serving.monitoring.gathered import Counted
from serving.monitoring.state import State, added
from serving.routes import create_app
from serving.settings import ServingSettings


class Direct:
    """A line in one process, which can be cut or slow. `keeper` may be exchanged for a new one that knows nothing."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self.is_cut = False

    async def call(self, method: str, *arguments: Any) -> Any:
        if self.is_cut:
            raise KeeperLost("cut")
        return await getattr(self.keeper, method)(*arguments)


class Service:
    """One keeper and some members."""

    def __init__(self, model: str, **settings: Any) -> None:
        self.settings = ServingSettings(model=model, **settings)
        self.keeper = self.new_keeper()
        self.life = "first"
        self.members: list[Member] = []
        self.engines: list[Engine] = []
        self.lines: list[Direct] = []

    def new_keeper(self) -> Keeper:
        async def has_running() -> bool:
            return bool(self.members)

        return Keeper(has_running)

    async def add(self, asked: Wish | str | None = None, candidate: CandidateWish | None = None) -> Engine:
        engine, line = Engine(self.settings, None), Direct(self.keeper)
        member = Member(f"replica-{len(self.members)}", engine, line)
        await member.ask(asked or Wish(model=self.settings.model), candidate)
        self.members.append(member)
        self.engines.append(engine)
        self.lines.append(line)
        return engine

    def lose_keeper(self) -> None:
        self.keeper = self.new_keeper()
        for line in self.lines:
            line.keeper = self.keeper

    async def counts(self) -> State:
        """Of all replicas."""
        return added([await engine.counts() for engine in self.engines])

    async def counted(self) -> Counted:
        """As the actor of counts says it, which may have `life` another time."""
        return Counted(self.life, frozenset(f"replica-{k}" for k in range(len(self.members))), await self.counts())

    async def tend(self) -> None:
        """What the keeper does of a candidate every second, until all have heard."""
        await Tending(self.keeper, self.counted).tend()
        revision = self.keeper.trials.now.revision
        await until(
            lambda: all(engine.news.trials.revision >= revision for engine in self.engines), "all hear of the trial"
        )

    def asking(self, of: int = 0) -> httpx.AsyncClient:
        """A client of one replica."""
        app = create_app(self.engines[of], order=self.members[of].order, total=self.counts)
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

    def answers(self) -> set[str]:
        return {engine.model.info.sha256 for engine in self.engines}


@contextlib.asynccontextmanager
async def running(model: str, count: int, **settings: Any) -> AsyncIterator[Service]:
    service = Service(model, **settings)
    try:
        for _ in range(count):
            await service.add()
        yield service
    finally:
        for member in service.members:
            await member.stop()


async def until(condition: Callable[[], Any], what: str, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


def quicken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same proportions of what keeper, members and gate wait for, in less time."""
    for module, name, value in (
        ("switch", "GONE_S", 0.9),
        ("switch", "_HOLD_S", 0.2),
        ("member", "POLL_S", 0.3),
        ("keeper", "_RECALL_S", 1.5),
    ):
        monkeypatch.setattr(f"serving.lifecycle.{module}.{name}", value)
    monkeypatch.setattr("serving.gate.LATE_S", 0.75)
