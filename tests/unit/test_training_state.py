"""Where a run stands, when it ends, and what is said when it learns nothing that holds."""

from typing import Any

import pytest

from pipeline.training.checkpoint import State
from pipeline.training.suspicion import suspicion


def run(metrics: list[float], *, steps_an_epoch: int = 10, patience: int = 0, steps: int = 1000) -> State:
    state = State()
    for number, metric in enumerate(metrics, 1):
        if state.finished:
            break
        row = {"val_auc": metric, "val_loss": 1.0 / number, "step": float(number * steps_an_epoch)}
        state = state.after(row, "val_auc", patience, steps)
    return state


def test_patience_counts_steps_since_the_metric_was_beaten() -> None:
    state = run([0.6, 0.7, 0.7, 0.69, 0.6, 0.9], patience=30)
    assert (state.finished, state.epoch, state.step, state.beaten_at) == (True, 5, 50, 20)
    assert state.best_epoch == 3  # a tie goes to the lower loss, but buys no patience
    assert run([0.6, 0.7, 0.7, 0.69, 0.6, 0.9], patience=31).best_epoch == 6


def test_a_run_ends_at_its_planned_steps() -> None:
    assert run([0.6] * 9, steps=30).epoch == 3
    assert not run([0.6] * 2, steps=30).finished


def history(values: list[float], losses: list[float], **last: float) -> list[dict[str, float]]:
    rows = [
        {"val_auc": value, "train_loss": loss, "step": 100.0 * number, "val_spread": 1.0}
        for number, (value, loss) in enumerate(zip(values, losses, strict=True), 1)
    ]
    rows[-1] |= last
    return rows


FALLING = [0.70, 0.5, 0.3, 0.2]


@pytest.mark.parametrize(
    ("last", "cause"),
    [
        ({}, "learnt by heart"),
        ({"val_spread": 0.001}, "the same answer"),
        ({"step": 60.0}, "only 60 steps"),
        ({"train_loss": 0.5}, "labels that do not follow"),
        ({"val_auc": 0.1}, "the wrong way round"),
    ],
)
def test_a_falling_loss_without_use_is_named_with_its_cause(last: dict[str, Any], cause: str) -> None:
    found = suspicion(history([0.5, 0.52, 0.48, 0.51], FALLING, **last), "val_auc", (60, 60))
    assert found is not None and cause in found and "auc 0.520 at best, guessing gives 0.5" in found


def test_nothing_is_said_while_it_is_early_or_learns_or_the_loss_stands_still() -> None:
    guessing = [0.5, 0.52, 0.48, 0.51]
    assert suspicion(history(guessing[:2], FALLING[:2]), "val_auc", (60, 60)) is None
    assert suspicion(history([0.5, 0.7, 0.48, 0.51], FALLING), "val_auc", (60, 60)) is None
    assert suspicion(history(guessing, [0.7, 0.69, 0.69, 0.68]), "val_auc", (60, 60)) is None
    assert suspicion(history([0.5, 0.7, 0.48, 0.51], FALLING), "val_auc", (6, 6)) is not None  # of 12 images, noise
