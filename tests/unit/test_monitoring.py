"""What /metrics says: right after known requests, the sum of replicas, never less than before."""

import asyncio
import hashlib
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from pipeline.images.appearance import appearances
from pipeline.model.bundle import Bundle
from pipeline.model.drift import FEWEST_IMAGES
from pipeline.model.drift_counts import DriftCounts
from pipeline.model.prediction import Prediction
from serving.engine import Engine
from serving.model import load_model
from serving.monitoring.exposition import written
from serving.monitoring.gathered import Gathered
from serving.monitoring.recorder import Recorder
from serving.monitoring.sharing import GatheredActor, NotGathered, Sharing
from serving.monitoring.state import BATCH_IMAGES, PREDICTIONS, REQUESTS, Answering, State, added
from serving.routes import create_app
from serving.settings import ServingSettings
from tests.asgi import call, client, picture
from tests.bundles import make_bundle, reference_of_noise

MODEL = Answering("blood", "v1", "ab" * 32)
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation and family.type != "unknown"
        for one in family.samples:
            key = one.name, frozenset(one.labels.items())
            assert key not in found, "a series twice is no Prometheus text"
            found[key] = one.value
    return found


def value(found: Samples, name: str, /, **labels: str) -> float | None:
    return found.get((f"leukoray_{name}", frozenset(labels.items())))


def in_all(found: Samples, name: str) -> float:
    return sum(number for (series, _), number in found.items() if series == f"leukoray_{name}")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(
        tmp_path_factory.mktemp("bundle"), size=32,
        **reference_of_noise(),
    )  # fmt: skip


@pytest.fixture
def make(bundle: Bundle) -> Callable[..., Engine]:
    def build(**settings: object) -> Engine:
        checked = ServingSettings.model_validate({"model": bundle.uri, **settings})
        return Engine(checked, load_model(checked.model, checked))

    return build


def scraped(engine: Engine, *requests: tuple[str, str, dict[str, object]]) -> Samples:
    async def in_order() -> str:
        async with client(engine) as http:
            for method, path, options in requests:
                await http.request(method, path, **options)  # type: ignore[arg-type]
            answer = await http.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        return answer.text

    return samples(asyncio.run(in_order()))


def said(decision: str = "positive", is_ood: bool | None = None, probability: float = 0.7) -> Prediction:
    return Prediction((1 - probability, probability), probability, "positive", decision, None, is_ood)  # type: ignore[arg-type]


def test_known_requests_have_their_counts(make: Callable[..., Engine]) -> None:
    engine = make(max_bytes=20_000)
    image, long = picture(), bytes(30_000)
    files = [("files", ("jane-doe.jpg", image)), ("files", ("b.jpg", b"zz")), ("files", ("c.jpg", long))]
    found = scraped(
        engine,
        *[("POST", "/predict", {"content": image})] * 3,
        ("POST", "/predict", {"content": b"no image"}),
        ("POST", "/predict", {"files": files}),
        ("GET", "/jane-doe", {}),
        ("BREW", "/predict", {}),
        ("GET", "/v2/models/jane-doe", {}),
    )
    assert value(found, "requests_total", route="/predict", method="POST", status="200") == 4
    assert value(found, "requests_total", route="/predict", method="POST", status="415") == 1
    assert value(found, "requests_total", route="/v2/models/{name}", method="GET", status="404") == 1
    assert value(found, "requests_total", route="/predict", method="-", status="405") == 1
    assert value(found, "errors_total", code="unsupported_format", status="415") == 1
    assert value(found, "errors_total", code="not_found", status="404") == 2
    assert value(found, "images_refused_total", code="unsupported_format") == 2
    assert value(found, "images_refused_total", code="too_large") == 1
    assert in_all(found, "predictions_total") == 4
    assert value(found, "stage_seconds_count", stage="predict") == 4
    for stage in ("queue", "decode"):
        assert value(found, "stage_seconds_count", stage=stage) == 4
    assert value(found, "batch_images_sum") == 4 and value(found, "batch_images_bucket", le="1.0") == 4
    assert value(found, "request_seconds_count", route="/predict") == 6
    assert value(found, "requests_in_work") == 1, "that for /metrics"
    assert "jane" not in repr(found)


