"""What colour alone tells: learnt from training images, judged on others, silent only where it says nothing."""

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.evaluation.colours import Colours, colours_of
from pipeline.evaluation.intervals import Resampling
from pipeline.evaluation.outcomes import Outcomes
from pipeline.evaluation.predict import Glance, Outcome
from pipeline.evaluation.shortcut import Shortcut, images_to_learn_from, judge_colours
from pipeline.model.bundle import BundleInfo
from pipeline.model.prediction import Prediction
from pipeline.sources.manifest import MANIFEST_SCHEMA, Manifest, ManifestInfo, ManifestRow
from pipeline.sources.rows import Access, read_rows

MODEL = {"value": 0.9, "low": 0.85, "high": 0.95, "unit": "subject"}
STAGES = ("Benign", "Early", "Pro")


def bundle_info(classes: tuple[str, ...] = ("negative", "positive")) -> BundleInfo:
    return BundleInfo(
        name="m", version="v", architecture="a", task="binary" if len(classes) == 2 else "multiclass", classes=classes,
        positive_classes=classes[1:], input_size=16, preprocessing_digest="", weights_sha256="", graph_sha256="",
    )  # fmt: skip


def row(number: int, target: int, split: str, subject: str, classes: tuple[str, ...]) -> ManifestRow:
    place = (number, f"/{number}.png", None, Access.FILE, None, None, 1, "x", None)
    label = target if len(classes) == 2 else None
    return ManifestRow(*place, label, classes[target], subject, split)


def manifest_of(rows: list[ManifestRow]) -> Manifest:
    return Manifest("m", pa.Table.from_pylist([asdict(each) for each in rows], MANIFEST_SCHEMA), ManifestInfo())


def plain(level: float, whole: float | None = None) -> Colours:
    return Colours((level,) * 15, (level if whole is None else whole,) * 15)


