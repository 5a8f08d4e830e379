"""Near copies among real images: what was done to a file is found, and cells of different patients are not taken for
one."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from pipeline.ingest.draft import read_sources
from pipeline.ingest.near_copies import find_near_copies
from pipeline.sources.filters import Filters
from pipeline.storage.stores import Stores
from tests.unit.test_near_copies import CHANGES

pytestmark = pytest.mark.realdata
SETS = {"deepapl": ".jpg", "kaggle-blood-cells": ".jpeg", "taleqani-all": ".jpg", "c-nmc-2019": ".bmp"}


def test_single_cells_of_different_patients_are_not_taken_for_copies(real_data: Path) -> None:
    listing = read_sources([str(real_data / "deepapl")], Filters(), Stores(), None)
    patients = [path.split("/")[1] for path in listing.paths]
    assert len(set(patients)) == 82
    found = find_near_copies(listing.table, [True] * len(patients))
    strangers = [pair for pair in found.pairs if patients[pair.first] != patients[pair.second]]
    false = {row for pair in strangers for row in (pair.first, pair.second)}
    assert found.compared > 3000 and len(false) <= 0.001 * found.compared


@pytest.mark.parametrize("name", SETS)
def test_every_change_of_a_real_image_is_found(name: str, real_data: Path, tmp_path: Path) -> None:
    files = sorted((real_data / name).rglob("*" + SETS[name]))
    for number, file in enumerate(files[:: max(1, len(files) // 12)][:12]):
        shutil.copy(file, tmp_path / f"{number:02d}_0{file.suffix}")
        image = Image.open(file).convert("RGB")
        for place, change in enumerate(CHANGES.values(), start=1):
            (tmp_path / f"{number:02d}_{place}.jpg").write_bytes(change(image))
    listing = read_sources([str(tmp_path)], Filters(), Stores(), None)
    found = find_near_copies(listing.table, [True] * len(listing.paths))
    groups = [{listing.paths[row] for row in group} for group in found.groups]
    for number in range(12):
        images = {path for path in listing.paths if path.startswith(f"{number:02d}_")}
        assert any(images <= group for group in groups), sorted(images)
