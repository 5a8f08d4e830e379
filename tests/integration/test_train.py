"""Training on two real workers: it learns, adds up, continues after a kill, repeats itself, refuses plainly."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs import evaluate, promote, train
from pipeline.base.record import Record
from pipeline.model.bundle import CARD, WEIGHTS, Bundle, read_bundle
from pipeline.model.prediction import Prediction, predictions
from pipeline.model.predictor import Predictor
from pipeline.model.registry import ModelFolder, resolve, version_uris
from pipeline.model.review import ReviewRule, is_in
from pipeline.model.torch_engine import TorchRunner
from pipeline.sources.manifest import read_manifest
from pipeline.storage.stores import Stores
from tests.lineage import of_file
from tests.training_data import cell_images, manifest_of

SMALL = [
    "--architecture",
    "cnn",
    "--input-size",
    "32",
    "--batch-size",
    "16",
    "--workers",
    "2",
    "--cpus-per-worker",
    "0.5",
    "--learning-rate",
    "0.003",
]


def run_train(manifest: str, out: Any, *more: str) -> int:
    return train.command([manifest, "--out", str(out), *SMALL, *more])


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """97 images, one of them damaged: 65 and 32 that no number of workers divides evenly."""
    folder = tmp_path_factory.mktemp("cells")
    rows = cell_images(folder / "images", 97)
    for number, row in enumerate(rows):  # three subjects to six images, one a split and its like
        row["subject_id"] = f"{row['split']} {number // 6}"
    Path(rows[0]["uri"]).write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    return manifest_of(rows, folder / "manifest").uri


@pytest.fixture(scope="module")
def trained(ray_cluster: Any, manifest: str, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("models")
    told = ("--lineage", str(out / "events.jsonl"))
    assert run_train(manifest, out, "--epochs", "8", "--review-error", "0.1", *told) == 0
    return resolve(str(out / "leukoray"))


def test_lineage_leads_from_the_manifest_to_the_version_of_the_model(trained: Bundle, manifest: str) -> None:
    model = Path(trained.uri).parent
    start, complete = of_file(model.parent / "events.jsonl")
    assert (start["eventType"], complete["eventType"]) == ("START", "COMPLETE")
    assert [(one["name"], one["facets"]["version"]["datasetVersion"]) for one in complete["inputs"]] == [
        (manifest, trained.info.manifest_digest)
    ]
    [output] = complete["outputs"]
    assert (output["name"], output["facets"]["version"]["datasetVersion"]) == (str(model), trained.info.version)


def test_two_workers_learn_an_easy_task(trained: Bundle) -> None:
    assert trained.info.metrics["validation"]["roc_auc"] > 0.9
    assert trained.info.training["images"] == {"train": 65, "validation": 32}
    assert trained.info.training["rejected"] == {"corrupt": 1} or trained.info.training["rejected"] == {"truncated": 1}


def test_the_bundle_knows_its_own_images_and_no_others(trained: Bundle, manifest: str) -> None:
    rule, predictor = trained.info.ood, Predictor(trained)
    assert rule is not None and (rule.training_images, rule.images) == (64, 32)
    assert rule.false_flag_rate == pytest.approx(1 / 33) and "too few" in rule.note
    foreign = predictor.predict_each([np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)])
    assert all(isinstance(said, Prediction) and said.is_ood for said in foreign)
    rows = read_manifest(manifest).split("validation")
    own = predictor.predict_each([predictor.load(Path(row.uri).read_bytes()).pixels for row in rows])
    assert not any(isinstance(said, Prediction) and said.is_ood for said in own)  # the farthest is the limit


def test_every_validation_image_is_scored_exactly_once(trained: Bundle) -> None:
    assert trained.info.reference_scores["count"] == 32


def test_both_engines_give_the_same_probabilities(trained: Bundle, manifest: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    torch_said = TorchRunner(trained.info, trained.file(WEIGHTS), device="cpu")(images)
    expected = [said.probability for said in predictions(trained.info, torch_said.logits)]
    found = [said.probability for said in Predictor(trained, engine="onnx").predict_each(images)]  # type: ignore[union-attr]
    assert np.abs(np.subtract(found, expected)).max() < 1e-5


def test_the_bundle_tells_its_history_and_its_limits(trained: Bundle) -> None:
    history = json.loads(trained.file("report/history.json"))
    assert [row["epoch"] for row in history] == list(range(1, len(history) + 1))
    assert {"train_loss", "val_loss", "val_auc", "images_per_s"} <= set(history[0])
    card = trained.file(CARD).decode()
    assert "not a medical device" in card.lower()
    assert "synthetic" in card.lower()
    review = trained.info.review
    assert review is not None and review.is_promised and review.error == 0.1
    assert trained.info.review_band == review.band(trained.info.threshold)
    assert f"| Review promise | {review} |" in card


def test_tensorboard_files_stay_and_checkpoints_go(trained: Bundle) -> None:
    runs = Path(trained.uri).parent / ".runs"
    [board] = runs.glob("*/tensorboard")
    shown = EventAccumulator(str(board)).Reload().Tags()
    assert "augmented" in shown["images"] and {"train/loss", "val/auc", "speed/waiting_share"} <= set(shown["scalars"])
    assert not list(runs.glob("*/checkpoint_*"))


def test_a_published_model_teaches_another(
    trained: Bundle, manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At another size, on two workers; the bundle says by whom."""
    code = run_train(manifest, tmp_path, "--teacher", trained.uri, "--input-size", "24", "--epochs", "2")
    told = capsys.readouterr()
    assert code in (0, 6), told.err
    assert "teacher: leukoray / " in told.out
    assert re.search(r"^plan: 2 epochs of 4 steps of 16 images, about \d+ s$", told.out, re.MULTILINE)
    [uri] = [uri for uri, _ in version_uris(str(tmp_path / "leukoray"), Stores())]
    teacher = read_bundle(uri).info.training["teacher"]
    assert teacher["identity"] == trained.info.identity()
    assert teacher["manifests"] == [trained.info.manifest_digest]


