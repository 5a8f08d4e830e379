"""What the keeper does about a candidate every second: it is found and proved, goes on, and ends as its rule says."""

import asyncio
from collections.abc import Awaitable, Callable

from serving.agreed import Trial
from serving.lifecycle.finding import why
from serving.lifecycle.keeper import Keeper
from serving.monitoring.comparison import verdict
from serving.monitoring.gathered import Counted


class Tending:
    """`counts`: of the replicas; None while they cannot be had. No rule decides then, nor while one is missing."""

    def __init__(self, keeper: Keeper, counts: Callable[[], Awaitable[Counted | None]]) -> None:
        self._keeper, self._counts = keeper, counts

    async def tend(self) -> None:
        """Called every second."""
        if not self._keeper.is_settled:
            return
        await self._begin()
        trial = self._keeper.bring_on_trial()
        if trial is not None:
            await self._judge(trial, await self._counts())

    async def _begin(self) -> None:
        keeper, trials = self._keeper, self._keeper.trials
        wish = trials.wanted()
        if wish is None:
            return
        generation = keeper.known().generation
        try:
            found = (await asyncio.to_thread(keeper.find, wish)).bundle
            beside = (await keeper.bundle(generation)).info
        except Exception as error:
            trials.refuse(wish, why(error, wish.model))
            return
        if keeper.known().generation == generation:  # else it is looked at again beside the other one
            trials.begin(wish, found, keeper.known(), beside)

    async def _judge(self, trial: Trial, counts: Counted | None) -> None:
        members, trials = self._keeper.heard(), self._keeper.trials
        if counts is None or members is None or not members <= counts.replicas or trials.now.current != trial:
            return
        if not trials.is_counted_in(counts.life):
            return
        found = verdict(counts.state, trial)
        if found is not None and found.decision != "wait":
            await self._keeper.decide(trial, found)
