"""The keeper as one Ray actor of an application, and a replica's way to it.

Serve's own deployment-scoped actors belong to one version of the code: a redeployment has two of them, just when all
are to agree, and one that fails keeps dead replicas from being replaced. So this one is detached
(serving/application_actor.py). Ray starts it anew when it dies; members then tell it what it knew.
"""

import asyncio
import logging
import time
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from pipeline.base.errors import LeukorayError
from serving import application_actor
from serving.agreed import CandidateWish, Joined, KeeperLost, KeeperSilent, News, Report, Wish
from serving.application_actor import end_with, find
from serving.lifecycle.keeper import Keeper
from serving.lifecycle.switch import POLL_S
from serving.lifecycle.tending import Tending
from serving.monitoring.gathered import Counted
from serving.monitoring.sharing import Gatherer, NotGathered
from serving.settings import ServingSettings

log = logging.getLogger("ray.serve")
_NAME = "keeper"
_PATIENCE_S = 10.0  # beyond what a method itself takes
_DECIDES_S = 300.0  # reading, proving and switching a model
_ALONE_S = 3.0  # without members, until Serve is asked whether there is an application
_SLOW = ("join", "bundle", "reload", "rollback", "candidate", "promote", "drop")


class KeeperActor(Keeper):
    """A keeper that looks at best.json and after a candidate by itself, and ends with its application."""

    def __init__(self, application: str) -> None:
        super().__init__(self._runs)
        self._application = application
        self._work: list[asyncio.Task[None]] = []
        self._gatherer = Gatherer(application)
        self._tending = Tending(self, self._counts)

    async def join(
        self, settings: ServingSettings, asked: Wish | str, candidate: CandidateWish | None = None
    ) -> Joined:
        self._begin()
        return await super().join(settings, asked, candidate)

    async def news(self, member: str, report: Report, patience_s: float = POLL_S) -> News:
        self._begin()
        return await super().news(member, report, patience_s)

    def _begin(self) -> None:
        if not self._work:
            ending = end_with((self._application,), lambda: self.members == 0, _ALONE_S, "its keeper ends")
            self._work = [asyncio.create_task(work) for work in (self._look_forever(), self._tend_forever(), ending)]

    async def _look_forever(self) -> None:
        looked = time.monotonic()
        while True:
            await asyncio.sleep(min(1.0, self.follow_s or 1.0))
            if time.monotonic() - looked < (self.follow_s or 10.0):
                continue
            try:
                await self.look()
            except Exception:
                log.exception("looking for another model failed")
            looked = time.monotonic()

    async def _tend_forever(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            try:
                await self._tending.tend()
            except Exception:
                log.exception("looking after the candidate failed")

    async def _counts(self) -> Counted | None:
        try:
            found: Counted = await self._gatherer.call("ask_all")
        except NotGathered:
            return None  # asked again
        return found

    async def _runs(self) -> bool:
        return await asyncio.to_thread(_has_running, self._application)


class RayLine:
    """To the keeper of one application, which is started where there is none."""

    def __init__(self, application: str) -> None:
        self._application = application
        self._actor: Any = None

    async def call(self, method: str, *arguments: Any) -> Any:
        """Raises KeeperLost, or the LeukorayError that the method raised."""
        patience_s = _PATIENCE_S + (_DECIDES_S if method in _SLOW else 0.0)
        try:
            if self._actor is None:
                self._actor = await asyncio.to_thread(start, self._application)
            return await asyncio.wait_for(getattr(self._actor, method).remote(*arguments), patience_s)
        except RayTaskError as error:
            if isinstance(error.cause, LeukorayError):
                raise error.cause from error
            raise KeeperLost(f"{type(error.cause).__name__}: {error.cause}") from error
        except TimeoutError as error:
            raise KeeperSilent(f"no answer to {method!r} within {patience_s:g} s") from error
        except (RayError, ValueError) as error:
            if isinstance(error, (RayActorError, ValueError)):
                self._actor = None
            raise KeeperLost(f"{type(error).__name__}: {error}") from error


def start(application: str) -> Any:
    """The keeper; where there is none, one that is starting, for which nobody waits here."""
    return find(KeeperActor, _NAME, application, max_concurrency=1000)


def forget(application: str) -> None:
    """End the keeper of an application that is no more."""
    application_actor.forget(_NAME, application)


def _has_running(application: str) -> bool:
    try:
        found = serve.status().applications.get(application)
    except (RayError, RayServeException):
        return False
    if found is None:
        return False
    return any(deployment.replica_states.get("RUNNING", 0) > 0 for deployment in found.deployments.values())
