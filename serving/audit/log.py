"""The audit log of one replica: JSON lines in a file of its own, in a folder that replicas and nodes may share.

A line is handed to the operating system before its answer goes out, so the end of the process loses none. A second
later it is forced to disk (fsync), by a thread of its own, so that no answer waits for a slow one. What cannot be
written gets no answer.
Format: https://jsonlines.org/, times as in RFC 3339.
"""

import asyncio
import contextlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime

from pipeline import __version__
from pipeline.base.errors import PlatformError
from serving.audit.notes import utc_now

log = logging.getLogger("ray.serve")
ROTATE_BYTES = 64 << 20
_SYNC_S = 1.0
_RETRY_S = 1.0


class AuditFailed(Exception):
    """The log cannot be written now, so nothing may be answered; says why."""


def check_folder(folder: str) -> None:
    """Before anything is started: make the folder. Raises PlatformError where no file can be put there."""
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PlatformError(_unusable(folder, error)) from error


def _unusable(folder: str, error: OSError) -> str:
    return f"audit log {folder}: cannot be written ({error.strerror}); choose another folder, or make room"


class AuditLog:
    """`folder` is made where it is missing; files begin with `replica`, which is this one's alone.

    Raises PlatformError where it cannot be written to.
    """

    def __init__(self, folder: str, replica: str, rotate_bytes: int = ROTATE_BYTES) -> None:
        self._folder, self._replica, self._rotate_bytes = folder, replica, rotate_bytes
        self._file: int | None = None
        self._size = self._number = 0
        self.kept_back = 0  # requests without an answer since it fails
        self._started = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        self._failed: str | None = None
        self._tried_at = 0.0
        self._writer = ThreadPoolExecutor(1, "audit")
        self._syncer = ThreadPoolExecutor(1, "audit-fsync")
        self._next_sync: asyncio.TimerHandle | None = None
        self._syncing: Future[None] | None = None
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._open()
        except OSError as error:
            raise PlatformError(_unusable(folder, error)) from error

    async def check(self) -> None:
        """Before any work. Raises AuditFailed; tries again once a second."""
        if self._failed is None:
            return
        if time.monotonic() - self._tried_at > _RETRY_S:
            await self._write(b"")
        elif self._failed is not None:
            raise AuditFailed(self._failed)

    async def write(self, lines: Sequence[str]) -> None:
        """All of a request at once. Raises AuditFailed."""
        if lines:
            await self._write("".join(f"{line}\n" for line in lines).encode())

    async def _write(self, data: bytes) -> None:
        """Shielded: a client that leaves does not take its lines along."""
        writing = asyncio.get_running_loop().run_in_executor(self._writer, self._append, data)
        writing.add_done_callback(self._sync_later)
        await asyncio.shield(writing)

    def _sync_later(self, written: "asyncio.Future[None] | None" = None) -> None:
        is_written = written is None or not (written.cancelled() or written.exception())
        if is_written and self._next_sync is None:
            self._next_sync = asyncio.get_running_loop().call_later(_SYNC_S, self._sync_now)

    def _sync_now(self) -> None:
        self._next_sync = None
        if self._syncing is not None and not self._syncing.done():
            self._sync_later()  # the disk is slow: one at a time
        else:
            self._syncing = self._syncer.submit(self._sync)

    # ---- in the writer's thread ----------------------------------------------------------------------------------

    def _append(self, data: bytes) -> None:
        self._tried_at = time.monotonic()
        try:
            if self._file is not None and os.fstat(self._file).st_nlink == 0:
                log.error("a file of the audit log was removed while it was written: %s", self._folder)
                self._close()
            if self._file is None or self._size > self._rotate_bytes:
                self._open()
            self._put(data)
        except OSError as error:
            reason = self._fail(str(error.strerror))
            raise AuditFailed(reason) from error
        if self._failed is not None:
            log.warning("the audit log is written again; %d requests had no answer", self.kept_back)
            self._failed, self.kept_back = None, 0

    def _open(self) -> None:
        """The next file, which begins with a line about itself: a full disk shows at once."""
        if self._file is not None:
            file, self._file = self._file, None
            self._syncer.submit(self._force, file)
        path = os.path.join(self._folder, f"audit-{self._started}-{self._replica}-{self._number + 1:04d}.jsonl")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._file, self._size = os.open(path, flags, 0o600), 0
        about = {"event": "begin", "replica": self._replica, "version": __version__, "kept_back": self.kept_back}
        try:
            self._put(f"{json.dumps({'time': utc_now(), **about})}\n".encode())
        except OSError:
            self._close()
            os.unlink(path)
            raise
        self._number += 1

    def _put(self, data: bytes) -> None:
        """All of it or nothing: a line that is cut would be read as a wrong one."""
        assert self._file is not None
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)

    def _again(self) -> int | None:
        return None if self._file is None else os.dup(self._file)

    def _fail(self, why: str) -> str:
        reason = f"the audit log {self._folder} cannot be written ({why})"
        if self._failed is None:
            log.error("nothing is answered now: %s", reason)
        self._failed = reason
        with contextlib.suppress(OSError):  # of a file that has failed already
            self._close()
        return reason

    def _close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)

    # ---- in the thread that waits for the disk -------------------------------------------------------------------

    def _sync(self) -> None:
        file = self._writer.submit(self._again).result()  # the writer alone opens and closes
        if file is not None:
            self._force(file)

    def _force(self, file: int) -> None:
        try:
            os.fsync(file)
        except OSError as error:  # what was written since the last one may be lost; it is not tried again (fsync(2))
            self._writer.submit(self._fail, f"fsync: {error.strerror}; its last second may be missing")
        finally:
            os.close(file)
