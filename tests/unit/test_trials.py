"""A candidate on trial: compared behind the answers, given a share, promoted or dropped, and never a client's harm."""

import asyncio
import hashlib
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from pipeline.base.errors import InputError
from pipeline.model.bundle import Bundle
from serving.agreed import CandidateWish, Wish
from serving.candidate import is_in_share
from serving.comparing import Comparing, Seen
from serving.forward import Answer
from serving.lifecycle import switch
from serving.lifecycle.tending import Tending
from serving.model import LoadedModel, load_bundle
from serving.monitoring.comparison import figures
from serving.monitoring.recorder import Recorder
from serving.rule import Rule
from serving.settings import ServingSettings
from tests.agreeing import Service, quicken, running, until
from tests.asgi import picture
from tests.bundles import make_bundle

ADMIN = {"x-api-key": "admin"}
ADMINS = [hashlib.sha256(b"admin").hexdigest()]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """Two that differ a little, and one that is not compared pixel by pixel: it takes them larger."""
    folder = tmp_path_factory.mktemp("models")
    one = make_bundle(folder / "v1", size=16, seed=1, version="v1")
    other = make_bundle(folder / "v2", size=16, seed=1, version="v2", bias=0.2)
    return [one, other, make_bundle(folder / "v3", size=24, seed=1, version="v3")]


def wish(bundle: Bundle, **options: Any) -> CandidateWish:
    return CandidateWish(model=bundle.uri, cores=1.0, **options)


async def on_trial(service: Service, candidate: CandidateWish) -> str:
    """Both replicas have it, and it runs."""
    asked = Wish(model=service.settings.model)
    for member in service.members:
        await member.ask(asked, candidate)
    await until(lambda: service.keeper.trials.now.asked == candidate, "asked for")
    await service.tend()
    trial = service.keeper.trials.now.current
    assert trial is not None, service.keeper.trials.now.refused
    for _ in range(100):
        await service.tend()
        now = service.keeper.trials.now.current
        if now is None or now.is_running:
            break
        await asyncio.sleep(0.02)
    return trial.id


async def post(http: httpx.AsyncClient, seed: int, **headers: str) -> httpx.Response:
    return await http.post("/predict", content=picture("PNG", seed), headers=headers)


async def compared(service: Service, trial: str, images: int) -> None:
    for _ in range(500):
        found = await service.counts()
        if figures(found, trial).images >= images:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{figures(found, trial)}")


# ---- which requests it answers ------------------------------------------------------------------------------------


def test_a_share_of_requests_is_that_share_and_a_larger_one_only_adds() -> None:
    keys = [f"request-{k}" for k in range(20_000)]
    for share in (0.01, 0.1, 0.5):
        hit = {key for key in keys if is_in_share("ab" * 32, key, share)}
        spread = (share * (1 - share) * len(keys)) ** 0.5
        assert abs(len(hit) - share * len(keys)) < 4 * spread
        assert hit <= {key for key in keys if is_in_share("ab" * 32, key, share * 1.5)}
        others = {key for key in keys if is_in_share("cd" * 32, key, share)}
        both = share * share * len(keys)
        assert abs(len(hit & others) - both) < 4 * both**0.5, "of another candidate it is another share"


def test_of_no_share_nobody_is_and_of_the_whole_everybody() -> None:
    for key in ("", "a", "id-7", "ä/∂"):
        assert not is_in_share("ab", key, 0.0) and is_in_share("ab", key, 1.0)


# ---- what waits to be compared ------------------------------------------------------------------------------------


def loaded(bundle: Bundle) -> LoadedModel:
    return load_bundle(bundle, ServingSettings(model=bundle.uri))


def seen_by(model: LoadedModel, seed: int = 0) -> Seen:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    (said,) = model.predictor.predict_each([pixels])
    return Seen("t", model, said, 0.001, pixels)  # type: ignore[arg-type]


def outcomes(recorder: Recorder) -> dict[str, int]:
    counts = recorder.state(None, False).counts
    return {labels[1]: count for (name, labels), count in counts.items() if name == "candidate_images"}


