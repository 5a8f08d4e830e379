"""One run at a time writes to an output, or continues a training. The lock of a dead run ends by itself.

On disk the kernel's advisory lock ends with its process. On S3 the lock is an object made by a conditional PUT and
renewed by compare-and-swap; one whose process is seen to be gone, or that was not renewed for `EXPIRY_S`, is taken
over. Whoever finds one looks on until it is renewed (its owner lives: refused) or ends. On a store that heeds no
conditions there is none: only somebody who vouches for a single writer comes so far (pipeline/storage/abilities.py).
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from pipeline.base.errors import Code, InputError, PlatformError
from pipeline.storage.stores import Stores
from pipeline.storage.types import Store, StoreError
from pipeline.storage.uris import join

NAME = "_lock"
RENEW_S = 5.0
EXPIRY_S = 30.0
_BEGINS = b'{"run_id": '  # how every version has written one
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


@contextlib.contextmanager
def locked(
    out: str,
    run_id: str,
    stores: Stores,
    wait_s: float = 0.0,
    advice: str = "wait for it (--wait-for-lock SECONDS), or choose another --out",
) -> Iterator[Callable[[], None]]:
    """Hold the lock of `out`; gives a function that raises PlatformError once the lock is lost.

    Raises PlatformError when another run holds it for longer than `wait_s` seconds; `advice` is what to do then.
    Raises InputError where a file of somebody else has its name.
    """
    owner = {
        "run_id": run_id,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.time(),
        "process": _process_identity(os.getpid()),
        "lease": uuid.uuid4().hex,  # by which a renewal is known as ours though its answer never came
    }
    store = stores.of(out)
    if not store.is_conditional:
        yield lambda: None
        return
    if store.is_remote:
        watch, place = _Watch(), join(out, NAME)
        lease = _acquire(lambda: _Lease.take(store, place, owner, watch), out, wait_s, advice)
        try:
            yield lease.check
        finally:
            lease.release()
        return
    file = _acquire(lambda: _lock_file(Path(out) / NAME, owner), out, wait_s, advice)
    try:
        yield lambda: None
    finally:
        file.close()  # the empty file stays: removing it would race with the next owner


def _acquire(attempt: Callable[[], Any], out: str, wait_s: float, advice: str) -> Any:
    deadline = time.monotonic() + wait_s
    first: str | None = None  # the renewal that was there when we came
    is_told = False
    while True:
        try:
            return attempt()
        except _HeldError as held:
            first = first or held.renewal
            may_be_dead = held.renewal is not None and held.renewal == first
            if may_be_dead and not is_told:
                print(f"{out}: locked by {held}; looking whether it lives, up to {EXPIRY_S:g} s", flush=True)
                is_told = True
            if time.monotonic() >= deadline and not may_be_dead:
                raise PlatformError(f"{out}: another run is writing here ({held}); {advice}") from None
            time.sleep(1.0 if may_be_dead else min(1.0, max(0.1, deadline - time.monotonic())))


class _Watch:
    """For how long each renewal has been looked at, by our own clock: other machines' clocks may be wrong."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def age_s(self, renewal: str) -> float:
        now = time.monotonic()
        return now - self._since.setdefault(renewal, now)


class _HeldError(Exception):
    """Somebody else has the lock. `renewal` changes while its owner lives; None where the lock cannot outlive it."""

    def __init__(self, holder: str, renewal: str | None = None) -> None:
        super().__init__(holder)
        self.renewal = renewal


def _process_identity(pid: int) -> str | None:
    """Names a process of this machine for ever: boot, PID namespace, PID and start; None where there is none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    is_dead = fields[0] in "ZX"  # ended, only its parent has not asked yet
    return None if is_dead else f"{boot}/{namespace}/{pid}/{fields[19]}"


def _is_gone(owner: dict[str, Any]) -> bool:
    """The owner ran here, in our view of processes, and runs no more."""
    theirs, ours = owner.get("process"), _process_identity(os.getpid())
    if not theirs or not ours or theirs.split("/")[:2] != ours.split("/")[:2]:
        return False
    return bool(_process_identity(int(owner["pid"])) != theirs)


def _owner_in(data: bytes | str) -> dict[str, Any]:
    """Who a lock names; empty where what lies there was not written by a lock, or not wholly."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _refuse_foreign(data: bytes, where: str) -> None:
    """A lock is overwritten by the next one. Of one that was being written when its process died there is a part."""
    if not (data.startswith(_BEGINS) or _BEGINS.startswith(data)):
        raise InputError(f"{where}: is no lock of leukoray's and would be overwritten; move it away")


