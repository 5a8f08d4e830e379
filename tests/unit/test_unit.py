"""What an image shows, a cell or a field: told, carried, and no model of one is used on the other unnoticed."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pyarrow as pa
import pytest

from jobs import evaluate, ingest
from pipeline.base.errors import InputError
from pipeline.images.unit import Unit, mismatch, refuse_mismatch
from pipeline.ingest.class_names import are_cell_types
from pipeline.ingest.layouts import LAYOUTS
from pipeline.model.registry import ModelFolder
from pipeline.scoring.commit.subjects import roll_up
from pipeline.scoring.plan.plan import Plan
from pipeline.scoring.request import Request
from pipeline.scoring.task import ScoringTask
from pipeline.scoring.unit import unit_of_sources, unit_scored
from pipeline.sources.manifest import read_info, read_manifest
from pipeline.storage.stores import Stores
from tests.bundles import make_bundle
from tests.images import encoded, scene


def source_of(root: Path, names: Sequence[str]) -> Path:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(scene(30 + number, 40), "PNG"))
    return root


def ingested(source: Path, *flags: str) -> str:
    out = str(source.parent / "m")
    assert ingest.command([str(source), "--no-near-copies", "--out", out, *flags]) == 0
    return out


def folders(root: Path) -> Path:
    return source_of(root, [f"{name}/{number}.png" for name in ("healthy", "leukemia") for number in range(12)])


def test_a_known_layout_tells_the_unit_and_the_word_of_the_user_is_the_last(tmp_path: Path) -> None:
    names = [f"all/UID_{number}_1_1_all.bmp" for number in range(8)]
    names += [f"hem/UID_H{number}_1_1_hem.bmp" for number in range(8)]
    source = source_of(tmp_path / "in", names)
    assert read_info(ingested(source)).unit == "cell"
    manifest = read_manifest(ingested(source, "--unit", "field"))
    assert manifest.info.unit == "field" and set(manifest.table["unit"].to_pylist()) == {"field"}


def test_classes_that_are_kinds_of_cells_tell_that_an_image_is_a_cell() -> None:
    assert are_cell_types(["Blast_no_lineage_spec", "Promyelocyte", "Segmented_neutrophils", "Smudge_cells"])
    assert not are_cell_types(["Monocytic", "Myelocytic", "Lymphocytic leukemia", "healthy"])
    assert not are_cell_types(["lymphocyte field", "monocyte_smears", "blast slide"])
    assert are_cell_types(["basophil", "eosinophil", "erythroblast", "ig", "lymphocyte", "platelet"])
    for names in (["leukemia", "healthy"], ["blast", "normal"], ["Benign", "Early", "Pre", "Pro"], []):
        assert not are_cell_types(names)


def test_an_unknown_unit_is_asked_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folders(tmp_path / "in")
    assert read_info(ingested(source)).unit is None
    assert "nobody has said what an image shows: --unit cell" in " ".join(capsys.readouterr().out.split())
    assert read_info(ingested(source, "--unit", "cell")).unit == "cell"


@pytest.mark.parametrize(
    ("model", "images", "agrees"),
    [("cell", "field", False), ("field", "cell", False), ("cell", "cell", True), (None, "cell", True)],
)
def test_a_model_of_cells_says_nothing_of_fields(model: Unit | None, images: Unit, agrees: bool) -> None:
    assert (mismatch(model, images) is None) == agrees
    if not agrees:
        with pytest.raises(InputError, match=r"it says nothing of them; take a model of .* --unit"):
            refuse_mismatch(model, images, "m")


def test_evaluating_a_model_of_cells_on_fields_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = ingested(folders(tmp_path / "in"), "--unit", "field")
    model = make_bundle(tmp_path / "model", unit="cell").uri
    assert evaluate.command([manifest, "--model", model, "--out", str(tmp_path / "r")]) == 3
    assert "trained on images of single cells, these are of whole fields" in capsys.readouterr().err


def test_a_model_folder_of_cells_takes_no_model_of_fields(tmp_path: Path) -> None:
    folder = ModelFolder(str(tmp_path))
    bundle = make_bundle(tmp_path / "20260101-000000-00000000", unit="cell")
    folder.point_if_better(bundle)
    info = bundle.info
    folder.refuse_other_task(info.task, info.classes, info.positive_classes, "cell")
    with pytest.raises(InputError, match=r"trained on images of single cells.*--name"):
        folder.refuse_other_task(info.task, info.classes, info.positive_classes, "field")


# ---- scoring -----------------------------------------------------------------------------------------------


def task(tmp_path: Path, layout: str, sources: tuple[str, ...], unit: Unit | None) -> ScoringTask:
    plan = cast(Plan, type("Plan", (), {"layout": layout}))
    request = Request(sources, "", "")
    return ScoringTask(cast("object", None), request, plan, make_bundle(tmp_path / "b", unit=unit), Stores())  # type: ignore[arg-type]


def test_scored_images_are_what_their_manifest_or_layout_says_else_what_the_model_takes(tmp_path: Path) -> None:
    manifest = ingested(folders(tmp_path / "in"), "--unit", "field")
    assert unit_of_sources(task(tmp_path, "flat", (manifest,), "cell")) == "field"
    assert unit_of_sources(task(tmp_path, "c-nmc-2019", (str(tmp_path),), "field")) == "cell"
    assert unit_of_sources(task(tmp_path, "c-nmc-2019", (manifest,), "cell")) is None, "they differ"
    assert unit_scored(task(tmp_path, "flat", (str(tmp_path),), "field")) == "field"
    assert LAYOUTS["taleqani-all"].unit == "field" and LAYOUTS["class-folders"].unit is None


def test_shares_of_a_subject_are_made_of_cells_only() -> None:
    columns = {"subject_id": ["A", "A", "B"], "probability": [0.9, 0.2, 0.95]}
    table = pa.table({**columns, "decision": ["positive", "negative", "positive"], "image_id": [1, 2, 3]})
    of_cells = roll_up(iter([table]), "run", "cell").to_pylist()
    of_fields = roll_up(iter([table]), "run", "field").to_pylist()
    assert {row["subject_id"]: row["share_positive"] for row in of_cells} == {"A": 0.5, "B": 1.0}
    assert [(row["subject_id"], row["share_positive"], row["share_low"], row["unit"]) for row in of_fields] == [
        ("B", None, None, "field"),
        ("A", None, None, "field"),
    ]
    assert [row["n_positive"] for row in of_fields] == [1, 1], "counts stay"
