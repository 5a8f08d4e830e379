"""What training learns from, and what it refuses with a way on."""

from pathlib import Path

import pytest

from pipeline.base.errors import InputError
from pipeline.training.rows import labelled_rows
from tests.training_data import cell_images, manifest_of


def test_a_class_that_a_split_lacks_is_named_with_the_ways_on(tmp_path: Path) -> None:
    """Of two sides neither can be left out."""
    rows = cell_images(tmp_path / "images", 12, classes=3)
    names = ("Blast", "Giant thrombocyte", "Monocyte")
    for number, row in enumerate(rows):
        row["class_name"] = names[number % 3]
        if number % 3 == 1:
            row["split"] = "train"
    manifest = manifest_of(rows, tmp_path / "manifest")
    ways = "add some, then ingest again, or leave the class out with --ignore 'Giant thrombocyte'"
    with pytest.raises(InputError, match=f"validation split has no image of class Giant thrombocyte; .*{ways}"):
        labelled_rows(manifest, "multiclass")
    sides = cell_images(tmp_path / "two", 12)
    for number, row in enumerate(sides):
        row["split"] = "train" if number % 2 else row["split"]
    with pytest.raises(InputError, match=r"no image of class positive; .*add some, then ingest again$"):
        labelled_rows(manifest_of(sides, tmp_path / "sides"), "binary")


def test_an_image_without_a_label_takes_no_decision_away(tmp_path: Path) -> None:
    rows = cell_images(tmp_path / "images", 36, classes=3)
    names, labels = ("Blast", "Lymphocyte", "Monocyte"), (1, 0, 0)
    for number, row in enumerate(rows):
        row["class_name"], row["label"] = names[number % 3], labels[number % 3]
    rows[0]["label"] = rows[4]["label"] = None
    found = labelled_rows(manifest_of(rows, tmp_path / "manifest"), "multiclass")
    assert (found.positive_classes, found.note) == (("Blast",), "")
    for row in rows[2::3]:
        row["label"] = None  # a whole class of which nobody knows
    found = labelled_rows(manifest_of(rows, tmp_path / "unknown"), "multiclass")
    assert found.positive_classes == ()
    assert found.note.startswith(
        "Blast mean disease, and nothing says whether Monocyte do: the model will decide nothing"
    )
