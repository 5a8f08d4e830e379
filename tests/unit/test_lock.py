"""The lock on a remote store at the moments that no two real processes can be brought to meet in."""

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from pipeline.base.errors import Code, InputError, PlatformError
from pipeline.storage import lock
from pipeline.storage.stores import Stores
from pipeline.storage.types import Bytes, Store, StoreError

OUT = "s3://lab/scores"


class Memory:
    """Objects with etags, as far as a lock needs a store; `before` is called with the name of each operation."""

    is_remote = True
    is_conditional = True

    def __init__(self, before: Callable[[str], None] = lambda operation: None) -> None:
        self.objects: dict[str, Bytes] = {}
        self.before, self._count, self._mutex = before, 0, threading.RLock()

    def _put(self, uri: str, data: bytes) -> str:
        self._count += 1
        self.objects[uri] = Bytes(data, f"etag-{self._count}", 1)
        return f"etag-{self._count}"

    def create(self, uri: str, data: bytes) -> str | None:
        self.before("create")
        with self._mutex:
            return None if uri in self.objects else self._put(uri, data)

    def replace(self, uri: str, data: bytes, etag: str) -> str | None:
        self.before("replace")
        with self._mutex:
            found = self.objects.get(uri)
            return self._put(uri, data) if found and found.etag == etag else None

    def read(self, uri: str) -> Bytes:
        self.before("read")
        if uri not in self.objects:
            raise StoreError(Code.NOT_FOUND, f"{uri}: gone")
        return self.objects[uri]

    def delete(self, uri: str) -> None:
        self.objects.pop(uri, None)


def stores(memory: Memory) -> Stores:
    return Stores(mounts=(("s3://", cast(Store, memory)),))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEW_S", 0.05)
    monkeypatch.setattr(lock, "EXPIRY_S", 0.5)


def held(memory: Memory, run_id: str = "theirs") -> str:
    """A lock of a process on another machine; its etag."""
    etag = memory.create(f"{OUT}/_lock", b'{"run_id": "%s", "pid": 1, "host": "h", "since": 0}' % run_id.encode())
    assert etag is not None
    return etag


def refusal(memory: Memory, run_id: str = "ours") -> str:
    with pytest.raises(PlatformError) as refused, lock.locked(OUT, run_id, stores(memory)):
        pass
    return str(refused.value)


def test_one_that_is_released_while_it_is_looked_at_is_taken() -> None:
    memory = Memory()
    held(memory)
    memory.before = lambda operation: memory.objects.clear() if operation == "read" else None
    with lock.locked(OUT, "ours", stores(memory), wait_s=5) as check:
        check()


def test_of_two_that_take_over_a_dead_one_the_slower_is_refused(quick: None) -> None:
    memory = Memory()
    held(memory)

    def overtake(operation: str) -> None:
        if operation == "replace":
            memory.before = lambda operation: None
            memory.objects.clear()
            held(memory, "quicker")

    memory.before = overtake
    assert "just taken over by another run" in refusal(memory)


