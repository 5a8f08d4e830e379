"""One actor of each file of keys has what they have left, whichever application of the service they are shown to.

It is detached, and ends itself some time after Serve knows none of the applications that asked it.
"""

import asyncio
import hashlib
import logging
import time
from typing import Any

from ray.exceptions import RayError

from serving.application_actor import end_with, find
from serving.keys.budgets import Ask, Budgets, Share
from serving.keys.purse import NoBudgets
from serving.monitoring.sharing import Gatherer, NotGathered

log = logging.getLogger("ray.serve")
_NAME = "budgets"
_LEASE_S = 4.0
_ALONE_S = 60.0


class BudgetsActor(Budgets):
    """`file`: which file of keys, as `start` has it."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self._applications: set[str] = set()
        self._asked_at = time.monotonic()
        self._watch: asyncio.Task[None] | None = None

    async def lease_to(self, application: str, asked: Ask) -> Share:
        self._applications.add(application)
        self._asked_at = time.monotonic()
        if self._watch is None:
            ending = end_with(self._applications, self._is_alone, _ALONE_S, "its keys' limits end")
            self._watch = asyncio.create_task(ending)
        return self.share(asked)

    def _is_alone(self) -> bool:
        return time.monotonic() - self._asked_at > _ALONE_S


class Till:
    """A replica's way to the actor of its `keys_file`, a path; without a file no key has limits."""

    def __init__(self, application: str, keys_file: str | None) -> None:
        self._application = application
        self._has_file = keys_file is not None
        self._gatherer = Gatherer(keys_file or "", start)

    async def begin(self) -> None:
        """Start the actor where there is none, so that no request waits for that."""
        try:
            if self._has_file:
                await self._gatherer.actor()
        except (RayError, ValueError) as error:
            log.warning("who counts what keys may do could not be started, and will be when asked: %s", error)

    async def lease(self, asked: Ask) -> Share:
        """A share of what a key may do. Raises NoBudgets."""
        try:
            share: Share = await self._gatherer.call("lease_to", self._application, asked, patience_s=_LEASE_S)
        except NotGathered as error:
            raise NoBudgets(str(error)) from error
        return share


def start(keys_file: str) -> Any:
    """The actor of that file; where there is none, one that is starting, for which nobody waits here."""
    return find(BudgetsActor, _NAME, hashlib.sha256(keys_file.encode()).hexdigest()[:16])
