"""What a candidate's failures cost: no answer, no count twice, and no trial where only something is in the way."""

import asyncio
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from pipeline.model.bundle import Bundle
from serving.agreed import CandidateWish, Chosen, Trial, Wish
from serving.candidate import is_in_share
from serving.engine import Mapped
from serving.lifecycle.tending import Tending
from serving.model import LoadedModel, load_bundle
from serving.monitoring.exposition import written
from serving.monitoring.gathered import Counted, Gathered
from serving.monitoring.recorder import Recorder
from serving.monitoring.state import REQUESTS, TRIAL_DIFFERENCE, TRIAL_IMAGES, State
from serving.routes import create_app
from serving.rule import Figures, Rule, judge
from serving.settings import ServingSettings
from tests.agreeing import Service, running, until
from tests.asgi import picture
from tests.bundles import make_bundle
from tests.unit.test_trials import ADMIN, ADMINS, compared, on_trial, post, wish

JSON = {"accept": "application/json"}
RULE = Rule(min_images=5, max_changed_share=0.9)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("models")
    return [make_bundle(folder / f"v{k}", size=16, seed=1, version=f"v{k}", bias=k / 10) for k in (1, 2, 3)]


def counted(service: Service, of: int = 0) -> Counter[str]:
    """By metric, and the last label of those of a trial."""
    found: Counter[str] = Counter()
    for (name, labels), count in service.engines[of].recorder.state(None, False).counts.items():
        found[f"{name} {labels[-1]}" if name.startswith("candidate") else name] += count
    return found


def candidate_of(service: Service, of: int = 0) -> LoadedModel:
    model = service.engines[of].candidate.model
    assert model is not None
    return model


# ---- what a request costs ------------------------------------------------------------------------------------------


