"""One switch over all members in two phases: all have it loaded and let new requests wait, then all take it.

After Gray's two-phase commit ('Notes on Data Base Operating Systems', 1978), with members that may die: who is not
heard of for GONE_S counts no more, and holds its own requests before that (`gate.LATE_S`).
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from serving.agreed import Order, Report

POLL_S = 4.0  # how long a member waits for an order before it reports again
GONE_S = 10.0
_PREPARE_S = 120.0  # reading and loading a model takes seconds
_HOLD_S = 1.0  # requests wait that long at most, in each round
_ROUNDS = 8  # together longer than GONE_S
_TAKEN_S = 10.0


@dataclass
class _Member:
    since: float
    seen: float
    report: Report = field(default_factory=Report)

    @property
    def is_here(self) -> bool:
        return time.monotonic() - self.seen < GONE_S


@dataclass
class _Next:
    generation: int
    began: float
    is_holding: bool = False


class Switch:
    """Members by name, and the generation that they answer with. For one event loop."""

    def __init__(self) -> None:
        self.generation = 0
        self._next: _Next | None = None
        self._members: dict[str, _Member] = {}
        self._changed = asyncio.Event()  # replaced by a new one whenever it is set

    @property
    def members(self) -> int:
        """How many are heard of."""
        return sum(member.is_here for member in self._members.values())

    def names(self) -> frozenset[str]:
        """Of those who are heard of."""
        return frozenset(name for name, member in self._members.items() if member.is_here)

    def reports(self) -> list[Report]:
        """What those said last who are heard of."""
        return [member.report for member in self._members.values() if member.is_here]

    def hear(self, name: str, report: Report) -> None:
        """Note what a member says of itself."""
        now = time.monotonic()
        self._members = {key: member for key, member in self._members.items() if now - member.seen < 10 * GONE_S}
        member = self._members.get(name)
        if member is None or not member.is_here:  # one that comes back has missed what was ordered
            member = self._members[name] = _Member(now, now)
        member.seen, member.report = now, report
        self.wake()

    def wake(self) -> None:
        """Let everybody who waits look again."""
        before, self._changed = self._changed, asyncio.Event()
        before.set()

    async def order(self, name: str, patience_s: float, has_news: Callable[[], bool]) -> tuple[Order, int]:
        """What the member is to do, for which generation; STAY or WAIT when there is news, or after `patience_s`."""
        deadline = time.monotonic() + patience_s
        while True:
            changed = self._changed  # before looking: nothing is missed between the look and the wait
            found = self._order(self._members[name])
            if found is not None or has_news() or not await _within(changed, deadline - time.monotonic()):
                break
        if found is not None:
            return found
        is_left_out = self._next is not None and self._members[name].since > self._next.began
        return (Order.WAIT if is_left_out else Order.STAY), self.generation

    def _order(self, member: _Member) -> tuple[Order, int] | None:
        said, upcoming = member.report, self._next
        if said.generation < self.generation:
            return Order.TAKE, self.generation
        if upcoming is None or member.since > upcoming.began:
            return (Order.RELEASE, self.generation) if said.is_holding or said.prepared > self.generation else None
        if upcoming.generation == said.failed:
            return None
        if upcoming.generation not in (said.prepared, said.preparing):
            return Order.PREPARE, upcoming.generation
        if upcoming.is_holding != said.is_holding:
            return (Order.HOLD if upcoming.is_holding else Order.RELEASE), upcoming.generation
        return None

    async def change(self, generation: int, agree: Callable[[], None]) -> str | None:
        """Bring all members to `generation`; None when they are there, else why it was refused for all of them.

        `agree` is called at the moment from which on they are told to take it.
        """
        self._next = upcoming = _Next(generation, time.monotonic())
        try:
            self.wake()
            reason = await self._all(lambda said: said.prepared == generation, upcoming, _PREPARE_S)
            if reason is None:
                reason = await self._all_hold(upcoming)
            if reason is None:
                agree()
                self.generation = generation
        finally:
            self._next = None
            self.wake()
        if reason is None:
            await self._all(lambda said: said.generation >= generation, upcoming, _TAKEN_S)
        return reason

    async def _all_hold(self, upcoming: _Next) -> str | None:
        """None when no member lets a new request through. In rounds: one that died is not heard of for a while."""
        reason = None
        for _ in range(_ROUNDS):
            upcoming.is_holding = True
            self.wake()
            reason = await self._all(lambda said: said.is_holding, upcoming, _HOLD_S)
            if reason is None:
                return None
            upcoming.is_holding = False
            self.wake()
            await asyncio.sleep(_HOLD_S)
        return reason

    async def _all(self, has: Callable[[Report], bool], upcoming: _Next, limit_s: float) -> str | None:
        """Wait until all who are here and were when it began have it; else the reason of one, or its name."""
        deadline = time.monotonic() + limit_s
        while True:
            changed = self._changed
            here = {name: member for name, member in self._members.items() if member.since <= upcoming.began}
            here = {name: member for name, member in here.items() if member.is_here}
            for member in here.values():
                if member.report.failed == upcoming.generation:
                    return f"a replica could not load it: {member.report.reason}"
            missing = [name for name, member in here.items() if not has(member.report)]
            if not missing:
                return None
            left = deadline - time.monotonic()
            if left <= 0:
                return f"replica {missing[0]} did not follow within {limit_s:g} s"
            await _within(changed, min(left, 0.5))  # also looks again at who is here


async def _within(changed: asyncio.Event, seconds: float) -> bool:
    """Whether it is set within that time."""
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            return await changed.wait()
    except TimeoutError:
        return False
