"""The judges of `make soak`: whose answers may come when, and what counts as growth."""

import mmap
import os

import pytest

from tests.soak.tally import Reply, Said, Tally, out_of_turn
from tests.soak.watch import Trace, own_mb, role_of

ORDERS = [(0.0, "a"), (10.0, "b"), (20.0, "a")]
SOUND = [Said(1, 2, "a"), Said(11, 12, "b"), Said(21, 22, "a")]


@pytest.mark.parametrize(
    ("one", "is_late"),
    [
        (Said(11.5, 13, "a"), False),  # asked for before the first answer of b was there
        (Said(12.5, 13, "a"), True),
        (Said(9, 9.5, "b"), True),  # nobody had ordered it
        (Said(9, 10.5, "b"), False),
        (Said(23, 24, "b"), True),
        (Said(12.5, 20.5, "a"), False),  # the next a
        (Said(12.5, 20.5, "c"), True),
    ],
)
def test_answers_of_a_model_that_could_not_answer_then_are_found(one: Said, is_late: bool) -> None:
    assert bool(out_of_turn(ORDERS, [*SOUND, one])) is is_late


def test_no_answer_out_of_turn_is_found_where_a_model_never_answered() -> None:
    assert out_of_turn(ORDERS, [Said(1, 2, "a"), Said(15, 16, "a"), Said(30, 31, "a")]) == []


def trace(values: list[float]) -> Trace:
    found = Trace("replica")
    for place, value in enumerate(values):
        found.at.append((place + 1) / len(values))
        found.mb.append(value)
        found.files.append(50)
        found.threads.append(20)
    return found


@pytest.mark.parametrize(
    ("last", "peak", "is_leak"),
    [(319.0, 0.0, False), (325.0, 0.0, True), (300.0, 400.0, False)],
    ids=["within 20 MB", "beyond", "work that comes and goes"],
)
def test_a_floor_that_rises_is_a_leak_and_a_peak_is_none(last: float, peak: float, is_leak: bool) -> None:
    values = [300.0 + (last - 300) * (place >= 80) + peak * (place % 7 == 0) for place in range(100)]
    assert bool(trace(values).growth()) is is_leak


def test_warming_up_is_no_leak_and_one_that_came_late_is_not_judged() -> None:
    assert trace([100.0 + 5 * min(place, 35) for place in range(100)]).growth() == []
    late = trace([300.0 + 10 * place for place in range(100)])
    late.at = [0.7 + at / 4 for at in late.at]
    assert late.growth() == []


def test_only_refusals_that_say_when_to_come_back_are_forgiven() -> None:
    tally = Tally()
    said = b'{"error": {"code": "overloaded"}}'
    tally.note("image", Reply(503, {"retry-after": "1"}, said, 0, 1), {200})
    assert tally.faults == []
    for status, headers, body in ((503, {}, said), (503, {"retry-after": "1"}, b"oops"), (500, {}, said), (0, {}, b"")):
        tally.note("image", Reply(status, headers, body, 0, 1), {200})
    tally.note("refused", Reply(422, {}, b'{"error": {"code": "corrupt"}}', 0, 1), {422}, {"truncated"})
    assert len(tally.faults) == 5


def test_pages_of_a_shared_mapping_are_not_what_a_process_has_of_its_own() -> None:
    found = {}
    for flag in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
        before = own_mb(os.getpid())
        with mmap.mmap(-1, 64 << 20, flag | mmap.MAP_ANONYMOUS) as pages:
            for _ in range(64):  # not at once: what the allocator keeps of a text as long would count
                pages.write(b"x" * (1 << 20))
            found[flag] = own_mb(os.getpid()) - before
    assert found[mmap.MAP_SHARED] < 16 and found[mmap.MAP_PRIVATE] > 48


@pytest.mark.parametrize(
    ("command", "name", "role"),
    [
        (
            ["ray::ServeReplica:leukoray:LeukorayReplica.handle_request"],
            "x",
            "ray::ServeReplica:leukoray:LeukorayReplica",
        ),
        (["ray::KeeperActor.news"], "x", "ray::KeeperActor"),
        (["/usr/bin/python3", "-m", "jobs.serve", "models"], "python3", "jobs.serve"),
        (["/usr/bin/python", "/a/ray/dashboard/agent.py", "--x"], "python", "agent"),
        (["/a/haproxy", "-f", "/tmp/x/haproxy.cfg"], "haproxy", "haproxy"),
    ],
)
def test_processes_are_named_by_what_they_do(command: list[str], name: str, role: str) -> None:
    assert role_of(command, name) == role
