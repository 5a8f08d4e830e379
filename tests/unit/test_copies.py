"""Copies: found by their bytes wherever they lie, and kept on one side of a split."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ingest.copies import find_copies
from pipeline.ingest.draft import IngestOptions, ingest, read_sources
from pipeline.sources.filters import Filters
from pipeline.storage.stores import Stores
from tests.searches import search
from tests.unit.test_archives import tar_bytes, zip_bytes


def copies_in(folder: Path) -> list[list[str]]:
    listing = read_sources([str(folder)], Filters(), Stores(), None)
    found = find_copies(listing.table, [True] * listing.table.num_rows)
    return sorted(sorted(listing.paths[row] for row in group) for group in found)


@given(contents=st.lists(st.tuples(st.sampled_from([3, 40_000]), st.integers(0, 4)), max_size=12))
@search(30)
def test_those_and_only_those_with_the_same_bytes_are_copies(
    contents: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Equal sizes, and equal windows in the middle, are not enough."""
    root = tmp_path_factory.mktemp("images")
    expected: dict[tuple[int, int], list[str]] = {}
    for number, (size, content) in enumerate(contents):
        (root / f"{number:02d}.jpg").write_bytes(bytes([content]) + bytes(size))
        expected.setdefault((size, content), []).append(f"{number:02d}.jpg")
    if contents:
        assert copies_in(root) == sorted(names for names in expected.values() if len(names) > 1)


def test_a_file_and_its_copy_in_an_archive_are_copies(tmp_path: Path) -> None:
    one, other = b"\xff\xd8" + bytes(range(256)) * 200, b"\xff\xd8" + bytes(range(256)) * 100
    (tmp_path / "a.jpg").write_bytes(one)
    (tmp_path / "b.jpg").write_bytes(other)
    (tmp_path / "x.tar").write_bytes(tar_bytes([("t.jpg", one)]))
    (tmp_path / "y.zip").write_bytes(zip_bytes([("z.jpg", one), ("w.jpg", other)]))
    assert copies_in(tmp_path) == [["a.jpg", "x.tar!/t.jpg", "y.zip!/z.jpg"], ["b.jpg", "y.zip!/w.jpg"]]


def test_copies_stay_on_one_side_and_contradictory_ones_are_told(tmp_path: Path) -> None:
    for class_name in ("healthy", "leukemia"):
        (tmp_path / class_name).mkdir()
        for number in range(60):
            content = f"{class_name}{number // 2:03d}" if number else "the same"
            (tmp_path / class_name / f"{number:03d}.jpg").write_bytes(content.encode())
    draft = ingest([str(tmp_path)], IngestOptions(split_rule="images"))
    rows = draft.table.to_pylist()
    side: dict[bytes, set[str]] = {}
    for row in rows:
        side.setdefault(Path(row["uri"]).read_bytes(), set()).add(row["split"])
    assert all(len(sides) == 1 for sides in side.values())
    said = json.dumps(draft.warnings)
    assert "118 images are byte-identical to others (59 groups of copies), kept on one side" in said
    assert "1 groups of copies are in several classes" in said


def test_given_splits_that_tear_copies_apart_are_kept_and_told(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for class_name in ("healthy", "leukemia"):
            for number in range(20):
                file = tmp_path / split / class_name / f"{number}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(f"{split if number else ''} {class_name} {number}".encode())
    draft = ingest([str(tmp_path)])
    assert "but the given splits tear them apart" in json.dumps(draft.warnings)
    assert draft.split.rule == "given"
