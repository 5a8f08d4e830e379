"""Keeper and members without Ray: all answer with one model, whatever is wished, refused, lost or late."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.base.errors import InputError
from pipeline.model.bundle import Bundle
from pipeline.model.registry import ModelFolder
from serving.agreed import KeeperSilent, Outcome, Wish
from serving.engine import Engine
from serving.lifecycle import switch
from serving.routes import create_app
from tests.agreeing import Service, quicken, running, until
from tests.bundles import make_bundle


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)


@pytest.fixture
def registry(tmp_path: Path) -> list[Bundle]:
    """Three versions of one model; best.json names the first."""
    folder = tmp_path / "models" / "blast"
    found = [make_bundle(folder / f"v{seed}", size=16, seed=seed, version=f"v{seed}") for seed in (1, 2, 3)]
    ModelFolder(str(folder)).point_to(found[0])
    return found


def folder_of(bundle: Bundle) -> ModelFolder:
    return ModelFolder(bundle.uri.rpartition("/")[0])


def test_one_that_starts_after_a_promotion_answers_as_the_others_do(registry: list[Bundle]) -> None:
    old, new, _ = registry

    async def story() -> None:
        async with running(folder_of(old).uri, 2, follow_s=0) as service:
            folder_of(old).point_to(new)
            await service.add()
            assert service.answers() == {old.info.identity()}
            outcome = await service.members[0].order("reload")
            assert outcome.has_changed and outcome.agreed.chosen.uri == new.uri
            assert service.answers() == {new.info.identity()}, "all of them, before the order is answered"
            await service.add()
            assert service.answers() == {new.info.identity()}

    asyncio.run(story())


def test_best_json_is_followed_and_what_it_names_is_proved_first(registry: list[Bundle], tmp_path: Path) -> None:
    old, new, broken = registry
    (Path(broken.uri) / "model.onnx").write_bytes(b"no graph")

    async def story() -> None:
        async with running(str(tmp_path / "models"), 2, follow_s=5) as service:
            await service.keeper.look()
            folder_of(old).point_to(new)
            await service.keeper.look()
            assert service.answers() == {new.info.identity()}
            folder_of(old).point_to(broken)
            await service.keeper.look()
            await until(lambda: all(engine.news.refused for engine in service.engines), "every replica says why")
            assert service.answers() == {new.info.identity()}
            assert "model.onnx is not the file" in str(service.engines[1].news.refused)
            (Path(folder_of(old).uri) / "best.json").rename(tmp_path / "away")
            await service.keeper.look()
            await until(lambda: service.engines[0].news.follows.error, "the outage is told")  # type: ignore[union-attr]
            assert service.answers() == {new.info.identity()}
            (tmp_path / "away").rename(Path(folder_of(old).uri) / "best.json")
            folder_of(old).point_to(old)
            await service.keeper.look()
            assert service.answers() == {old.info.identity()}
            await until(lambda: service.engines[0].news.refused is None, "the refusal is over")

    asyncio.run(story())


def test_a_rollback_stays_until_best_json_moves(registry: list[Bundle]) -> None:
    old, new, _ = registry

    async def story() -> None:
        async with running(folder_of(old).uri, 2, follow_s=5) as service:
            first = await service.members[0].order("rollback")
            assert not first.has_changed and "nothing to go back to" in first.refused
            folder_of(old).point_to(new)
            await service.keeper.look()
            for uri in registry:
                for path in Path(uri.uri).iterdir():
                    path.unlink()  # it needs no store
            back = await service.members[1].order("rollback")
            assert back.has_changed and service.answers() == {old.info.identity()}
            await service.keeper.look()
            await service.add()
            assert service.answers() == {old.info.identity()}, "nor does the promotion come back by itself"

    asyncio.run(story())


def test_the_agreed_model_outlives_its_store_and_its_keeper(registry: list[Bundle]) -> None:
    old = registry[0]

    async def story() -> None:
        async with running(old.uri, 2) as service:
            for path in Path(old.uri).iterdir():
                path.unlink()
            await service.add()
            service.lose_keeper()
            await service.add()
            assert service.answers() == {old.info.identity()}
            assert {engine.news.agreed.generation for engine in service.engines if engine.news.agreed} == {1}
            outcome = await service.members[0].order("reload")
            assert not outcome.has_changed and "neither a bundle" in outcome.refused

    asyncio.run(story())


def test_a_keeper_that_was_lost_asks_the_replicas_before_the_registry(registry: list[Bundle]) -> None:
    old, new, _ = registry

    async def story() -> None:
        async with running(folder_of(old).uri, 2, follow_s=0) as service:
            folder_of(old).point_to(new)
            service.lose_keeper()
            await service.add()
            assert service.answers() == {old.info.identity()}
            service.lose_keeper()
            assert (await service.members[1].order("reload")).agreed.generation == 2
            assert service.answers() == {new.info.identity()}

    asyncio.run(story())


def test_one_that_starts_in_the_middle_of_a_change_answers_as_the_others_do_after_it(
    registry: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, _ = registry

    async def story() -> None:
        async with running(folder_of(old).uri, 2, follow_s=0) as service:
            slow, begun, plain = service.members[0], asyncio.Event(), service.members[0]._load

            async def loads(generation: int) -> Any:
                begun.set()
                await asyncio.sleep(0.5)
                return await plain(generation)

            monkeypatch.setattr(slow, "_load", loads)
            folder_of(old).point_to(new)
            change = asyncio.create_task(service.members[1].order("reload"))
            await begun.wait()
            await service.add()
            assert (await change).has_changed and service.answers() == {new.info.identity()}

    asyncio.run(story())


def test_a_refused_best_json_is_read_again_but_not_proved_again_until_it_moves(
    registry: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, broken, _ = registry
    (Path(broken.uri) / "model.onnx").write_bytes(b"no graph")

    async def story() -> None:
        async with running(folder_of(old).uri, 1, follow_s=5) as service:
            tried, plain = [], service.keeper.find

            def finds(wish: Wish) -> Any:
                tried.append(wish)
                return plain(wish)

            monkeypatch.setattr(service.keeper, "find", finds)
            folder_of(old).point_to(broken)
            for _ in range(3):
                await service.keeper.look()
            assert len(tried) == 1 and service.answers() == {old.info.identity()}
            monkeypatch.setattr("serving.lifecycle.keeper.TRY_AGAIN_S", 0.0)
            await service.keeper.look()
            assert len(tried) == 2, "now and then it is: its store may have been out"

    asyncio.run(story())


def test_a_wish_that_is_refused_leaves_all_as_they_are_and_a_first_one_ends_the_start(
    registry: list[Bundle], tmp_path: Path
) -> None:
    old, new, _ = registry
    bad = str(tmp_path / "nothing")

    async def story() -> None:
        with pytest.raises(InputError, match="neither a bundle"):
            await Service(bad).add()
        async with running(old.uri, 1) as service:
            await service.add(Wish(model=bad))
            assert service.answers() == {old.info.identity()}
            await until(lambda: all(engine.news.refused for engine in service.engines), "all say so")
            await service.members[0].ask("user_config: treshold: unknown")
            await until(lambda: "treshold" in str(service.engines[1].news.refused), "and of another reason")
            await service.members[0].ask(Wish(model=new.uri, threshold=0.9))
            wanted = new.with_threshold(0.9).info.identity()
            await until(lambda: service.answers() == {wanted}, "the next one is taken")
            await service.add(Wish(model=new.uri, threshold=0.9))
            assert service.answers() == {wanted} and service.engines[0].news.agreed.generation == 2  # type: ignore[union-attr]

    asyncio.run(story())


@pytest.mark.parametrize("damage", ["classes", "pointer", "zero byte", "type", "probe", "version"])
def test_any_bad_model_leaves_the_one_that_answers(damage: str, registry: list[Bundle], tmp_path: Path) -> None:
    uri = str(tmp_path / "m")
    if damage == "classes":
        info = Path(make_bundle(uri, size=32).uri, "bundle.json")
        info.write_text(info.read_text().replace('"positive"\n  ],\n  "input', '"nobody"\n  ],\n  "input'))
    elif damage == "zero byte":
        uri = "a\0b"
    elif damage == "probe":
        make_bundle(uri, size=32, seed=2, bias=float("nan"))
    elif damage == "version":
        make_bundle(uri, size=32, bundle_version=99)
    else:
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "best.json").write_text("{}" if damage == "pointer" else "[1]")

    async def story() -> None:
        async with running(registry[0].uri, 1) as service:
            await service.add(Wish(model=uri))
            assert service.answers() == {registry[0].info.identity()} and service.engines[1].news.refused

    asyncio.run(story())


@pytest.mark.parametrize("late", ["give", "bundle"])
def test_files_that_come_late_during_a_change_do_not_end_it(
    late: str, registry: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A keeper that was lost is given the agreed model by several members, by one of them when it is busy again."""
    old, new, _ = registry

    async def story() -> None:
        async with running(folder_of(old).uri, 2, follow_s=0) as service:
            slow, begun, plain = service.members[0], asyncio.Event(), service.members[0]._load

            async def loads(generation: int) -> Any:
                begun.set()
                await asyncio.sleep(0.3)
                return await plain(generation)

            monkeypatch.setattr(slow, "_load", loads)
            folder_of(old).point_to(new)
            change = asyncio.create_task(service.members[1].order("reload"))
            await begun.wait()
            keeper, now = service.keeper, service.keeper.known().generation
            if late == "give":
                await keeper.give(service.settings, now, service.engines[0].model.predictor.bundle)
            else:
                keeper._bundles.pop(now)
                assert (await keeper.bundle(now)).info.identity() == old.info.identity()
            assert (await change).has_changed and service.answers() == {new.info.identity()}

    asyncio.run(story())


