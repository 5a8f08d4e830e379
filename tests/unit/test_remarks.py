"""What was noticed about images is kept, counted and told by every job; a fixed depth is another model, and is told."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from jobs import migrate, score, summary
from pipeline.evaluation.outcomes import Outcomes
from pipeline.evaluation.predict import predict_rows
from pipeline.images.load import Preprocessing
from pipeline.model.bundle import Bundle, read_bundle
from pipeline.model.predictor import Predictor
from pipeline.scoring.commit.compact import _shape
from pipeline.scoring.schemas import part_schema, prediction_schema
from pipeline.sources.manifest import Manifest
from pipeline.storage.local import local_etag
from pipeline.training.decoded import Noted, decode
from pipeline.training.rows import labelled_rows
from tests.bundles import make_bundle
from tests.images import encoded, scene, tiff
from tests.scoring_sources import picture, rows, score_here, write_files
from tests.training_data import cell_images, manifest_of

GRAY12 = np.asarray(scene().convert("L")).astype(np.uint16) * 16
RGB12 = np.asarray(scene()).astype(np.uint16) * 16
FAX = bytearray(encoded(scene().convert("1"), "TIFF", compression="group4"))
FAX[int(0.3 * len(FAX))] ^= 0x5A


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle"), size=16)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    files = {"a.jpg": picture(1), "b.tif": tiff(GRAY12), "c.tif": bytes(FAX), "d.tif": tiff(RGB12)}
    return write_files(tmp_path / "in", files)


def test_remarks_are_a_column_and_are_counted_and_told(
    bundle: Bundle, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, record = score_here([source], bundle, tmp_path / "out")
    found = rows(Path(folder.uri)).to_pylist()
    remarks = {Path(row["uri"]).name: row["remark"] for row in found}
    assert remarks["a.jpg"] is None and remarks["b.tif"] == "depth guessed as 12 bits"
    assert remarks["c.tif"].startswith("decoder warned: Fax4Decode")
    assert record["counts"]["remarks"] == {"depth guessed as 12 bits": 1, "decoder warned": 1}
    assert record["counts"]["codes"] == {"unsupported_format": 1}
    assert summary.command([folder.uri]) == 0
    assert "1  depth guessed as 12 bits" in capsys.readouterr().out
    assert "1 image: depth guessed as 12 bits" in (Path(folder.uri) / "summary.html").read_text()


def test_a_fixed_depth_scores_anew_what_it_can_change_the_meaning_of(
    bundle: Bundle, source: Path, tmp_path: Path
) -> None:
    score_here([source], bundle, tmp_path / "out", "run-1")
    fixed = bundle.with_bit_depth(12)
    assert fixed.info.identity() != bundle.info.identity()
    folder, record = score_here([source], fixed, tmp_path / "out", "run-2")
    assert record["counts"]["scored"] == 4 and record["counts"]["remarks"] == {"decoder warned": 1}
    assert record["model"]["bit_depth"] == 12
    assert set(rows(Path(folder.uri))["preprocessing_digest"].to_pylist()) == {fixed.info.preprocessing_digest}
    _, again = score_here([source], fixed, tmp_path / "out", "run-3")
    assert again["counts"]["skipped"] == 4


def test_a_bundle_keeps_the_depth_it_was_trained_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = make_bundle(tmp_path / "m" / "v1", size=16, bit_depth=12, version="v1")
    assert read_bundle(trained.uri).info.bit_depth == 12
    assert trained.with_bit_depth(None) is trained and trained.with_bit_depth(12) is trained
    assert trained.depth_note(12) == ""
    assert migrate.command([trained.uri]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_scoring_with_another_depth_than_trained_is_told(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = make_bundle(tmp_path / "m" / "v1", size=16, bit_depth=12, version="v1")
    arguments = [str(source), "--model", trained.uri, "--out", str(tmp_path / "out"), "--dry-run"]
    assert score.command([*arguments, "--bit-depth", "14"]) == 0
    assert "learned from images with --bit-depth 12, these are read with 14" in capsys.readouterr().out
    assert score.command(arguments) == 0
    assert "learned from" not in capsys.readouterr().out
    assert score.command([*arguments, "--bit-depth", "7"]) == 2


def test_a_part_of_an_older_version_has_no_remark() -> None:
    older = part_schema(["a", "b"]).empty_table().drop_columns(["remark"])
    table = pa.concat_tables([older, pa.Table.from_pylist([{"image_id": 1}], older.schema)])
    constants = dict.fromkeys(
        ("threshold", "model_name", "model_version", "model_sha256", "preprocessing_digest", "run_id")
    )
    assert _shape(table, prediction_schema(["a", "b"], []), constants, {})["remark"].to_pylist() == [None]


def test_guesses_of_several_depths_in_one_run_are_told(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_files(tmp_path / "in", {"a.tif": tiff(GRAY12), "b.tif": tiff(GRAY12 // 8)})
    folder, record = score_here([source], bundle, tmp_path / "out")
    assert record["counts"]["remarks"] == {"depth guessed as 10 bits": 1, "depth guessed as 12 bits": 1}
    assert summary.command([folder.uri]) == 0
    assert "guessed to have 10 bits and 12 bits" in capsys.readouterr().out
    assert "Several depths" in (Path(folder.uri) / "summary.html").read_text()


def deep_manifest(folder: Path) -> Manifest:
    """Cells of which each third is gray of 12 bits."""
    found = cell_images(folder / "cells", 12)
    for row in found[::3]:
        path = Path(row["uri"])
        with Image.open(path) as image:
            levels = np.asarray(image.convert("L")).astype(np.uint16)
        path.write_bytes(encoded(Image.fromarray(levels * 16), "PNG"))
        row["etag"] = local_etag(path.stat())
    return manifest_of(found, folder / "manifest")


def test_training_and_evaluation_keep_and_count_remarks(bundle: Bundle, tmp_path: Path) -> None:
    manifest = deep_manifest(tmp_path)
    table = decode(labelled_rows(manifest).train, Preprocessing(16)).notes
    deep = table["remark"].drop_null().to_pylist()
    assert deep and set(deep) == {"depth guessed as 12 bits"}
    assert Noted.of([table]).rejected.remarks == {"depth guessed as 12 bits": len(deep)}
    stated = decode(labelled_rows(manifest).train, Preprocessing(16, bit_depth=12)).notes
    assert Noted.of([stated]).rejected.remarks == {}

    outcomes = Outcomes(bundle.info, predict_rows(Predictor(bundle), manifest.split("train")))
    assert outcomes.remarks == {"depth guessed as 12 bits": len(deep)}
    assert outcomes.table(0.5)["remark"].drop_null().to_pylist() == deep
