"""`leukoray train --dry-run`: it measures, tells and draws; it starts no Ray, publishes nothing and locks nothing."""

import re
from pathlib import Path

import pytest
import ray
import torch
from PIL import Image

from jobs import train
from pipeline.base.errors import PlatformError
from pipeline.training import rehearsal
from pipeline.training.memory import refusing_for_memory
from pipeline.training.rehearsal import _forget_peak, _peak_bytes
from tests.training_data import cell_images, manifest_of

SMALL = ["--architecture", "cnn", "--input-size", "32", "--batch-size", "8"]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("cells")
    return manifest_of(cell_images(folder / "images", 48), folder / "manifest").uri


def rehearsed(manifest: str, out: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert train.command([manifest, "--out", str(out), *SMALL, *more, "--dry-run"]) == 0
    return capsys.readouterr().out


def test_the_plan_is_told_and_nothing_is_left_but_a_picture(
    manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    flags = ["--architecture", "efficientnet-lite0", "--unfreeze", "last", "--epochs", "3", "--workers", "2"]
    told = rehearsed(manifest, tmp_path, capsys, *flags)
    assert not ray.is_initialized()
    assert re.search(r"^workers: 2", told, re.MULTILINE)
    assert re.search(r"^given .*\bunfreeze=last\b.*\bepochs=3\b", told, re.MULTILINE)
    assert re.search(r"^chosen .*\blearning_rate=\S+", told, re.MULTILINE)
    found = re.search(r"32 px: ([\d,]+) parameters, ([\d,]+) of them train", told)
    assert found is not None
    total, training = (int(number.replace(",", "")) for number in found.groups())
    assert 0 < training < total
    assert "3 epochs of 4 steps of 8 images: 12" in told
    assert re.search(r"^time +about \d+ s, an epoch \d+ s \(\d+ images/s\)", told, re.MULTILINE)
    assert re.search(r"^memory +[\d,]+ MB a worker, 2 of them", told, re.MULTILINE)
    [picture] = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert str(picture) in told
    with Image.open(picture) as image:
        assert image.width > 8 * 100


def test_a_head_that_is_fitted_has_no_steps_to_tell(
    manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    flags = [manifest, "--out", str(tmp_path), "--unfreeze", "head", "--input-size", "32", "--dry-run"]
    assert train.command([*flags, "--architecture", "efficientnet-lite0"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^features +of 48 images: about \d+ s on \d+ cores", told, re.MULTILINE)
    found = re.search(r"^memory +(\d+) MB for features and fit, [\d,]+ MB are free", told, re.MULTILINE)
    assert found is not None and int(found[1]) == round((2 * 48 * 4 * 4 + 32 * 4 * 8) * 1280 / 1e6)
    assert "learning_rate" not in told.split("train: 32 images")[1]
    assert not list(tmp_path.rglob("*"))
    assert train.command([*flags, "--epochs", "3", "--label-smoothing", "0.1"]) == 2
    assert "--epochs, --label-smoothing: a head alone is fitted to its optimum" in capsys.readouterr().err


def test_a_head_whose_features_memory_does_not_hold_is_refused_before_they_are_computed(
    manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.training.probe.usable_memory", lambda: (8 << 30, 1 << 20))
    flags = ["--unfreeze", "head", "--input-size", "32", "--architecture", "efficientnet-lite0", "--cache", "none"]
    assert train.command([manifest, "--out", str(tmp_path / "models"), *flags]) == 5
    said = capsys.readouterr().err
    assert "the features of 48 images and a head's fit take 0.0 GB of memory, 0.0 GB are free; train with" in said


def test_folds_take_as_many_runs_and_one_more(
    manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    rows = [row | {"subject_id": f"s{number % 12}"} for number, row in enumerate(cell_images(tmp_path / "images", 48))]
    for row in rows:
        row["split"] = "validation" if row["subject_id"] in ("s4", "s5") else "train"
    uri = manifest_of(rows, tmp_path / "manifest", split_rule="subjects").uri
    told = rehearsed(uri, tmp_path / "out", capsys, "--epochs", "2", "--workers", "1", "--folds", "3")
    assert "4 runs of 2 epochs of 4 to 5 steps of 8 images: 34" in told  # folds train on 32 images, the last run on 40


def test_a_set_without_one_usable_image_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = cell_images(tmp_path / "images", 12)
    for row in rows:
        Path(row["uri"]).write_bytes(b"damaged")
    uri = manifest_of(rows, tmp_path / "manifest").uri
    assert train.command([uri, "--out", str(tmp_path / "out"), *SMALL, "--workers", "1", "--dry-run"]) == 4
    assert "can be used" in capsys.readouterr().err


def test_memory_is_that_of_the_steps_and_not_of_what_came_before() -> None:
    held = bytearray(400 << 20)  # as the choice of a crop may take, long given back
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
    before = _peak_bytes(torch.device("cpu"))
    del held
    _forget_peak()
    assert _peak_bytes(torch.device("cpu")) < before - (300 << 20)


def test_a_batch_of_which_a_worker_has_nothing_to_normalize_by_is_refused(
    manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    flags = ["--architecture", "resnet18", "--input-size", "32", "--batch-size", "3", "--workers", "2", "--dry-run"]
    assert train.command([manifest, "--out", str(tmp_path), *flags]) == 2
    assert "--batch-size 3: with 2 workers a part of it is one image" in capsys.readouterr().err


def test_a_batch_that_the_memory_does_not_hold_is_refused_in_a_sentence(
    manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(rehearsal, "begun", lambda *_, **__: torch.empty(10**15))  # torch's own error
    assert train.command([manifest, "--out", str(tmp_path), *SMALL, "--workers", "1", "--dry-run"]) == 5
    said = capsys.readouterr().err
    assert "the machine has not the memory for it" in said and "raise --accumulate" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "the GPU has not .* allocate 2 GiB"),
        (MemoryError("Unable to allocate 9 TiB for an array"), "the machine has not .* 9 TiB"),
        (RuntimeError("element 0 of tensors does not require grad"), None),
    ],
)
def test_only_a_want_of_memory_is_called_one(error: Exception, refused: str | None) -> None:
    expected: tuple[type[Exception], str] = (PlatformError, refused) if refused else (RuntimeError, "^element 0 of")
    with pytest.raises(expected[0], match=expected[1]), refusing_for_memory():
        raise error
