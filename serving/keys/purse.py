"""A replica's shares of the limits, so that most requests are counted without asking anybody.

Images that are not needed for a second go back; of requests there are too few in hand to matter. An ask whose answer
did not come may have been counted all the same: it goes out again as the same one, before any other of its name.
"""

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from serving.keys.budgets import Ask, Share
from serving.keys.records import Key

log = logging.getLogger("ray.serve")
IDLE_S = 1.0
_PATIENCE_S = 4.0  # with one who counts and is being started anew
_PAUSE_S = 0.2
_DAY_S = 86_400.0


class NoBudgets(Exception):
    """Whoever counts for all replicas cannot be asked now; says why."""


Lease = Callable[[Ask], Awaitable[Share]]


class LimitReached(Exception):
    """A key has done what it may: `code` is rate_limited or quota_spent. Come back after `wait_s`, whole seconds."""

    def __init__(self, code: str, message: str, wait_s: float) -> None:
        super().__init__(message)
        self.code, self.wait_s = code, max(1, math.ceil(wait_s))


def _too_fast(key: Key, wait_s: float) -> LimitReached:
    assert key.limits.rate is not None
    rate = key.limits.rate
    message = f"this key may send {rate.requests} requests in {rate.seconds:g} s; come back as Retry-After says"
    return LimitReached("rate_limited", message, wait_s)


def _spent(key: Key, count: int, share: Share) -> LimitReached:
    quota = key.limits.images_per_day or 0
    what = (
        f"{max(0, quota - share.used)} of {quota} images of today (UTC) are left to this key, the request has {count}"
    )
    return LimitReached("quota_spent", f"{what}; come back tomorrow, or with fewer", share.wait_s)


_NOTHING = Share("", -1, 0)  # heard of yet


@dataclass
class _Pocket:
    """Of one name."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    heard: Share = _NOTHING
    asks: int = 0
    unsure: Ask | None = None  # sent, without an answer
    requests: int = 0
    none_until: float = 0.0  # no request before
    images: int = 0
    touched: float = 0.0
    lost: NoBudgets | None = None  # who counts, until it is tried again
    lost_until: float = 0.0
    returning: asyncio.Task[None] | None = None


class Purse:
    """`lease` asks whoever counts; it may raise NoBudgets."""

    def __init__(
        self, lease: Lease, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time
    ) -> None:
        self._lease, self._clock, self._now = lease, clock, now
        self._id = uuid.uuid4().hex
        self._pockets: dict[str, _Pocket] = {}

    async def request(self, key: Key) -> None:
        """Count one request. Raises LimitReached and NoBudgets."""
        if key.limits.rate is None:
            return
        pocket = self._pocket(key)
        async with pocket.lock:
            now = self._clock()
            if pocket.requests == 0:
                if now < pocket.none_until:
                    raise _too_fast(key, pocket.none_until - now)
                await self._settle(pocket)
            if pocket.requests == 0:
                share = await self._ask(pocket, key, requests=1)
                if share.requests == 0:
                    pocket.none_until = self._clock() + share.wait_s
                    raise _too_fast(key, share.wait_s)
            pocket.requests -= 1

    async def images(self, key: Key, count: int) -> int:
        """Count images of today; gives the day. Raises LimitReached, where it has not so many left, and NoBudgets."""
        if key.limits.images_per_day is None or count == 0:
            return _NOTHING.day
        pocket = self._pocket(key)
        async with pocket.lock:
            try:
                await self._take(pocket, key, count)
            finally:
                self._return_later(pocket, key)
            return pocket.heard.day

    async def give_back(self, key: Key, count: int, day: int) -> None:
        """Images of a day, as `images` gave it, that got no answer by our fault. Those of yesterday are nobody's."""
        if key.limits.images_per_day is None or count == 0:
            return
        pocket = self._pocket(key)
        async with pocket.lock:
            self._forget_yesterday(pocket)
            if day == pocket.heard.day == self._today():
                pocket.images += count
                self._return_later(pocket, key)

    async def _take(self, pocket: _Pocket, key: Key, count: int) -> None:
        self._forget_yesterday(pocket)
        if count > pocket.images:
            await self._settle(pocket)
        if (missing := count - pocket.images) > 0:
            share = await self._ask(pocket, key, images=missing)
            if pocket.images < count:
                raise _spent(key, count, share)
        pocket.images -= count
        pocket.touched = self._clock()

    def _pocket(self, key: Key) -> _Pocket:
        return self._pockets.setdefault(key.name, _Pocket())

    def _forget_yesterday(self, pocket: _Pocket) -> None:
        if pocket.heard.day != self._today():
            pocket.images = 0

    def _today(self) -> int:
        return int(self._now() // _DAY_S)

    async def _ask(self, pocket: _Pocket, key: Key, requests: int = 0, images: int = 0) -> Share:
        """What is handed out is in the pocket then. Raises NoBudgets."""
        pocket.asks += 1
        heard = pocket.heard
        pocket.unsure = Ask(
            key.name, key.limits, self._id, pocket.asks, requests, images, heard.epoch, heard.day, heard.used
        )
        return await self._sent(pocket, pocket.unsure)

    async def _settle(self, pocket: _Pocket) -> None:
        """Hear what became of an ask without an answer. Raises NoBudgets."""
        if pocket.unsure is not None:
            await self._sent(pocket, pocket.unsure)

    async def _sent(self, pocket: _Pocket, ask: Ask) -> Share:
        if pocket.lost is not None and self._clock() < pocket.lost_until:
            raise pocket.lost  # whoever waited behind the first does not wait as long again
        until = self._clock() + _PATIENCE_S
        while True:
            try:
                share = await self._lease(ask)
            except NoBudgets as error:
                if self._clock() > until:
                    pocket.lost, pocket.lost_until = error, self._clock() + IDLE_S
                    raise
                await asyncio.sleep(_PAUSE_S)
                continue
            if share.day != pocket.heard.day:
                pocket.images = 0
            pocket.lost, pocket.unsure, pocket.heard = None, None, share
            pocket.requests += share.requests
            pocket.images += max(0, share.images)  # what went back left when it was sent
            return share

    def _return_later(self, pocket: _Pocket, key: Key) -> None:
        if (pocket.images > 0 or pocket.unsure is not None) and (pocket.returning is None or pocket.returning.done()):
            pocket.returning = asyncio.create_task(self._return(pocket, key))

    async def _return(self, pocket: _Pocket, key: Key) -> None:
        """What others may need more, once nobody asked here for a second."""
        is_told = False
        while not await self._has_returned(pocket, key, is_told):
            is_told = True
            await asyncio.sleep(IDLE_S)

    async def _has_returned(self, pocket: _Pocket, key: Key, is_told: bool) -> bool:
        while (idle_s := self._clock() - pocket.touched) < IDLE_S:
            await asyncio.sleep(max(0.05, IDLE_S - idle_s))
        async with pocket.lock:
            try:
                await self._settle(pocket)
                self._forget_yesterday(pocket)
                count, pocket.images = pocket.images, 0
                if count > 0:
                    await self._ask(pocket, key, images=-count)
            except NoBudgets as error:
                if not is_told:
                    log.warning("images of a quota are not given back yet: %s", error)
                return False
            return True
