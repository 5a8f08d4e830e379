"""Limits hold over all applications of one file of keys; who counts for them ends when Serve knows none of them."""

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve
from ray.exceptions import RayActorError

from serving import application_actor
from serving.keys import till
from serving.keys.purse import LimitReached, NoBudgets, Purse
from serving.keys.records import Key, Limits, Rate
from serving.keys.till import BudgetsActor, Till


class Actors:
    """Ray's, in this process: one by each name."""

    def __init__(self) -> None:
        self.known: dict[str, BudgetsActor] = {}
        self.is_lost = False

    def find(self, kind: type[BudgetsActor], name: str, of: str) -> Any:
        actor = self.known.setdefault(f"{name}-of-{of}", kind(of))
        return SimpleNamespace(lease_to=SimpleNamespace(remote=lambda *asked: self._ask(actor, *asked)))

    async def _ask(self, actor: BudgetsActor, *asked: Any) -> Any:
        if self.is_lost:
            raise RayActorError
        return await actor.lease_to(*asked)


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> Iterator[Actors]:
    made = Actors()
    monkeypatch.setattr(till, "find", made.find)
    yield made


def test_what_a_key_may_do_is_one_for_all_models_with_its_file(actors: Actors) -> None:
    async def run() -> None:
        lab = Key("lab", "0" * 64, Limits(Rate(2, 60.0), 10))
        first, second = (Purse(Till(name, "/etc/keys").lease) for name in ("leukoray", "leukoray-b"))
        other = Purse(Till("leukoray-c", "/etc/other").lease)
        await first.images(lab, 6)
        await second.images(lab, 4)
        for purse in (first, second):
            with pytest.raises(LimitReached) as reached:
                await purse.images(lab, 1)
            assert reached.value.code == "quota_spent"
        await first.request(lab)
        await second.request(lab)
        for purse in (first, second):
            with pytest.raises(LimitReached):
                await purse.request(lab)
        await other.images(lab, 10)
        await other.request(lab)
        assert len(actors.known) == 2

    asyncio.run(run())


def test_the_actor_starts_with_a_replica_that_has_a_file(actors: Actors) -> None:
    asyncio.run(Till("leukoray", None).begin())
    assert actors.known == {}
    asyncio.run(Till("leukoray", "/etc/keys").begin())
    assert len(actors.known) == 1 and "/etc/keys" not in str(list(actors.known))


def test_where_it_is_lost_nobody_counts(actors: Actors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.keys.purse._PATIENCE_S", 0.0)
    actors.is_lost = True

    async def run() -> None:
        with pytest.raises(NoBudgets):
            await Purse(Till("leukoray", "/etc/keys").lease).request(Key("lab", "0" * 64, Limits(Rate(2, 60.0))))

    asyncio.run(run())


def test_it_ends_when_serve_knows_none_of_its_applications(actors: Actors, monkeypatch: pytest.MonkeyPatch) -> None:
    known, ended = {"leukoray": 1, "leukoray-b": 1}, asyncio.Event()
    monkeypatch.setattr(till, "_ALONE_S", 0.01)
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications=known))
    monkeypatch.setattr(application_actor.ray, "get_runtime_context", lambda: SimpleNamespace(current_actor="it"))
    loops: list[asyncio.AbstractEventLoop] = []
    monkeypatch.setattr(application_actor.ray, "kill", lambda actor: loops[0].call_soon_threadsafe(ended.set))

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        for name in ("leukoray", "leukoray-b"):
            await Purse(Till(name, "/etc/keys").lease).request(Key("lab", "0" * 64, Limits(Rate(9, 1.0))))
        del known["leukoray"]  # whoever looks at this moment saw one application alone
        await asyncio.sleep(0.2)
        assert not ended.is_set()
        known.clear()
        await asyncio.wait_for(ended.wait(), 60)

    asyncio.run(run())
