"""The search job without Ray: what it refuses, what it keeps of a trial, and the command that it ends with."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from jobs import tune
from jobs.config import parse
from jobs.train_options import TrainConfig
from jobs.tune import TUNABLE, WHOLE, TuneConfig, command_of
from pipeline.base.errors import UsageError
from pipeline.storage.stores import Stores
from pipeline.training.checkpoint import State
from pipeline.training.rows import labelled_rows
from pipeline.training.search_folder import Search, keep
from pipeline.training.search_space import proposal, read_space

ROW = {"epoch": 1, "val_auc": 0.5, "val_loss": 0.7}


@pytest.fixture
def search(tmp_path: Path) -> Search:
    proposals = {0: {}, 1: {"learning_rate": "0.01"}}
    return Search(str(tmp_path / "m" / ".searches" / "abc"), Stores(), lambda: None, proposals, "val_auc", 3)


def files(epoch: int, *, finished: bool = False) -> dict[str, bytes]:
    rows = [ROW | {"epoch": number} for number in range(1, epoch + 1)]
    state: dict[str, Any] = vars(State(epoch=epoch, history=rows, finished=finished))
    return {"last.safetensors": b"weights", "state.json": json.dumps(state).encode()}


def test_everything_that_is_searched_is_an_option_of_training() -> None:
    assert set(TUNABLE) <= set(TrainConfig.model_fields)


@pytest.mark.parametrize(
    ("space", "words"),
    [("seed=1,2", "cannot be searched"), ("batch_size=0,8", "--batch-size '0'"), ("optimizer=sgd,adam", "--optimizer")],
)
def test_what_cannot_be_searched_is_refused_before_anything_starts(
    space: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.training_data import cell_images, manifest_of

    manifest = manifest_of(cell_images(tmp_path / "images", 12), tmp_path / "manifest").uri
    assert tune.command([manifest, "--out", str(tmp_path), "--trials", "4", "--space", space]) == 2
    assert words in capsys.readouterr().err


def test_folds_are_for_the_best_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.command(["manifest", "--folds", "5"]) == 2
    assert "leukoray train --folds" in capsys.readouterr().err


def test_a_search_is_never_taken_for_its_rehearsal(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.command(["manifest", "--dry-run"]) == 2
    assert "leukoray train --dry-run" in capsys.readouterr().err


def test_a_trial_has_one_checkpoint_and_then_a_record(search: Search) -> None:
    assert search.trial(1).ending == "unfinished" and search.trial(1).history == []
    for epoch in (1, 2):
        keep(search.run(1), epoch, files(epoch))
    assert [path.name for path in Path(search.run(1).uri).iterdir()] == ["checkpoint_000002"]
    assert [row["epoch"] for row in search.trial(1).history] == [1, 2]
    assert search.end(1).ending == "stopped"
    assert [path.name for path in Path(search.run(1).uri).iterdir()] == ["trial.json"]
    assert search.trial(1) == search.trials()[1]
    assert (search.trial(1).ending, search.trial(1).proposal) == ("stopped", {"learning_rate": "0.01"})


def test_a_checkpoint_without_its_last_file_is_none(search: Search) -> None:
    keep(search.run(0), 1, files(1))
    torn = Path(search.run(0).uri) / "checkpoint_000002"
    torn.mkdir()
    (torn / "last.safetensors").write_bytes(b"half")
    assert len(search.trial(0).history) == 1


def test_how_a_trial_ended_is_told(search: Search) -> None:
    keep(search.run(0), 1, files(1, finished=True))
    assert search.end(0).ending == "finished"
    keep(search.run(1), 1, files(1))
    assert search.end(1, failure="failed: the loss is not finite").ending == "failed: the loss is not finite"


def test_the_command_of_the_best_is_the_search_with_its_values() -> None:
    given = ["/m an/", "--out", "/o", "--no-augment", "--trials", "9", "--workers", "4", "--batch-size", "8"]
    config = parse(TuneConfig, given, prog="tune")
    planned = config.model_copy(update={"epochs": 13, "patience": 6})  # by the first start; a trial's may be another
    values = {"learning_rate": "0.002", "balance": "sample", "batch_size": "16", "weights": "none"}
    words = shlex.split(command_of(config, planned, values))
    assert words[:3] == ["leukoray", "train", "/m an"]
    found = parse(TrainConfig, words[2:], prog="train")
    assert (found.learning_rate, found.batch_size, found.augment, found.balance) == (0.002, 16, False, "sample")
    assert found.workers is None and found.out == "/o"
    assert (found.weights, found.epochs, found.patience) == ("none", 13, 6)


def test_whole_numbers_are_drawn_for_options_that_take_them() -> None:
    space = read_space(["batch_size=16..64", "learning_rate=1e-4..1e-2"], TUNABLE, WHOLE)
    drawn = [proposal(space, number, seed=0) for number in range(1, 30)]
    made = [parse(TrainConfig, ["m", "--batch-size", each["batch_size"]], prog="train").batch_size for each in drawn]
    assert 16 <= min(made) < 20 and 55 < max(made) <= 64 and len(set(made)) > 15
    with pytest.raises(UsageError, match="LOW and HIGH must be whole numbers"):
        read_space(["batch_size=16..64.5"], TUNABLE, WHOLE)


def test_a_search_whose_trials_all_failed_names_no_best_when_it_is_given_again(search: Search) -> None:
    from pipeline.base.resources import ClusterPlan
    from pipeline.training.search import search as carry_out
    from pipeline.training.watch import RefusedError

    keep(search.run(0), 1, files(1))  # an epoch that went well does not save it
    for number in (0, 1):
        search.end(number, failure="failed: the loss is not finite in epoch 2; lower --learning-rate")
    rows: Any = None  # nothing is left to train
    with pytest.raises(RefusedError, match="trial 0: failed: the loss is not finite in epoch 2") as refused:
        carry_out(
            search, {}, rows, ClusterPlan("tune", 1, 1.0), teacher=None, threads=1, max_error_share=0.05, say=print
        )  # fmt: skip
    assert refused.value.exit_code == 4


def test_a_trial_that_training_refused_ends_as_training_does_and_one_of_the_machine_is_left(search: Search) -> None:
    from types import SimpleNamespace

    from pipeline.training.search import _Ledger

    ledger = _Ledger(search, print)
    for number, result in ((0, {"failure": "the loss is not finite"}), (1, {"failure": "disk full", "exit_code": 5})):
        trial: Any = SimpleNamespace(config={"trial": number}, last_result=result)
        ledger.on_trial_complete(1, [], trial)
    codes: list[Any] = [vars(failure)["exit_code"] for failure in ledger.failures]
    assert codes == [4, 5]
    assert [trial.ending for trial in search.trials()] == ["failed: the loss is not finite", "unfinished"]


def test_a_space_of_few_choices_is_tried_once(tmp_path: Path) -> None:
    from tests.training_data import cell_images, manifest_of

    manifest = manifest_of(cell_images(tmp_path / "images", 12), tmp_path / "manifest")
    space = ["batch_size=4,8", "augment=true,false"]
    given = [
        manifest.uri,
        "--architecture",
        "cnn",
        "--batch-size",
        "8",
        "--trials",
        "12",
        "--epochs",
        "1",
        "--space",
        *space,
    ]
    config = parse(TuneConfig, given, prog="tune")
    proposals = {number: proposal(read_space(space, TUNABLE, WHOLE), number, 0) for number in range(12)}
    candidates = tune._candidates(config, proposals, 1, labelled_rows(manifest), None, Stores())
    different = tune._different(candidates)
    tried = [(each.settings.batch_size, each.settings.augment) for each in different.values()]
    assert sorted(tried) == [(4, False), (4, True), (8, False), (8, True)]
    assert tried[0] == (8, True) and next(iter(different)) == 0, "the settings as given are what others are compared to"
    assert list(different) == sorted(different)
