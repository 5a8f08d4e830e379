"""What each name has left, over all replicas: one `Budgets` of the application hands out shares in advance.

A token bucket for requests (its level falls by what is handed out and rises with time) and a count of images a UTC day.
A share is never handed out twice, so the sum over replicas keeps the limit by itself.
"""

import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from serving.keys.records import Limits

AHEAD_S = 0.25  # of a rate that is handed out at once
_IMAGE_SHARES = 100  # of a day's quota, and of ...
_LEFT_SHARES = 10  # ... what is left, handed out at once: near the end as many as are asked for
_DAY_S = 86_400.0


@dataclass(frozen=True)
class Ask:
    """A replica's. `requests` and `images` are needed now; negative images come back unused.

    `purse` and `number`: whose, and which of its asks for this name, 1 onward; one that comes again is counted once.
    `epoch` and `used`: of what the replica last heard, for a `Budgets` that was started anew and knows nothing.
    """

    name: str
    limits: Limits
    purse: str
    number: int
    requests: int = 0
    images: int = 0
    epoch: str = ""
    day: int = -1
    used: int = 0


@dataclass(frozen=True)
class Share:
    """What was handed out: all that was needed and some in advance, or none and seconds until there may be more."""

    epoch: str
    day: int
    used: int  # images of that day, handed out to whomever
    requests: int = 0
    images: int = 0
    wait_s: float = 0.0  # for requests; for images until the next day


@dataclass
class _Account:
    level: float
    at: float
    day: int
    used: int = 0
    answered: dict[str, tuple[int, Share]] = field(default_factory=dict)  # by purse, the last of today


class Budgets:
    """By name; `clock` for rates, `now` (seconds since the epoch) for days."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time) -> None:
        self._clock, self._now = clock, now
        self._epoch = uuid.uuid4().hex
        self._accounts: dict[str, _Account] = {}

    async def lease(self, ask: Ask) -> Share:
        return self.share(ask)

    def share(self, ask: Ask) -> Share:
        account = self._account(ask)
        number, last = account.answered.get(ask.purse, (0, None))
        if last is not None and ask.number == number:
            return last
        if ask.number < number:  # overtaken: nobody waits for it any more
            return Share(self._epoch, account.day, account.used)
        requests, wait_s = self._requests(account, ask)
        images = self._images(account, ask)
        if ask.images > 0 and images == 0:
            requests, wait_s = 0, max(wait_s, _DAY_S - self._now() % _DAY_S)
        account.level -= requests
        account.used = max(0, account.used + images)
        share = Share(self._epoch, account.day, account.used, requests, images, wait_s)
        account.answered[ask.purse] = (ask.number, share)
        return share

    def _account(self, ask: Ask) -> _Account:
        full = float(ask.limits.rate.requests) if ask.limits.rate else 0.0
        day, at = int(self._now() // _DAY_S), self._clock()
        account = self._accounts.setdefault(ask.name, _Account(full, at, day))
        if account.day != day:
            account.day, account.used = day, 0
            account.answered.clear()
        if ask.epoch != self._epoch and ask.day == day:  # somebody's memory of one who is no more
            account.used = max(account.used, ask.used)
        if ask.limits.rate is not None:
            account.level = min(full, account.level + (at - account.at) * ask.limits.rate.per_s)
        account.at = at
        return account

    @staticmethod
    def _requests(account: _Account, ask: Ask) -> tuple[int, float]:
        """How many, and how long until there is one where there is none."""
        rate = ask.limits.rate
        if rate is None or ask.requests == 0:
            return 0, 0.0
        if account.level < ask.requests:
            return 0, (ask.requests - account.level) / rate.per_s
        return min(int(account.level), max(ask.requests, math.ceil(rate.per_s * AHEAD_S))), 0.0

    @staticmethod
    def _images(account: _Account, ask: Ask) -> int:
        quota = ask.limits.images_per_day
        if quota is None:
            return 0
        if ask.images <= 0:
            return ask.images if ask.day == account.day else 0
        left = quota - account.used
        if left < ask.images:
            return 0
        return max(ask.images, min(quota // _IMAGE_SHARES, left // _LEFT_SHARES))