def test_whoever_looks_whether_a_holder_lives_says_so_once(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    memory = Memory()
    held(memory, "dead")
    with lock.locked(OUT, "ours", stores(memory)):
        pass
    told = capsys.readouterr().out
    assert told.count("looking whether it lives") == 1 and "dead, process 1 on h since" in told
    assert memory.objects == {}


def test_a_store_that_is_out_for_a_moment_costs_no_lock(quick: None) -> None:
    memory, failures = Memory(), [3]

    def fail(operation: str) -> None:
        if operation == "replace" and failures[0]:
            failures[0] -= 1
            raise StoreError(Code.IO_ERROR, "503")

    with lock.locked(OUT, "ours", stores(memory)) as check:
        memory.before = fail
        _wait(lambda: failures[0] == 0)
        time.sleep(0.2)
        check()


def test_a_lock_that_could_not_be_renewed_in_time_is_lost_and_says_why(quick: None) -> None:
    memory = Memory()

    def fail(operation: str) -> None:
        raise StoreError(Code.IO_ERROR, "503 of the store")

    with (
        pytest.raises(PlatformError, match=r"not be renewed for 0.5 s \(503 of the store\); run again to continue"),
        lock.locked(OUT, "ours", stores(memory)) as check,
    ):
        memory.before = fail
        time.sleep(0.1)
        check()  # not yet
        _wait(lambda: not any(thread.name == "lock" for thread in threading.enumerate()))
        check()


def test_a_process_that_slept_too_long_has_lost_its_lock_before_it_renews_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with lock.locked(OUT, "ours", stores(Memory())) as check:
        check()
        monkeypatch.setattr(lock, "EXPIRY_S", -1.0)
        with pytest.raises(PlatformError, match="it was not renewed for"):
            check()


def test_a_lock_that_was_taken_over_is_noticed_and_left_alone(quick: None) -> None:
    memory = Memory()
    with lock.locked(OUT, "ours", stores(memory)) as check:
        memory.objects.clear()
        held(memory, "theirs")
        _wait(lambda: not any(thread.name == "lock" for thread in threading.enumerate()))
        with pytest.raises(PlatformError, match="another run took it over"):
            check()
    assert b"theirs" in memory.objects[f"{OUT}/_lock"].data


def test_a_lock_that_somebody_deleted_is_lost(quick: None) -> None:
    memory = Memory()
    with lock.locked(OUT, "ours", stores(memory)) as check:
        memory.objects.clear()
        _wait(lambda: not any(thread.name == "lock" for thread in threading.enumerate()))
        with pytest.raises(PlatformError, match="another run took it over"):
            check()
    assert memory.objects == {}


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def test_a_renewal_that_was_given_up_and_arrived_all_the_same_is_known_as_ours(quick: None) -> None:
    memory = Memory()
    lost = [0]

    def replace_and_fail(uri: str, data: bytes, etag: str) -> str | None:
        swapped = Memory.replace(memory, uri, data, etag)
        if swapped and lost[0] < 2:
            lost[0] += 1
            raise StoreError(Code.TIMEOUT, f"{uri}: no answer in time")
        return swapped

    memory.replace = replace_and_fail  # type: ignore[method-assign]
    with lock.locked(OUT, "ours", stores(memory)) as check:
        deadline = time.monotonic() + 5
        while lost[0] < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        check()
    assert lost[0] == 2 and not memory.objects


def test_where_conditions_are_not_heeded_nothing_is_held() -> None:
    memory = Memory()
    memory.is_conditional = False
    with lock.locked(OUT, "ours", stores(memory)) as check:
        assert not memory.objects
        check()


@pytest.mark.parametrize("left", [b"", b"{", b'{"run_id": "theirs", "pi'])
def test_a_part_of_a_lock_is_taken_over_as_one_of_a_dead_run(quick: None, left: bytes) -> None:
    memory = Memory()
    memory.create(f"{OUT}/_lock", left)
    with lock.locked(OUT, "ours", stores(memory)) as check:
        check()
        assert b"ours" in memory.objects[f"{OUT}/_lock"].data


@pytest.mark.parametrize("left", [b"<html>", b"[]", b"\xff\xfe", b'{"lock": 1}'])
def test_what_no_lock_wrote_is_somebodys_and_stays(left: bytes, tmp_path: Path) -> None:
    memory = Memory()
    memory.create(f"{OUT}/_lock", left)
    with pytest.raises(InputError, match=f"{OUT}/_lock: is no lock"), lock.locked(OUT, "ours", stores(memory)):
        pass
    (tmp_path / "_lock").write_bytes(left)
    for _ in range(2):  # the file is let go
        with pytest.raises(InputError, match="_lock: is no lock"), lock.locked(str(tmp_path), "ours", Stores()):
            pass
    assert memory.objects[f"{OUT}/_lock"].data == (tmp_path / "_lock").read_bytes() == left


@pytest.mark.parametrize("left", [b"", b"{", b'{"run_id": "night", "host": "h", "pid": 1, "since": 0}'])
def test_the_file_of_a_run_that_ended_is_taken_over(left: bytes, tmp_path: Path) -> None:
    (tmp_path / "_lock").write_bytes(left)
    with lock.locked(str(tmp_path), "ours", Stores()):
        assert (tmp_path / "_lock").read_bytes().startswith(b'{"run_id": "ours"')


def test_a_lock_that_cannot_be_read_is_no_other_run() -> None:
    memory = Memory()
    held(memory)

    def fail(operation: str) -> None:
        if operation == "read":
            raise StoreError(Code.ACCESS_DENIED, f"{OUT}/_lock: access denied")

    memory.before = fail
    with pytest.raises(StoreError, match="access denied"), lock.locked(OUT, "ours", stores(memory)):
        pass


def test_a_file_system_without_locks_is_named_and_is_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with pytest.raises(PlatformError, match="_lock: this file system cannot lock"):
        lock.locked(str(tmp_path), "ours", Stores()).__enter__()
