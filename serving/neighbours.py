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
_KNOWN_S = 5.0  # how long what was looked up is believed
_ANSWERS_S = 5.0
_AGAIN = {"Retry-After": "1"}
_FAILURES = (RayError, RayServeException, TimeoutError)


@dataclass
class _Neighbour:
    handle: DeploymentHandle
    entry: IndexEntry | None = None  # as last told


@dataclass
class Neighbours:
    """Of one application. `deployment`: the name of its deployment, by which those like it are known."""

    application: str
    deployment: str
    _found: dict[str, _Neighbour] = field(default_factory=dict)
    _looked_at: float = float("-inf")
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def entries(self) -> list[IndexEntry]:
        await self._look()
        return [one.entry for one in self._found.values() if one.entry is not None]

    async def have(self, name: str) -> bool:
        await self._look()
        return self._holder(name) is not None

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
            if time.monotonic() - self._looked_at < _KNOWN_S:
                return
            try:
                names = await asyncio.to_thread(self._applications)
                known = {name: self._found.get(name) or _Neighbour(serve.get_app_handle(name)) for name in names}
            except _FAILURES as error:  # what was known is as good as can be had
                log.warning("Serve does not say which applications there are: %s", error)
            else:
                await asyncio.gather(*map(_ask_entry, known.values()))
                self._found = known
            self._looked_at = time.monotonic()

    def _applications(self) -> list[str]:
        """Those with a deployment of ours, in the order of their names."""
        applications = serve.status().applications
        return sorted(
            name
            for name, one in applications.items()
            if name != self.application and self.deployment in one.deployments
        )


async def _ask_entry(neighbour: _Neighbour) -> None:
    try:
        neighbour.entry = await asyncio.wait_for(getattr(neighbour.handle, ENTRY).remote(), _ANSWERS_S)
    except _FAILURES as error:
        log.warning("an application does not say which model it has: %s", error)
        if neighbour.entry is not None:
            changes = {"state": "UNAVAILABLE", "reason": "its application does not answer"}
            neighbour.entry = neighbour.entry.model_copy(update=changes)
