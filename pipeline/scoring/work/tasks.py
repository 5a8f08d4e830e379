"""Ray tasks whose processes may end: waited for with an eye on this node and the lock, begun again a few times only."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.base.cluster import own_errors, refuse_dead_node

_NODE_CHECK_S = 5.0


def lost_errors(ray: Any) -> tuple[type[Exception], ...]:
    """What tells that the process of a task ended before its work: by itself, with its node, or for lack of memory."""
    errors = ray.exceptions
    return errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError


def results(
    ray: Any, begin: Sequence[Callable[[], Any]], check: Callable[[], None], tries: int = 1, wait_s: float = 1.0
) -> list[Any]:
    """What some tasks give, in order. `begin`: each starts one and gives its reference, Ray's own retries off.

    Ray's retries know no bound where memory is short, so they are made here: `tries` of each task in all. Raises
    `lost_errors` of a task that is lost as often, what a task raised, PlatformError once this process's node is dead,
    and what `check` raises, which is asked while waiting.
    """
    found: list[Any] = [None] * len(begin)
    waiting = {start(): index for index, start in enumerate(begin)}
    tried, looked = [1] * len(begin), time.monotonic()
    while waiting:
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=wait_s)
        for reference in ready:
            index = waiting.pop(reference)
            try:
                with own_errors(ray):
                    found[index] = ray.get(reference)
            except lost_errors(ray):
                if tried[index] == tries:
                    raise
                tried[index] += 1
                waiting[begin[index]()] = index
        check()
        if time.monotonic() - looked > _NODE_CHECK_S:
            looked = time.monotonic()
            refuse_dead_node(ray)
    return found
