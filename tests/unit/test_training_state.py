"""Where a run stands, when it ends, and what is said when it learns nothing that holds."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import OutOfMemoryError

from jobs.common import told
from pipeline.base.errors import IncompleteError, PlatformError
from pipeline.training import loop
from pipeline.training.checkpoint import State
from pipeline.training.decoded import Note, Noted
from pipeline.training.loop import _refuse_losses
from pipeline.training.suspicion import suspicion
from pipeline.training.validation import Scores
from pipeline.training.watch import explained
from tests.training_settings import training_settings


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


@pytest.mark.parametrize("epoch_steps", [0, 10])
@pytest.mark.parametrize(
    ("steps", "step", "done"), [(10, 24, 4), (12, 24, 4), (8, 24, 4), (3, 24, 2), (12, 20, 0), (9, 20, 0)]
)
def test_a_run_goes_on_where_it_was_also_where_its_epochs_have_become_longer_or_shorter(
    epoch_steps: int, steps: int, step: int, done: int
) -> None:
    """Images that a store did not give before the interruption are tried again after it."""
    before = replace(run([0.6, 0.5]), step=step, losses=8.0, epoch_steps=epoch_steps)
    now = before.in_epochs_of(steps)
    assert (now.epoch, now.step - 2 * steps, now.beaten_at, now.epoch_steps) == (2, done, steps, steps)
    assert now.losses == 8.0 * done / max(1, step - 20)
    assert now.in_epochs_of(steps) == now
    ended = now.after({"val_auc": 0.5, "val_loss": 1.0, "step": 3.0 * steps}, "val_auc", 2 * steps, 9 * steps)
    assert ended.finished and ended.epoch_steps == steps, "patience of two epochs is over"


def test_a_run_that_begins_is_at_its_first_step() -> None:
    assert (State().in_epochs_of(7).step, State().in_epochs_of(7).epoch_steps) == (0, 7)
    within = State(step=5, losses=2.0, epoch_steps=10)
    assert (within.in_epochs_of(20).step, within.in_epochs_of(20).losses) == (5, 2.0)


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


class _Split:
    """A hundred images of three classes, of whose last there are two; `damaged` of them are known to be."""

    image_ids = np.arange(100)
    targets = np.where(image_ids >= 98, 2, image_ids % 2)

    def __init__(self, *damaged: int) -> None:
        self._noted = Noted(100, {number: Note("truncated", "", None) for number in damaged})

    def noted(self) -> Noted:
        return self._noted


def _losing(train: _Split, validation: _Split, choose: str = "best") -> Any:
    settings = training_settings(task="multiclass", classes=("a", "b", "c"), choose=choose)
    return SimpleNamespace(
        settings=settings, train=train, validation=validation, sender=SimpleNamespace(left_out=lambda _: None),
        assignment=SimpleNamespace(supply=SimpleNamespace(cache="held"), max_error_share=0.05),
    )  # fmt: skip


@pytest.mark.parametrize(("train", "validation", "what"), [((98, 99), (), "training"), ((), (98, 99), "validation")])
def test_a_class_that_damage_has_taken_whole_is_named(train: Any, validation: Any, what: str) -> None:
    """Few damaged images pass --max-error-share; of a rare class they may be all."""
    with pytest.raises(IncompleteError, match=f"no usable {what} image of class c is left"):
        _refuse_losses(_losing(_Split(*train), _Split(*validation)))
    _refuse_losses(_losing(_Split(1, 2, 98), _Split(99)))
    _refuse_losses(_losing(_Split(), _Split(98, 99), choose="last"))


@pytest.mark.parametrize("spoilt", [np.nan, np.inf])
def test_weights_that_say_no_number_are_refused_as_a_loss_that_is_none(
    spoilt: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step of an epoch may spoil them after its loss was finite; no restart would cure it."""
    logits = np.zeros((8, 3), np.float32)
    logits[5, 1] = spoilt
    scores = Scores(np.arange(8), np.arange(8) % 3, logits)
    worker = SimpleNamespace(
        settings=training_settings(), model=None, validation=None, learner=SimpleNamespace(device="cpu")
    )
    monkeypatch.setattr(loop, "_start", lambda _: (worker, State(), None))
    monkeypatch.setattr(loop, "_train_epoch", lambda *_: (0.5, None))
    monkeypatch.setattr(loop, "validate", lambda *_: scores)
    for name in ("_refuse_losses", "_tell_plan", "_settle"):
        monkeypatch.setattr(loop, name, lambda *_: None)
    refused = loop.train_worker(SimpleNamespace())  # type: ignore[arg-type]
    said = "what the network says of 1 of 8 validation images is not finite after epoch 1; lower --learning-rate"
    assert refused == {"refused": said}


def test_a_run_whose_processes_ray_ended_for_want_of_memory_is_no_bug(capsys: pytest.CaptureFixture[str]) -> None:
    ended = OutOfMemoryError("4 worker(s) were killed due to the node running low on memory.\nObject store memory: ...")
    error = explained(ended, "/models/leukoray/.runs/1")
    assert isinstance(error, PlatformError) and "the same command continues" in str(error)
    for what in (error, ended):
        assert told("leukoray train", what) == PlatformError.exit_code
        [line] = capsys.readouterr().err.splitlines()
        assert "4 worker(s) were killed" in line and "free memory" in line
