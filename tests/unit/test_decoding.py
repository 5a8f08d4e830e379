"""Small images pass large ones, the shortest of those goes first, and none waits that could not be answered in time."""

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnschedulableError, OutOfMemoryError, RuntimeEnvSetupError

from pipeline.base.errors import Code, ImageRejected
from pipeline.images.cost import worst_seconds
from pipeline.images.load import Header, LoadedImage, decode_image, read_header
from serving.decoder_process import ProcessDecoder
from serving.decoding import Line
from serving.engine import Engine
from serving.errors import HttpError
from serving.model import load_model
from serving.settings import ServingSettings
from tests.images import encoded, scene
from tests.unit.test_serving_http import assert_error, client, make, model_uri

__all__ = ["make", "model_uri"]
SMALL, LARGE = encoded(scene(), "PNG"), encoded(scene(2400, 2400), "PNG", compress_level=1)


class Gate:
    """A decoder of large images that works on when it is told to."""

    def __init__(self) -> None:
        self.open, self.sizes = threading.Event(), list[int]()

    async def decode(self, data: bytes, header: Header, size: int, bit_depth: int | None) -> LoadedImage:
        self.sizes.append(header.width)
        await asyncio.to_thread(self.open.wait, 20)
        return decode_image(data, header, size, bit_depth)


def engine_of(uri: str, gate: Gate, **settings: object) -> Engine:
    checked = ServingSettings(**{"model": uri, **settings})  # type: ignore[arg-type]
    return Engine(checked, load_model(uri, checked), large=gate)


@pytest.fixture
def costly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large images count as more than half of what a request may take."""
    monkeypatch.setattr("serving.decoding.worst_seconds", lambda header, size: 20.0 if header.width > 1000 else 0.0)


def test_a_small_image_waits_for_no_large_one(model_uri: str) -> None:
    gate = Gate()

    async def run() -> None:
        async with client(engine_of(model_uri, gate)) as http:
            large = [asyncio.create_task(http.post("/predict", content=LARGE)) for _ in range(4)]
            while not gate.sizes:
                await asyncio.sleep(0.01)
            for _ in range(5):
                assert (await http.post("/predict", content=SMALL)).status_code == 200
            assert not any(task.done() for task in large) and len(gate.sizes) == 1
            gate.open.set()
            assert {answer.status_code for answer in await asyncio.gather(*large)} == {200}

    asyncio.run(run())


def test_no_image_waits_that_could_not_be_answered_but_one_is_always_taken(model_uri: str, costly: None) -> None:
    gate = Gate()

    async def run() -> None:
        async with client(engine_of(model_uri, gate)) as http:
            first = asyncio.create_task(http.post("/predict", content=LARGE))
            while not gate.sizes:
                await asyncio.sleep(0.01)
            refused = await http.post("/predict", content=LARGE)
            assert_error(refused, 503, "overloaded")
            assert refused.headers["retry-after"] == "1"
            files = [("files", ("l.png", LARGE)), ("files", ("s.png", SMALL))]
            both = (await http.post("/predict", files=files)).json()["results"]
            assert both[0]["error"]["code"] == "overloaded" and both[1]["prediction"]
            gate.open.set()
            assert (await first).status_code == 200
            assert (await http.post("/predict", content=LARGE)).status_code == 200  # its place is free again

    asyncio.run(run())


def test_a_client_that_leaves_does_not_let_another_in_beside_its_image(model_uri: str) -> None:
    gate = Gate()

    async def run() -> None:
        engine = engine_of(model_uri, gate)
        gone = asyncio.create_task(engine.answer(engine.model, LARGE))
        while not gate.sizes:
            await asyncio.sleep(0.01)
        gone.cancel()
        after = asyncio.create_task(engine.answer(engine.model, LARGE))
        await asyncio.sleep(0.1)
        assert len(gate.sizes) == 1
        gate.open.set()
        assert (await after).image.width == 2400

    asyncio.run(run())


def test_a_large_image_is_answered_as_in_scoring(make: Callable[..., Engine]) -> None:
    engine = make()
    predictor = engine.model.predictor
    (expected,) = predictor.predict_each([predictor.load(LARGE).pixels])
    answer = asyncio.run(engine.answer(engine.model, LARGE))
    assert answer.probability == expected.probability  # type: ignore[union-attr]


def test_the_shortest_of_a_line_goes_first_and_those_who_left_are_passed_over() -> None:
    async def run() -> list[float]:
        line, order = Line(), list[float]()

        async def stand(seconds: float) -> None:
            async with line.turn(seconds):
                order.append(seconds)
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(stand(seconds)) for seconds in (9, 5, 1, 7, 3)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (line.images, line.seconds) == (0, 0.0)
        await stand(0.5)
        return order

    assert asyncio.run(run()) == [9, 3, 5, 7, 0.5]


def test_a_place_called_for_one_who_leaves_goes_to_the_next() -> None:
    async def run() -> None:
        line, done = Line(), list[str]()

        async def stand(name: str, seconds: float) -> None:
            async with line.turn(seconds):
                done.append(name)

        async with line.turn(1):
            leaving, staying = asyncio.create_task(stand("a", 1)), asyncio.create_task(stand("b", 2))
            await asyncio.sleep(0)
        leaving.cancel()  # in the round in which it is called
        await asyncio.wait_for(staying, 5)
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert done == ["b"] and line.images == 0

    asyncio.run(run())


def test_images_of_the_costliest_format_fill_the_line_by_their_seconds_not_their_pixels(model_uri: str) -> None:
    gate = Gate()
    engine = engine_of(model_uri, gate)
    data = encoded(scene(4000, 2500), "JPEG2000", quality_mode="rates", quality_layers=[500])
    assert 5 < worst_seconds(read_header(data), len(data)) < 7

    async def run() -> list[object]:
        tasks = [asyncio.create_task(engine.answer(engine.model, data)) for _ in range(8)]
        async with asyncio.timeout(20):
            while sum(task.done() for task in tasks) < 4:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        refused = [task.exception() for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        gate.open.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        return list(refused)

    refused = asyncio.run(run())
    assert len(refused) == 4 and all(isinstance(error, HttpError) for error in refused)  # 4 x 6 s within 30


def test_large_images_leave_places_in_work_to_small_ones(model_uri: str) -> None:
    gate = Gate()

    async def run() -> None:
        async with client(engine_of(model_uri, gate, max_in_flight=8)) as http:
            large = [asyncio.create_task(http.post("/predict", content=LARGE)) for _ in range(8)]
            async with asyncio.timeout(20):
                while sum(task.done() for task in large) < 4:
                    await asyncio.sleep(0.01)
            small = [http.post("/predict", content=SMALL) for _ in range(4)]
            assert {answer.status_code for answer in await asyncio.gather(*small)} == {200}
            gate.open.set()
            answers = await asyncio.gather(*large)
            assert sorted(answer.status_code for answer in answers) == [200] * 4 + [503] * 4

    asyncio.run(run())


class Process:
    """A decoder's handle whose methods do what they are given; `fails` are raised by decoding, one after another."""

    def __init__(self, start: BaseException | None = None, *fails: BaseException) -> None:
        self.start, self.fails = start, list(fails)
        self.pid, self.decode = SimpleNamespace(remote=self._pid), SimpleNamespace(remote=self._decode)

    async def _pid(self) -> int:
        if isinstance(self.start, TimeoutError):
            await asyncio.sleep(60)
        if self.start is not None:
            raise self.start
        return 1

    async def _decode(self, *arguments: Any) -> LoadedImage:
        if self.fails:
            raise self.fails.pop()
        return decode_image(*arguments)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[ProcessDecoder, list[Process]]]:
    """A decoder that is given these processes, in order, and those of them that it ended."""

    def build(*given: Process) -> tuple[ProcessDecoder, list[Process]]:
        coming, ended = iter(given), list[Process]()
        monkeypatch.setattr("serving.decoder_process.ray.kill", ended.append)
        monkeypatch.setattr("serving.decoder_process._START_S", 0.1)
        decoder = ProcessDecoder(ServingSettings(model="m", retry_after_s=7))
        monkeypatch.setattr(decoder, "_new", lambda: next(coming))
        return decoder, ended

    return build