def _describe(owner: dict[str, Any]) -> str:
    if not owner:
        return "unknown owner"
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(owner.get("since", 0))))
    return f"{owner.get('run_id')}, process {owner.get('pid')} on {owner.get('host')} since {started}"


def _lock_file(path: Path, owner: dict[str, Any]) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "ab+")  # noqa: SIM115 - closing it is what releases the lock
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = _describe(_owner_in(file.read()))
        file.close()
        if error.errno not in _HELD:
            raise PlatformError(
                f"{path}: this file system cannot lock ({error.strerror}), so two runs could write here at once "
                "unnoticed; choose an --out elsewhere, or have it mounted with locks (Lustre: -o flock)"
            ) from None
        raise _HeldError(holder) from None
    file.seek(0)
    try:
        _refuse_foreign(file.read(), str(path))
    except InputError:
        file.close()
        raise
    file.truncate(0)
    file.write(json.dumps(owner).encode())
    file.flush()
    return file


class _Lease:
    """The lock on S3, renewed by a thread until it is released or lost."""

    def __init__(self, store: Store, uri: str, owner: dict[str, Any], etag: str) -> None:
        self._store, self._uri, self._owner, self._etag = store, uri, owner, etag
        self._lost: str | None = None
        self._renewed = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="lock")
        self._thread.start()

    @classmethod
    def take(cls, store: Store, uri: str, owner: dict[str, Any], watch: _Watch) -> "_Lease":
        body = _body(owner)
        etag = store.create(uri, body)
        if etag is None:
            try:
                held = store.read(uri)
            except StoreError as error:
                if error.code is not Code.NOT_FOUND:
                    raise
                raise _HeldError("just released") from None
            _refuse_foreign(held.data, uri)
            holder = _owner_in(held.data)
            if watch.age_s(held.etag) < EXPIRY_S and not _is_gone(holder):
                raise _HeldError(_describe(holder), held.etag)
            etag = store.replace(uri, body, held.etag)
            if etag is None:
                raise _HeldError("just taken over by another run")
        return cls(store, uri, owner, etag)

    def _keep(self) -> None:
        while not self._stop.wait(RENEW_S):
            try:
                etag = self._renew()
            except StoreError as error:
                if time.monotonic() - self._renewed > EXPIRY_S:
                    self._lost = f"could not be renewed for {EXPIRY_S:g} s ({error})"
                    return
                continue
            if etag is None:
                self._lost = "another run took it over"
                return
            self._etag, self._renewed = etag, time.monotonic()

    def _renew(self) -> str | None:
        """The etag of one more renewal, None where the lock is no longer ours. Raises StoreError."""
        etag = self._store.replace(self._uri, _body(self._owner), self._etag)
        if etag is not None:
            return etag
        try:
            found = self._store.read(self._uri)
        except StoreError as error:
            if error.code is Code.NOT_FOUND:
                return None
            raise
        is_ours = _owner_in(found.data).get("lease") == self._owner["lease"]  # one that was given up as failed arrived
        return self._store.replace(self._uri, _body(self._owner), found.etag) if is_ours else None

    def check(self) -> None:
        if self._lost is None and time.monotonic() - self._renewed > EXPIRY_S:  # this process was asleep, say
            self._lost = f"it was not renewed for {EXPIRY_S:g} s"
        if self._lost is not None:
            raise PlatformError(f"{self._uri}: the lock of this output was lost: {self._lost}; run again to continue")

    def release(self) -> None:
        self._stop.set()
        self._thread.join(timeout=60)
        if self._lost is None:
            with contextlib.suppress(StoreError):  # it expires by itself
                if self._renew() is not None:  # still ours
                    self._store.delete(self._uri)


def _body(owner: dict[str, Any]) -> bytes:
    """No two are alike, so that one can be known again."""
    return json.dumps({**owner, "renewed": time.time(), "nonce": uuid.uuid4().hex}).encode()
