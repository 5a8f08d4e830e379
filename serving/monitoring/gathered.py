"""The counts of all replicas of an application: those that answer, and those that are no more."""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from serving.monitoring.state import State, added

ALIVE_S = 20.0  # after a replica's last word
_GONE_S = 300.0  # Serve has long replaced a replica that was silent so long


_SETTLES_S = 12.0  # an idle replica tells every five


class Counted(NamedTuple):
    """Counts, who told them, and the life of whom they were told: in another one those of dead replicas are gone."""

    life: str
    replicas: frozenset[str]
    state: State


@dataclass
class _Heard:
    state: State
    at: float


class Gathered:
    """Replicas tell all that they counted since they began, so that nothing counts twice and no loss is for ever."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._life, self._born, self._is_anew = uuid.uuid4().hex, clock(), False
        self._heard: dict[str, _Heard] = {}
        self._gone = State()
        self._gone_names: set[str] = set()

    def put(self, replica: str, state: State | None, life: str = "") -> str:
        """`None`: nothing new. `life`: that the replica was answered last, by this one or one that was lost.

        Gives the own one; empty: this replica is not known, it is to tell its state.
        """
        self._is_anew = self._is_anew or life not in ("", self._life)
        if replica in self._gone_names:  # its counts are in the sum already
            return self._life
        if state is None and replica not in self._heard:
            return ""
        told = self._heard[replica].state if state is None else state
        self._heard[replica] = _Heard(told, self._clock())
        self._fold()
        return self._life

    def total(self) -> State:
        """Counters of all; what is in work, and with which model, of those that are alive."""
        now = self._clock()
        states = (heard.state if now - heard.at < ALIVE_S else heard.state.history() for heard in self._heard.values())
        return added((self._gone, *states))

    def counted(self) -> Counted:
        return Counted(self._life, frozenset(self._heard) | self._gone_names, self.total())

    @property
    def is_partial(self) -> bool:
        """Whether replicas that told one before, which was lost, may not have told this one yet."""
        return self._is_anew and self._clock() < self._born + _SETTLES_S

    @property
    def is_alone(self) -> bool:
        return all(self._clock() - heard.at > ALIVE_S for heard in self._heard.values())

    def _fold(self) -> None:
        now = self._clock()
        for replica in [name for name, heard in self._heard.items() if now - heard.at > _GONE_S]:
            self._gone = added((self._gone, self._heard.pop(replica).state.history()))
            self._gone_names.add(replica)
