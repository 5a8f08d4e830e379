"""`evaluate`, `calibrate` and `transfer-check` as commands, but for Ray: what they leave, and what they refuse."""

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from jobs import evaluate
from jobs.config import effective
from jobs.transfer_check import TransferCheckConfig
from pipeline.base.errors import InputError
from pipeline.evaluation.promotion.protocol import MetricRule, Protocol
from pipeline.evaluation.provenance import caveats
from pipeline.evaluation.recognized import NO_SKETCH, Recognized
from pipeline.evaluation.report import filling
from pipeline.evaluation.slices import groups_of, worth_a_table
from pipeline.sources.manifest import read_manifest
from pipeline.sources.pseudonyms import names_of, with_pseudonyms
from pipeline.storage.stores import Stores
from tests.bundles import make_bundle
from tests.training_data import cell_images, manifest_of
from tests.unit.test_pseudonyms import written
from tests.without_ray import without_ray

QUICK = ("--audit", "0", "--map-images", "0", "--mistakes", "0", "--colour-images", "0", "--bootstrap", "100")


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch)


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    (tmp_path / "key").write_text("0f" * 32)
    return str(tmp_path / "key")


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def labelled(folder: Path, count: int = 12) -> Path:
    """A source of two classes by its folders."""
    for row in cell_images(folder / "all", count):
        path = Path(row["uri"])
        place = folder / ("healthy", "leukemia")[row["label"]] / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    (folder / "all").rmdir()
    return folder


def test_another_laboratorys_folder_is_a_pseudonym_in_all_that_is_written(
    tmp_path: Path, key_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = labelled(tmp_path / "of_mueller"), tmp_path / "out"
    bundle = make_bundle(tmp_path / "model", 48)
    command = [str(source), "--external", "--model", bundle.uri, "--out", str(out), "--pseudonymize", key_file]
    assert evaluate.command([*command, *QUICK]) == 0
    told = dict(written(out))
    assert {"run.json", "metrics.json", "report.html", "predictions.parquet"} <= set(told)
    assert not [name for name, text in told.items() if "mueller" in text] and "mueller" not in capsys.readouterr().out
    hidden = names_of(with_pseudonyms(Stores(), key_file)).path(str(source))
    assert read(out / "metrics.json")["configuration"]["manifest"] == hidden
    assert read(out / "metrics.json")["provenance"]["Manifest"] == hidden
    assert "no-near-copies" not in told["metrics.json"] and "counts as an image of its own" in told["metrics.json"]


def test_a_number_of_subjects_is_no_path(key_file: str) -> None:
    names = names_of(with_pseudonyms(Stores(), key_file))
    told = effective(TransferCheckConfig(source="a", model="m", subjects=5), names)
    assert told["subjects"] == 5 and str(told["source"]).startswith("hidden-")


def test_limits_that_so_few_samples_cannot_tell_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["manifest", "--model", "m", "--out", str(tmp_path / "out"), "--confidence"]
    for level, fewest in (("0.999", "4,000"), ("0.9999", "40,000")):
        assert evaluate.command([*command, level]) == 2
        assert f"--confidence {level}: its limits need --bootstrap {fewest} or more" in capsys.readouterr().err
    assert evaluate.command([*command, "0.99"]) == 3 and "neither a bundle" in capsys.readouterr().err
    with pytest.raises(ValidationError, match="need a bootstrap of 4,000 or more"):
        Protocol(manifest="m", metrics=(MetricRule(metric="roc_auc", minimum=0.5),), confidence=0.999)


def test_a_split_of_which_too_much_is_lost_leaves_the_models_card_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row | {"split": "test"} for row in cell_images(tmp_path / "images", 12)]
    manifest = manifest_of(rows, tmp_path / "manifest")
    for row in rows[:6]:
        Path(row["uri"]).write_bytes(b"gone")
    bundle = make_bundle(tmp_path / "model", 48, manifest_digest=manifest.info.digest)
    before = {path: path.read_bytes() for path in Path(bundle.uri).rglob("*") if path.is_file()}
    command = [manifest.uri, "--model", bundle.uri, "--out", str(tmp_path / "out"), *QUICK]
    assert evaluate.command(command) == 4
    assert "6 of 12 images could not be read" in (said := capsys.readouterr().err)
    assert "the model's card stays as it was" in said
    assert {path: path.read_bytes() for path in Path(bundle.uri).rglob("*") if path.is_file()} == before
    assert evaluate.command([*command, "--max-error-share", "0.5"]) == 0
    assert read(Path(bundle.uri, "bundle.json"))["metrics"]["test"]["images"] == 6