def test_the_model_and_its_drift_are_those_of_the_bundle(make: Callable[..., Engine]) -> None:
    engine = make()
    images = [picture("PNG", seed=seed) for seed in range(FEWEST_IMAGES + 5)]
    found = scraped(engine, *(("POST", "/predict", {"content": image}) for image in images))
    info = engine.model.predictor.info
    sha256 = info.identity()
    assert value(found, "model_info", name=info.name, version=info.version, sha256=sha256) == 1
    assert value(found, "replicas", sha256=sha256) == 1
    pixels = [engine.model.predictor.load(image).pixels for image in images]
    expected = DriftCounts.of(info)
    expected.add(engine.model.predictor.predict_each(pixels), appearances(np.stack(pixels)))  # type: ignore[arg-type]
    assert value(found, "drift_images", sha256=sha256) == len(images)
    assert value(found, "drift_psi", sha256=sha256) == pytest.approx(expected.psi())
    assert value(found, "drift_psi_by_chance", sha256=sha256) == pytest.approx(expected.psi_by_chance())
    shifts = expected.shifts()
    assert len(shifts) > 4
    for shift in shifts:
        got = value(found, "drift_distance", sha256=sha256, statistic=shift.name)
        assert got == pytest.approx(shift.distance), shift.name


def test_a_crowd_is_looked_at_in_part_and_counted_whole(bundle: Bundle) -> None:
    recorder, count = Recorder(), 500
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    for k in range(count):
        if recorder.predicted("ab", bundle.info, said(probability=k / count), pixels):
            recorder.settle(recorder.take())
    recorder.settle(recorder.take())
    (drift,) = recorder.state(None, False).drift.values()
    assert drift.images == count
    assert all(FEWEST_IMAGES <= one.images < 100 for one in drift.statistics.values())


def test_decisions_and_strange_images_are_told_apart(bundle: Bundle) -> None:
    recorder = Recorder()
    pixels = np.zeros((32, 32, 3), np.uint8)
    cases = [("positive", True), ("positive", False), ("review", False), ("review", False), (None, None)]
    for decision, is_ood in cases:
        recorder.predicted("ab", bundle.info, said(decision, is_ood), pixels)  # type: ignore[arg-type]
    found = samples(written(recorder.state(MODEL, True)).decode())
    assert value(found, "predictions_total", **{"class": "positive", "decision": "positive", "ood": "yes"}) == 1
    assert value(found, "predictions_total", **{"class": "positive", "decision": "review", "ood": "no"}) == 2
    assert value(found, "predictions_total", **{"class": "positive", "decision": "none", "ood": "unknown"}) == 1
    assert value(found, "probability_bucket", le="0.65") == 0 and value(found, "probability_bucket", le="0.75") == 5
    assert value(found, "replicas_refusing") == 1


def test_a_histogram_has_every_value_in_its_bucket_and_their_sum() -> None:
    state = State()
    for images in (1, 2, 3, 16, 65):
        state.observe(BATCH_IMAGES, (), images)
    found = samples(written(state).decode())
    expected = {"1.0": 1, "2.0": 2, "4.0": 3, "8.0": 3, "16.0": 4, "32.0": 4, "64.0": 4, "+Inf": 5}
    assert {bound: value(found, "batch_images_bucket", le=bound) for bound in expected} == expected
    assert value(found, "batch_images_sum") == 87 and value(found, "batch_images_count") == 5


@given(st.lists(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 70)), max_size=8), max_size=5))
def test_replicas_together_are_as_one_that_did_all(replicas: list[list[tuple[str, int]]]) -> None:
    whole, parts = State(), []
    for work in replicas:
        parts.append(State())
        for state in (whole, parts[-1]):
            for label, images in work:
                state.count(REQUESTS, (label, "GET", "200"))
                state.observe(BATCH_IMAGES, (), images)
    assert written(added(parts)) == written(whole)


def working(requests: int, in_work: int = 0) -> State:
    state = State(in_work=in_work)
    for _ in range(requests):
        state.count(PREDICTIONS, ("positive", "review", "no"))
    state.answering[MODEL] += 1
    return state


def test_counters_never_fall_when_replicas_are_replaced() -> None:
    now = 0.0
    gathered = Gathered(lambda: now)
    before = 0.0
    for life in range(6):  # each dies with 10 counted and one in work; the last lives
        for done in (0, 4, 10):
            assert gathered.put(f"replica-{life}", working(done, in_work=1))
            found = samples(written(gathered.total()).decode())
            assert in_all(found, "predictions_total") >= before
            before = in_all(found, "predictions_total")
        now += 200
    now -= 200
    found = samples(written(gathered.total()).decode())
    assert in_all(found, "predictions_total") == 60
    assert value(found, "requests_in_work") == 1, "the dead have none"
    assert value(found, "replicas", sha256=MODEL.sha256) == 1
    gathered.put("replica-0", working(10))  # woken after its counts were put to those of the dead
    assert in_all(samples(written(gathered.total()).decode()), "predictions_total") == 60


def test_a_replica_that_is_not_known_is_asked_for_all_it_counted() -> None:
    gathered = Gathered()  # begun anew
    assert not gathered.put("one", None)
    assert gathered.put("one", working(3)) and gathered.put("one", None) and gathered.put("one", working(5))
    assert in_all(samples(written(gathered.total()).decode()), "predictions_total") == 5


