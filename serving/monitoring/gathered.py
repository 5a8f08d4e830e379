"""The counts of all replicas of an application: those that answer, and those that are no more."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from serving.monitoring.state import State, added

ALIVE_S = 20.0  # after a replica's last word
_GONE_S = 300.0  # Serve has long replaced a replica that was silent so long


@dataclass
class _Heard:
    state: State
    at: float


class Gathered:
    """Replicas tell all that they counted since they began, so that nothing counts twice and no loss is for ever."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard: dict[str, _Heard] = {}
        self._gone = State()
        self._gone_names: set[str] = set()

    def put(self, replica: str, state: State | None) -> bool:
        """`None`: nothing new. False: this replica is not known, it is to tell its state."""
        if replica in self._gone_names:  # its counts are in the sum already
            return True
        if state is None and replica not in self._heard:
            return False
        told = self._heard[replica].state if state is None else state
        self._heard[replica] = _Heard(told, self._clock())
        self._fold()
        return True

    def total(self) -> State:
        """Counters of all; what is in work, and with which model, of those that are alive."""
        now = self._clock()
        states = (heard.state if now - heard.at < ALIVE_S else heard.state.history() for heard in self._heard.values())
        return added((self._gone, *states))

    @property
    def is_alone(self) -> bool:
        return all(self._clock() - heard.at > ALIVE_S for heard in self._heard.values())

    def _fold(self) -> None:
        now = self._clock()
        for replica in [name for name, heard in self._heard.items() if now - heard.at > _GONE_S]:
            self._gone = self._gone.added(self._heard.pop(replica).state.history())
            self._gone_names.add(replica)
