"""Bodies that never end cost their own place and no other: two budgets, the slowest ended first."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from serving import admission
from serving.admission import Admission
from serving.engine import Engine
from serving.errors import HttpError
from serving.settings import ServingSettings
from tests.images import encoded, scene
from tests.unit.test_serving_http import assert_error, client, make, model_uri

__all__ = ["make", "model_uri"]
DATA = encoded(scene(), "PNG")


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_GRACE_S", 0.6)
    monkeypatch.setattr(admission, "_SLOW_AFTER_S", 0.1)


async def trickle(first: int, then: int = 1) -> AsyncIterator[bytes]:
    yield bytes(first)
    while True:
        await asyncio.sleep(0.05)
        yield bytes(then)


def sent(
    engine: Engine, bodies: list[tuple[int, ...]], wait_s: float = 0.3
) -> tuple[httpx.Response, list[httpx.Response]]:
    """The answer to a healthy request while bodies that never end arrive, and theirs."""

    async def run() -> tuple[httpx.Response, list[httpx.Response]]:
        async with client(engine) as http:
            slow = [asyncio.create_task(http.post("/predict", content=trickle(*body))) for body in bodies]
            await asyncio.sleep(wait_s)
            healthy = await http.post("/predict", content=DATA)
            return healthy, list(await asyncio.gather(*slow))

    return asyncio.run(run())


def test_unfinished_bodies_take_no_place_in_work(make: Callable[..., Engine]) -> None:
    healthy, slow = sent(make(max_in_flight=1, min_body_rate=1_000_000), [(10,)] * 20)
    assert healthy.status_code == 200
    for answer in slow:
        assert_error(answer, 408, "body_timeout")
        assert answer.headers["retry-after"] == "1"


def test_the_slowest_body_makes_room_for_a_newcomer(make: Callable[..., Engine]) -> None:
    healthy, slow = sent(make(max_receiving=3, min_body_rate=1_000_000), [(10, 900), (10, 1), (10, 900)])
    assert healthy.status_code == 200
    assert [("others needed" in answer.json()["error"]["message"]) for answer in slow] == [False, True, False]


def test_bytes_of_slow_bodies_make_room_for_those_of_a_newcomer(make: Callable[..., Engine]) -> None:
    room = {"max_bytes": 100_000, "max_request_bytes": 100_000, "max_in_flight_bytes": 100_000}
    healthy, slow = sent(
        make(**room, min_body_rate=20_000, request_timeout_s=2),
        [(60_000,), (40_000 - len(DATA) // 2,), (10,)],
        wait_s=0.2,
    )
    assert healthy.status_code == 200
    assert [answer.status_code for answer in slow] == [408] * 3


def test_newcomers_are_refused_where_nobody_is_slow_yet(make: Callable[..., Engine]) -> None:
    healthy, _ = sent(make(max_receiving=2, min_body_rate=1_000_000), [(10,), (10,)], wait_s=0.02)
    assert_error(healthy, 503, "overloaded")


@pytest.mark.parametrize("by_bytes", [False, True])
def test_a_body_whose_time_has_just_run_out_makes_room_by_itself(by_bytes: bool) -> None:
    """In the round of the loop in which its timer fires, before what it does is ended."""
    room = {"max_bytes": 1000, "max_request_bytes": 1000, "max_in_flight_bytes": 1000} if by_bytes else {}
    budgets = Admission(ServingSettings(model="m", max_receiving=2, min_body_rate=1_000_000, **room))  # type: ignore[arg-type]

    async def body(size_bytes: int, begun: asyncio.Event, until: asyncio.Event) -> None:
        with budgets.hold() as ticket:
            async with budgets.arrive(ticket):
                await budgets.add(ticket, size_bytes)
                begun.set()
                await until.wait()

    async def run() -> None:
        begun, until = asyncio.Event(), asyncio.Event()
        late = asyncio.create_task(body(600, begun, until))
        await begun.wait()
        (ticket,) = budgets._arriving
        await asyncio.sleep(0.2)  # slow enough to be ended for another
        fine = asyncio.create_task(body(300, asyncio.Event(), until)) if not by_bytes else None
        await asyncio.sleep(0)
        assert ticket.scope is not None
        newcomer = asyncio.create_task(body(900 if by_bytes else 10, asyncio.Event(), until))
        ticket.scope._on_timeout()  # type: ignore[attr-defined]  # what its timer calls
        await asyncio.sleep(0.05)
        until.set()
        await newcomer
        if fine is not None:
            await fine
        with pytest.raises(HttpError) as refused:
            await late
        assert refused.value.status == 408 and "too slow" in refused.value.message
        assert (budgets.held_bytes, len(budgets._arriving)) == (0, 0)

    asyncio.run(run())


def test_a_body_that_keeps_up_has_its_whole_time(make: Callable[..., Engine]) -> None:
    engine = make(min_body_rate=100)

    async def steady() -> AsyncIterator[bytes]:
        for at in range(0, len(DATA), len(DATA) // 10):
            await asyncio.sleep(0.15)
            yield DATA[at : at + len(DATA) // 10]

    async def run() -> httpx.Response:
        async with client(engine) as http:
            return await http.post("/predict", content=steady())

    assert asyncio.run(run()).status_code == 200  # after 1.5 s, more than twice the grace


def test_all_is_given_back_whatever_ends_a_request() -> None:
    async def run() -> None:
        budgets = Admission(ServingSettings(model="m", max_in_flight=1))
        for how in (None, HttpError(400, "x", "y"), asyncio.CancelledError(), OSError()):
            try:
                with budgets.hold() as body:
                    async with budgets.arrive(body):
                        await budgets.add(body, 1000)
                        assert budgets.held_bytes == 1000
                        if isinstance(how, OSError):
                            raise how
                    with budgets.work():
                        with pytest.raises(HttpError), budgets.work():
                            pass
                        if how is not None:
                            raise how
            except BaseException as error:
                assert error is how
            assert (budgets.held_bytes, budgets.working, len(budgets._arriving)) == (0, 0, 0)

    asyncio.run(run())


def test_a_file_of_a_form_is_held_once(make: Callable[..., Engine]) -> None:
    """What a reader hands over is what it wrote, without a copy."""
    from serving.multipart import MultipartReader

    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    reader = MultipartReader("multipart/form-data; boundary=b", ServingSettings(model="m"))
    for chunk in (head, b"12", b"3\r\n-", b"-b", b"--\r\n"):
        reader.write(chunk)
    (file,) = reader.files()
    assert (file.filename, file.size_bytes, file.data) == ("a", 3, b"123")
    assert reader.files()[0].data is file.data


def test_limits_of_a_form_are_those_of_its_files() -> None:
    from serving.multipart import MultipartReader

    reader = MultipartReader("multipart/form-data; boundary=b", ServingSettings(model="m", max_bytes=4))
    for number in range(3):
        reader.write(b'--b\r\nContent-Disposition: form-data; name="f"; filename="%d"\r\n\r\n' % number)
        reader.write(b"x" * (3 + number) + b"\r\n")
    reader.write(b"--b--")
    assert [(file.size_bytes, file.data) for file in reader.files()] == [(3, b"xxx"), (4, b"xxxx"), (5, None)]
    assert isinstance(reader.parts[0].buffer, io.BytesIO)


@pytest.mark.parametrize("head", ["A: " + "x" * 100_000, "\r\n".join(f"H{index}: x" for index in range(5000))])
def test_headers_of_a_part_are_bounded(head: str, make: Callable[..., Engine]) -> None:
    body = f'--b\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n{head}\r\n\r\nx\r\n--b--'.encode()

    async def run() -> Any:
        async with client(make()) as http:
            headers = {"content-type": "multipart/form-data; boundary=b"}
            return await http.post("/predict", content=body, headers=headers)

    assert_error(asyncio.run(run()), 400, "malformed_multipart")
