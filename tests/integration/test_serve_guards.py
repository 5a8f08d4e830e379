"""Crowds and bombs against the endpoint on bare uvicorn: what it holds in memory, and what others notice of it."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.bare import Bare, bare_service
from tests.bombs import BOMBS
from tests.bundles import make_bundle
from tests.images import encoded, scene

MEGA = 1 << 20
DATA = encoded(scene(), "JPEG")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_bundle(tmp_path_factory.mktemp("bundle"), size=64, synthetic=True).uri


@pytest.fixture
def service(bundle: str) -> Iterator[Bare]:
    with bare_service(bundle, request_timeout_s=120) as running:
        healthy(running)
        running.forget_peak()
        yield running


def healthy(service: Bare) -> float:
    """Seconds that a good image takes."""
    begin = time.perf_counter()
    answer = httpx.post(f"{service.url}/predict", content=DATA, timeout=60)
    assert answer.status_code == 200, answer.text
    return time.perf_counter() - begin


def test_128_unfinished_bodies_keep_nobody_out(service: Bare) -> None:
    before = service.memory_mb()
    with_body = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 67000000\r\n\r\n" + bytes(1000)
    sockets = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(128)]
    try:
        for connection in sockets:
            connection.sendall(with_body)
        time.sleep(0.5)
        assert max(healthy(service) for _ in range(5)) < 5
        sockets[0].settimeout(30)
        assert sockets[0].recv(1000).startswith(b"HTTP/1.1 408")
        assert service.memory_mb("VmHWM") < before + 50
    finally:
        for connection in sockets:
            connection.close()


def test_bombs_are_answered_for_what_they_are_while_others_are_served(service: Bare) -> None:
    before, worst_s = service.memory_mb(), 0.0
    for name, bomb in BOMBS.items():
        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(httpx.post, f"{service.url}/predict", content=bomb.make(), timeout=120)
            worst_s = max(worst_s, healthy(service))
            answer = sent.result()
        code = answer.json()["error"]["code"] if answer.status_code != 200 else None
        assert code in bomb.codes or (code is None and bomb.is_sound), (name, code)
        assert answer.status_code in (200, 415, 422), name
    assert worst_s < 10  # on any machine; bombs took longer than that, or all memory
    assert service.memory_mb("VmHWM") - before < 900  # one of them in a decoder; 12 GB without limits


def _big(service: Bare, as_form: bool) -> int:
    body = DATA + bytes(64 * MEGA - len(DATA))
    with httpx.Client(timeout=120) as http:
        if as_form:
            return http.post(f"{service.url}/predict", files={"files": ("a.jpg", body)}).status_code
        return http.post(f"{service.url}/predict", content=body).status_code


@pytest.mark.parametrize("as_form", [False, True], ids=["raw", "form"])
def test_20_requests_of_64_mib_take_no_more_memory_than_the_budget_says(service: Bare, as_form: bool) -> None:
    before = service.memory_mb()
    with ThreadPoolExecutor(20) as pool:
        codes = list(pool.map(lambda _: _big(service, as_form), range(20)))
    assert set(codes) <= {200, 503, 408} and 200 in codes
    assert service.memory_mb("VmHWM") - before < 384 * 1.25 + 64
    healthy(service)
    time.sleep(1)
    assert service.memory_mb() - before < 100
