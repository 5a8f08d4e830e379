"""When workers stop between two steps: together, seldom, and in time."""

import itertools
from collections.abc import Callable

import pytest

from pipeline.training.midway import Costs, Midway, Notice, Stop


class Time:
    """A clock that steps, questions and checkpoints move on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def stops(
    steps: int, step_s: float, save_s: float = 0.0, ask: Callable[[Time, int], Notice | None] | None = None
) -> dict[int, Stop]:
    """Where one worker alone stops, by step."""
    clock, found = Time(), {}
    at = 0
    question = None if ask is None else lambda: ask(clock, at)
    midway = Midway(lambda costs: [costs], question, clock=clock)
    for at in range(1, steps + 1):
        clock.now += step_s
        stop = midway.after_step()
        if stop is not None:
            found[at] = stop
            clock.now += save_s
            midway.saved(save_s)
        if stop is Stop.SAVE_AND_LEAVE:
            break
    return found


@pytest.mark.parametrize(("step_s", "save_s", "between_s"), [(0.5, 0.1, 60.0), (20.0, 0.1, 60.0), (1.0, 3.0, 150.0)])
def test_a_checkpoint_comes_every_minute_and_takes_a_fiftieth_of_the_time_at_most(
    step_s: float, save_s: float, between_s: float
) -> None:
    found = sorted(stops(2000, step_s, save_s))
    gaps = [(after - before) * step_s for before, after in itertools.pairwise(found)]
    assert gaps == pytest.approx([between_s] * len(gaps)) and gaps


def test_questions_take_a_hundredth_of_the_time_and_none_comes_before_a_step_is_known() -> None:
    asked: list[int] = []

    def ask(clock: Time, at: int) -> None:
        asked.append(at)
        clock.now += 0.02

    stops(1000, 0.1, ask=ask)
    assert asked[0] >= 4
    assert 0.02 * len(asked[1:]) <= 0.0101 * 0.1 * 1000 and len(asked) > 40


def test_a_notice_costs_no_more_steps_than_lie_between_two_questions() -> None:
    def ask(clock: Time, at: int) -> Notice | None:
        clock.now += 0.02
        return Notice.LEAVE if at > 100 else None

    ((at, stop),) = stops(1000, 0.1, ask=ask).items()
    assert stop is Stop.SAVE_AND_LEAVE and 100 < at <= 100 + 22


def test_where_the_others_have_no_room_workers_stay_and_save_every_few_seconds() -> None:
    def ask(clock: Time, at: int) -> Notice | None:
        return Notice.STAY if at > 100 else None

    found = [at for at in stops(400, 0.5, 0.1, ask) if at > 100]
    assert found[0] == 101
    assert {after - before for before, after in itertools.pairwise(found)} == {10}


def test_all_workers_plan_by_the_slowest() -> None:
    clock = Time()
    quick = Midway(lambda costs: [costs, Costs(step=30.0)], None, clock=clock)
    found = []
    for at in range(1, 9):
        clock.now += 0.1
        if quick.after_step():
            found.append(at)
            quick.saved(0.0)
    assert found == [4, 6, 8]
