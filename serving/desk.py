"""What every request for predictions passes, whatever protocol it came by: whose key, within its limits, on record.

visit = await desk.admit(keys, request_id, route)      401, 403, 429
await visit.spend(images)                              429, before any of them is looked at
await visit.recorded(answer)(body)                     503 where the audit log cannot be written
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from pipeline.base.errors import UsageError
from pipeline.storage.uris import is_s3
from serving.audit.log import AuditFailed, AuditLog
from serving.audit.notes import Notes, taking
from serving.errors import HttpError
from serving.keys.budgets import Budgets
from serving.keys.purse import Lease, LimitReached, NoBudgets, Purse
from serving.keys.records import Key, unnamed
from serving.keys.ring import KeyMissing, KeyRefused, KeyRing, open_to_others
from serving.monitoring.recorder import Recorder
from serving.settings import ServingSettings

log = logging.getLogger("ray.serve")
_Body = TypeVar("_Body")
_Counted = TypeVar("_Counted")
_Answer = TypeVar("_Answer")


def key_ring(settings: ServingSettings, on_change: Callable[[bool], None] = lambda is_broken: None) -> KeyRing:
    """Raises InputError where the file of keys cannot be used."""
    clients, admins = unnamed(settings.api_key_sha256), unnamed(settings.admin_key_sha256, is_admin=True)
    return KeyRing([*clients, *admins], settings.keys_file, on_change)


class Desk:
    """Of one replica. `lease` asks whoever counts for all of them; without it this one counts alone.

    Raises InputError and PlatformError where the file of keys or the audit log cannot be used.
    """

    def __init__(
        self, settings: ServingSettings, recorder: Recorder, lease: Lease | None = None, replica: str = "alone"
    ) -> None:
        self._settings = settings
        self.keys = key_ring(settings, recorder.keys_changed)
        if settings.keys_file is not None and (warning := open_to_others(settings.keys_file)) is not None:
            log.warning("%s", warning)
        self._purse = Purse(lease or Budgets().lease)
        self.audit = AuditLog(settings.audit_log, replica) if settings.audit_log is not None else None
        self._tasks: set[asyncio.Task[None]] = set()

    def check(self, given: Sequence[str], *, is_admin: bool = False) -> Key | None:
        """Whose the first of the given keys is; every one has to be accepted. Raises HttpError 401 and 403."""
        try:
            found = [self.keys.check(key, is_admin=is_admin) for key in given or ("",)]
        except KeyMissing as error:
            message = "this service asks for a key: Authorization: Bearer KEY, or X-API-Key: KEY"
            raise HttpError(401, "key_missing", message, {"WWW-Authenticate": "Bearer"}) from error
        except KeyRefused as error:
            raise HttpError(403, "key_refused", "this key is not accepted here") from error
        return found[0]

    async def admit(self, given: Sequence[str], request_id: str, route: str) -> "Visit":
        """`route` as declared, without what the client put in. Raises HttpError 401, 403, 429 and 503."""
        key = self.check(given)
        if key is not None:
            await self.within_limits(self._purse.request(key))
        notes = Notes(None if key is None else key.name, request_id, route) if self.audit is not None else None
        return Visit(self, self._purse, key, notes)

    async def within_limits(self, counting: Awaitable[_Counted]) -> _Counted:
        try:
            return await counting
        except LimitReached as error:
            raise HttpError(429, error.code, str(error), {"Retry-After": str(error.wait_s)}) from error
        except NoBudgets as error:
            message = "what this key has left cannot be counted now; try again"
            raise self.not_now("limits_unknown", message) from error

    async def check_audit(self) -> None:
        """Raises HttpError 503 where nothing may be answered because nothing can be recorded."""
        await self._audited(None if self.audit is None else self.audit.check())

    async def record(self, notes: Notes, status: int | None) -> None:
        """Raises HttpError 503."""
        await self._audited(None if self.audit is None else self.audit.write(notes.lines(status)))

    async def _audited(self, work: Awaitable[None] | None) -> None:
        if work is None:
            return
        try:
            await work
        except AuditFailed as error:
            assert self.audit is not None
            self.audit.kept_back += 1
            message = "answers are recorded here, and that fails now: there is none"
            raise self.not_now("audit_failed", message) from error

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """What a request leaves behind that is not waited for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._left)

    def _left(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a request without an answer left no record: %s", error)

    def not_now(self, code: str, message: str) -> HttpError:
        return HttpError(503, code, message, {"Retry-After": str(self._settings.retry_after_s)})


class Visit:
    """One request that was admitted."""

    def __init__(self, desk: Desk, purse: Purse, key: Key | None, notes: Notes | None) -> None:
        self._desk, self._purse, self._key, self._notes = desk, purse, key, notes
        self._spent, self._day = 0, -1
        self._failed = 0

    async def spend(self, images: int) -> None:
        """Count images of the key's day. Raises HttpError 429 where it has not so many left; none is then counted."""
        if self._key is not None:
            self._day = await self._desk.within_limits(self._purse.images(self._key, images))
            self._spent = images

    def came_of(self, outcomes: Iterable[object]) -> None:
        """One an image; those that are an HttpError of our fault go back to the day, whatever the request's status."""
        self._failed = sum(isinstance(outcome, HttpError) and outcome.status >= 500 for outcome in outcomes)

    def recorded(
        self,
        answer: Callable[[_Body], Awaitable[_Answer]],
        status_of: Callable[[Any], int] = lambda answer: int(answer.status_code),
    ) -> Callable[[_Body], Awaitable[_Answer]]:
        """`answer`, whose images are on record before it is given. Raises HttpError 503 where they cannot be.

        What ends by our fault or without an answer gives the images back to the quota.
        """

        async def answer_and_record(body: _Body) -> _Answer:
            await self._desk.check_audit()
            try:
                with taking(self._notes):
                    said = await answer(body)
            except HttpError as error:
                await self._end(error.status)
                raise
            except asyncio.CancelledError:  # its time is up, or the client left; nothing may be waited for
                self._desk.later(self._end(None))
                raise
            except Exception:
                await self._end(500)
                raise
            await self._end(status_of(said))
            return said

        return answer_and_record

    async def _end(self, status: int | None) -> None:
        is_answered = status is not None and status < 500
        try:
            if self._notes is not None:
                await self._desk.record(self._notes, status)
        except HttpError:
            is_answered = False
            raise
        except asyncio.CancelledError:  # its lines are being written, and nobody gets that answer: others follow
            is_answered = False
            if self._notes is not None and status is not None:
                self._desk.later(self._desk.record(self._notes, None))
            raise
        finally:
            count = min(self._failed, self._spent) if is_answered else self._spent
            if self._key is not None and count > 0:
                self._desk.later(self._purse.give_back(self._key, count, self._day))


def check_guards(settings: ServingSettings) -> None:
    """Before anything is started. Raises UsageError and InputError for a file of keys that cannot be used."""
    for name in ("keys_file", "audit_log"):
        if is_s3(str(getattr(settings, name) or "")):
            raise UsageError(f"{name}: expected a path on every node, not S3")
    key_ring(settings).close()