def test_a_target_sensitivity_moves_the_threshold_of_an_evaluation_and_leaves_the_bundle_alone(
    trained: Bundle, manifest: str, tmp_path: Path
) -> None:
    flags = ["--split", "validation", "--target-sensitivity", "1.0", "--bootstrap", "100"]
    flags += ["--lineage", str(tmp_path / "events.jsonl")]
    before = Path(trained.uri, "bundle.json").read_bytes()
    assert evaluate.command([manifest, "--model", trained.uri, "--out", str(tmp_path), *flags]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["metrics"]["sensitivity"]["value"] == 1.0
    record = Record.model_validate_json((tmp_path / "run.json").read_bytes())
    assert (record.job, record.exit_code, record.counts) == ("evaluate", 0, {"images": found["images"]})
    assert record.digests["manifest"] == trained.info.manifest_digest
    assert record.digests["model"] == trained.with_threshold(found["threshold"]).info.identity()
    assert "highest threshold with validation sensitivity >= 1" in found["provenance"]["Threshold"]
    predictions = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    sick = [row["probability"] for row in predictions if row["label"] == 1]
    assert found["threshold"] < min(sick) < found["threshold"] + 1e-4  # no lower than it must be
    assert {row["decision"] for row in predictions if row["label"] == 1} <= {"positive", "review"}
    assert Path(trained.uri, "bundle.json").read_bytes() == before
    [_, complete] = of_file(tmp_path / "events.jsonl")
    assert [one["name"] for one in complete["inputs"]] == [manifest, str(Path(trained.uri).parent)]
    assert [one["name"] for one in complete["outputs"]] == [str(tmp_path)]


def test_a_review_error_of_an_evaluation_is_its_band_and_is_reported_beside_what_came_of_it(
    trained: Bundle, manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [manifest, "--model", trained.uri, "--out", str(tmp_path), "--split", "validation", "--bootstrap", "100"]
    assert evaluate.command([*command, "--target-sensitivity", "1.0", "--review-error", "0.4"]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    review = found["review"]
    assert review["promise"]["error"] == 0.4 and review["missed"]["value"] <= 0.4 and review["alarmed"]["value"] <= 0.4
    rule = ReviewRule(**{name: review["promise"][name] for name in ReviewRule.model_fields})
    band = rule.band(found["threshold"])
    assert (review["low"], review["high"]) == (band or (None, None))
    rows = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    left = [row for row in rows if row["decision"] == "review"]
    assert len(left) == review["images"] == sum(is_in(band, row["probability"]) for row in rows)
    promised = "Promised on average over new subjects of the laboratory that the model comes from: at most 40 of 100 on"
    assert promised in capsys.readouterr().out
    assert evaluate.command([*command, "--review-error", "0.01"]) == 2
    assert "99 of each are needed for 0.01" in capsys.readouterr().err


def test_a_target_sensitivity_of_training_is_the_bundles_rule(ray_cluster: Any, manifest: str, tmp_path: Path) -> None:
    mlflow = ["--mlflow", "http://127.0.0.1:9"]  # where nobody answers, which changes nothing
    assert run_train(manifest, tmp_path, "--epochs", "1", "--target-sensitivity", "0.9", *mlflow) == 0
    info = resolve(str(tmp_path)).info
    assert info.training["threshold_rule"] == "highest threshold with validation sensitivity >= 0.9"
    assert info.metrics["validation"]["sensitivity"] >= 0.9
    assert info.threshold != 0.5


def test_promote_moves_the_pointer_and_lists(trained: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(Path(trained.uri).parent)
    Path(model, "best.json").unlink()
    assert promote.command([model, "--version", trained.info.version, "--list"]) == 0
    pointer = ModelFolder(model).pointer()
    assert pointer is not None and pointer.version == trained.info.version
    assert f"* {trained.info.version}" in capsys.readouterr().out


def test_promote_refuses_a_version_that_is_not_there(trained: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert promote.command([str(Path(trained.uri).parent), "--version", "nothing"]) == 3
    assert "no bundle here" in capsys.readouterr().err


def test_labels_that_mean_nothing_give_no_best_model(
    ray_cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first of its name is published with the statement; the next is kept, and ends with a code of its own."""
    rows = cell_images(tmp_path / "images", 96)
    for row, label in zip(rows, np.random.default_rng(3).permutation([0, 1] * 48).tolist(), strict=True):
        row["label"], row["class_name"] = label, ("healthy", "early")[label]
    uri, out = manifest_of(rows, tmp_path / "manifest").uri, tmp_path / "models"
    assert run_train(uri, out, "--epochs", "4") == 0
    first = resolve(str(out))
    assert "not shown to be better than chance (0.5): validation roc_auc" in capsys.readouterr().out
    assert "**Not shown to be better than chance" in first.file(CARD).decode()
    assert first.info.against_chance is not None and first.info.against_chance.units == 32
    flags = ["--split", "validation", "--bootstrap", "100", "--out", str(tmp_path / "report")]
    assert evaluate.command([uri, "--model", first.uri, *flags]) == 0
    assert "published as not shown to be better than chance" in (tmp_path / "report" / "report.html").read_text()
    assert run_train(uri, out, "--epochs", "4", "--seed", "1") == 6
    found = capsys.readouterr()
    assert f"best.json stays at {first.info.version}" in found.out and "leukoray promote" in found.err
    assert resolve(str(out)).info.version == first.info.version
    versions = {path.parent.name for path in (out / "leukoray").glob("*/bundle.json")}
    assert len(versions) == 2 and f"{(versions - {first.info.version}).pop()} is kept" in found.err


@pytest.mark.parametrize(
    ("change", "flags", "words"),
    [
        ({"label": None, "class_name": None}, [], "no labels to learn from"),
        ({"split": None}, [], "12 of its images are labelled, none of them is in the train or validation split"),
        ({"label": 1}, ["--task", "binary"], "every labelled image is positive"),
        ({"split": "train"}, [], "no labelled images in the validation split"),
        ({}, ["--architecture", "alexnet"], "unknown; one of cnn"),
        ({}, ["--workers", "500"], "fewer workers"),
        ({}, ["--weights", "nothing.pth"], "does not exist"),
        ({"subject_id": "A"}, [], "A"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_plain_words(
    change: dict[str, Any], flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, **change} for row in cell_images(tmp_path / "images", 12)]
    uri = manifest_of(rows, tmp_path / "manifest").uri
    code = run_train(uri, tmp_path / "models", *flags)
    error = capsys.readouterr().err
    assert code in (2, 3)
    assert words in error
    assert "Traceback" not in error


def test_too_many_damaged_images_stop_training_with_their_codes(
    ray_cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = cell_images(tmp_path / "images", 24)
    for row in rows[:4]:
        Path(row["uri"]).write_bytes(b"")
    uri = manifest_of(rows, tmp_path / "manifest").uri
    assert run_train(uri, tmp_path / "models", "--epochs", "1") == 4
    assert "4 empty" in capsys.readouterr().err


@pytest.mark.timeout(400)
def test_folds_say_of_every_image_what_a_model_that_did_not_see_it_says(
    ray_cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sites stay whole, one with a single class too; threshold and temperature come from the folds."""
    rows = [{**row, "subject_id": f"p{number // 4}"} for number, row in enumerate(cell_images(tmp_path / "images", 60))]
    for number, row in enumerate(rows):
        row["split"] = ("train", "train", "validation", "test")[number // 8 % 4]
        row["site"] = "referrals" if row["label"] == 1 and number % 3 == 0 else f"clinic{number // 4 % 2}"
        row["subject_id"] += str(row["site"])
    manifest = manifest_of(rows, tmp_path / "manifest")
    flags = ["--epochs", "6", "--group-by", "site", "--learning-rate", "0.01"]
    assert run_train(manifest.uri, tmp_path / "models", *flags) == 0
    printed = capsys.readouterr().out
    bundle = resolve(str(tmp_path / "models" / "leukoray"))
    assert bundle.info.calibrated_on == "out-of-fold"
    table = pq.read_table(Path(bundle.uri, "report", "out_of_fold.parquet")).to_pydict()
    subject = {row["image_id"]: row["subject_id"] for row in rows if row["split"] != "test"}
    assert sorted(table["image_id"]) == sorted(subject)
    folds: dict[str, set[int]] = {}
    for image, fold in zip(table["image_id"], table["fold"], strict=True):
        folds.setdefault(subject[image], set()).add(fold)
    assert all(len(found) == 1 for found in folds.values())
    said = r"out of fold, mean and standard deviation over 3 folds: ROC-AUC [01]\.\d+ \+- [01]\.\d+ \(2 of them hold"
    assert re.search(said, printed)
    assert bundle.info.reference_scores["count"] == len(subject)
