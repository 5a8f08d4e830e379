"""Masks beside their originals are left out of a run, counted and named, wherever both lie."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.ingest.draft import ingest
from pipeline.model.bundle import Bundle
from tests.bundles import make_bundle
from tests.scoring_sources import picture, rows, tar, write_files
from tests.scoring_sources import score_here as score

FILES = {
    "Band/1.jpg": picture(1),
    "Seg/1.jpg": picture(2),
    "a/7_mask.png": picture(3, kind="PNG"),
    "a/7.jpg": picture(4),
    "a/8_mask.png": picture(5, kind="PNG"),
    "s/masks/x.png": picture(6, kind="PNG"),
    "s/images/x.jpg": picture(7),
}
SCORED = {"Band/1.jpg", "Seg/1.jpg", "a/7.jpg", "a/8_mask.png", "s/images/x.jpg"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle"), size=16)


def lay_out(folder: Path, packing: str) -> Path:
    if packing == "files":
        return write_files(folder, FILES)
    return write_files(folder, {f"n.{packing}": tar(FILES, "w:gz" if packing == "tgz" else "w")})


def names_of(folder: Any, source: Path) -> set[str]:
    found = rows(Path(folder.uri)).select(["uri", "member"]).to_pylist()
    return {row["member"] or row["uri"].removeprefix(f"{source}/") for row in found}


@pytest.mark.parametrize("packing", ["files", "tar", "tgz"])
def test_masks_are_left_out_counted_and_named_night_after_night(packing: str, bundle: Bundle, tmp_path: Path) -> None:
    source, out = lay_out(tmp_path / "in", packing), tmp_path / "out"
    folder, first = score([source], bundle, out, "run-1", chunk_rows=2)
    assert names_of(folder, source) == SCORED
    counts = first["counts"]
    assert (counts["listed"], counts["scored"], counts["left_out"]["masks"]) == (5, 5, 2)
    assert {place.rpartition("/")[2] for place in counts["masks"]} == {"7_mask.png", "x.png"}
    _, second = score([source], bundle, out, "run-2")
    assert (second["counts"]["scored"], second["counts"]["skipped"]) == (0, 5)
    assert second["counts"]["deleted_at_source"] == 0
    _, limited = score([source], bundle, out, "run-3", rescore=True, limit=3)
    assert limited["counts"]["scored"] == 3


@pytest.mark.parametrize("packing", ["files", "tgz"])
def test_an_include_that_names_masks_scores_them(packing: str, bundle: Bundle, tmp_path: Path) -> None:
    source = lay_out(tmp_path / "in", packing)
    _, run = score([source], bundle, tmp_path / "out", include=("*_mask.png", "*.jpg"))
    assert run["counts"]["scored"] == 6 and "masks" not in run["counts"]["left_out"]


@pytest.mark.parametrize("packing", ["files", "tar", "tgz"])
def test_masks_are_in_no_manifest(packing: str, tmp_path: Path) -> None:
    draft = ingest([str(lay_out(tmp_path / "in", packing))])
    assert draft.table.num_rows == 5 and draft.listing.tally.left_out["masks"] == 2
    assert {Path(place).name for place in draft.listing.masks} == {"7_mask.png", "x.png"}
