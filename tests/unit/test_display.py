"""What a person sees of training: lines in a log, one refreshed line on a terminal, scalars in TensorBoard."""

import io
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage.stores import Stores
from pipeline.training.board import Board
from pipeline.training.display import Display
from pipeline.training.pace import Pace

ROW = {
    "train_loss": 0.5, "val_loss": 0.25, "val_auc": 0.75, "val_accuracy": 0.5, "val_balanced_accuracy": 0.625,
    "learning_rate": 1e-3, "seconds": 60.0, "train_seconds": 50.0, "images_per_s": 34.0, "waiting_share": 0.02,
}  # fmt: skip


class Rows:
    """A board that remembers what it was given."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def add(self, row: dict[str, float]) -> None:
        self.epochs.append(int(row["epoch"]))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def step(number: int, epoch: int = 1) -> dict[str, Any]:
    speed = {"images_per_s": 30.0, "waiting_share": 0.1}
    return {"kind": "step", "epoch": epoch, "step": number, "steps": 10, "loss": 0.7, **speed}


def epoch(number: int, *, best: int, finished: bool = False) -> dict[str, Any]:
    row = ROW | {"epoch": number, "ended_at": 1e9 + number}
    return {"kind": "epoch", "row": row, "best_epoch": best, "finished": finished}


def shown(*events: dict[str, Any], out: io.StringIO, monitor: str = "val_auc") -> tuple[str, list[int]]:
    rows = Rows()
    display = Display(4, monitor, rows, out)  # type: ignore[arg-type]  # a board by its one method
    for event in events:
        display.show([event])
    return out.getvalue(), rows.epochs


def test_a_log_has_the_first_step_at_once_and_no_line_for_each_of_the_others() -> None:
    lines = shown(step(1), step(2), step(3), out=io.StringIO())[0].splitlines()
    assert lines == ["epoch   1/4  step 1/10  loss 0.7000  30 images/s  waiting 10%"]


def test_an_epoch_tells_losses_metric_speed_waiting_and_the_time_left() -> None:
    text, rows = shown(epoch(1, best=1), epoch(2, best=1), out=io.StringIO())
    first, second = text.splitlines()
    assert first == (
        "epoch   1/4  loss 0.5000  val loss 0.2500  val AUC 0.7500  34 images/s  left <= 3 min 00 s  waiting 2%  best"
    )
    assert "left <= 2 min 00 s" in second
    assert rows == [1, 2]


def test_the_last_epoch_leaves_no_time_however_early_it_is() -> None:
    assert "left <= 0 s" in shown(epoch(2, best=1, finished=True), out=io.StringIO())[0]


def test_a_fold_whose_last_epoch_is_kept_calls_none_the_best() -> None:
    out = io.StringIO()
    Display(4, "val_auc", Rows(), out, chooses=False).show([epoch(1, best=1)])  # type: ignore[arg-type]
    assert out.getvalue().splitlines()[0].endswith("waiting 2%")


def test_the_balanced_accuracy_that_chooses_among_classes_is_shown() -> None:
    assert "bal. acc. 0.625" in shown(epoch(1, best=1), out=io.StringIO(), monitor="val_balanced_accuracy")[0]


def test_a_terminal_has_one_line_that_is_written_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = shown(step(1), step(2), epoch(1, best=1), step(1, epoch=2), out=Terminal())[0]
    steps = [part for part in text.split("\r\x1b[K") if "step" in part]
    assert len(steps) == 3 and all(len(part) < 40 and "\n" not in part for part in steps)
    assert text.count("\n") == 1


def test_of_many_steps_at_once_the_newest_is_shown() -> None:
    out = Terminal()
    Display(4, "val_auc", Rows(), out).show([step(1), step(2), step(3)])  # type: ignore[arg-type]
    assert "step 3/10" in out.getvalue() and "step 2/10" not in out.getvalue()


def test_time_left_is_told_from_the_steps_of_the_first_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 10.0])
    monkeypatch.setattr("pipeline.training.display.time.monotonic", lambda: next(moments))
    text = shown(step(1), step(6), out=Terminal())[0]  # five steps took 10 s; 34 of 40 are left
    assert "left <= 68 s" in text


def test_a_continued_run_shows_its_past_where_it_was() -> None:
    past = [ROW | {"epoch": 1, "step": 10, "ended_at": 1e9}, ROW | {"epoch": 2, "step": 20, "ended_at": 1e9}]
    text, rows = shown(
        {"kind": "started", "history": past, "step": int(past[-1]["step"]), "how": "cpu"},
        epoch(3, best=3),
        out=io.StringIO(),
    )
    assert text.startswith("training on cpu\ncontinuing after epoch 2, from its checkpoint\n")
    assert rows == [1, 2, 3]


def test_pace_tells_waiting_from_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("pipeline.training.pace.time.monotonic", lambda: clock[0])

    def images() -> Any:
        for number in range(4):
            clock[0] += 1.0
            yield number

    pace = Pace()
    for _ in pace.waiting_for(images()):
        clock[0] += 3.0
    pace.end()
    clock[0] += 100.0
    assert pace.seconds == 16.0
    assert pace.waiting_share == 0.25


def test_scalars_are_in_groups_and_at_the_time_of_their_epoch(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = Board(str(tmp_path), Stores())
    board.add(ROW | {"epoch": 3, "ended_at": 1e9})
    board.close()
    [file] = os.listdir(tmp_path)
    events = EventAccumulator(str(tmp_path / file)).Reload()
    assert {"train/loss", "train/learning_rate", "val/auc", "speed/images_per_s"} <= set(events.Tags()["scalars"])
    [point] = events.Scalars("val/auc")
    assert (point.wall_time, point.step, point.value) == (1e9, 3, 0.75)
