"""Sheets of images: what random changes make of training images, and what a model got most wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.model.bundle import Bundle
from pipeline.storage.stores import Stores
from pipeline.training.preview import (
    Tile,
    augmentation_sheet,
    png,
    read_images,
    sheet,
    some_of_each_class,
)
from pipeline.training.records import Records, mistakes_sheet
from pipeline.training.rows import LabelledRows, labelled_rows
from pipeline.training.run_folder import TrainingRun
from pipeline.training.settings import Settings
from pipeline.training.validation import Scores
from tests.bundles import make_bundle
from tests.training_data import cell_images, manifest_of
from tests.training_settings import training_settings


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> LabelledRows:
    folder = tmp_path_factory.mktemp("cells")
    return labelled_rows(manifest_of(cell_images(folder / "images", 36, classes=3), folder / "manifest"), "multiclass")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, rows: LabelledRows) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "v", 32, "multiclass", classes=rows.classes, synthetic=True)


def settings_of(rows: LabelledRows, **changed: Any) -> Settings:
    return training_settings(task=rows.task, classes=rows.classes, **{"augment": True, **changed})


def test_some_images_are_as_many_of_each_class(rows: LabelledRows) -> None:
    assert some_of_each_class(rows.train, 9, seed=0)["target"].to_pylist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert some_of_each_class(rows.train, 1000, seed=0).num_rows == rows.train.num_rows


def test_training_images_stand_beside_their_changes(rows: LabelledRows) -> None:
    plain = augmentation_sheet(rows.train, settings_of(rows, augment=False), Stores(), images=4)
    changed = augmentation_sheet(rows.train, settings_of(rows), Stores(), images=4, times=3)
    assert plain is not None and changed is not None
    assert plain.shape[0] == changed.shape[0] and plain.dtype == np.uint8
    first, second = (changed[200:300, start : start + 100] for start in (20, 170))
    assert first.std() > 1 and (first != second).any()


def test_a_damaged_image_is_left_out_of_a_sheet(tmp_path: Path) -> None:
    made = cell_images(tmp_path / "images", 12)
    Path(made[0]["uri"]).write_bytes(b"damaged")
    Path(made[1]["uri"]).unlink()
    found = labelled_rows(manifest_of(made, tmp_path / "manifest"))
    assert len(read_images(found.train, settings_of(found), Stores())) == found.train.num_rows - 2


def test_without_an_image_that_can_be_read_there_is_no_sheet_and_no_error(tmp_path: Path) -> None:
    """A run may have all its pixels in the cache, and its source unmounted."""
    made = cell_images(tmp_path / "images", 12)
    found = labelled_rows(manifest_of(made, tmp_path / "manifest"))
    for image in made:
        Path(image["uri"]).unlink()
    settings, run = settings_of(found), TrainingRun(str(tmp_path / "run"), Stores(), lambda: None)
    assert augmentation_sheet(found.train, settings, Stores()) is None
    with Records(run, settings, found, None) as records:
        records.show_training_images()
    table = found.validation
    logits = np.where(table["target"].to_numpy() == 1, -9.0, 9.0)[:, None]  # all of them wrong
    scores = Scores(table["image_id"].to_numpy(), table["target"].to_numpy(), logits)
    info = make_bundle(tmp_path / "bundle", 32, threshold=0.5).info
    assert mistakes_sheet(scores, table, info, settings, Stores()) is None


def test_the_surest_mistakes_come_first_and_right_answers_not_at_all(rows: LabelledRows, bundle: Bundle) -> None:
    table = rows.validation.sort_by("image_id")
    targets = table["target"].to_numpy()
    logits = np.eye(3, dtype=np.float32)[targets] * 4
    scores = Scores(table["image_id"].to_numpy(), targets, logits)
    settings = settings_of(rows)
    assert mistakes_sheet(scores, rows.validation, bundle.info, settings, Stores()) is None
    logits[5] = np.eye(3)[(targets[5] + 1) % 3] * 9
    logits[2] = np.eye(3)[(targets[2] + 1) % 3] * 3
    pictures = {row.image_id: pixels for row, pixels in read_images(table, settings, Stores())}
    both = [Tile(pictures[int(scores.image_ids[number])], ("", "", "")) for number in (5, 2)]
    found = mistakes_sheet(scores, rows.validation, bundle.info, settings, Stores())
    expected = sheet([both], "")
    assert found is not None
    assert (found[40:150, :300] == expected[40:150, :300]).all()


def test_a_threshold_decides_what_a_mistake_is(tmp_path: Path) -> None:
    made = labelled_rows(manifest_of(cell_images(tmp_path / "images", 12), tmp_path / "manifest"))
    table = made.validation.sort_by("image_id")
    scores = Scores(table["image_id"].to_numpy(), np.ones(table.num_rows, np.int64), np.zeros((table.num_rows, 1)))
    settings = settings_of(made)
    for threshold, is_wrong in ((0.4, False), (0.6, True)):
        info = make_bundle(tmp_path / f"{threshold}", 32, threshold=threshold).info
        assert (mistakes_sheet(scores, made.validation, info, settings, Stores()) is not None) is is_wrong


def test_long_names_stay_inside_their_column(tmp_path: Path) -> None:
    black = np.zeros((16, 16, 3), np.uint8)
    wide = sheet([[Tile(black, ("W" * 400,)), Tile(black)]], "title")
    below = wide[40 + 144 : 40 + 144 + 12, 6 + 144 + 1 :]
    assert below.min() == 255
    (tmp_path / "sheet.png").write_bytes(png(wide))
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size == wide.shape[1::-1]
