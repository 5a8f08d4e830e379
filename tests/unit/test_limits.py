"""Several images of one request at a time."""

import asyncio

import pytest

from serving.limits import at_once


def test_outcomes_come_in_order_and_a_few_at_a_time() -> None:
    running: list[int] = []

    async def work(item: int) -> int:
        running.append(item)
        assert len(running) <= 4
        await asyncio.sleep(0.01 / item)
        running.remove(item)
        return -item

    assert asyncio.run(at_once(work, range(1, 12))) == [-item for item in range(1, 12)]


def test_where_one_raises_the_others_are_ended_before_it_is_told() -> None:
    told: list[str] = []

    async def work(item: str) -> None:
        if item == "bad":
            await asyncio.sleep(0)
            raise KeyError("bad")
        try:
            await asyncio.sleep(30)
        finally:
            told.append(item)

    async def both() -> list[str]:
        with pytest.raises(KeyError, match="bad"):
            await at_once(work, ["slow", "bad", "slow", "slow", "next"])
        assert len(asyncio.all_tasks()) == 1
        return told

    assert asyncio.run(both()).count("slow") == 3


def test_a_request_whose_time_is_over_ends_all() -> None:
    async def late() -> int:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await at_once(asyncio.sleep, [30.0, 30.0])
        return len(asyncio.all_tasks())

    assert asyncio.run(late()) == 1
