"""The demo on small folders, as a person starts it: every job is a process of its own."""

import json
from pathlib import Path

import pytest

from jobs import demo
from pipeline.model.registry import ModelFolder, resolve
from pipeline.samples import generate
from tests.bundles import make_bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
JOBS_WITH_LABELS = {"ingest", "train", "evaluate", "score", "summary", "serve"}
SMALL = "--architecture cnn --input-size 32 --epochs 1"


@pytest.fixture
def smears(tmp_path: Path) -> Path:
    """48 synthetic images of 12 subjects below leukemia/ and healthy/, in place of somebody's own."""
    folder = tmp_path / "smears"
    generate(folder, images=48, subjects=12, seed=5, width=160, height=120, workers=1)
    return folder


def told_jobs(out: Path) -> set[str]:
    """The jobs whose output was kept."""
    return {log.stem for log in (out / "logs").iterdir()}


def test_a_labelled_folder_goes_the_whole_way(smears: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert demo.command([str(smears), "--out", str(out), "--train-options", SMALL]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert told_jobs(out) == JOBS_WITH_LABELS

    info = json.loads((out / "manifest" / "manifest.json").read_text())
    assert f"24 healthy, 24 leukemia split {info['counts']['splits']['train']} train" in told
    bundle = resolve(str(out / "models" / "smears")).info
    assert (bundle.architecture, bundle.input_size) == ("cnn", 32)  # the demo's own choice, then --train-options
    assert f"best.json -> {bundle.version}" in told
    assert json.loads((out / "report" / "metrics.json").read_text())["images"] == info["counts"]["splits"]["test"]
    (run,) = (path for path in (out / "scores").iterdir() if path.is_dir())
    counts = json.loads((run / "run.json").read_text())["counts"]
    assert (counts["listed"], counts["scored"]) == (48, 48)
    assert "listed 48 = scored 48 + 0 quarantined" in told
    assert (run / "summary.html").is_file() and f"{run}/" in told
    assert "POST /predict S" in told and "(leukemia) ->" in told


def test_images_of_one_class_are_scored_by_a_model_of_samples_that_says_so(
    smears: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    model = out / "models" / demo.SYNTHETIC
    ModelFolder(str(model)).point_to(make_bundle(model / "v1", version="v1", synthetic=True))
    assert demo.command([str(smears / "leukemia"), "--out", str(out)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert told_jobs(out) == JOBS_WITH_LABELS - {"train", "evaluate"}
    assert "can be scored, but no model can be trained or evaluated on them" in told
    assert "learned from synthetic samples: its answers mean nothing" in told
    assert "listed 24 = scored 24" in told and "POST /predict S" in told
    assert "report.html" not in told


def test_a_folder_without_images_ends_with_what_ingest_says_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("nothing to see")
    out = tmp_path / "out"
    assert demo.command([str(tmp_path / "notes"), "--out", str(out)]) == 3
    said = capsys.readouterr().err
    assert f"step ingest failed; all of {out}/logs/ingest.log:" in said
    assert f"{tmp_path}/notes: " in said and "Traceback" not in said
    assert told_jobs(out) == {"ingest"}
