"""`croissant.json` beside a manifest, by the structure that Croissant 1.0 asks for."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import ingest
from pipeline.ingest.croissant import CONFORMS_TO, data_type
from tests.training_data import cell_images


@pytest.fixture
def described(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    for name, seed in (("blast", 0), ("lymphocyte", 1)):
        cell_images(tmp_path / "in" / name, 12, seed=seed)
    (tmp_path / "subjects.csv").write_text("subject_id,age\n")
    out = tmp_path / "manifest"
    flags = ["--positive", "blast", "--subject-pattern", r"cell_(\d+)", "--no-near-copies", "--license", "CC-BY-4.0"]
    assert ingest.command([str(tmp_path / "in"), "--out", str(out), "--no-subjects-shared", *flags]) == 0
    return out, json.loads((out / "croissant.json").read_text())


def test_what_croissant_asks_of_a_data_set_is_there(described: tuple[Path, dict[str, Any]]) -> None:
    _, told = described
    assert told["@type"] == "sc:Dataset" and told["conformsTo"] == CONFORMS_TO and told["license"] == "CC-BY-4.0"
    assert {"name", "description", "version", "datePublished"} <= set(told)
    assert "24 images" in told["description"] and "blast 12" in told["description"]
    used = {key for record in told["recordSet"] for key in record} | {"column", "extract", "fileObject", "references"}
    assert {key for key in used if not key.startswith("@")} - {"name", "description"} <= set(told["@context"])
    ids = [item["@id"] for item in [*told["distribution"], *told["recordSet"]]]
    ids += [field["@id"] for record in told["recordSet"] for field in record["field"]]
    assert len(set(ids)) == len(ids)


def test_files_have_their_digest_and_every_column_its_field(described: tuple[Path, dict[str, Any]]) -> None:
    out, told = described
    [file] = told["distribution"]
    assert file["sha256"] == hashlib.sha256((out / file["contentUrl"]).read_bytes()).hexdigest()
    table = pq.read_table(out / file["contentUrl"])
    [images] = [record for record in told["recordSet"] if record["@id"] == "images"]
    columns = {field["source"]["extract"]["column"]: field for field in images["field"]}
    assert set(columns) == set(table.column_names)
    assert {field["source"]["fileObject"]["@id"] for field in images["field"]} == {file["@id"]}
    assert (columns["label"]["dataType"], columns["mtime"]["dataType"]) == ("sc:Integer", "sc:DateTime")
    assert "patient" in columns["subject_id"]["description"]


def test_splits_are_named_as_croissant_names_them(described: tuple[Path, dict[str, Any]]) -> None:
    out, told = described
    [splits] = [record for record in told["recordSet"] if record.get("dataType") == "cr:Split"]
    named = {row["splits/name"]: row["splits/url"] for row in splits["data"]}
    assert named == {"train": "cr:TrainingSplit", "validation": "cr:ValidationSplit", "test": "cr:TestSplit"}
    used = set(pq.read_table(out / "part-00000.parquet")["split"].to_pylist()) - {None}
    assert used <= set(named)


def test_a_licence_that_nobody_gave_is_unknown(tmp_path: Path) -> None:
    cell_images(tmp_path / "in" / "blast", 4)
    assert ingest.command([str(tmp_path / "in"), "--out", str(tmp_path / "m"), "--no-near-copies"]) == 0
    assert json.loads((tmp_path / "m" / "croissant.json").read_text())["license"] == "unknown"


@pytest.mark.parametrize(
    ("kind", "named"),
    [(pa.bool_(), "sc:Boolean"), (pa.int8(), "sc:Integer"), (pa.float32(), "sc:Float"), (pa.date32(), "sc:Date"),
     (pa.string(), "sc:Text"), (pa.list_(pa.int8()), "sc:Text")],
)  # fmt: skip
def test_types_are_those_of_schema_org(kind: pa.DataType, named: str) -> None:
    assert data_type(kind) == named
