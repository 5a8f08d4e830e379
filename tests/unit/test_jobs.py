"""Jobs through their commands, as far as they go without Ray."""

from pathlib import Path

import pytest

from jobs import demo, doctor, samples, train
from tests.training_data import cell_images, manifest_of

SMALL = ("--images", "6", "--subjects", "2", "--width", "64", "--height", "64", "--workers", "1")


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_samples_are_the_same_for_the_same_seed_and_say_what_they_are(tmp_path: Path) -> None:
    assert samples.command(["--out", str(tmp_path / "a"), *SMALL]) == 0
    first = _contents(tmp_path / "a")
    assert samples.command(["--out", str(tmp_path / "a"), *SMALL, "--seed", "1"]) == 0
    second = _contents(tmp_path / "a")
    assert samples.command(["--out", str(tmp_path / "a"), *SMALL]) == 0
    assert _contents(tmp_path / "a") == first != second
    assert sum(name.endswith(".jpg") for name in first) == 6
    assert b"synthetic" in first["SYNTHETIC.txt"].lower()


@pytest.mark.parametrize(("name", "told"), [("patient.jpg", "patient.jpg"), ("S001_0001.jpg", "no SYNTHETIC.txt")])
def test_samples_never_remove_a_file_that_is_not_theirs(
    name: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(b"precious")
    assert samples.command(["--out", str(tmp_path), *SMALL]) == 2
    assert (tmp_path / name).read_bytes() == b"precious"
    assert told in capsys.readouterr().err


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_cluster")
def test_doctor_names_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.command(["--out", str(tmp_path), "--source", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "0 failed" in printed and "needed at least: train" in printed and f"{tmp_path}: readable" in printed


@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--source", "{}/nowhere"), "nowhere: nothing there"),
        (("--model", "{}"), "neither a bundle"),
    ],
)
def test_doctor_fails_with_what_to_do(
    flags: tuple[str, str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.command(["--out", str(tmp_path), flags[0], flags[1].format(tmp_path)]) == 5
    captured = capsys.readouterr()
    assert words in captured.out and "1 failed" in captured.out
    assert "1 checks failed" in captured.err


@pytest.mark.usefixtures("no_cluster")
def test_doctor_knows_a_token_mode_without_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert doctor.command(["--out", str(tmp_path)]) == 5
    assert "copy the cluster's there" in capsys.readouterr().out


def test_a_divided_subject_is_refused_unless_the_split_by_image_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "subject_id": "A"} for row in cell_images(tmp_path / "images", 12)]
    honest = manifest_of(rows, tmp_path / "honest", split_rule="subjects").uri
    assert train.command([honest, "--out", str(tmp_path / "models")]) == 3
    assert "'A' in" in capsys.readouterr().err
    asked = manifest_of(rows, tmp_path / "asked", split_rule="images", warnings=("figures are inflated",)).uri
    too_many = ("--workers", "500")  # stops behind the check, before Ray is started
    assert train.command([asked, "--out", str(tmp_path / "models"), *too_many]) == 2
    captured = capsys.readouterr()
    assert "figures are inflated" in captured.out and "fewer workers" in captured.err


def test_a_manifest_for_testing_alone_is_not_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "split": "test"} for row in cell_images(tmp_path / "images", 4)]
    manifest = manifest_of(rows, tmp_path / "manifest", split_rule="test").uri
    assert train.command([manifest, "--out", str(tmp_path / "models")]) == 3
    assert "is for testing alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/data/Blood cell Cancer [ALL]", "Blood-cell-Cancer-ALL"),
        ("s3://lab/2026", "2026"),
        ("/data/\u00e9\u00e9", "images"),
    ],
)
def test_any_folder_gives_the_demo_a_name_for_its_model(source: str, name: str) -> None:
    assert demo.model_name(source) == name
