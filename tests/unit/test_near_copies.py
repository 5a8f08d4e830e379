"""Near copies: found whatever was done to the file, never by shape alone, kept on one side, and told."""

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from jobs import ingest as job
from pipeline.images.likeness import AGREEMENT, REACH, SIDE, agreement, keys
from pipeline.ingest.draft import read_sources
from pipeline.ingest.near_copies import NearCopies, find_near_copies
from pipeline.sources.filters import Filters
from pipeline.sources.manifest import read_info, read_manifest
from pipeline.storage.stores import Stores
from tests.images import encoded
from tests.searches import search
from tests.training_data import cell_images


def smear(seed: int, width: int = 224, height: int = 200) -> Image.Image:
    """A drawn field: soft random structure in three colours, of which no two seeds have the same."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(60, 240, (height // 12, width // 12, 3)).astype(np.uint8)
    field = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.normal(0, 4, (height, width, 3))
    return Image.fromarray((np.asarray(field) + noise).clip(0, 255).astype(np.uint8))


def brighter(image: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(image).astype(int) + 5).clip(0, 255).astype(np.uint8))


def cropped(image: Image.Image) -> Image.Image:
    return image.crop((2, 2, image.width - 2, image.height - 2))


CHANGES: dict[str, Callable[[Image.Image], bytes]] = {
    "saved anew": lambda image: encoded(image, "JPEG", quality=60),
    "as PNG": lambda image: encoded(image, "PNG"),
    "turned": lambda image: encoded(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=90),
    "turned twice": lambda image: encoded(image.transpose(Image.Transpose.ROTATE_180), "JPEG", quality=90),
    "mirrored": lambda image: encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "JPEG", quality=90),
    "cropped": lambda image: encoded(cropped(image), "JPEG", quality=90),
    "cropped at a side": lambda image: encoded(image.crop((2, 2, *image.size)), "JPEG", quality=90),
    "brighter": lambda image: encoded(brighter(image), "JPEG", quality=90),
    "all of it": lambda image: encoded(
        cropped(brighter(image)).transpose(Image.Transpose.TRANSVERSE), "JPEG", quality=70
    ),
}


def near_in(folder: Path, unwanted: str = "") -> tuple[NearCopies, set[frozenset[str]]]:
    listing = read_sources([str(folder)], Filters(), Stores(), None)
    found = find_near_copies(listing.table, [path != unwanted for path in listing.paths])
    return found, {frozenset((listing.paths[pair.first], listing.paths[pair.second])) for pair in found.pairs}


@pytest.mark.parametrize("change", CHANGES)
def test_an_image_is_found_again_whatever_was_done_to_the_file(change: str, tmp_path: Path) -> None:
    for seed in range(6):
        (tmp_path / f"{seed}.jpg").write_bytes(encoded(smear(seed), "JPEG", quality=92))
        (tmp_path / f"{seed}_again.jpg").write_bytes(CHANGES[change](smear(seed)))
    assert near_in(tmp_path)[1] == {frozenset((f"{seed}.jpg", f"{seed}_again.jpg")) for seed in range(6)}


def test_cells_of_one_shape_on_plain_ground_are_no_copies(tmp_path: Path) -> None:
    """Discs of two sizes: their outlines coincide, what is in them does not."""
    cell_images(tmp_path, 100, size=96)
    assert not near_in(tmp_path)[1]


@given(seed=st.integers(0, 10_000), way=st.integers(0, 7))
@search(30)
def test_a_key_and_the_agreement_are_the_same_for_all_eight_symmetries(seed: int, way: int) -> None:
    picture = np.asarray(smear(seed, SIDE, SIDE).convert("L").filter(ImageFilter.GaussianBlur(1)))
    turned = np.rot90(picture.T if way & 4 else picture, way & 3)
    assert np.allclose(*keys(np.stack([picture, turned])), atol=1e-4)
    assert agreement(picture[None], np.ascontiguousarray(turned)[None])[0] > 0.99


def test_other_images_are_out_of_reach_or_do_not_agree() -> None:
    pictures: NDArray[np.uint8] = np.stack([np.asarray(smear(seed, SIDE, SIDE).convert("L")) for seed in range(40)])
    found = keys(pictures)
    distances = np.linalg.norm(found[:, None] - found[None], axis=2) + 9 * np.eye(40)
    assert distances.min() > REACH
    assert agreement(pictures[:20], pictures[20:]).max() < AGREEMENT / 2


def test_plain_sheets_and_what_cannot_be_read_have_no_copies(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"white{number}.png").write_bytes(encoded(Image.new("RGB", (64, 64 + number), "white"), "PNG"))
    (tmp_path / "cut.jpg").write_bytes(encoded(smear(0), "JPEG")[:400])
    found, pairs = near_in(tmp_path)
    assert not pairs and (found.compared, found.unread) == (3, 1)


def test_byte_identical_copies_stand_for_each_other_and_the_unwanted_are_not_read(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(encoded(smear(0), "JPEG", quality=90 if name < "c" else 80))
    listing = read_sources([str(tmp_path)], Filters(), Stores(), None)
    found = find_near_copies(listing.table, [True] * 3, copies=[[0, 1]])
    assert [(pair.first, pair.second) for pair in found.pairs] == [(0, 2)] and found.compared == 2
    assert near_in(tmp_path, unwanted="c.jpg")[0].compared == 2


def test_images_of_a_compressed_archive_are_compared_too(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(smear(0), "JPEG", quality=90))
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        data = CHANGES["turned"](smear(0))
        info = tarfile.TarInfo("b.jpg")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    assert near_in(tmp_path)[1] == {frozenset(("a.jpg", "x.tar.gz!/b.jpg"))}


def test_a_chain_through_a_large_part_of_the_set_is_no_group_of_copies(tmp_path: Path) -> None:
    """Each window of a panorama is nearly the next; together they would leave nothing to split."""
    panorama = smear(0, 300, 200)
    for number in range(24):
        window = panorama.crop((2 * number, 0, 200 + 2 * number, 200))
        (tmp_path / f"{number:02d}.jpg").write_bytes(encoded(window, "JPEG", quality=92))
    found, pairs = near_in(tmp_path)
    assert not pairs and not found.groups and found.dropped == 24


# ---- the job -----------------------------------------------------------------------------------------------


def set_with_near_copies(root: Path, parts: tuple[str, str]) -> Path:
    """20 images a class in each of two parts; the first of each class is the same image in both."""
    for number in range(80):
        part, class_name = parts[number // 40], ("healthy", "leukemia")[number % 2]
        image, is_again = smear(number), number in (40, 41)
        folder = root / part / class_name
        folder.mkdir(parents=True, exist_ok=True)
        data = CHANGES["turned"](smear(number - 40)) if is_again else encoded(image, "JPEG", quality=90)
        (folder / f"{number}.jpg").write_bytes(data)
    return root


def test_near_copies_stay_on_one_side_of_the_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = set_with_near_copies(tmp_path / "in", ("batch1", "batch2")), tmp_path / "m"
    assert job.command([str(source), "--out", str(out)]) == 0
    splits = {Path(row["uri"]).stem: row["split"] for row in read_manifest(str(out)).table.to_pylist()}
    assert (splits["0"], splits["1"]) == (splits["40"], splits["41"])
    printed = capsys.readouterr().out
    assert "80 labelled images with each other: 2 pairs" in " ".join(printed.split()) and "images/s" in printed
    counts = read_info(str(out)).near_copies
    assert counts is not None and (counts.compared, counts.pairs, counts.images, counts.torn) == (80, 2, 4, 0)


def test_given_splits_that_tear_near_copies_apart_are_told_with_examples_and_pictures(tmp_path: Path) -> None:
    source, out = set_with_near_copies(tmp_path / "in", ("train", "test")), tmp_path / "m"
    assert job.command([str(source), "--out", str(out)]) == 0
    info = read_info(str(out))
    assert info.near_copies is not None and info.near_copies.torn == 2
    said = json.dumps(info.warnings)  # these go into every report
    assert "TEAR 2 PAIRS APART" in said and "test/healthy/40.jpg (test)" in said
    page = (out / "near_copies.html").read_text()
    assert page.count("<img") == 4 and f"{source}/test/healthy/40.jpg (test)" in page
    rows = (out / "near_copies.csv").read_text().splitlines()
    assert len(rows) == 3 and rows[1].startswith(f"{source}/")


def test_byte_identical_images_are_listed_with_the_near_ones_but_not_shown_nor_those_of_two_labels(
    tmp_path: Path,
) -> None:
    source, out = set_with_near_copies(tmp_path / "in", ("train", "test")), tmp_path / "m"
    folder = source / "train" / "healthy"
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes((folder / "2.jpg").read_bytes())
    (source / "train" / "leukemia" / "c.jpg").write_bytes((folder / "4.jpg").read_bytes())
    assert job.command([str(source), "--out", str(out)]) == 0
    with (out / "near_copies.csv").open() as file:
        pairs = [(Path(row["first"]).name, Path(row["second"]).name, row["agreement"]) for row in csv.DictReader(file)]
    assert {first for first, _, _ in pairs[:2]} == {"40.jpg", "41.jpg"}, "those that the split divides come first"
    assert pairs[2:] == [("2.jpg", "a.jpg", "1.00"), ("2.jpg", "b.jpg", "1.00")]
    assert (out / "near_copies.html").read_text().count("<img") == 4


def test_looking_for_near_copies_can_be_switched_off_and_the_manifest_says_so(tmp_path: Path) -> None:
    source, out = set_with_near_copies(tmp_path / "in", ("train", "test")), tmp_path / "m"
    assert job.command([str(source), "--out", str(out)]) == 0
    assert job.command([str(source), "--no-near-copies", "--out", str(out)]) == 0
    info = read_info(str(out))
    assert info.near_copies is None and "near copies were not looked for" in json.dumps(info.warnings)
    assert not (out / "near_copies.html").exists(), "what an earlier manifest left there"