@pytest.mark.parametrize(
    "failure",
    [
        Process(None, OutOfMemoryError("the monitor")),
        Process(ActorUnschedulableError("no node")),
        Process(RuntimeEnvSetupError("no environment")),
        Process(ActorDiedError()),
        Process(TimeoutError()),
    ],
    ids=["memory", "unschedulable", "environment", "dead at start", "slow start"],
)
def test_a_process_that_cannot_be_had_is_no_fault_of_the_image_and_the_next_one_is_tried(
    failure: Process, processes: Callable[..., tuple[ProcessDecoder, list[Process]]]
) -> None:
    decoder, ended = processes(failure, Process())

    async def run() -> None:
        with pytest.raises(HttpError) as refused:
            await decoder.decode(LARGE, read_header(LARGE), 64, None)
        assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "7")
        assert ended == [failure]
        assert (await decoder.decode(LARGE, read_header(LARGE), 64, None)).header.width == 2400

    asyncio.run(run())


def test_a_process_that_dies_while_it_decodes_is_the_images_fault(
    processes: Callable[..., tuple[ProcessDecoder, list[Process]]],
) -> None:
    decoder, _ = processes(Process(None, ActorDiedError()), Process())

    async def run() -> None:
        with pytest.raises(ImageRejected) as refused:
            await decoder.decode(LARGE, read_header(LARGE), 64, None)
        assert refused.value.code is Code.CRASHED_DECODER
        assert (await decoder.decode(LARGE, read_header(LARGE), 64, None)).header.width == 2400

    asyncio.run(run())


def test_refusals_of_a_full_line_are_of_the_service(model_uri: str, costly: None) -> None:
    gate = Gate()
    engine = engine_of(model_uri, gate)

    async def run() -> None:
        first = asyncio.create_task(engine.answer(engine.model, LARGE))
        while not gate.sizes:
            await asyncio.sleep(0.01)
        with pytest.raises(HttpError, match="large images that take"):
            await engine.answer(engine.model, LARGE)
        gate.open.set()
        await first

    asyncio.run(run())
