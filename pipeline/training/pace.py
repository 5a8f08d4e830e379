"""How fast an epoch goes on one rank, and how much of that time it waited for its images. No torch here."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


class Pace:
    """The clock of one epoch's training, validation left out."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._ended: float | None = None
        self._waited_s = 0.0

    def waiting_for(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; the time until each comes counts as waited."""
        source = iter(items)
        while True:
            asked = time.monotonic()
            try:
                item = next(source)
            except StopIteration:
                return
            finally:
                self._waited_s += time.monotonic() - asked
            yield item

    def end(self) -> None:
        self._ended = time.monotonic()

    @property
    def seconds(self) -> float:
        return max((self._ended or time.monotonic()) - self._began, 1e-9)

    @property
    def waiting_share(self) -> float:
        """0 to 1. On a GPU, which computes on while the next images are fetched, this is no idle time yet."""
        return min(1.0, self._waited_s / self.seconds)
