"""Small images pass large ones, the shortest of those goes first, and no more pixels wait than agreed."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from pipeline.images.load import Header, LoadedImage, decode_image
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


def test_no_more_pixels_wait_than_agreed_but_one_image_is_always_taken(model_uri: str) -> None:
    gate = Gate()

    async def run() -> None:
        async with client(engine_of(model_uri, gate, max_in_flight_pixels=1000)) as http:
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
            async with line.turn(10, seconds):
                order.append(seconds)
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(stand(seconds)) for seconds in (9, 5, 1, 7, 3)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert line.pixels == 0
        await stand(0.5)
        return order

    assert asyncio.run(run()) == [9, 3, 5, 7, 0.5]


def test_a_place_called_for_one_who_leaves_goes_to_the_next() -> None:
    async def run() -> None:
        line, done = Line(), list[str]()

        async def stand(name: str, seconds: float) -> None:
            async with line.turn(10, seconds):
                done.append(name)

        async with line.turn(10, 1):
            leaving, staying = asyncio.create_task(stand("a", 1)), asyncio.create_task(stand("b", 2))
            await asyncio.sleep(0)
        leaving.cancel()  # in the round in which it is called
        await asyncio.wait_for(staying, 5)
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert done == ["b"] and line.pixels == 0

    asyncio.run(run())


def test_refusals_of_a_full_line_are_of_the_service(model_uri: str) -> None:
    gate = Gate()
    engine = engine_of(model_uri, gate, max_in_flight_pixels=1)

    async def run() -> None:
        first = asyncio.create_task(engine.answer(engine.model, LARGE))
        while not gate.sizes:
            await asyncio.sleep(0.01)
        with pytest.raises(HttpError, match="pixels of large images"):
            await engine.answer(engine.model, LARGE)
        gate.open.set()
        await first

    asyncio.run(run())
