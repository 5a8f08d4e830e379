"""What answers rest on and bear: planted shortcuts are named, models that look at cells are not accused."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray
from PIL import Image

from pipeline.evaluation.audit import Audit, audit
from pipeline.evaluation.changes import DISTURBANCES, HIDDEN, UNCHANGED, Copies
from pipeline.evaluation.examples import examples_of
from pipeline.evaluation.intervals import Resampling
from pipeline.evaluation.outcomes import Outcomes
from pipeline.evaluation.predict import Outcome, predict_rows
from pipeline.evaluation.remaining import border_colour, remaining, sample_of
from pipeline.evaluation.shown import Shown, predict_copies
from pipeline.model.bundle import CARD, GRAPH, WEIGHTS, Bundle, write_bundle
from pipeline.model.prediction import Prediction
from pipeline.model.predictor import Predictor
from pipeline.model.reference import OodRule
from pipeline.sources.manifest import ManifestRow
from pipeline.sources.rows import Access
from pipeline.storage.stores import Stores
from tests.bundles import linear_graph, make_bundle

SIDE = 32
STAGES = ("Benign", "Early", "Pro")
RESAMPLING = Resampling(200)
Pixels = NDArray[np.uint8]


def smear(rng: np.random.Generator, target: int, told_by: str) -> Pixels:
    """A nucleus on pale ground. The class is in the ground's colour, in the nucleus' size, or in its colour."""
    ground = np.array([235.0, 215.0, 205.0]) + rng.normal(0, 3, 3)
    nucleus = np.array([95.0, 45.0, 150.0]) + rng.normal(0, 3, 3)
    radius = rng.uniform(0.12, 0.13) * SIDE
    if told_by == "border":
        ground[1] -= 12 * target
    elif told_by == "size":
        radius *= 1 + 0.35 * target
    else:
        nucleus[:2] += np.array([-30, 15]) * target  # of the same luma
    at = SIDE / 2 + rng.uniform(-0.5, 0.5, 2)
    away = np.hypot(*np.meshgrid(np.arange(SIDE) - at[0], np.arange(SIDE) - at[1]))
    image = np.where((away < radius)[..., None], nucleus, ground) + rng.normal(0, 2, (SIDE, SIDE, 3))
    return image.clip(0, 255).astype(np.uint8)


def cells(told_by: str, count: int, seed: int, classes: int = 2) -> tuple[NDArray[np.int64], list[Pixels]]:
    rng = np.random.default_rng(seed)
    truth = np.arange(count) % classes
    return truth, [smear(rng, int(target), told_by) for target in truth]


def learnt(folder: Path, told_by: str, classes: tuple[str, ...] = ("negative", "positive")) -> Bundle:
    """The nearest of the mean images of each class, as a linear model: it takes whatever tells the classes apart."""
    truth, images = cells(told_by, 300, 1, len(classes))
    flat = np.stack(images).reshape(len(images), -1) / 255.0
    means = np.stack([flat[truth == k].mean(axis=0) for k in range(len(classes))])  # (C, S*S*3)
    weight, offset = means.T, -(means**2).sum(axis=1) / 2
    if len(classes) == 2:
        weight, offset = np.diff(weight, axis=1), np.diff(offset)
    task: Literal["binary", "multiclass"] = "binary" if len(classes) == 2 else "multiclass"
    plain = make_bundle(folder / "plain", SIDE, task, classes=classes, positive_classes=classes[1:])
    values = weight.astype(np.float32), offset.astype(np.float32)
    files = {
        WEIGHTS: safetensors.numpy.save({"weight": values[0], "bias": values[1]}),
        GRAPH: linear_graph(*values, SIDE),
        CARD: plain.file(CARD),
    }
    return write_bundle(str(folder / "bundle"), plain.info, files)


def rows_of(folder: Path, told_by: str, classes: tuple[str, ...], count: int = 120) -> list[ManifestRow]:
    """Such images on disk, of ten subjects a class."""
    folder.mkdir(parents=True, exist_ok=True)
    truth, images = cells(told_by, count, 2, len(classes))
    rows = []
    for number, (target, pixels) in enumerate(zip(truth.tolist(), images, strict=True)):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        path = folder / f"{number}.png"
        path.write_bytes(buffer.getvalue())
        place = (number, str(path), None, Access.FILE, None, None, len(buffer.getvalue()), None, None)
        label = target if len(classes) == 2 else None
        subject = f"{target}-{number // len(classes) % 10}"
        rows.append(ManifestRow(*place, label, classes[target], subject, "test"))
    return rows


def audited(
    folder: Path, told_by: str, classes: tuple[str, ...] = ("negative", "positive"), *, with_disturbances: bool = False
) -> Audit:
    bundle = learnt(folder, told_by, classes)
    rows = rows_of(folder / "images", told_by, classes)
    predictor = Predictor(bundle)
    outcomes = Outcomes(bundle.info, predict_rows(predictor, rows))
    copies = Copies(border_colour(outcomes), with_disturbances)
    shown = predict_copies(predictor, sample_of(outcomes, 90, 0), copies)
    return audit(shown, copies, outcomes, bundle.info.threshold, RESAMPLING)


@pytest.mark.parametrize("classes", [("negative", "positive"), STAGES])
def test_a_model_that_learnt_the_colour_of_the_border_is_accused(tmp_path: Path, classes: tuple[str, ...]) -> None:
    found = audited(tmp_path, "border", classes)
    rows = {row["shown"]: row for row in found.record()["rows"]}
    assert rows[UNCHANGED]["value"] > 0.9 and rows["border"]["value"] > 0.8 and rows["border"]["above_guessing"]
    assert rows["border"]["kept"] > 0.8 and rows["border"]["difference"]["low"] <= 0
    assert any(note.startswith("Shown only the border of the images, all cells masked") for note in found.notes())
    assert json.loads(json.dumps(found.record()))["images"] == 90


@pytest.mark.parametrize("told_by", ["size", "nucleus"])
def test_a_model_that_looks_at_cells_is_not_accused(tmp_path: Path, told_by: str) -> None:
    found = audited(tmp_path, told_by)
    rows = {row["shown"]: row for row in found.record()["rows"]}
    assert rows[UNCHANGED]["value"] > 0.95 and abs(rows["border"]["value"] - 0.5) < 0.15
    assert rows["cell"]["kept"] > 0.8
    assert not [note for note in found.notes() if "border" in note]


def test_a_model_that_knows_colour_alone_is_said_to_lose_nearly_all_without_it(tmp_path: Path) -> None:
    found = audited(tmp_path, "nucleus")
    rows = {row["shown"]: row for row in found.record()["rows"]}
    assert abs(rows["grey"]["value"] - 0.5) < 0.1 and rows["grey"]["kept"] < 0.2
    assert any(note.startswith("The model loses nearly all when colours change") for note in found.notes())
    assert not any("colours change" in note for note in audited(tmp_path / "size", "size").notes())


def test_robustness_tells_each_severity_with_intervals_and_what_fails_unflagged(tmp_path: Path) -> None:
    found = audited(tmp_path, "border", with_disturbances=True)
    record = found.robustness()
    assert record is not None and json.loads(json.dumps(record)) == record
    assert [kind["kind"] for kind in record["kinds"]] == [each.key for each in DISTURBANCES]
    stain = next(kind for kind in record["kinds"] if kind["kind"] == "hue")
    for row in (level for kind in record["kinds"] for level in kind["levels"]):
        assert row["low"] <= row["value"] <= row["high"] and row["unit"] == "subject"
        assert row["difference"]["low"] <= row["difference"]["value"] <= row["difference"]["high"]
        assert row["difference"]["value"] == pytest.approx(row["value"] - record[UNCHANGED]["value"])
        assert row["sensitivity"]["value"] is not None and row["ood"] is None
    assert len(stain["levels"]) == 4 and "flags no images" in stain["told"]


def made(truth: list[int], said: dict[tuple[str, int], list[float]], flags: dict[tuple[str, int], bool]) -> list[Shown]:
    """Images of a subject each, and the probability of disease that each copy got."""
    place = ("/x.png", None, Access.FILE, None, None, 1, None, None)
    rows = [ManifestRow(k, *place, target, None, f"s{k}", "test") for k, target in enumerate(truth)]
    copies = Copies((0.0, 0.0, 0.0), True)
    return [
        Shown(
            row,
            tuple(
                Prediction((1 - p, p), p, "", None, 1.0, flags.get(key, False))
                for key in copies.keys
                for p in [said.get(key, said[UNCHANGED, 0])[k]]
            ),
        )
        for k, row in enumerate(rows)
    ]


@pytest.mark.parametrize(("flagged_from", "told"), [(2, ": in time"), (4, ": too late"), (9, "hardly rises")])
def test_it_is_told_whether_the_flag_rises_before_the_answers_fall(
    tmp_path: Path, flagged_from: int, told: str
) -> None:
    rule = OodRule(reference_sha256="", training_images=100, threshold=2.0, false_flag_rate=0.01)
    info = make_bundle(tmp_path / "b", SIDE).info.model_copy(update={"ood": rule})
    truth = [0, 1] * 30
    right = [0.1 + 0.8 * target for target in truth]
    wrong = [0.5] * len(truth)
    said = {(UNCHANGED, 0): right, ("blur", 3): wrong, ("blur", 4): wrong}
    flags = {("blur", k): True for k in range(flagged_from, 5)}
    found = remaining(made(truth, said, flags), Copies((0, 0, 0), True).keys, info, 0.5, RESAMPLING)
    result = Audit("", 60, 0, found, Copies((0, 0, 0), True))
    record = result.robustness()
    assert record is not None
    by_kind = {kind["kind"]: kind for kind in record["kinds"]}
    blur, noise = by_kind["blur"], by_kind["noise"]
    assert "from Gaussian, 2 % of the side on" in blur["told"] and told in blur["told"]
    assert noise["told"].startswith("Answers hold: ROC-AUC 1.000 at standard deviation 40")
    assert "hardly rises" in noise["told"]
    warned = [note for note in result.notes() if "blur (Gaussian, 2 % of the side)" in note]
    assert bool(warned) == (flagged_from > 3)
    assert blur["levels"][3]["ood"]["value"] == (1.0 if flagged_from <= 4 else 0.0)
    assert blur["levels"][3]["specificity"]["value"] == 0.0 and blur["levels"][3]["sensitivity"]["value"] == 1.0


def test_a_sample_holds_classes_and_subjects_alike_and_is_drawn_by_its_seed(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", SIDE)
    said = Prediction((0.5, 0.5), 0.5, "", None)
    place = ("/x.png", None, Access.FILE, None, None, 1, None, None)
    rows = [
        ManifestRow(k, *place, int(k >= 180), None, f"s{k // 30 if k < 180 else 9 + k % 3}", "test") for k in range(200)
    ]
    outcomes = Outcomes(bundle.info, [Outcome(row, said) for row in rows])
    picked = sample_of(outcomes, 24, 0)
    assert [row.label for row in picked].count(1) == 12
    healthy = [row.subject_id for row in picked if row.label == 0]
    assert sorted(set(healthy)) == [f"s{k}" for k in range(6)] and max(map(healthy.count, healthy)) == 2
    assert picked == sample_of(outcomes, 24, 0) != sample_of(outcomes, 24, 1)
    assert len(sample_of(outcomes, 1000, 0)) == 200 and not sample_of(outcomes, 0, 0)


def test_images_that_are_gone_or_of_one_class_leave_no_figure(tmp_path: Path) -> None:
    bundle = learnt(tmp_path, "size")
    rows = rows_of(tmp_path / "images", "size", ("negative", "positive"), 40)
    predictor, copies = Predictor(bundle), Copies((230.0, 215.0, 205.0))
    outcomes = Outcomes(bundle.info, predict_rows(predictor, rows))
    gone = replace(rows[0], uri=str(tmp_path / "images" / "gone.png"))
    shown = predict_copies(predictor, [gone, *rows[1:]], copies)
    assert len(shown) == 40 and [each.row.image_id for each in shown if not each.said] == [0]
    found = audit(shown, copies, outcomes, 0.5, RESAMPLING)
    assert found.record()["images"] == 39 and found.record()["images_of"] == 40
    healthy = [each for each in shown if each.row.label == 0]
    one = audit(healthy, copies, outcomes, 0.5, RESAMPLING)
    assert "one class only" in one.record()["why_not"] and not one.notes() and one.robustness() is None
    assert "--audit is 0" in Audit().record()["why_not"]
    pictures = examples_of(found.examples, copies, bundle.info, Stores())
    assert [row.label for row in found.examples] == [0, 1] and set(pictures[0]) == set(copies.keys)
    assert len(HIDDEN) + 1 == len(pictures[1]) and pictures[0][UNCHANGED, 0].shape == (96, 96, 3)


def test_images_of_healthy_classes_alone_have_no_sensitivity_to_lose(tmp_path: Path) -> None:
    stages = ("Benign", "Other", "Early")
    info = make_bundle(tmp_path / "b", SIDE, "multiclass", classes=stages, positive_classes=("Early",)).info
    place = ("/x.png", None, Access.FILE, None, None, 1, None, None)
    copies = Copies((0.0, 0.0, 0.0), True)
    shown = [
        Shown(
            ManifestRow(k, *place, 0, stages[k % 2], f"s{k}", "test"),
            (Prediction((0.5 + 0.1 * (k % 2 == 0), 0.4, 0.1), 0.1, "Benign", "negative"),) * len(copies.keys),
        )
        for k in range(20)
    ]
    outcomes = Outcomes(info, [Outcome(each.row, each.said[0]) for each in shown])
    record = audit(shown, copies, outcomes, 0.5, RESAMPLING).robustness()
    assert record is not None and "sensitivity" not in record["unchanged"]
    assert all("Answers hold" in kind["told"] for kind in record["kinds"])