def test_drift_is_of_the_last_two_days_and_of_the_model_that_answers(bundle: Bundle) -> None:
    counts = DriftCounts.of(bundle.info)
    counts.add([said()] * 30)
    state = State(drift={("old", 20_001): counts, (MODEL.sha256, 19_999): counts, (MODEL.sha256, 20_000): counts})
    total = added([state, State(drift={(MODEL.sha256, 20_001): counts})])
    total.answering[MODEL] += 2
    found = samples(written(total).decode())
    assert value(found, "drift_images", sha256=MODEL.sha256) == 60
    assert value(found, "drift_images", sha256="old") is None


def test_a_key_is_asked_for_where_a_setting_says_so(make: Callable[..., Engine]) -> None:
    digest = hashlib.sha256(b"secret").hexdigest()
    open_to_all = make(api_key_sha256=[digest])
    assert call(open_to_all, "GET", "/metrics").status_code == 200
    closed = make(api_key_sha256=[digest], metrics_need_key=True)
    assert call(closed, "GET", "/metrics").status_code == 401
    assert call(closed, "GET", "/metrics", headers={"x-api-key": "other"}).status_code == 403
    assert call(closed, "GET", "/metrics", headers={"x-api-key": "secret"}).status_code == 200


def test_counts_that_cannot_be_had_are_no_counts(make: Callable[..., Engine]) -> None:
    async def lost() -> State:
        raise NotGathered("the actor is gone")

    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(make(), total=lost))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.get("/metrics")

    answer = asyncio.run(once())
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "no_counts"
    assert answer.headers["retry-after"] == "1" and "leukoray" not in answer.text


def test_a_scrape_that_is_cut_off_ends_no_count(make: Callable[..., Engine]) -> None:
    async def run() -> float:
        engine, may_settle = make(decode_threads=1), threading.Event()
        loaded = await engine.load(engine.model, picture())
        engine._decoding.later(may_settle.wait, 20)  # as many images do that are decoded first
        await engine.predict(engine.model, loaded.pixels)
        scrape = asyncio.create_task(engine.counts())
        await asyncio.sleep(0.05)
        scrape.cancel()
        await asyncio.gather(scrape, return_exceptions=True)
        may_settle.set()
        state = await asyncio.wait_for(engine.counts(), 10)
        return sum(counts.images for counts in state.drift.values())

    assert asyncio.run(run()) == 1


def test_counts_are_told_again_whatever_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.monitoring.sharing._EVERY_S", 0.01)

    class Actor:
        """That has the counts."""

        told = list[State]()

        def __init__(self) -> None:
            self.tell, self.ask = self, self

        async def remote(self, replica: str, state: State, life: str) -> str:
            self.told.append(state)
            return "its life"

    failures: list[BaseException] = [RuntimeError("x"), asyncio.CancelledError(), KeyError("y")]

    async def state() -> State:
        if failures:
            raise failures.pop()
        return State()

    async def run() -> None:
        sharing = Sharing("app", "replica", Recorder(), state)
        sharing._gatherer._actor = actor = Actor()
        sharing.begin()
        assert sharing._task is not None
        async with asyncio.timeout(5):
            while not actor.told:
                await asyncio.sleep(0.01)
        assert not sharing._task.done()
        sharing._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sharing._task

    asyncio.run(run())


def test_after_its_actor_was_lost_the_sum_is_not_told_until_all_had_the_time_to_tell_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Direct:
        """The actor in this process."""

        def __init__(self) -> None:
            self.actor = GatheredActor("app")

        def __getattr__(self, name: str) -> Any:
            return SimpleNamespace(remote=getattr(self.actor, name))

    async def run() -> None:
        async def state() -> State:
            return working(4)

        first, second = (Sharing("app", name, Recorder(), state) for name in ("one", "two"))
        before = Direct()
        for sharing in (first, second):
            sharing._gatherer._actor = before
        assert in_all(samples(written(await first.total()).decode()), "predictions_total") == 4
        assert in_all(samples(written(await second.total()).decode()), "predictions_total") == 8
        after = Direct()
        for sharing in (first, second):
            sharing._gatherer._actor = after
        assert not await first._say(None), "it is to tell all"
        with pytest.raises(NotGathered, match="not all replicas have told theirs"):
            await first.total()
        assert await second._say(await state())
        monkeypatch.setattr("serving.monitoring.gathered._SETTLES_S", 0.0)
        assert in_all(samples(written(await first.total()).decode()), "predictions_total") == 8
        assert (await after.ask_all.remote()).replicas == {"one", "two"}
        for watch in (before.actor._watch, after.actor._watch):
            assert watch is not None
            watch.cancel()

    asyncio.run(run())
