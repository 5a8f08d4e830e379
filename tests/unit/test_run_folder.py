"""A run's folder after what may have happened to it: which checkpoint the same command goes on from."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.storage.stores import Stores
from pipeline.training.run_folder import TrainingRun, checkpoint_files

SNAPSHOT = "checkpoint_manager_snapshot.json"


def run_with(folder: Path, whole: list[str], torn: list[str], books: str | None) -> TrainingRun:
    for name in (*whole, *torn):
        (folder / name).mkdir()
        (folder / name / "last.safetensors").write_bytes(b"weights")
    for name in whole:
        (folder / name / "state.json").write_text("{}")
    if books is not None:
        (folder / SNAPSHOT).write_text(books)
    return TrainingRun(str(folder), Stores(), lambda: None)


def books_of(*names: str) -> str:
    return json.dumps({"checkpoint_results": [{"checkpoint_dir_name": name, "metrics": {}} for name in names]})


def test_a_new_run_begins_and_one_whose_books_are_sound_is_left_to_ray(tmp_path: Path) -> None:
    assert run_with(tmp_path, [], [], None).mend() is None
    run = run_with(tmp_path, ["checkpoint_1", "checkpoint_2"], ["checkpoint_3"], books_of("checkpoint_1"))
    assert run.mend() is None and (tmp_path / SNAPSHOT).exists()


@pytest.mark.parametrize(
    "books",
    [None, "", books_of("checkpoint_2")[:-9], "[]", books_of(), books_of("checkpoint_3"), books_of("checkpoint_0")],
    ids=["none yet", "empty", "cut", "no books", "no checkpoint", "a torn one", "one that is gone"],
)
def test_without_sound_books_the_last_whole_checkpoint_is_taken(
    books: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_with(tmp_path, ["checkpoint_1", "checkpoint_2"], ["checkpoint_3"], books)
    assert run.mend() == "checkpoint_2"
    assert not (tmp_path / SNAPSHOT).exists()
    assert ("damaged by an interruption" in capsys.readouterr().out) is (books is not None)
    with checkpoint_files(run.uri, "checkpoint_2", run.stores) as folder:
        assert (folder / "last.safetensors").read_bytes() == b"weights"


def test_a_run_without_a_whole_checkpoint_starts_over(tmp_path: Path) -> None:
    assert run_with(tmp_path, [], ["checkpoint_1"], books_of("checkpoint_1")).mend() is None


def test_a_run_that_was_whole_and_lost_its_books_ends_with_the_checkpoint_it_was_left_with() -> None:
    from pipeline.training.fit import _last_of
    from pipeline.training.watch import RefusedError

    left: Any = SimpleNamespace(resume="checkpoint_2")
    assert _last_of(SimpleNamespace(return_value=None, checkpoint=None), left) == "checkpoint_2"
    reported = SimpleNamespace(return_value=None, checkpoint=SimpleNamespace(path="models/m/.runs/abc/checkpoint_3/"))
    assert _last_of(reported, left) == "checkpoint_3"
    with pytest.raises(RefusedError, match="lower --learning-rate"):
        _last_of(SimpleNamespace(return_value={"refused": "lower --learning-rate"}, checkpoint=None), left)
