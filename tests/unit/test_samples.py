"""The generator of synthetic smears: same seed, same bytes; the promised layout; balance; honest markings."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from pipeline.base.errors import UsageError
from pipeline.samples import draw_style, generate, generate_archive, render_field
from pipeline.samples.cells import draw_patch, draw_white_cell
from pipeline.samples.field import _white_cells


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def small(out: Path, seed: int = 0, **options: object) -> Path:
    return generate(out, **{"images": 12, "subjects": 4, "width": 96, "height": 72} | options, seed=seed).root


def test_same_seed_gives_same_bytes_and_another_seed_other_ones(tmp_path: Path) -> None:
    first = contents(small(tmp_path / "a", seed=3))
    assert contents(small(tmp_path / "b", seed=3)) == first
    assert contents(small(tmp_path / "c", seed=4)) != first


def test_worker_processes_do_not_change_a_byte(tmp_path: Path) -> None:
    assert contents(small(tmp_path / "a", workers=2)) == contents(small(tmp_path / "b"))


def test_archive_is_reproducible(tmp_path: Path) -> None:
    for name in ("a", "b"):
        generate_archive(tmp_path / name, images=10, subjects=2, seed=1, width=96, height=72)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_folders_hold_the_classes_and_names_hold_the_subjects(tmp_path: Path) -> None:
    root = small(tmp_path)
    names = [p.relative_to(root).as_posix() for p in root.rglob("*.jpg")]
    assert len(names) == 12
    assert {name.split("/")[0] for name in names} == {"leukemia", "healthy"}
    subjects = {folder: {p.name.split("_")[0] for p in (root / folder).iterdir()} for folder in ("leukemia", "healthy")}
    assert not subjects["leukemia"] & subjects["healthy"]
    assert subjects["leukemia"] | subjects["healthy"] == {"S000", "S001", "S002", "S003"}


def test_half_of_subjects_and_images_are_positive(tmp_path: Path) -> None:
    made = generate(tmp_path, images=40, subjects=10, width=64, height=64)
    assert made.positive_images == len(list((tmp_path / "leukemia").iterdir())) == 20
    assert len({p.name.split("_")[0] for p in (tmp_path / "leukemia").iterdir()}) == 5


def test_subject_number_does_not_tell_the_class(tmp_path: Path) -> None:
    made = generate_archive(tmp_path, images=40, subjects=40, width=64, height=64)
    labels = np.array([made.labels[name] for name in sorted(made.labels)])
    assert 4 < labels[:20].sum() < 16


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
def test_every_file_says_synthetic_in_its_own_metadata(tmp_path: Path, extension: str) -> None:
    root = small(tmp_path, formats=(extension,))
    for path in root.rglob(f"*.{extension}"):
        with Image.open(path) as image:
            assert "synthetic" in image.getexif()[0x010E]
            if extension == "jpg":
                assert b"synthetic" in image.info["comment"]
            assert image.size == (96, 72) and image.mode == "RGB"
    assert "SYNTHETIC" in (root / "SYNTHETIC.txt").read_text()


def test_archive_holds_all_images_without_labels_and_three_damaged_files(tmp_path: Path) -> None:
    made = generate_archive(tmp_path, images=20, subjects=4, width=96, height=72)
    files: dict[str, bytes] = {p.name: p.read_bytes() for p in (tmp_path / "loose").iterdir()}
    with tarfile.open(tmp_path / "night_1.tar") as tar:
        files |= {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    with zipfile.ZipFile(tmp_path / "night_2.zip") as archive:
        files |= {name: archive.read(name) for name in archive.namelist()}
    assert set(files) == set(made.labels) | set(made.damaged)
    assert len(made.labels) == 20
    assert not any("leukemia" in str(p) or "healthy" in str(p) for p in tmp_path.rglob("*"))
    for name, content in files.items():
        if name in made.damaged:
            with pytest.raises((UnidentifiedImageError, OSError)):
                Image.open(io.BytesIO(content)).load()
        else:
            Image.open(io.BytesIO(content)).load()


def test_nuclei_fill_the_same_area_in_both_classes() -> None:
    areas: dict[bool, list[float]] = {True: [], False: []}
    for subject in range(150):
        style = draw_style(np.random.default_rng([0, subject]))
        for positive in areas:
            cells = _white_cells(np.random.default_rng([1, subject]), style, positive)
            assert any(cell.kind == "blast" for cell in cells) is positive
            areas[positive].append(sum(cell.nuclear_area_um2 for cell in cells))
    assert np.mean(areas[True]) == pytest.approx(np.mean(areas[False]), rel=0.10)


def test_blasts_have_larger_nuclei_and_less_cytoplasm_than_other_white_cells() -> None:
    rng = np.random.default_rng(0)
    cells = {kind: [draw_white_cell(rng, kind) for _ in range(50)] for kind in ("blast", "lymphocyte", "neutrophil")}
    ratio = {
        kind: np.median([c.nuclear_area_um2 / (np.pi * c.radius_um**2) for c in group]) for kind, group in cells.items()
    }
    assert ratio["blast"] > ratio["lymphocyte"] > ratio["neutrophil"]
    assert min(c.nucleus_um for c in cells["blast"]) > max(c.nucleus_um for c in cells["lymphocyte"])


@pytest.mark.parametrize("kind", ["blast", "lymphocyte", "neutrophil"])
def test_drawn_nucleus_has_about_the_area_it_was_given(kind: str) -> None:
    rng = np.random.default_rng(1)
    ratios = []
    for _ in range(20):
        cell = draw_white_cell(rng, kind)
        azure = draw_patch(rng, cell, 6.0, 1.0).stain[1]
        ratios.append((azure > 0.3).sum() / 6.0**2 / cell.nuclear_area_um2)
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.2)


def test_larger_picture_is_the_same_scene_in_more_pixels() -> None:
    style = draw_style(np.random.default_rng(2))
    small_field = render_field(np.random.default_rng(5), style, True, 160, 120)
    large_field = render_field(np.random.default_rng(5), style, True, 320, 240)
    assert small_field.shape == (120, 160, 3) and large_field.dtype == np.uint8
    assert np.abs(small_field.mean((0, 1)) - large_field.mean((0, 1))).max() < 12


@pytest.mark.parametrize(
    "options", [{"formats": ("gif",)}, {"formats": ()}, {"subjects": 1}, {"images": 3}, {"width": 20}]
)
def test_impossible_requests_are_refused_with_the_reason(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="samples:"):
        small(tmp_path, **options)
