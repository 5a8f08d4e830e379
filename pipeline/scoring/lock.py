"""One run at a time writes to an output. The lock of a dead run ends by itself.

On disk the kernel's advisory lock ends with its process. On S3 the lock is an object made by a conditional PUT and
renewed by compare-and-swap; one that was not renewed for `EXPIRY_S` may be taken over.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline.errors import PlatformError
from pipeline.storage import S3Settings, StoreError, is_s3, join

if TYPE_CHECKING:
    from pipeline.s3 import S3Store

NAME = "_lock"
RENEW_S = 5.0
EXPIRY_S = 30.0


@contextlib.contextmanager
def locked(out: str, run_id: str, s3: S3Settings | None, wait_s: float = 0.0) -> Iterator[Callable[[], None]]:
    """Hold the lock of `out`; gives a function that raises PlatformError once the lock is lost.

    Raises PlatformError when another run holds it for longer than `wait_s` seconds.
    """
    owner = {"run_id": run_id, "host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
    if is_s3(out):
        from pipeline.s3 import s3_store  # boto3 only for those who need it

        lease = _acquire(lambda: _Lease.take(s3_store(s3 or S3Settings()), join(out, NAME), owner), out, wait_s)
        try:
            yield lease.check
        finally:
            lease.release()
        return
    file = _acquire(lambda: _lock_file(Path(out) / NAME, owner), out, wait_s)
    try:
        yield lambda: None
    finally:
        file.close()  # the empty file stays: removing it would race with the next owner


def _acquire(attempt: Callable[[], Any], out: str, wait_s: float) -> Any:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return attempt()
        except _HeldError as held:
            if time.monotonic() >= deadline:
                raise PlatformError(
                    f"{out}: another run is writing here ({held}); wait for it (--wait-for-lock SECONDS), "
                    "or choose another --out"
                ) from None
            time.sleep(min(1.0, max(0.1, deadline - time.monotonic())))


class _HeldError(Exception):
    """Somebody else has the lock."""


def _describe(owner: dict[str, Any]) -> str:
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(owner.get("since", 0))))
    return f"{owner.get('run_id')}, process {owner.get('pid')} on {owner.get('host')} since {started}"


def _lock_file(path: Path, owner: dict[str, Any]) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+")  # noqa: SIM115 - closing it is what releases the lock
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        try:
            holder = _describe(json.loads(file.read() or "{}"))
        except ValueError:
            holder = "unknown owner"
        file.close()
        raise _HeldError(holder) from None
    file.truncate(0)
    file.write(json.dumps(owner))
    file.flush()
    return file


class _Lease:
    """The lock on S3, renewed by a thread until it is released or lost."""

    def __init__(self, store: "S3Store", uri: str, owner: dict[str, Any], etag: str) -> None:
        self._store, self._uri, self._owner, self._etag = store, uri, owner, etag
        self._lost: str | None = None
        self._renewed = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="lock")
        self._thread.start()

    @classmethod
    def take(cls, store: "S3Store", uri: str, owner: dict[str, Any]) -> "_Lease":
        body = json.dumps({**owner, "renewed": time.time()}).encode()
        etag = store.create(uri, body)
        if etag is None:
            try:
                held = store.read(uri)
            except StoreError:
                raise _HeldError("just released") from None
            holder = json.loads(held.data)
            if time.time() - float(holder.get("renewed", 0)) < EXPIRY_S:
                raise _HeldError(_describe(holder))
            etag = store.replace(uri, body, held.etag)
            if etag is None:
                raise _HeldError("just taken over by another run")
        return cls(store, uri, owner, etag)

    def _keep(self) -> None:
        while not self._stop.wait(RENEW_S):
            body = json.dumps({**self._owner, "renewed": time.time()}).encode()
            try:
                etag = self._store.replace(self._uri, body, self._etag)
            except StoreError as error:
                if time.monotonic() - self._renewed > EXPIRY_S:
                    self._lost = f"could not be renewed for {EXPIRY_S:g} s ({error})"
                    return
                continue
            if etag is None:
                self._lost = "another run took it over"
                return
            self._etag, self._renewed = etag, time.monotonic()

    def check(self) -> None:
        if self._lost is not None:
            raise PlatformError(f"{self._uri}: the lock of this output was lost: {self._lost}; run again to continue")

    def release(self) -> None:
        self._stop.set()
        self._thread.join(timeout=60)
        if self._lost is None:
            with contextlib.suppress(StoreError):  # it expires by itself
                self._store.delete(self._uri)
