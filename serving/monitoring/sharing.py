"""One actor of an application has the counts of all its replicas, and each replica's way to it.

The actor is detached, so that it outlives replicas, and ends itself when Serve no longer knows the application. Where
it is lost, living replicas tell it anew all that they counted; what dead ones had counted is then gone, which is a
counter's reset to Prometheus.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from ray.exceptions import RayActorError, RayError

from serving import application_actor
from serving.application_actor import end_with, find
from serving.monitoring.gathered import Counted, Gathered
from serving.monitoring.recorder import Recorder
from serving.monitoring.state import State

log = logging.getLogger("ray.serve")
_NAME = "counts"
_PATIENCE_S = 10.0
_EVERY_S = 1.0
_SIGN_OF_LIFE_S = 5.0
_ALONE_S = 60.0


class GatheredActor(Gathered):
    """That ends with its application."""

    def __init__(self, application: str) -> None:
        super().__init__()
        self._application = application
        self._watch: asyncio.Task[None] | None = None

    async def tell(self, replica: str, state: State | None, life: str) -> str:
        if self._watch is None:
            ending = end_with((self._application,), lambda: self.is_alone, _ALONE_S, "its counts end")
            self._watch = asyncio.create_task(ending)
        return self.put(replica, state, life)

    async def ask(self) -> State | None:
        """None while a part of the replicas may be missing."""
        return None if self.is_partial else self.total()

    async def ask_all(self) -> Counted:
        """With those who told, so that who asks sees whether one is missing."""
        return self.counted()


class NotGathered(Exception):
    """The counts of all replicas cannot be had now; says why."""


class Gatherer:
    """The way to the actor of one application, which `find_it` starts where there is none."""

    def __init__(self, application: str, find_it: Callable[[str], Any] | None = None) -> None:
        self._application = application
        self._find_it = find_it or start
        self._actor: Any = None

    async def actor(self) -> Any:
        """Raises RayError and ValueError."""
        if self._actor is None:
            self._actor = await asyncio.to_thread(self._find_it, self._application)
        return self._actor

    async def call(self, method: str, *arguments: Any, patience_s: float = _PATIENCE_S) -> Any:
        """Raises NotGathered."""
        try:
            return await asyncio.wait_for(getattr(await self.actor(), method).remote(*arguments), patience_s)
        except (RayError, TimeoutError, ValueError) as error:
            if isinstance(error, (RayActorError, ValueError)):
                self._actor = None
            raise NotGathered(f"{type(error).__name__}: {error}") from error


class Sharing:
    """What a replica tells, and is told, of counts. `state` gives its own, all of it."""

    def __init__(
        self, application: str, replica: str, recorder: Recorder, state: Callable[[], Awaitable[State]]
    ) -> None:
        self._replica = replica
        self._recorder, self._state = recorder, state
        self._gatherer = Gatherer(application)
        self._call = self._gatherer.call
        self._task: asyncio.Task[None] | None = None
        self._lost: str | None = None
        self._life = ""  # of the actor that was told last

    def begin(self) -> None:
        """Tell every second from now on what is new."""
        if self._task is None:
            self._task = asyncio.create_task(self._tell_forever())

    async def total(self) -> State:
        """Of all replicas, this one as it is now. Raises NotGathered."""
        await self._say(await self._state())
        total: State | None = await self._call("ask")
        if total is None:
            raise NotGathered("the counts were lost, and not all replicas have told theirs anew")
        return total

    async def _say(self, state: State | None) -> bool:
        """False where the actor does not know this replica, and is to be told all."""
        life: str = await self._call("tell", self._replica, state, self._life)
        self._life = life or self._life
        return bool(life)

    async def _tell_forever(self) -> None:
        told, told_at = -1, float("-inf")
        while True:
            events, now = self._recorder.events, time.monotonic()
            try:
                if events != told:
                    await self._say(await self._state())
                    told, told_at = events, now
                elif now - told_at > _SIGN_OF_LIFE_S:
                    is_known = await self._say(None)
                    told, told_at = (told if is_known else -1), now
                self._lost = None
            except NotGathered as error:
                if str(error) != self._lost:
                    log.warning("counts could not be told: %s", error)
                self._lost, told = str(error), -1
            except (Exception, asyncio.CancelledError) as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                    raise  # the replica ends
                log.exception("counts could not be told")
                told = -1
            await asyncio.sleep(_EVERY_S)


def start(application: str) -> Any:
    """The actor of counts; where there is none, one that is starting, for which nobody waits here."""
    return find(GatheredActor, _NAME, application)


def forget(application: str) -> None:
    """End the counts of an application that is no more."""
    application_actor.forget(_NAME, application)