def test_one_that_is_too_slow_for_many_images_together_is_given_up_while_the_other_has_time(
    bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.15 s an image, 32 images: each in its time, all together not."""

    async def story() -> None:
        async with running(bundles[0].uri, 1, request_timeout_s=4.0) as service, service.asking() as http:
            trial = await on_trial(service, wish(bundles[1], share=1.0))
            model = candidate_of(service)
            plain = model.predictor.predict_each
            with monkeypatch.context() as slow:
                slow.setattr(model.predictor, "predict_each", lambda images: (time.sleep(0.15), plain(images))[1])
                files = [("files", (f"{k}.png", picture("PNG", k))) for k in range(32)]
                answer = await http.post("/predict", files=files)
            assert answer.status_code == 200, answer.text
            assert answer.json()["predicted"] == 32 and answer.json()["model"]["version"] == "v1"
            await until(lambda: _all_told(service) == 32, "each image once")
            found = counted(service)
            assert found["candidate_requests fallback"] == 1 and not found["candidate_requests candidate"]
            assert found["candidate_images unanswered"] >= 1
            assert found["predictions"] == 32, "what the candidate said went to nobody"
            await compared(service, trial, 1)
            assert _all_told(service) == 32

    asyncio.run(story())


def _all_told(service: Service) -> int:
    return sum(count for name, count in counted(service).items() if name.startswith("candidate_images"))


def test_the_time_of_a_request_is_the_candidates_only_while_it_is_waited_for(
    bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with running(bundles[0].uri, 1, request_timeout_s=3.0) as service, service.asking() as http:
            await on_trial(service, wish(bundles[1], share=1.0))
            plain = service.engines[0].load

            async def slow(*arguments: Any) -> Any:
                await asyncio.sleep(1.7)
                return await plain(*arguments)

            monkeypatch.setattr(service.engines[0], "load", slow)
            assert (await post(http, 0)).json()["model"]["version"] == "v2"

    asyncio.run(story())


def test_a_failure_counts_though_there_is_no_place_to_compare_and_none_of_both_counts(
    bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with running(bundles[0].uri, 1) as service, service.asking() as http:
            await on_trial(service, wish(bundles[1], share=1.0))

            def fails(images: Any) -> Any:
                raise MemoryError("no room")

            monkeypatch.setattr("serving.comparing._PLACES", 0)
            monkeypatch.setattr(candidate_of(service).predictor, "predict_each", fails)
            assert (await post(http, 0)).json()["model"]["version"] == "v1"
            assert counted(service)["candidate_images unanswered"] == 1 and _all_told(service) == 1
            monkeypatch.setattr(service.engines[0].model.predictor, "predict_each", fails)
            assert (await post(http, 0)).status_code == 500
            found = counted(service)
            assert found["candidate_images unanswered"] == 1, "of an image that neither answers it says nothing"
            assert (found["candidate_requests fallback"], found["images_refused"]) == (2, 1)

    asyncio.run(story())


def test_what_is_refused_before_it_is_asked_counts_once_and_is_no_failure_of_it(bundles: list[Bundle]) -> None:
    async def story() -> None:
        async with running(bundles[0].uri, 1) as service, service.asking() as http:
            await on_trial(service, wish(bundles[1], share=1.0))
            assert (await http.post("/predict", content=b"no image")).status_code == 415
            files = [("files", ("a.png", picture("PNG", 1))), ("files", ("b.png", b"no image"))]
            many = (await http.post("/predict", files=files)).json()
            assert (many["predicted"], many["failed"], many["model"]["version"]) == (1, 1, "v2")
            found = counted(service)
            assert (found["images_refused"], found["predictions"]) == (2, 1)
            assert found["candidate_requests candidate"] == 1, "a refusal of all is none of its answers"

    asyncio.run(story())


@pytest.mark.parametrize("how", ["raises", "hangs"])
def test_a_candidates_map_that_fails_or_hangs_costs_no_answer_and_holds_up_nobody(
    how: str, bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def mapped(model: LoadedModel, pixels: Any, class_name: str) -> Mapped:
        if model.is_candidate and how == "raises":
            raise RuntimeError("a node of the graph")
        if model.is_candidate:
            released.wait(10.0)
        return Mapped(np.ones((16, 16), np.float32), 1.0)

    monkeypatch.setattr("serving.engine._map_of", mapped)

    async def story() -> None:
        async with running(bundles[0].uri, 1, request_timeout_s=4.0) as service, service.asking() as http:
            await on_trial(service, wish(bundles[1], share=0.5))
            sha256 = bundles[1].info.identity()
            mine = next(f"k{k}" for k in range(99) if is_in_share(sha256, f"k{k}", 0.5))
            others = next(f"k{k}" for k in range(99) if not is_in_share(sha256, f"k{k}", 0.5))
            asked = asyncio.create_task(http.post(f"/explain?subject={mine}", content=picture(), headers=JSON))
            await asyncio.sleep(0.2)
            quick = await http.post(f"/explain?subject={others}", content=picture(), headers=JSON)
            assert quick.status_code == 200
            answer = await asked
            released.set()
            assert answer.status_code == 200 and answer.json()["model"]["version"] == "v1"
            found = counted(service)
            assert (found["candidate_requests fallback"], found["candidate_requests agreed"]) == (1, 1)
            await until(lambda: service.engines[0].candidate._comparing._task.done(), "all is compared")  # type: ignore[union-attr]
            assert _all_told(service) == 2, "each image once"
            assert counted(service)["candidate_images unanswered"] == 1 and counted(service)["predictions"] == 2

    asyncio.run(story())


def test_a_map_is_of_the_model_that_the_subject_gets(bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Mapped(np.ones((16, 16), np.float32), 1.0)
    monkeypatch.setattr("serving.engine._map_of", lambda model, pixels, class_name: whole)

    async def story() -> None:
        async with running(bundles[0].uri, 1) as service, service.asking() as http:
            await on_trial(service, wish(bundles[1], share=0.5))
            pairs = set()
            for k in range(12):
                said = await http.post(f"/predict?subject=S{k}", content=picture())
                drawn = await http.post(f"/explain?subject=S{k}", content=picture(), headers=JSON)
                pairs.add((said.json()["model"]["version"], drawn.json()["model"]["version"]))
            assert pairs == {("v1", "v1"), ("v2", "v2")}
            for wrong in ("subject=a%20b", "subject=a&subject=b"):
                assert (await http.post(f"/explain?{wrong}", content=picture())).status_code == 400

    asyncio.run(story())


def test_what_is_compared_behind_counts_as_no_clients_forward_pass(bundles: list[Bundle]) -> None:
    async def story() -> None:
        async with running(bundles[0].uri, 1) as service, service.asking() as http:
            trial = await on_trial(service, wish(bundles[1], share=1.0))
            for seed in range(3):
                await post(http, seed)
            await compared(service, trial, 3)
            assert (service.engines[0].model.work.images, candidate_of(service).work.images) == (0, 3)

    asyncio.run(story())


# ---- what a rule rests on ------------------------------------------------------------------------------------------


def test_a_part_of_the_counts_decides_nothing_and_after_a_loss_they_begin_anew(bundles: list[Bundle]) -> None:
    async def story() -> None:
        async with running(bundles[0].uri, 2) as service, service.asking() as http:
            trial = await on_trial(service, wish(bundles[1], rule=RULE))
            for seed in range(6):
                await post(http, seed)
            await compared(service, trial, 6)

            async def one_only() -> Counted:
                return Counted("first", frozenset(["replica-0"]), await service.engines[0].counts())

            await Tending(service.keeper, one_only).tend()
            now = service.keeper.trials.now.current
            assert now is not None and now.id == trial, "the rule is met in what one replica told"
            service.life = "second"
            for _ in range(3):
                await service.tend()
            now = service.keeper.trials.now.current
            assert now is not None and now.id != trial and service.keeper.trials.now.last is None
            await until(lambda: all(engine.candidate.trial == now for engine in service.engines), "goes on anew")
            for seed in range(6):
                await post(http, seed)
            await compared(service, now.id, 6)
            await service.tend()
            assert service.answers() == {bundles[1].info.identity()}

    asyncio.run(story())


def test_counts_that_were_lost_are_told_again_when_all_had_the_time_to() -> None:
    now = 100.0
    first, second = (Gathered(lambda: now) for _ in range(2))
    assert not first.is_partial
    life = first.put("a", State())
    assert life and not first.is_partial, "the first replica of a new application"
    other = second.put("a", State(), life)
    assert other not in ("", life) and second.is_partial
    assert second.counted().replicas == {"a"} and second.counted().life == other
    assert second.put("b", None, life) == ""
    assert second.put("b", State(), life) == other
    now += 13
    assert not second.is_partial and second.counted().replicas == {"a", "b"}


@pytest.mark.parametrize("gathered", [True, False])
def test_metrics_hold_the_trial_that_goes_on_and_the_one_before(gathered: bool) -> None:
    now = 0.0
    recorder, told = Recorder(), Gathered(lambda: now)
    ids = [f"ab@2026-11-{day}T00:00:00.000+00:00" for day in range(10, 20)]
    for k, trial in enumerate(ids):
        recorder.count(REQUESTS, "/predict", "POST", "200")
        recorder.count(TRIAL_IMAGES, trial, "compared")
        recorder.observe(TRIAL_DIFFERENCE, 0.1, trial)
        if gathered:  # each by another replica, which is no more
            told.put(f"replica-{k}", recorder.state(None, False))
            recorder, now = Recorder(), now + 400
        else:
            recorder.keep_trials(ids[k - 1 : k + 1])
    text = written(told.total() if gathered else recorder.state(None, False)).decode()
    assert [trial for trial in ids if f'trial="{trial}"' in text] == ids[-2:]
    assert 'requests_total{method="POST",route="/predict",status="200"} 10.0' in text


def test_while_a_new_wish_goes_round_no_series_is_there_twice(bundles: list[Bundle]) -> None:
    one = CandidateWish(model="x", rule=Rule(min_images=10, max_changed_share=0.1))
    other = one.model_copy(update={"rule": Rule(min_images=20, max_changed_share=0.1), "cores": 1.0})
    chosen = Chosen(uri="x", sha256="cd", name="n", version="v2")
    about: dict[str, Any] = {"id": "cd@1", "chosen": chosen, "against": "ab", "since": "2026-11-28T00:00:00+00:00"}
    newer = Trial(**about, wish=other, is_running=True, revision=8)
    state = State(trying=Counter({newer: 2, Trial(**about, wish=one, is_running=True, revision=7): 1}))
    lines = written(state).decode().splitlines()
    series = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
    assert len(series) == len(set(series))
    assert next(line for line in lines if line.startswith("leukoray_candidate_replicas{")).endswith(" 3.0")
    assert 'leukoray_candidate_limit{criterion="min_images",trial="cd@1"} 20.0' in lines


def test_an_idle_replica_tells_that_its_model_or_its_candidate_changed(bundles: list[Bundle]) -> None:
    async def story() -> None:
        async with running(bundles[0].uri, 1) as service:
            (engine,) = service.engines
            before = engine.recorder.events
            await on_trial(service, wish(bundles[1]))
            trying = engine.recorder.events
            await service.members[0].ask(Wish(model=bundles[2].uri))
            await until(lambda: service.answers() == {bundles[2].info.identity()}, "the other model")
            await until(lambda: engine.candidate.trial is None, "no longer asked for")
            last = engine.recorder.events
            assert before < trying < last
            engine.hear(engine.news)
            assert engine.recorder.events == last, "nothing new"

    asyncio.run(story())


def test_the_model_is_told_whoever_counts(bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.state._COUNTS_S", 0.05)

    async def never() -> State:
        await asyncio.Event().wait()
        raise AssertionError

    async def story() -> None:
        async with running(bundles[0].uri, 1) as service:
            await on_trial(service, wish(bundles[1], rule=RULE))
            transport = httpx.ASGITransport(create_app(service.engines[0], total=never))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                told = (await asyncio.wait_for(http.get("/model"), 20)).json()
            assert told["version"] == "v1" and told["candidate"]["now"]["verdict"] is None

    asyncio.run(story())


# ---- what is only in the way ---------------------------------------------------------------------------------------

MET = judge(RULE, Figures(images=100), 1.0)


def test_a_met_rule_is_tried_again_where_something_is_in_the_way(
    bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with running(bundles[0].uri, 1) as service:
            await on_trial(service, wish(bundles[1], rule=RULE))
            keeper, tries = service.keeper, []
            trial = keeper.trials.now.current
            assert trial is not None

            async def late(generation: int, agree: Any) -> str:
                tries.append(generation)
                return "replica x did not follow within 1 s"

            with monkeypatch.context() as busy:
                busy.setattr(keeper._switch, "change", late)
                for _ in range(3):
                    await keeper.decide(trial, MET)
            now = keeper.trials.now
            assert now.current == trial and len(tries) == 1, "not every second"
            assert "rule is met" in str(now.refused) and "did not follow" in str(now.refused)
            monkeypatch.setattr("serving.lifecycle.trials.TRY_AGAIN_S", 0.0)
            await keeper.decide(trial, MET)
            assert service.answers() == {bundles[1].info.identity()}
            assert keeper.trials.now.current is None and keeper.trials.now.refused is None

    asyncio.run(story())


def test_another_model_between_look_and_lock_ends_no_trial(bundles: list[Bundle]) -> None:
    async def story() -> None:
        async with running(bundles[0].uri, 1) as service:
            first = await on_trial(service, wish(bundles[1], rule=RULE))
            trial = service.keeper.trials.now.current
            assert trial is not None
            await service.keeper.join(service.settings, Wish(model=bundles[2].uri), wish(bundles[1], rule=RULE))
            for found in (MET, judge(RULE, Figures(images=9, unanswered=1), 1.0)):
                await service.keeper.decide(trial, found)
            assert service.keeper.trials.now.current == trial and service.keeper.trials.now.last is None
            await service.tend()
            now = service.keeper.trials.now.current
            assert now is not None and now.id != first, "it is compared with the other one"

    asyncio.run(story())


def test_a_replica_that_comes_later_and_cannot_load_it_answers_without_and_tries_again(
    bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def fails_once(bundle: Bundle, given: ServingSettings) -> LoadedModel:
        tries.append(bundle)
        if len(tries) == 1:
            raise MemoryError("no room")
        return load_bundle(bundle, given)

    async def story() -> None:
        async with running(bundles[0].uri, 1) as service:
            trial = await on_trial(service, wish(bundles[1], share=1.0))
            monkeypatch.setattr("serving.lifecycle.follower.load_bundle", fails_once)
            late = await service.add(candidate=wish(bundles[1], share=1.0))
            await service.tend()
            assert late.candidate.model is None and service.keeper.trials.now.last is None
            async with service.asking(1) as http:
                assert (await post(http, 0)).json()["model"]["version"] == "v1"
            monkeypatch.setattr("serving.lifecycle.follower.TRY_AGAIN_S", 0.0)
            await until(lambda: late.candidate.model is not None, "tried again", 20)
            assert late.candidate.trial is not None and late.candidate.trial.id == trial and len(tries) == 2

    asyncio.run(story())


def test_one_that_is_dropped_while_it_is_being_found_does_not_begin(bundles: list[Bundle], tmp_path: Path) -> None:
    async def story() -> None:
        settings = {"admin_key_sha256": ADMINS}
        async with running(bundles[0].uri, 1, **settings) as service, service.asking() as http:
            asked, trials = wish(bundles[1]), service.keeper.trials
            await service.members[0].ask(Wish(model=bundles[0].uri), asked)
            await until(lambda: trials.wanted() == asked, "asked for")
            dropped = await http.post("/admin/candidate/drop", headers=ADMIN)
            assert dropped.status_code == 200, dropped.text
            trials.begin(asked, bundles[1], service.keeper.known(), bundles[0].info)  # it was found meanwhile
            trials.refuse(asked, "or not")
            await service.tend()
            assert trials.now.current is None and trials.now.refused == "dropped by an administrator before it began"
            assert (await http.post("/admin/candidate/drop", headers=ADMIN)).status_code == 409
            await http.post("/admin/reload", headers=ADMIN)
            await service.tend()
            assert trials.now.current is not None and trials.now.refused is None

    asyncio.run(story())