def test_a_manifest_that_names_an_image_twice_is_refused(tmp_path: Path) -> None:
    rows = cell_images(tmp_path / "images", 6)
    doubled = manifest_of([*rows, rows[2]], tmp_path / "manifest")
    with pytest.raises(InputError, match="1 rows are of images that other rows name"):
        read_manifest(doubled.uri)


@pytest.mark.parametrize(
    ("task", "meant", "counted"),
    [
        ("binary", {"class_labels": {"Early": 1, "Healthy": 0}}, "these labels"),
        ("multiclass", {"positive_classes": ("early", "Pre")}, "what the model was trained to take them for"),
    ],
)
def test_labels_that_are_the_opposite_of_those_of_training_are_told(
    tmp_path: Path, task: Any, meant: dict[str, Any], counted: str
) -> None:
    """The manifest calls healthy 0 and early 1; then the other way round."""
    classes = {"classes": ("healthy", "early", "Pre")} if task == "multiclass" else {}
    bundle = make_bundle(tmp_path / "model", 48, task, **classes, **meant)
    rows = [row | {"split": "test"} for row in cell_images(tmp_path / "images", 6)]
    outcomes: Any = SimpleNamespace(rejections=[], all=[], is_ood=None)
    for turned, named in ((False, ""), (True, "early (healthy here), healthy (diseased here)")):
        labelled = [row | {"label": 1 - row["label"] if turned else row["label"]} for row in rows]
        manifest = manifest_of(labelled, tmp_path / f"manifest-{turned}")
        told = [
            note for note in caveats("test", bundle, manifest, outcomes, Recognized(NO_SKETCH)) if "opposite" in note
        ]
        assert bool(told) is turned
        assert all(f"of {named}: the figures count by {counted}." in note for note in told)
        assert not [
            note for note in caveats("train", bundle, manifest, outcomes, Recognized(NO_SKETCH)) if "opp" in note
        ]


def test_a_number_that_is_none_is_no_group_and_a_list_of_values_is_one() -> None:
    nan = float("nan")
    found = worth_a_table({"stage": [1.0, nan, 2.0, nan, None], "marks": [["a"], ["b", "c"], ["a"], None, ["a"]]})
    assert found["stage"] == ["1.0", None, "2.0", None, None]
    assert found["marks"] == ["['a']", "['b', 'c']", "['a']", None, "['a']"]
    assert groups_of([["a"], None, ["b"]]) == ["['a']", None, "['b']"]


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_differences_are_sorted_as_numbers_whatever_their_sign() -> None:
    cells = ["+0.040 (-0.100 to +0.180)", "–", "-0.081 (-0.120 to -0.040)", "+0.100", "0.000", "> 0.999", "1,200"]
    page = f"""
const rows = {json.dumps(cells)}.map((textContent) => ({{ cells: [{{ textContent }}] }}));
const head = {{ textContent: "Difference", childNodes: [], append() {{}}, getAttribute: () => null,
  setAttribute() {{}}, removeAttribute() {{}} }};
const shown = (rows) => JSON.stringify(rows.map((row) => row.cells[0].textContent));
const body = {{ rows, append: (...found) => console.log(shown(found)) }};
let click;
globalThis.addEventListener = () => {{}};
globalThis.document = {{ createElement: () => ({{ append() {{}}, addEventListener: (_, act) => {{ click = act; }} }}),
  querySelectorAll: () => [{{ tBodies: [body], tHead: {{ rows: [{{ cells: [head] }}] }} }}] }};
{(Path(filling.__file__).parent / "templates" / "sortable.js.j2").read_text()}
click();"""
    ran = subprocess.run(["node", "-e", page], capture_output=True, text=True, timeout=300, check=True)
    assert json.loads(ran.stdout) == [cells[k] for k in (2, 4, 0, 3, 5, 6, 1)]
