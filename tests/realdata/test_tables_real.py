"""Tables beside real images: patients joined by their folders, paths written on another system."""

from pathlib import Path

import pytest

from pipeline.ingest.annotate import IngestOptions
from pipeline.ingest.draft import ingest

pytestmark = pytest.mark.realdata


def test_patients_of_deepapl_are_joined_to_their_folders(real_data: Path) -> None:
    folder = real_data / "deepapl"
    if not folder.is_dir():
        pytest.skip("real images: no deepapl")
    draft = ingest([str(folder / "cells")], IngestOptions(subjects=str(folder / "patients.csv")))
    assert not [warning for warning in draft.warnings if "table of subjects" in warning]
    ages = dict(zip(draft.table["subject_id"].to_pylist(), draft.table["Age_at_Diagnosis"].to_pylist(), strict=True))
    assert (len(ages), ages["Patient_00"], ages["Patient_06"]) == (82, 29, 81)
    assert set(draft.table["Gender"].to_pylist()) == {"Female", "Male"}


def test_a_table_from_another_system_finds_every_image_of_taleqani(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "taleqani-all"
    if not folder.is_dir():
        pytest.skip("real images: no taleqani-all")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))
    lines = ["sep=;", "File;Cell type;Split"]
    for number, name in enumerate(names):
        windows = name.replace("/", "\\").upper()
        lines.append(f"D:\\lab\\{windows};{name.split('/')[-2]};{('train', 'val', 'test')[number % 3]}")
    (tmp_path / "t.csv").write_text("\r\n".join(lines), encoding="utf-8-sig", newline="")
    draft = ingest([str(folder)], IngestOptions(labels=str(tmp_path / "t.csv")))
    assert (draft.split.rule, draft.units) == ("given", "blocks")
    assert draft.positive == {"Benign": 0, "Early": 1, "Pre": 1, "Pro": 1}
    order = dict(zip(draft.listing.paths, draft.table["split"].to_pylist(), strict=True))
    assert [order[name][:3] for name in names] == [("tra", "val", "tes")[number % 3] for number in range(len(names))]
    assert any("divide 65 of 65 blocks" in warning for warning in draft.warnings)
