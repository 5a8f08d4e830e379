"""Cross-validation folds: what stays together, what each holds, and what is refused."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs import ingest
from pipeline.base.errors import InputError, UsageError
from pipeline.sources.manifest import MANIFEST_SCHEMA, Manifest, ManifestInfo, read_manifest, write_manifest
from pipeline.sources.rows import image_id
from pipeline.storage.stores import Stores
from pipeline.training.folds import Folds, fold_numbers
from pipeline.training.rows import labelled_rows
from tests.training_data import cell_images, manifest_row


def _manifest(folder: Path, subjects: list[str | None], sites: list[str | None] | None = None) -> Manifest:
    rows: list[dict[str, Any]] = []
    folder.mkdir(exist_ok=True)
    for number, subject in enumerate(subjects):
        path = folder / f"{number:03d}.png"
        if not path.exists():  # another manifest of the same images
            path.write_bytes(b"x")
        row = manifest_row(path, number % 2, "validation" if number < 8 else "train")
        rows.append({**row, "subject_id": subject, "site": sites[number] if sites else None})
    table = pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)
    info = ManifestInfo(source=[str(folder)], layout="x", digest="", counts={}, unit="cell")
    return write_manifest(str(folder / "manifest"), [table], info)


def _folds(manifest: Manifest, count: int | None = 4, by: Any = "subject") -> Folds:
    return fold_numbers(manifest, labelled_rows(manifest), count, by, 0, Stores())


def _ids(table: pa.Table) -> set[int]:
    return set(table["image_id"].to_pylist())


def test_every_image_is_held_out_once_and_no_subject_is_on_both_sides(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path, [f"p{number // 4}" for number in range(48)])
    folds = _folds(manifest)
    subject = dict(zip(manifest.table["image_id"].to_pylist(), manifest.table["subject_id"].to_pylist(), strict=True))
    held_out: list[int] = []
    for number in range(4):
        rows = folds.without(number)
        train, validation = _ids(rows.train), _ids(rows.validation)
        assert train | validation == set(subject) and not train & validation
        assert not {subject[i] for i in train} & {subject[i] for i in validation}
        assert set(folds.fold_of(np.array(sorted(validation))).tolist()) == {number}
        held_out += validation
    assert sorted(held_out) == sorted(subject)
    assert max(folds.sizes()) - min(folds.sizes()) <= 4


def test_near_copies_stay_together_where_there_are_no_subjects(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path, [None] * 40)
    chain = [f"{tmp_path}/{n:03d}.png" for n in (1, 9, 23, 30)]
    lines = ["first,second,agreement", *(f"{a},{b},0.99" for a, b in itertools.pairwise(chain))]
    (tmp_path / "manifest" / "near_copies.csv").write_text("\n".join(lines))
    folds = _folds(manifest)
    assert len(set(folds.fold_of(np.array(sorted(image_id(path) for path in chain))).tolist())) == 1


@pytest.mark.parametrize("near_copies", ["--near-copies", "--no-near-copies"])
def test_byte_identical_images_stay_together_where_there_are_no_subjects(tmp_path: Path, near_copies: str) -> None:
    source, out = tmp_path / "in", tmp_path / "m"
    for number, row in enumerate(cell_images(tmp_path / "drawn", 40)):
        for copy in range(2):
            path = source / ("healthy", "leukemia")[number % 2] / f"{number}_{copy}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(Path(row["uri"]).read_bytes())
    assert ingest.command([str(source), near_copies, "--fractions", "0.5", "0.5", "0", "--out", str(out)]) == 0
    manifest = read_manifest(str(out))
    names = [Path(uri).stem.partition("_")[0] for uri in manifest.table["uri"].to_pylist()]
    fold = _folds(manifest).fold_of(manifest.table["image_id"].to_numpy()).tolist()
    assert len(fold) == 80 and len(set(zip(names, fold, strict=True))) == 40


def test_images_that_one_of_another_split_ties_stay_together(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path, [None] * 40)
    rows = [row | {"split": "test"} if number == 39 else row for number, row in enumerate(manifest.table.to_pylist())]
    table = pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)
    manifest = write_manifest(str(tmp_path / "manifest"), [table], manifest.info)
    tied = [f"{tmp_path}/{n:03d}.png" for n in (1, 9, 23, 30)]
    lines = ["first,second,agreement", *(f"{path},{tmp_path}/039.png,0.99" for path in tied)]
    (tmp_path / "manifest" / "near_copies.csv").write_text("\n".join(lines))
    folds = _folds(manifest)
    assert sum(folds.sizes()) == 39
    assert len(set(folds.fold_of(np.array(sorted(image_id(path) for path in tied))).tolist())) == 1


def test_a_site_is_held_out_whole(tmp_path: Path) -> None:
    sites = [f"clinic{number // 16}" for number in range(48)]
    manifest = _manifest(tmp_path, [f"p{number}" for number in range(48)], sites)
    folds = _folds(manifest, None, "site")
    site = dict(zip(manifest.table["image_id"].to_pylist(), manifest.table["site"].to_pylist(), strict=True))
    held_out = [{site[i] for i in _ids(folds.without(number).validation)} for number in range(3)]
    assert sorted(map(sorted, held_out)) == [["clinic0"], ["clinic1"], ["clinic2"]]


def test_more_folds_than_subjects_are_refused(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path, [f"p{number // 12}" for number in range(36)])
    with pytest.raises(UsageError, match=r"--folds 4: the manifest has 3 groups .*use at most 3"):
        _folds(manifest)


def test_more_folds_than_images_of_any_class_are_refused(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    manifest = _manifest(tmp_path, [f"p{number}" for number in range(16)])
    with pytest.raises(UsageError, match="--folds 9: no class has more than 8 images; use at most 8"):
        _folds(manifest, 9)
    assert sum(_folds(manifest, 8).sizes()) == 16
    rows = manifest.table.to_pylist()
    rare = [row | {"label": int(number in (1, 3, 9, 11))} for number, row in enumerate(rows)]
    table = pa.Table.from_pylist(rare, schema=MANIFEST_SCHEMA)
    assert sum(_folds(write_manifest(str(tmp_path / "rare"), [table], manifest.info), 6).sizes()) == 16
    assert not recwarn.list  # scikit-learn's, of four images in six folds


def test_near_copies_that_tie_everything_together_are_named(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path, [f"p{number // 4}" for number in range(16)])
    pairs = [f"{tmp_path}/000.png,{tmp_path}/{other:03d}.png,0.99" for other in range(4, 16)]
    (tmp_path / "manifest" / "near_copies.csv").write_text("\n".join(["first,second,agreement", *pairs]))
    with pytest.raises(InputError, match=r"near copies tie all of its 4 groups .* see near_copies.csv"):
        _folds(manifest, 2)


def test_images_without_a_site_are_refused(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path, [f"p{number}" for number in range(12)], ["a"] * 6 + [None] * 6)
    with pytest.raises(InputError, match="6 images have no site"):
        _folds(manifest, 2, "site")


def test_a_class_that_one_fold_holds_alone_is_refused(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path, ["even" if number % 2 == 0 else f"p{number // 8}" for number in range(32)])
    with pytest.raises(InputError, match="holds every image of class negative"):
        _folds(manifest)


def test_folds_that_were_dealt_otherwise_are_another_run(tmp_path: Path) -> None:
    """Sites and near copies may change while ids, labels and splits of a manifest stay: a kept fold would leak."""
    subjects: list[str | None] = [f"p{number}" for number in range(48)]
    sites: list[str | None] = [f"clinic{number // 8}" for number in range(48)]
    manifest = _manifest(tmp_path, subjects, sites)
    first = _folds(manifest, 3, "site").digest()
    assert first == _folds(manifest, 3, "site").digest()
    swapped = _manifest(tmp_path, subjects, [f"clinic{number % 6}" for number in range(48)])
    assert swapped.info.digest == manifest.info.digest
    assert _folds(swapped, 3, "site").digest() != first
    before = _folds(manifest).digest()
    pairs = [f"{tmp_path}/{a:03d}.png,{tmp_path}/{b:03d}.png,0.99" for a in range(12) for b in range(12, 48, 12)]
    (tmp_path / "manifest" / "near_copies.csv").write_text("\n".join(["first,second,agreement", *pairs]))
    assert _folds(manifest).digest() != before
