"""The lock of an output: one run at a time, and a dead one stands in nobody's way, on disk and on S3."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.base.errors import PlatformError
from pipeline.storage import lock
from pipeline.storage.stores import Stores
from tests.servers import Faults, S3Server, faulty_proxy


@pytest.fixture(params=["disk", "s3"])
def out(request: pytest.FixtureRequest, s3: S3Server, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "disk" else f"s3://{s3.bucket}/{tmp_path.name}"


def test_one_holds_it_and_the_next_takes_it_when_it_ends(
    out: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "RENEW_S", 0.2)
    with lock.locked(out, "first", s3.stores) as check:
        with (
            pytest.raises(PlatformError, match=r"another run is writing here \(first, process \d+ on "),
            lock.locked(out, "second", s3.stores),
        ):
            pass
        check()
    with lock.locked(out, "second", s3.stores) as check:
        check()


def test_whoever_waits_for_it_gets_it(out: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEW_S", 0.2)
    release, order = threading.Event(), []

    def first() -> None:
        with lock.locked(out, "first", s3.stores):
            order.append("first")
            release.wait(60)
            order.append("released")

    thread = threading.Thread(target=first)
    thread.start()
    while not order:
        time.sleep(0.01)
    threading.Timer(1.5, release.set).start()
    with lock.locked(out, "second", s3.stores, wait_s=60):
        order.append("second")
    thread.join()
    assert order == ["first", "released", "second"]


def test_a_lock_on_disk_ends_with_its_process(tmp_path: Path) -> None:
    take = (
        "import sys, time; from pipeline.storage import lock, stores\n"
        f"with lock.locked({str(tmp_path)!r}, 'first', stores.Stores()): print('taken', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", take], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "taken\n"
        with (
            pytest.raises(PlatformError, match=f"first, process {process.pid} "),
            lock.locked(str(tmp_path), "second", Stores()),
        ):
            pass
    finally:
        process.kill()
        process.wait()
    with lock.locked(str(tmp_path), "second", Stores()):
        pass


def test_an_s3_lock_that_is_renewed_is_refused(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEW_S", 0.2)
    out = f"s3://{s3.bucket}/renewed"
    with (
        lock.locked(out, "somebody's run", s3.stores) as check,
        pytest.raises(PlatformError, match="somebody's run"),
        lock.locked(out, "second", s3.stores),
    ):
        check()


def test_an_s3_lock_of_a_silent_host_expires(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    out = f"s3://{s3.bucket}/silent"
    owner = {"run_id": "dead", "host": "h", "pid": 1, "since": time.time(), "renewed": time.time()}
    s3.stores.of(out).write(f"{out}/_lock", json.dumps(owner).encode())
    monkeypatch.setattr(lock, "EXPIRY_S", 2.0)
    with lock.locked(out, "second", s3.stores) as check:
        check()
    assert s3.stores.of(out).head(f"{out}/_lock") is None


@pytest.mark.parametrize("hours", [-1, 1])
def test_the_clock_of_another_host_decides_nothing(s3: S3Server, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    """A dead lock of a clock ahead is free after the usual time, one of a clock behind is not free before."""
    out = f"s3://{s3.bucket}/clock{hours}"
    owner = {"run_id": "dead", "host": "h", "pid": 1, "since": 0, "renewed": time.time() + 3600 * hours}
    s3.stores.of(out).write(f"{out}/_lock", json.dumps(owner).encode())
    monkeypatch.setattr(lock, "EXPIRY_S", 2.0)
    began = time.monotonic()
    with lock.locked(out, "second", s3.stores):
        assert 2.0 <= time.monotonic() - began < 20.0


def test_a_lock_that_others_have_taken_over_is_left_to_them(s3: S3Server) -> None:
    out = f"s3://{s3.bucket}/taken"
    with lock.locked(out, "first", s3.stores):
        s3.stores.of(out).write(f"{out}/_lock", b'{"run_id": "other"}')
    assert b"other" in s3.stores.of(out).read(f"{out}/_lock").data


def test_an_s3_lock_of_a_process_that_is_gone_is_taken_at_once(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    out = f"s3://{s3.bucket}/gone"
    take_and_die = (
        "import os; from pipeline.storage import lock, stores, types\n"
        f"reached = stores.Stores(types.S3Settings(endpoint={s3.endpoint!r}, region='us-east-1'))\n"
        f"with lock.locked({out!r}, 'first', reached): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", take_and_die], check=False).returncode == 9
    monkeypatch.setattr(lock, "EXPIRY_S", 1e9)  # waiting would not help
    with lock.locked(out, "second", s3.stores) as check:
        check()


def test_a_lock_is_kept_though_the_answers_to_its_requests_are_lost(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "RENEW_S", 0.1)
    faults = Faults(lost_answers=1)
    with faulty_proxy(s3.endpoint, faults) as proxy:
        with lock.locked(f"s3://{s3.bucket}/locked", "ours", s3.at(proxy).stores) as check:
            faults.lost_answers = 1
            deadline = time.monotonic() + 20
            while faults.lost_answers and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.5)
            check()
        assert faults.lost_answers == 0
