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
