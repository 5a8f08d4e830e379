"""TensorBoard's own reader finds in a run's files what the run told, once."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.storage.stores import Stores
from pipeline.training.board import Board


def test_a_continued_run_shows_each_epoch_once_at_the_time_it_ended(tmp_path: Path) -> None:
    rows = [{"epoch": float(epoch), "ended_at": 1000.0 + epoch, "train_loss": 1.0 / epoch} for epoch in (1, 2, 3)]
    for told in (rows[:2], rows):  # interrupted after two epochs, then told from the first on
        board = Board(str(tmp_path), Stores())
        for row in told:
            board.add(row)
        board.close()
        for path in tmp_path.iterdir():  # files are read in the order of their names, which have the second
            path.rename(path.with_name(path.name.replace("tfevents.", f"tfevents.0{len(told)}.", 1)))
    reader = EventAccumulator(str(tmp_path))
    reader.Reload()
    read = [(each.step, round(each.value, 4), each.wall_time) for each in reader.Scalars("train/loss")]
    assert read == [(1, 1.0, 1001.0), (2, 0.5, 1002.0), (3, 0.3333, 1003.0)]