def test_one_that_cannot_prepare_keeps_all_from_changing(
    registry: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, _ = registry

    async def story() -> None:
        async with running(folder_of(old).uri, 3, follow_s=0) as service:
            poor = service.members[1]

            async def fails(generation: int) -> Any:
                raise MemoryError("no room")

            with monkeypatch.context() as patch:
                patch.setattr(poor, "_load", fails)
                folder_of(old).point_to(new)
                outcome = await service.members[0].order("reload")
                assert "MemoryError: no room" in outcome.refused and not outcome.has_changed
                assert service.answers() == {old.info.identity()}
            assert (await service.members[0].order("reload")).has_changed, "and can the next time"
            assert service.answers() == {new.info.identity()}

    asyncio.run(story())


@pytest.mark.parametrize("finds", ["nothing", "an old answer", "its patience over"])
def test_a_member_that_dies_or_stalls_in_a_change_holds_nobody_up_and_never_answers_with_the_old(
    registry: list[Bundle], monkeypatch: pytest.MonkeyPatch, finds: str
) -> None:
    """A stopped process finds, when it goes on, what the keeper answered before the others changed."""
    old, new, _ = registry

    async def story() -> None:
        async with running(folder_of(old).uri, 3, follow_s=0) as service:
            await service.members[2].stop()  # dead: it asks no more
            stalled, line = service.engines[1], service.lines[1]
            blocked = asyncio.Event()
            plain = line.call

            async def waits(method: str, *arguments: Any) -> Any:
                is_first = not blocked.is_set()
                said = await plain(method, *arguments) if finds == "an old answer" else None
                await blocked.wait()
                if is_first and finds == "its patience over":
                    raise KeeperSilent("no answer")
                return said or await plain(method, *arguments)

            monkeypatch.setattr(line, "call", waits)
            folder_of(old).point_to(new)
            outcome = await asyncio.wait_for(service.members[0].order("reload"), 10)
            assert outcome.has_changed and service.engines[0].model.info.sha256 == new.info.identity()
            entering = asyncio.create_task(stalled.gate.enter())
            await asyncio.sleep(0.2)
            assert not entering.done(), "its requests wait"
            blocked.set()
            await asyncio.wait_for(entering, 5)
            assert stalled.model.info.sha256 == new.info.identity()

    asyncio.run(story())


def test_nobody_takes_the_new_model_before_all_let_requests_wait(registry: list[Bundle]) -> None:
    """Whoever saw an answer of the new model gets none of the old one afterwards, whichever replica it asks."""
    old, new, third = registry
    rank = {bundle.info.identity(): place for place, bundle in enumerate(registry)}

    async def story() -> None:
        async with running(folder_of(old).uri, 4, follow_s=0) as service:
            seen, answered = 0, 0
            is_over = False

            async def ask(engine: Engine) -> None:
                nonlocal seen, answered
                while not is_over:
                    known = seen
                    await engine.gate.enter()
                    got = rank[engine.model.info.sha256]
                    assert got >= known, "older than what was seen before"
                    seen, answered = max(seen, got), answered + 1
                    await asyncio.sleep(0)

            asking = [asyncio.create_task(ask(engine)) for engine in service.engines]
            for bundle in (new, third):
                folder_of(old).point_to(bundle)
                assert (await service.members[3].order("reload")).has_changed
            is_over = True
            await asyncio.gather(*asking)
            assert seen == 2 and answered > 100

    asyncio.run(story())


def test_orders_need_an_administrators_key_and_are_not_there_without_one(registry: list[Bundle]) -> None:
    old, new, _ = registry
    admin, client = (hashlib.sha256(key).hexdigest() for key in (b"admin", b"client"))

    async def story() -> None:
        keys = {"admin_key_sha256": [admin], "api_key_sha256": [client]}
        async with running(folder_of(old).uri, 2, follow_s=0, **keys) as service, service.asking() as http:

            async def order(what: str, key: str | None = "admin") -> httpx.Response:
                return await http.post(f"/admin/{what}", headers={"x-api-key": key} if key else {})

            assert [(await order("reload", key)).status_code for key in (None, "client")] == [401, 403]
            assert not (await order("reload")).json()["has_changed"]
            folder_of(old).point_to(new)
            told = (await order("reload")).json()
            assert (told["has_changed"], told["version"], told["generation"]) == (True, "v2", 2)
            model = (await http.get("/model")).json()
            assert (model["version"], model["generation"], model["cause"]) == ("v2", 2, "reload")
            assert (await order("rollback")).json()["version"] == "v1"
            again = (await order("rollback")).json()["error"]
            assert again["code"] == "model_refused" and "nothing to go back to" in again["message"]
            for line in service.lines:
                line.is_cut = True
            assert (await order("reload")).status_code == 503
        async with running(old.uri, 1) as plain, plain.asking() as http:
            assert (await http.post("/admin/reload")).status_code == 404

    asyncio.run(story())


def test_an_order_that_a_silent_store_holds_up_is_answered_in_time(registry: list[Bundle]) -> None:
    async def story() -> None:
        admin = hashlib.sha256(b"admin").hexdigest()

        async def undecided(what: str) -> Outcome:
            await asyncio.sleep(60)
            raise AssertionError(what)

        async with running(registry[0].uri, 1, request_timeout_s=0.2, admin_key_sha256=[admin]) as service:
            app = create_app(service.engines[0], order=undecided)
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
                answer = await http.post("/admin/reload", headers={"x-api-key": "admin"})
            assert answer.status_code == 504 and "it goes on" in answer.json()["error"]["message"]

    asyncio.run(story())


def test_a_lost_keeper_is_waited_for_a_moment_and_then_each_goes_on(registry: list[Bundle]) -> None:
    async def story() -> None:
        async with running(registry[0].uri, 2) as service:
            for line in service.lines:
                line.is_cut = True
            await asyncio.sleep(1.0)
            await asyncio.wait_for(service.engines[0].gate.enter(), 0.1)
            assert switch.GONE_S < 1.0
            for line in service.lines:
                line.is_cut = False
            await until(lambda: service.keeper.members == 2, "both are back")
            for member in service.members:
                member.check()

    asyncio.run(story())