def split_of(
    name: str,
    levels: dict[int, tuple[float, ...]],
    images: int = 60,
    classes: tuple[str, ...] = ("negative", "positive"),
) -> list[tuple[ManifestRow, Colours]]:
    """So many images, classes in turn; those of one class have its levels in turn, with a little noise."""
    rng = np.random.default_rng(len(name))
    found = []
    for k in range(images):
        target = k % len(classes)
        level = levels[target][k // len(classes) % len(levels[target])]
        number = k + (1000 if name == "test" else 0)
        colours = plain(level + rng.normal(), 128 + rng.normal(0, 20))
        found.append((row(number, target, name, f"{name}{k // 2 % 15}", classes), colours))
    return found


def judged(
    train: list[tuple[ManifestRow, Colours]],
    test: list[tuple[ManifestRow, Colours]],
    *,
    asked: int | None = 1000,
    classes: tuple[str, ...] = ("negative", "positive"),
) -> Shortcut:
    rows = [each for each, _ in (*train, *test)]
    said = Prediction((1 / len(classes),) * len(classes), 0.5, "", None)
    outcomes = Outcomes(bundle_info(classes), [Outcome(each, said, colours=colours) for each, colours in test])
    glances = [Glance(each, colours) for each, colours in train]
    return judge_colours(glances, asked, manifest_of(rows), outcomes, MODEL, Resampling(200))


def test_colours_of_training_that_tell_the_test_apart_are_told_with_the_models_own_figure() -> None:
    """One class lies between two stains of the other: no plane parts them, and a linear look would see nothing."""
    levels = {0: (80.0, 200.0), 1: (140.0,)}
    found = judged(split_of("train", levels), split_of("test", levels))
    assert found.border is not None and found.border["value"] == 1.0 and (found.border["low"] or 1.0) > 0.5
    assert found.whole is not None and found.whole["value"] < 0.7
    (note,) = found.notes()
    assert note.startswith("The colour of the image border alone, without any cell, tells the classes apart with a")
    assert "1.000" in note and "60 training images; the model reaches 0.900 (0.850" in note and "guessing 0.5." in note
    assert json.loads(json.dumps(found.record()))["train_images"] == 60


def test_that_nobody_asked_is_no_option_that_was_given() -> None:
    levels: dict[int, tuple[float, ...]] = {0: (100.0,), 1: (160.0,)}
    rows = split_of("train", levels), split_of("test", levels)
    assert judged(*rows, asked=0).why_not == "--colour-images is 0"
    assert "models are compared here" in judged(*rows, asked=None).notes()[0]


def test_few_subjects_in_the_test_do_not_silence_it() -> None:
    levels: dict[int, tuple[float, ...]] = {0: (100.0,), 1: (160.0,)}
    found = judged(split_of("train", levels), split_of("test", levels, images=12))
    assert found.border is not None and found.border["value"] == 1.0
    assert "border alone" in found.notes()[0]


@pytest.mark.parametrize(("pure", "above"), [(6, True), (4, None)])
def test_subjects_of_one_class_each_do_not_silence_it_though_the_interval_holds_guessing(
    pure: int, above: bool | None
) -> None:
    """Three right of three a class are no luck; two of two may be, but then no answers could show more."""
    levels: dict[int, tuple[float, ...]] = {0: (100.0,), 1: (160.0,)}
    test = [
        (replace(each, subject_id=f"{each.label}{k // 2 % (pure // 2)}"), colours)
        for k, (each, colours) in enumerate(split_of("test", levels))
    ]
    found = judged(split_of("train", levels), test)
    assert found.border is not None and found.border["value"] == 1.0 and found.border["low"] < 0.5
    assert found.border["above_guessing"] is above and "border alone" in found.notes()[0]


def test_luck_of_many_subjects_is_no_warning() -> None:
    """Above a fifth of the way to no error, but no further than guesses of twelve subjects go."""
    said = {0: (100.0, 100.0, 160.0), 1: (160.0, 160.0, 100.0)}
    levels: dict[int, tuple[float, ...]] = {0: (100.0,), 1: (160.0,)}
    test = [
        (replace(each, subject_id=f"{each.label}{k // 2 % 6}"), colours)
        for k, (each, colours) in enumerate(split_of("test", said, 12))
    ]
    found = judged(split_of("train", levels), test)
    assert found.border is not None and found.border["value"] == pytest.approx(2 / 3)
    assert found.border["above_guessing"] is False and found.notes() == []


def test_colours_that_part_the_classes_of_the_test_alone_are_no_shortcut_of_the_model() -> None:
    same: dict[int, tuple[float, ...]] = {0: (100.0, 160.0), 1: (100.0, 160.0)}
    found = judged(split_of("train", same), split_of("test", {0: (100.0,), 1: (160.0,)}))
    assert found.border is not None and found.border["value"] < 0.7
    assert found.notes() == []


def test_colours_of_the_whole_image_that_reach_the_model_leave_it_nothing() -> None:
    train, test = (
        [(each, plain(100, 100 + 60 * (each.label or 0))) for each, _ in split_of(name, {0: (0.0,), 1: (0.0,)})]
        for name in ("train", "test")
    )
    (note,) = judged(train, test).notes()
    assert note.startswith("The colour of the whole image, without any shape, tells the classes apart with a balanced")
    assert note.endswith("Nothing shows that this model has learnt more.")


def test_chance_is_that_of_as_many_classes_as_were_learnt() -> None:
    levels: dict[int, tuple[float, ...]] = {0: (60.0,), 1: (120.0,), 2: (180.0,)}
    train, test = (split_of(name, levels, 90, STAGES) for name in ("train", "test"))
    found = judged(train, test, classes=STAGES)
    assert found.chance == pytest.approx(1 / 3) and found.border is not None and found.border["value"] == 1.0


def test_a_rare_class_of_many_leaves_the_others_checked() -> None:
    levels: dict[int, tuple[float, ...]] = {0: (60.0,), 1: (120.0,), 2: (180.0,)}
    train, test = (split_of(name, levels, 90, STAGES) for name in ("train", "test"))
    rare = [one for one in train if one[0].class_name == STAGES[2]][:3]
    found = judged([one for one in train if one[0].class_name != STAGES[2]] + rare, test, classes=STAGES)
    assert found.few == (STAGES[2],) and found.record()["few"] == (STAGES[2],)
    assert found.border is not None and found.border["value"] > 0.6 and found.notes()
    alone = judged(rare + [one for one in train if one[0].class_name == STAGES[0]], test, classes=STAGES)
    assert "10 of each of two classes are needed" in alone.why_not


@pytest.mark.parametrize(
    ("train", "test", "asked", "why"),
    [
        (0, 20, 1000, "this manifest has no labelled training images"),
        (20, 20, 0, "--colour-images is 0"),
        (12, 20, 1000, "too few training images could be read (12; 10 of each of two classes are needed)"),
        (40, 1, 1000, "the images measured are of one class only"),
    ],
)
def test_what_was_not_checked_is_said(train: int, test: int, asked: int, why: str) -> None:
    levels: dict[int, tuple[float, ...]] = {0: (100.0,), 1: (160.0,)}
    found = judged(split_of("train", levels, train), split_of("test", levels, test), asked=asked)
    assert found.notes() == [f"Whether colour alone tells the classes apart was not checked: {why}."]
    assert found.record() == {"why_not": why}


def test_the_train_split_is_not_judged_by_itself() -> None:
    levels: dict[int, tuple[float, ...]] = {0: (100.0,), 1: (160.0,)}
    train = split_of("train", levels)
    assert "the train split itself is measured" in judged(train, train).notes()[0]
    assert images_to_learn_from(manifest_of([each for each, _ in train]), bundle_info(), "train", 100) == []


def test_few_images_are_read_of_all_classes_alike_and_always_the_same() -> None:
    rows = [row(k, int(k % 10 == 0), "train", "s", ("negative", "positive")) for k in range(200)]
    rows += [row(500, 1, "validation", "s", ("negative", "positive"))]
    manifest = manifest_of(rows)
    found = images_to_learn_from(manifest, bundle_info(), "test", 30)
    assert [sum(each.label == k for each in found) for k in (0, 1)] == [15, 15]
    assert len(images_to_learn_from(manifest, bundle_info(), "test", 60)) == 60  # 20 of the rare class are all there is
    assert found == images_to_learn_from(manifest, bundle_info(), "test", 30)
    assert {each.split for each in found} == {"train"} and read_rows(manifest.table, ManifestRow)[0] == rows[0]


def test_a_class_that_the_model_does_not_know_is_not_learnt() -> None:
    rows = [row(k, k % 3, "train", "s", ("Benign", "Early", "unheard of")) for k in range(30)]
    found = images_to_learn_from(manifest_of(rows), bundle_info(STAGES), "test", 100)
    assert {each.class_name for each in found} == {"Benign", "Early"}


def test_the_border_holds_no_cell_and_the_whole_holds_all() -> None:
    pixels = np.zeros((50, 50, 3), np.uint8)
    pixels[10:40, 10:40] = 255
    found: Any = colours_of(pixels)
    assert found.border == (0.0,) * 15
    assert found.whole[:3] == pytest.approx((255 * 0.36,) * 3) and found.whole[-3:] == (255.0,) * 3
