"""Copies: found by their bytes wherever they lie, and kept on one side of a split."""

import json
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ingest.annotate import IngestOptions
from pipeline.ingest.copies import find_copies
from pipeline.ingest.draft import ingest
from pipeline.ingest.gather import read_sources
from pipeline.sources.filters import Filters
from pipeline.sources.rows import LISTING_SCHEMA, Access, ListingRow, to_table
from pipeline.storage.stores import Stores
from pipeline.storage.types import Bytes, Store
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


class Bucket:
    """A remote store of a few objects that notes which were read."""

    is_remote = True

    def __init__(self, **objects: bytes) -> None:
        self.objects, self.asked = objects, set[str]()

    def read_range(self, uri: str, offset: int, size: int, etag: str | None = None) -> Bytes:
        self.asked.add(uri)
        return Bytes(self.objects[uri.rpartition("/")[2]][offset : offset + size], "", 1)

    def read(self, uri: str) -> Bytes:
        return self.read_range(uri, 0, len(self.objects[uri.rpartition("/")[2]]))


def row(
    number: int, name: str, size: int, etag: str, access: Access = Access.FILE, offset: int | None = None
) -> ListingRow:
    return ListingRow(number, f"s3://lab/{name}", None, access, offset, size, size, etag, None)


def copies_of(rows: list[ListingRow], bucket: Bucket, wanted: list[bool] | None = None) -> list[list[int]]:
    stores = Stores(mounts=(("s3://lab/", cast(Store, bucket)),))
    return sorted(find_copies(to_table(rows, LISTING_SCHEMA), wanted or [True] * len(rows), stores))


def test_objects_of_a_store_are_told_apart_by_their_etags_without_a_read() -> None:
    bucket = Bucket(a=b"cell", b=b"cell", c=b"mole")
    assert copies_of([row(0, "a", 4, "x"), row(1, "b", 4, "x"), row(2, "c", 4, "y")], bucket) == [[0, 1]]
    assert not bucket.asked


def test_members_are_told_apart_by_their_bytes_though_the_etag_of_their_archive_is_one() -> None:
    bucket = Bucket(tar=b"cell" + b"mole" + b"cell")
    rows = [row(number, "tar", 4, "x", Access.RANGE, 4 * number) for number in range(3)]
    assert copies_of(rows, bucket) == [[0, 2]]


def test_only_images_that_count_are_compared() -> None:
    """Empty ones are no images, those of a stream would cost its whole archive, and the unwanted go into no split."""
    bucket = Bucket(a=b"cell", b=b"cell", c=b"cell", d=b"", e=b"")
    rows = [row(0, "a", 4, "x"), row(1, "b", 4, "x"), row(2, "c", 4, "x", Access.STREAM, 0)]
    rows += [row(3, "d", 0, "z"), row(4, "e", 0, "z")]
    assert copies_of(rows, bucket) == [[0, 1]]
    assert copies_of(rows, bucket, [True, False, True, True, True]) == []


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
    assert side[b"the same"] == {None}
    said = json.dumps(draft.warnings)
    assert "118 images are byte-identical to others (59 groups of copies), kept on one side" in said
    assert "2 of them (1 groups) are under more than one label and in no split; say in contradictions.csv" in said


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
