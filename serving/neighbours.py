"""The other applications of the service, by the models that they answer with: asked by Serve's handles.

Which there are, and which model each has, is looked up when it is needed, and believed for some seconds.
"""

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from serving.errors import HttpError
from serving.protocols.oip.schemas import IndexEntry

log = logging.getLogger("ray.serve")
ENTRY = "index_entry"  # the replica's method that says which model it has
_KNOWN_S = 5.0  # how long what was looked up is believed, and ...
_AGAIN_S = 1.0  # ... where somebody is still to be heard
_ANSWERS_S = 5.0
_AGAIN = {"Retry-After": "1"}
_RUNNING = "RUNNING"
_COMING = ("NOT_STARTED", "DEPLOYING")
_GIVEN_UP = ("DEPLOY_FAILED", "DELETING")
_FAILURES = (RayError, RayServeException, TimeoutError)


@dataclass
class _Neighbour:
    handle: DeploymentHandle
    entry: IndexEntry | None = None  # as last told
    is_running: bool = False  # a replica is there; to ask wakes one else
    is_given_up: bool = False  # by Serve, without a replica, or it goes

    @property
    def is_unheard(self) -> bool:
        """Its model may have any name."""
        return self.entry is None and not self.is_given_up


@dataclass
class Neighbours:
    """Of one application. `deployment`: the name of its deployment, by which those like it are known."""

    application: str
    deployment: str
    _found: dict[str, _Neighbour] = field(default_factory=dict)
    _are_coming: bool = False  # applications of which Serve does not know yet what they are
    _looked_at: float = float("-inf")
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def entries(self) -> list[IndexEntry]:
        await self._look()
        return [one.entry for one in self._found.values() if one.entry is not None]

    async def have(self, name: str) -> bool:
        """Raises HttpError 503 where one that was never heard, as it starts or sleeps, may have it."""
        await self._look()
        if self._holder(name) is not None:
            return True
        if self._is_unheard:
            message = f"no model {name[:80]!r} yet, and not every model of the service has told its name; try again"
            raise HttpError(503, "not_ready", message, _AGAIN)
        return False

    async def ask(self, name: str, method: str, *arguments: Any) -> Any:
        """Raises HttpError 404, or 503 where that application cannot answer."""
        holder = self._holder(name)
        if holder is None:
            raise HttpError(404, "not_found", f"no model {name[:80]!r}")
        try:
            return await getattr(holder.handle, method).remote(*arguments)
        except BackPressureError as error:
            raise HttpError(503, "overloaded", "no room for another request; try again in 1 s", _AGAIN) from error
        except RayActorError as error:
            message = "the replica that worked on this is gone; send it again"
            raise HttpError(503, "replica_lost", message, _AGAIN) from error
        except RayServeException as error:
            log.warning("the application of model %s cannot be asked: %s", name[:80], error)
            raise HttpError(503, "not_ready", "no replica can take this request now", _AGAIN) from error

    def _holder(self, name: str) -> _Neighbour | None:
        return next((one for one in self._found.values() if one.entry is not None and one.entry.name == name), None)

    async def _look(self) -> None:
        async with self._looking:
            if time.monotonic() - self._looked_at < (_AGAIN_S if self._is_unheard else _KNOWN_S):
                return
            try:
                states, are_coming = await asyncio.to_thread(self._applications)
                known = {name: self._found.get(name) or _Neighbour(serve.get_app_handle(name)) for name in states}
            except _FAILURES as error:  # what was known is as good as can be had
                log.warning("Serve does not say which applications there are: %s", error)
            else:
                for name, one in known.items():
                    one.is_running, one.is_given_up = states[name]
                await asyncio.gather(*(_ask_entry(one) for one in known.values() if one.is_running or one.is_unheard))
                self._found, self._are_coming = known, are_coming
            self._looked_at = time.monotonic()

    @property
    def _is_unheard(self) -> bool:
        return self._are_coming or any(one.is_unheard for one in self._found.values())

    def _applications(self) -> tuple[dict[str, tuple[bool, bool]], bool]:
        """Those with a deployment of ours, in the order of their names: whether it has a replica, and is given up.

        And whether there are some that have no deployment yet.
        """
        others = {name: one for name, one in sorted(serve.status().applications.items()) if name != self.application}
        found = {}
        for name, one in others.items():
            if self.deployment in one.deployments:
                is_running = one.deployments[self.deployment].replica_states.get(_RUNNING, 0) > 0
                found[name] = (is_running, not is_running and one.status in _GIVEN_UP)
        return found, any(not one.deployments and one.status in _COMING for one in others.values())


async def _ask_entry(neighbour: _Neighbour) -> None:
    try:
        neighbour.entry = await asyncio.wait_for(getattr(neighbour.handle, ENTRY).remote(), _ANSWERS_S)
    except _FAILURES as error:
        log.warning("an application does not say which model it has: %s", error)
        if neighbour.entry is not None:
            changes = {"state": "UNAVAILABLE", "reason": "its application does not answer"}
            neighbour.entry = neighbour.entry.model_copy(update=changes)
