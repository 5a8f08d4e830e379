"""When workers stop between two steps, to save where they stand or because a node is about to go away.

All must stop at the same step, so they count steps, by a plan they made together from what a step, a checkpoint and a
question cost. A question to Ray Train is a meeting of all workers: it is asked so seldom that it takes no more than
a hundredth of the time.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto

_QUESTION_SHARE = 0.01
_FIRST_STEPS = 4  # before these, nothing is known of how long a step takes
_NEVER = 1 << 60


@dataclass(frozen=True)
class Rhythm:
    """How often to save: every `every_s` seconds, less often where that took more than `share` of the time."""

    every_s: float
    share: float


SAVING = Rhythm(60.0, 0.02)  # what is lost with a node that goes without a word
_HURRY = Rhythm(5.0, 0.2)  # where one is about to go, and the others have no room


class Notice(Enum):
    """What is known of a node that is about to go away."""

    LEAVE = auto()  # the others have room for the workers
    STAY = auto()  # they have not: what is saved until then is kept


class Stop(Enum):
    """What workers do between two steps."""

    SAVE = auto()
    SAVE_AND_LEAVE = auto()


@dataclass(frozen=True)
class Costs:
    """Seconds, as one worker has measured them."""

    step: float = 0.0
    save: float = 0.0
    question: float = 0.0


class Midway:
    """One worker's count of steps. Its answers are the same on all workers, which call it equally often.

    `everyone` gives each worker's value on every worker. `ask` gives the notice that all workers have; None: nobody
    ever asks. `rhythm`: of saving; None: never.
    """

    def __init__(
        self,
        everyone: Callable[[Costs], list[Costs]],
        ask: Callable[[], Notice | None] | None,
        rhythm: Rhythm | None = SAVING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._everyone, self._ask, self._rhythm, self._clock = everyone, ask, rhythm, clock
        self._costs = Costs()
        self._save_every = self._ask_every = _NEVER
        self._done = self._since_save = self._since_question = self._timed = 0
        self._began = clock()

    def epoch_begins(self) -> None:
        """What comes between epochs is no time of steps."""
        self._timed, self._began = 0, self._clock()

    def after_step(self) -> Stop | None:
        """Called after every step. After a stop to save, `saved` follows."""
        self._done += 1
        self._timed += 1
        self._since_save += 1
        self._since_question += 1
        if self._done == _FIRST_STEPS:
            self._plan()
        if self._ask is not None and self._since_question >= self._ask_every:
            notice = self._question(self._ask)
            if notice is Notice.LEAVE:
                return Stop.SAVE_AND_LEAVE
            if notice is Notice.STAY and self._rhythm is not _HURRY:
                self._rhythm = _HURRY
                self._plan()
                return Stop.SAVE
        return Stop.SAVE if self._since_save >= self._save_every else None

    def saved(self, seconds: float) -> None:
        """A checkpoint was made, here or at the end of an epoch, which took this worker so long."""
        self._costs = replace(self._costs, save=seconds)
        self._since_save = 0
        self._began += seconds
        if self._done >= _FIRST_STEPS:
            self._plan()

    def _question(self, ask: Callable[[], Notice | None]) -> Notice | None:
        begin = self._clock()
        notice = ask()
        self._costs = replace(self._costs, question=self._clock() - begin)
        self._since_question = 0
        self._plan()
        return notice

    def _plan(self) -> None:
        """How many steps lie between two stops, by what takes longest on any worker."""
        if self._timed:
            self._costs = replace(self._costs, step=(self._clock() - self._began) / self._timed)
        all_costs = self._everyone(self._costs)
        step, save, question = (
            max(getattr(costs, name) for costs in all_costs) for name in ("step", "save", "question")
        )
        if self._rhythm is not None:
            self._save_every = _steps(max(self._rhythm.every_s, save / self._rhythm.share), step)
        self._ask_every = _steps(question / _QUESTION_SHARE, step)


def _steps(seconds: float, step: float) -> int:
    return max(1, round(seconds / max(step, 1e-6)))