@pytest.mark.parametrize("images", [1, 64, 65, 200])
def test_every_image_offered_is_compared_or_counted_as_dropped(images: int, bundles: list[Bundle]) -> None:
    recorder = Recorder()

    async def story() -> None:
        comparing = Comparing(recorder, ServingSettings(model="x").limits)
        one = seen_by(loaded(bundles[0]))
        for _ in range(images):  # without a turn of the loop between: none can be taken up
            comparing.offer(one, 1.0)
        await until(lambda: sum(outcomes(recorder).values()) == images, "all are counted")

    asyncio.run(story())
    assert outcomes(recorder).get("compared", 0) == min(images, 64)
    assert outcomes(recorder).get("dropped", 0) == max(0, images - 64)


def test_comparing_rests_as_long_as_its_part_of_a_processor_asks(
    bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    one = seen_by(loaded(bundles[0]))
    monkeypatch.setattr(Comparing, "_ask", lambda self, some: (0.02, [Answer(one.said, 0.001)] * len(some)))

    async def story() -> float:
        comparing, began = Comparing(recorder, ServingSettings(model="x").limits), time.monotonic()
        for _ in range(12):
            comparing.offer(one, 0.2)
        await until(lambda: outcomes(recorder).get("compared") == 12, "all are compared")
        return time.monotonic() - began

    assert asyncio.run(story()) >= 2 * 0.02 * (1 / 0.2 - 1), "after each of the first two of three rounds of four"


# ---- the trial ------------------------------------------------------------------------------------------------------


def test_a_shadow_is_compared_on_every_image_and_reaches_no_client(bundles: list[Bundle]) -> None:
    old, new, _ = bundles

    async def story() -> None:
        async with running(old.uri, 2) as service, service.asking() as http, service.asking(1) as other:
            trial = await on_trial(service, wish(new))
            for seed in range(6):
                for client in (http, other):
                    answer = await post(client, seed)
                    assert answer.status_code == 200 and answer.json()["model"]["version"] == "v1"
            await compared(service, trial, 12)
            model = (await http.get("/model")).json()
            assert model["version"] == "v1" and model["candidate"]["now"]["stage"] == "shadow"
            assert model["candidate"]["now"]["version"] == "v2" and model["candidate"]["now"]["verdict"] is None
            assert (await http.get("/readyz")).json()["candidate"]["now"]["trial"] == trial
            text = (await http.get("/metrics")).text
            assert f'leukoray_candidate_images_total{{outcome="compared",trial="{trial}"}} 12.0' in text
            assert f'name="tiny-linear",sha256="{new.info.identity()}",stage="shadow",trial="{trial}"' in text
            assert 'model_info{name="tiny-linear",sha256="' + new.info.identity() not in text
            late = await service.add(candidate=wish(new))
            assert late.candidate.trial is not None, "one that starts later has it before it answers"

    asyncio.run(story())


def test_a_share_is_answered_by_the_candidate_the_same_id_and_subject_always_alike(bundles: list[Bundle]) -> None:
    old, new, _ = bundles

    async def story() -> None:
        async with running(old.uri, 2) as service, service.asking() as http, service.asking(1) as other:
            trial = await on_trial(service, wish(new, share=0.4))
            versions = {}
            for k in range(40):
                headers = {"x-request-id": f"id-{k}"}
                answers = [(await post(client, 3, **headers)).json() for client in (http, other)]
                assert answers[0]["model"] == answers[1]["model"] and answers[0]["probability"] == pytest.approx(
                    answers[1]["probability"]
                )
                versions[k] = answers[0]["model"]["version"]
                wanted = is_in_share(new.info.identity(), f"id-{k}", 0.4)
                assert versions[k] == ("v2" if wanted else "v1")
            assert set(versions.values()) == {"v1", "v2"}
            of_subject = [await http.post(f"/predict?subject=S{k % 4}", content=picture("PNG", k)) for k in range(16)]
            told = {(k % 4, answer.json()["model"]["version"]) for k, answer in enumerate(of_subject)}
            assert len(told) == 4, "one model a subject"
            explained = {
                (
                    await http.post(
                        "/explain", content=picture(), headers={"accept": "application/json", "x-request-id": f"id-{k}"}
                    )
                ).status_code
                for k in range(3)
            }
            assert explained == {409}, "linear bundles have no map, whichever is asked"
            named = await http.get("/v2/models/tiny-linear/versions/v2")
            assert named.status_code == 404, "a version that is named is the one that all have agreed on"
            assert (await http.get("/v2/models/tiny-linear")).json()["versions"] == ["v1"]
            await compared(service, trial, 80)

    asyncio.run(story())


def test_a_candidate_that_fails_costs_no_answer_and_is_dropped_by_its_rule(
    bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, _ = bundles
    rule = Rule(min_images=5, max_changed_share=0.5)

    async def story() -> None:
        async with running(old.uri, 1) as service, service.asking() as http:
            trial = await on_trial(service, wish(new, share=1.0, rule=rule))
            model = service.engines[0].candidate.model
            assert model is not None and (await post(http, 0)).json()["model"]["version"] == "v2"

            def fails(images: Any) -> Any:
                raise MemoryError("no room")

            monkeypatch.setattr(model.predictor, "predict_each", fails)
            files = [("files", (f"{k}.png", picture("PNG", k))) for k in range(3)]
            many = await http.post("/predict", files=files)
            assert many.status_code == 200 and many.json()["predicted"] == 3 and many.json()["model"]["version"] == "v1"
            assert (await post(http, 9)).json()["model"]["version"] == "v1"
            await until(lambda: _count(service, trial, "unanswered") == 4, "told as unanswered")
            await service.tend()
            last = service.keeper.trials.now.last
            assert last is not None and (last.decision, last.by) == ("dropped", "rule")
            assert "max_unanswered_share not met (none; 4 of" in last.reason
            assert service.engines[0].candidate.model is None
            text = (await http.get("/metrics")).text
            assert f'candidate_requests_total{{answered_by="fallback",trial="{trial}"}} 2.0' in text
            assert f'candidate_ended{{by="rule",decision="dropped",trial="{trial}"}} 1.0' in text
            assert "leukoray_images_refused_total{" not in text, "all were answered"

    asyncio.run(story())


def _count(service: Service, trial: str, outcome: str) -> int:
    counts = service.engines[0].recorder.state(None, False).counts
    return counts["candidate_images", (trial, outcome)]


def test_a_candidate_that_hangs_is_given_up_in_time(bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, _ = bundles

    async def story() -> None:
        async with running(old.uri, 1, request_timeout_s=4.0) as service, service.asking() as http:
            trial = await on_trial(service, wish(new, share=0.5))
            model = service.engines[0].candidate.model
            assert model is not None
            plain = model.predictor.predict_each
            monkeypatch.setattr(model.predictor, "predict_each", lambda images: (time.sleep(1.5), plain(images))[1])
            mine = next(f"k{k}" for k in range(99) if is_in_share(new.info.identity(), f"k{k}", 0.5))
            others = next(f"k{k}" for k in range(99) if not is_in_share(new.info.identity(), f"k{k}", 0.5))
            slow = asyncio.create_task(post(http, 1, **{"x-request-id": mine}))
            await asyncio.sleep(0.1)
            quick = await post(http, 2, **{"x-request-id": others})
            assert quick.status_code == 200 and not slow.done(), "nobody else waits for it"
            answer = await slow
            assert answer.status_code == 200 and answer.json()["model"]["version"] == "v1"
            assert _count(service, trial, "unanswered") == 1

    asyncio.run(story())


def test_a_met_rule_promotes_in_all_replicas_at_once_and_the_configuration_does_not_undo_it(
    bundles: list[Bundle], caplog: pytest.LogCaptureFixture
) -> None:
    old, new, _ = bundles
    rule = Rule(min_images=8, max_changed_share=0.9)

    async def story() -> None:
        keys = {"admin_key_sha256": ADMINS}
        async with running(old.uri, 2, **keys) as service, service.asking() as http, service.asking(1) as other:
            trial = await on_trial(service, wish(new, rule=rule))
            await post(http, 0)
            await service.tend()
            now = (await http.get("/model")).json()["candidate"]["now"]
            assert now["verdict"]["decision"] == "wait" and "1 images" in now["verdict"]["reason"]
            for seed in range(8):
                await post(http if seed % 2 else other, seed)
            await compared(service, trial, 9)
            figure = f'leukoray_candidate_figure{{criterion="min_images",trial="{trial}"}} 9.0'
            assert figure in (await http.get("/metrics")).text
            await service.tend()
            assert service.answers() == {new.info.identity()}
            told = (await other.get("/model")).json()
            assert (told["version"], told["cause"], told["generation"]) == ("v2", "promotion", 2)
            last = told["candidate"]["last"]
            assert (last["decision"], last["by"], last["rule"]["min_images"]) == ("promoted", "rule", 8)
            assert [one["state"] for one in last["verdict"]["criteria"]] == ["met"] * 3
            told_in_logs = [line for line in caplog.messages if "promoted by rule: min_images met" in line]
            assert len(told_in_logs) == 3, "the keeper's and each replica's"
            await service.add(candidate=wish(new, rule=rule))
            await service.tend()
            assert service.answers() == {new.info.identity()} and service.keeper.trials.now.current is None
            back = (await http.post("/admin/rollback", headers=ADMIN)).json()
            assert back["version"] == "v1", "and a rollback goes back"

    asyncio.run(story())


def test_people_promote_and_drop_and_a_new_share_goes_on_with_the_counts(bundles: list[Bundle]) -> None:
    old, new, _ = bundles

    async def story() -> None:
        async with running(old.uri, 2, admin_key_sha256=ADMINS) as service, service.asking() as http:

            async def order(what: str) -> httpx.Response:
                return await http.post(f"/admin/candidate/{what}", headers=ADMIN)

            assert (await http.post("/admin/candidate/drop")).status_code == 401
            nothing = [await order("promote"), await order("drop")]
            assert [answer.status_code for answer in nothing] == [409, 409]
            assert "there is no candidate" in nothing[0].json()["error"]["message"]
            trial = await on_trial(service, wish(new))
            assert await on_trial(service, wish(new, share=0.2)) == trial, "the same trial"
            assert (await http.get("/model")).json()["candidate"]["now"]["stage"] == "canary"
            dropped = await order("drop")
            assert dropped.status_code == 200 and dropped.json()["version"] == "v1"
            await service.tend()
            assert service.keeper.trials.now.current is None and service.engines[1].candidate.model is None
            await http.post("/admin/reload", headers=ADMIN)  # as the configuration says: again
            await service.tend()
            now = service.keeper.trials.now.current
            assert now is not None and now.id != trial
            await until(lambda: all(e.candidate.model for e in service.engines), "loaded")
            await service.tend()
            promoting = asyncio.create_task(order("promote"))
            while not promoting.done():
                await Tending(service.keeper, service.counted).tend()
                await asyncio.sleep(0)
            assert (await promoting).json()["version"] == "v2" and service.answers() == {new.info.identity()}
            last = service.keeper.trials.now.last
            assert last is not None and (last.decision, last.by) == ("promoted", "administrator")

    asyncio.run(story())


def test_a_trial_outlives_its_keeper_and_its_store(bundles: list[Bundle], tmp_path: Path) -> None:
    old, _, _ = bundles
    new = make_bundle(tmp_path / "new", size=16, seed=4, version="v4")

    async def story() -> None:
        async with running(old.uri, 2) as service:
            trial = await on_trial(service, wish(new, share=0.3))
            for path in Path(new.uri).iterdir():
                path.unlink()
            service.lose_keeper()
            late = await service.add(candidate=wish(new, share=0.3))
            assert late.candidate.trial is not None and late.candidate.trial.id == trial
            await asyncio.sleep(switch.GONE_S)
            await service.tend()
            now = service.keeper.trials.now.current
            assert now is not None and now.id == trial and now.is_running

    asyncio.run(story())


def test_another_model_that_answers_makes_the_comparison_begin_anew(bundles: list[Bundle], tmp_path: Path) -> None:
    old, new, _ = bundles
    third = make_bundle(tmp_path / "third", size=16, seed=5, version="v5")

    async def story() -> None:
        async with running(old.uri, 2) as service, service.asking() as http:
            first = await on_trial(service, wish(new, share=1.0))
            for member in service.members:
                await member.ask(Wish(model=third.uri), wish(new, share=1.0))
            await until(lambda: service.answers() == {third.info.identity()}, "the other model")
            between = await post(http, 0)
            assert between.json()["model"]["version"] == "v5", "no share before it is compared with this one"
            await service.tend()
            now = service.keeper.trials.now.current
            assert now is not None and now.id != first and now.against == third.info.identity()
            for member in service.members:
                await member.ask(Wish(model=new.uri), wish(new, share=1.0))
            await until(lambda: service.answers() == {new.info.identity()}, "the candidate itself")
            await service.tend()
            last = service.keeper.trials.now.last
            assert last is not None and (last.decision, last.by) == ("promoted", "configuration")

    asyncio.run(story())


def test_one_replica_that_cannot_load_it_ends_the_trial_for_all(
    bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, _ = bundles
    calls = []

    def fails_once(bundle: Bundle, given: ServingSettings) -> LoadedModel:
        calls.append(bundle)
        if len(calls) == 1:
            raise MemoryError("no room")
        return load_bundle(bundle, given)

    async def story() -> None:
        async with running(old.uri, 2) as service, service.asking() as http:
            monkeypatch.setattr("serving.lifecycle.follower.load_bundle", fails_once)
            await on_trial(service, wish(new, share=1.0))
            last = service.keeper.trials.now.last
            assert last is not None and (last.decision, last.by) == ("dropped", "replica")
            assert "a replica could not load it: MemoryError: no room" in last.reason
            assert (await post(http, 0)).json()["model"]["version"] == "v1"

    asyncio.run(story())


def test_a_candidate_of_another_size_is_compared_on_the_image_as_it_was_sent(bundles: list[Bundle]) -> None:
    old, _, larger = bundles

    async def story() -> None:
        async with running(old.uri, 1) as service, service.asking() as http:
            trial = await on_trial(service, wish(larger))
            for seed in range(4):
                await post(http, seed)
            tensor = {"name": "image", "shape": [1, 16, 16, 3], "datatype": "UINT8", "data": [0] * 768}
            pixels = await http.post("/v2/models/tiny-linear/infer", json={"inputs": [tensor]})
            assert pixels.status_code == 200
            await compared(service, trial, 4)
            assert _count(service, trial, "other_size") == 1

    asyncio.run(story())


@pytest.mark.parametrize("wrong", ["nothing there", "the same", "classes", "disease", "unit", "damaged"])
def test_a_candidate_that_answers_another_question_or_none_is_refused_and_the_rest_goes_on(
    wrong: str, tmp_path: Path
) -> None:
    names = ("a", "b", "c")
    old = make_bundle(
        tmp_path / "old", 16, "multiclass", classes=names, positive_classes=("c",), version="v1", unit="cell"
    )
    fields: dict[str, Any] = {"classes": names, "positive_classes": ("c",), "unit": "cell", "seed": 2, "version": "v2"}
    fields |= {
        "classes": {"classes": ("a", "c", "b")},
        "disease": {"positive_classes": ("b", "c")},
        "unit": {"unit": "field"},
    }.get(wrong, {})
    new = make_bundle(tmp_path / "new", 16, "multiclass", **fields)
    if wrong == "damaged":
        (Path(new.uri) / "model.onnx").write_bytes(b"no graph")
    uri = {"nothing there": str(tmp_path / "none"), "the same": old.uri}.get(wrong, new.uri)
    reason = {
        "nothing there": "neither a bundle", "the same": "is the model that answers", "unit": "images of a field",
        "damaged": "model.onnx is not the file",
    }.get(wrong, "tells a, ")  # fmt: skip

    async def story() -> None:
        async with running(old.uri, 1) as service, service.asking() as http:
            await service.members[0].ask(Wish(model=old.uri), CandidateWish(model=uri))
            await until(lambda: service.keeper.trials.wanted() is not None, "asked for")
            await service.tend()
            told = (await http.get("/readyz")).json()
            assert reason in told["candidate"]["refused"] and told["candidate"]["now"] is None
            assert "leukoray_candidate_refused 1.0" in (await http.get("/metrics")).text
            assert told["refused"] is None and (await post(http, 0)).status_code == 200
            assert service.keeper.trials.wanted() is None, "tried again in a minute, not at once"
            with pytest.raises(InputError, match="not on trial any more"):
                await service.keeper.candidate("another")

    asyncio.run(story())
