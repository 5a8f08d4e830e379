"""A run in MLflow, in a real sqlite store; and what becomes of training where no server answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import train
from pipeline.base.errors import UsageError
from pipeline.storage.stores import Stores
from pipeline.training.run_folder import TrainingRun
from pipeline.training.tracking import Described, Tracker, check_tracking_uri, tracking_uri
from tests.bundles import make_bundle

mlflow = pytest.importorskip("mlflow")
DIGEST = "0123456789" * 6
DESCRIBED = Described({"epochs": 3, "classes": ("a", "b"), "augment": True}, "s3://lab/manifest", DIGEST, {}, True)


def row(epoch: int) -> dict[str, float]:
    return {"epoch": epoch, "train_loss": 1.0 / epoch, "val_auc": 0.5, "ended_at": 1.7e9 + epoch}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store, whose tables are made once: seconds."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture
def tracked(store: Path, tmp_path: Path) -> tuple[Callable[[], Tracker], list[str], str]:
    """What opens the same run again and again; what it says; the store's address."""
    said: list[str] = []
    run = TrainingRun(str(tmp_path / "registry" / "cells" / ".runs" / "abc"), Stores(), lambda: None)
    uri = f"sqlite:///{store}/ml.db"
    return lambda: Tracker(uri, DESCRIBED, run, said.append), said, uri


def test_a_run_has_parameters_metrics_the_manifest_and_the_bundle(tracked: Any, store: Path, tmp_path: Path) -> None:
    begin, said, uri = tracked
    version = tmp_path / "registry" / "cells" / "v1"
    bundle = make_bundle(version, name="cells", training={"best_epoch": 2}, synthetic=True)
    tracker = begin()
    tracker.add(row(1))
    tracker.close("KILLED")
    tracker = begin()  # the same command again: its history, and what comes after it
    tracker.add(row(1))
    tracker.add(row(2))
    tracker.published(bundle, is_best=True, metrics={"roc_auc": 0.75, "f1": None})
    tracker.close()
    assert said == []
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("cells")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"epochs": "3", "classes": "a, b", "augment": "true"}
    losses = client.get_metric_history(run.info.run_id, "train_loss")
    assert [(point.step, point.value, point.timestamp) for point in losses] == [
        (1, 1.0, 1_700_000_001_000),
        (2, 0.5, 1_700_000_002_000),
    ]
    [dataset] = [given.dataset for given in run.inputs.dataset_inputs]
    assert DIGEST.startswith(dataset.digest) and json.loads(dataset.profile)["digest"] == DIGEST
    [model] = client.search_logged_models([experiment.experiment_id])
    assert model.tags["leukoray.best"] == model.tags["synthetic"] == "true"
    assert {(metric.key, metric.value) for metric in model.metrics} == {("validation_roc_auc", 0.75)}
    logged = {path.name for path in Path(model.artifact_location).iterdir()}
    assert logged == {path.name for path in version.iterdir()}
    assert str(store) in model.artifact_location  # not wherever the command was given


def test_a_server_that_does_not_answer_costs_two_lines_and_no_training(tmp_path: Path) -> None:
    said: list[str] = []
    run = TrainingRun(str(tmp_path / "cells" / ".runs" / "abc"), Stores(), lambda: None)
    tracker = Tracker("http://someone:secret@127.0.0.1:9", DESCRIBED, run, said.append)
    for epoch in (1, 2, 3):
        tracker.add(row(epoch))
    tracker.close()
    assert len(said) == 2
    assert said[0].endswith("training goes on without it")
    assert said[1].endswith("the training is not affected")
    assert all("127.0.0.1:9" in line and "secret" not in line for line in said)


def test_a_missing_client_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UsageError, match=r"pip install 'leukoray\[mlflow\]'"):
        tracking_uri("http://mlflow:5000")
    assert tracking_uri(None) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking_uri(None) is None
    assert "leukoray[mlflow]" in capsys.readouterr().out


def test_mlflows_own_variable_is_heeded_and_a_flag_goes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://one")
    assert tracking_uri(None) == "http://one"
    assert tracking_uri("http://two") == "http://two"


def test_a_password_in_the_address_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_tracking_uri("http://mlflow:5000") == "http://mlflow:5000"
    assert train.command(["manifest", "--mlflow", "http://me:secret@mlflow:5000"]) == 2
    assert "MLFLOW_TRACKING_PASSWORD" in capsys.readouterr().err
    for address in ("https://planted-token@mlflow:5000", "https://mlflow:5000?token=planted-token"):
        assert train.command(["manifest", "--mlflow", address]) == 2
        assert "planted-token" not in capsys.readouterr().err
