"""Images of another laboratory: whose classes they are to the model, and their figures beside its own."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.elsewhere import labelled_elsewhere
from pipeline.base.errors import InputError, UsageError
from pipeline.evaluation.calibration import threshold_for
from pipeline.evaluation.external import beside, difference, internal_figures
from pipeline.evaluation.intervals import Resampling
from pipeline.evaluation.metrics import evaluate_binary
from pipeline.evaluation.outcomes import Outcomes
from pipeline.evaluation.predict import EvaluationWorker
from pipeline.evaluation.report import elsewhere
from pipeline.ingest.class_rules import ClassRules
from pipeline.ingest.matching import match
from pipeline.model.bundle import Bundle
from pipeline.sources.manifest import MANIFEST_SCHEMA, Manifest, ManifestInfo
from pipeline.storage.stores import Stores
from tests.bundles import make_bundle
from tests.training_data import cell_images
from tests.unit.test_evaluation import brightness_bundle, row

RESAMPLING = Resampling(100, 0.95, 0)


def manifest(rows: list[tuple[str | None, int | None, str | None]], **info: Any) -> Manifest:
    """Of (class_name, label, split)."""
    found = [
        {
            "image_id": number, "uri": f"/{number}.png", "access": "file", "size_bytes": 1, "etag": "x",
            "class_name": name, "label": label, "split": split,
        }
        for number, (name, label, split) in enumerate(rows)
    ]  # fmt: skip
    return Manifest("/there", pa.Table.from_pylist(found, schema=MANIFEST_SCHEMA), ManifestInfo(**info))


def pairs(text: str) -> ClassRules:
    return ClassRules.from_pairs(text.split(), "--classes")


def test_classes_match_by_any_spelling_and_by_pairs_and_the_rest_is_counted(tmp_path: Path) -> None:
    info = make_bundle(tmp_path / "b", task="multiclass", classes=("EOSINOPHIL", "Big Cell")).info
    there = manifest(
        [("eosinophil", None, None)] * 3 + [("big_cell", 1, None), ("Eos.", 0, None)] + [("dirt", 0, None)] * 2
    )
    table, found = match(there, info, pairs("Eos.=EOSINOPHIL"))
    assert [(pair.theirs, pair.ours, pair.images, pair.by) for pair in found.pairs] == [
        ("Eos.", "EOSINOPHIL", 1, "flag"), ("big_cell", "Big Cell", 1, "name"), ("eosinophil", "EOSINOPHIL", 3, "name"),
    ]  # fmt: skip
    assert dict(found.unmatched) == {"dirt": 2} and not found.left_out
    assert table["class_name"].to_pylist() == ["EOSINOPHIL"] * 3 + ["Big Cell", "EOSINOPHIL", None, None]
    assert table["split"].to_pylist() == ["test"] * 5 + [None, None]
    assert table["their_class"].to_pylist()[3:6] == ["big_cell", "Eos.", "dirt"]


def test_two_sides_are_told_by_flag_then_by_the_classes_of_training_then_by_label(tmp_path: Path) -> None:
    info = make_bundle(tmp_path / "b", class_labels={"Lymphocyte": 0, "Blast": 1}).info
    there = manifest([("LYMPHOCYTE", None, None), ("odd", None, None), ("sick", 1, None), ("Mono", None, None)])
    table, found = match(there, info, pairs("odd=Blast Mono=negative"))
    assert table["label"].to_pylist() == [0, 1, 1, 0]
    assert {pair.theirs: pair.by for pair in found.pairs} == {
        "LYMPHOCYTE": "name", "odd": "flag", "sick": "label", "Mono": "flag",
    }  # fmt: skip


def test_images_of_every_split_are_measured_and_those_that_no_split_holds_are_not(tmp_path: Path) -> None:
    info = make_bundle(tmp_path / "b").info
    rows = [("a", 1, "train"), ("a", 1, "test"), ("b", 0, "validation"), ("b", 1, None), ("dirt", None, None)]
    there = manifest([*rows, (None, None, None)], ignored=["dirt"])
    table, found = match(there, info)
    assert table["split"].to_pylist() == ["test"] * 3 + [None] * 3
    assert sorted(found.left_out.values()) == [1, 1, 1] and found.images == 3
    again, found = match(there, info, pairs("dirt=negative"))
    assert again["label"].to_pylist()[4] == 0 and found.left_out.get("ignored, by their manifest") is None
    _, found = match(there, info, pairs("b=ignore"))
    assert found.images == 2 and found.left_out["ignored, by --classes"] == 2


@pytest.mark.parametrize(
    ("rules", "error", "said"),
    [
        ("nowhere=positive", UsageError, "names no class of this source: nowhere"),
        ("x=Blast-like", UsageError, "the model has no such class; it has negative, positive, Blast"),
        ("x=ignore", InputError, "no labelled image of a class that the model knows"),
    ],
)
def test_rules_that_mean_nothing_are_refused(tmp_path: Path, rules: str, error: type, said: str) -> None:
    info = make_bundle(tmp_path / "b", class_labels={"Blast": 1}).info
    with pytest.raises(error, match=said):
        match(manifest([("x", None, None)]), info, pairs(rules))


def test_a_class_of_the_opposite_side_is_asked_about(tmp_path: Path) -> None:
    info = make_bundle(tmp_path / "b", class_labels={"Blast": 1}).info
    with pytest.raises(InputError, match="class blast is negative in this source and was positive in training"):
        match(manifest([("blast", 0, None), ("y", 1, None)]), info)


def test_a_folder_is_read_as_ingest_reads_it(tmp_path: Path) -> None:
    for name in ("Leukemia", "Healthy", "debris"):
        cell_images(tmp_path / "there" / name, 2, seed=len(name))
    bundle = make_bundle(tmp_path / "b", unit="cell")
    there, found = labelled_elsewhere(str(tmp_path / "there"), bundle.info, Stores(), labels=None, classes=[])
    assert {pair.theirs: pair.ours for pair in found.pairs} == {"Leukemia": "positive", "Healthy": "negative"}
    assert dict(found.unmatched) == {"debris": 2} and len(there.split("test")) == 4
    assert there.info.digest and there.info.split_rule == "test"
    rules = tmp_path / "classes.yaml"
    rules.write_text("debris: negative\n")
    _, found = labelled_elsewhere(str(tmp_path / "there"), bundle.info, Stores(), labels=None, classes=[str(rules)])
    assert found.images == 6


def test_its_own_manifest_and_another_unit_are_refused(tmp_path: Path) -> None:
    from tests.training_data import manifest_of

    rows = cell_images(tmp_path / "images", 6)
    there = manifest_of(rows, tmp_path / "m", unit="field")
    own = make_bundle(tmp_path / "own", manifest_digest=there.info.digest)
    with pytest.raises(InputError, match="nothing of it is external"):
        labelled_elsewhere(there.uri, own.info, Stores(), labels=None, classes=[])
    cells = make_bundle(tmp_path / "cells", unit="cell")
    with pytest.raises(InputError, match="trained on images of single cells"):
        labelled_elsewhere(there.uri, cells.info, Stores(), labels=None, classes=[])
    with pytest.raises(UsageError, match="is a manifest, which has its labels"):
        labelled_elsewhere(there.uri, cells.info, Stores(), labels="t.csv", classes=[])


# ---- beside the model's own --------------------------------------------------------------------------------

Number = st.floats(0, 1)


@given(st.tuples(Number, Number, Number), st.tuples(Number, Number, Number))
def test_the_interval_of_a_difference_holds_it_and_is_no_narrower_than_one_of_both(a: Any, b: Any) -> None:
    there, here = (dict(zip(("low", "value", "high"), sorted(ends), strict=True)) for ends in (a, b))
    found = difference(there, here)
    assert found["low"] <= found["value"] <= found["high"]  # type: ignore[operator]
    width = found["high"] - found["low"]  # type: ignore[operator]
    assert width >= max(there["high"] - there["low"], here["high"] - here["low"]) - 1e-12


def test_an_unknown_figure_has_no_difference() -> None:
    known, bare = {"value": 0.8, "low": 0.7, "high": 0.9}, {"value": 0.9, "low": None, "high": None}
    assert difference(known, bare) == {"value": pytest.approx(-0.1), "low": None, "high": None}
    assert difference(known, None) == {"value": None, "low": None, "high": None}


def outcomes_there(folder: Path, bundle: Bundle, measured: list[tuple[int, int]]) -> Outcomes:
    rows = [row(folder, number, level, label) for number, (level, label) in enumerate(measured)]
    return Outcomes(bundle.info, EvaluationWorker(bundle, Stores(), on_gpu=False).predict(rows))


def with_test_figures(bundle: Bundle) -> Bundle:
    """As `leukoray evaluate` leaves it: measured on 40 images of 20 subjects, all answered rightly."""
    truth = np.arange(40) % 2
    own = evaluate_binary(
        truth, 0.1 + 0.8 * truth, threshold=0.5, resampling=RESAMPLING, subjects=[f"s{n // 2}" for n in range(40)]
    )
    curve = [{"probability": 0.9, "share": 1.0, "low": None, "high": None, "lowest": 0.9, "highest": 0.9, "images": 40}]
    return bundle.update(metrics={"test": {**own, "reliability": curve}})


MEASURED = [(200, 1), (60, 0), (90, 1), (220, 1), (150, 0), (30, 0), (100, 1), (40, 0)]


def test_figures_stand_beside_those_of_the_models_own_test_split(tmp_path: Path) -> None:
    bundle = with_test_figures(brightness_bundle(tmp_path / "b"))
    there = outcomes_there(tmp_path, bundle, MEASURED)
    metrics = there.metrics(0.5, RESAMPLING)
    curve = there.curves(RESAMPLING)["reliability"]
    found = beside(bundle.info, there, metrics, curve)
    assert (found["internal"]["on"], found["internal"]["images"], found["internal"]["units"]) == ("test", 40, 20)
    sensitivity = found["metrics"]["sensitivity"]
    assert (sensitivity["external"]["value"], sensitivity["internal"]["value"]) == (0.5, 1.0)
    assert sensitivity["difference"]["value"] == -0.5 and sensitivity["difference"]["high"] <= 0.2
    assert found["reliability"]["internal"][0]["images"] == 40 and found["reliability"]["external"] == curve
    told = found["threshold"]
    assert (told["here"], told["there"]) == (
        {"sensitivity": 1.0, "specificity": 1.0},
        {"sensitivity": 0.5, "specificity": 0.75},
    )
    assert there.diseased is not None
    assert told["right"]["value"] == threshold_for(there.diseased, there.probability).value
    record = {"matched": [], "unmatched": {"dirt": 3}, "left_out": {}, **found}
    said = " ".join(elsewhere.sentences({**record, "matched": [{"theirs": "a", "ours": "b", "images": 8}]}, "binary"))
    assert "of 100 diseased images 50 are found (100 on its own test split)" in said
    assert "Left out: 3 images of classes that match none of the model's: dirt (3)" in said
    assert "No figure here uses it" in said and "too few subjects for an interval" in said


def test_limits_of_another_confidence_are_no_part_of_a_difference(tmp_path: Path) -> None:
    bundle = with_test_figures(brightness_bundle(tmp_path / "b"))  # of 95 %
    there = outcomes_there(tmp_path, bundle, MEASURED)
    alike, other = (
        beside(bundle.info, there, there.metrics(0.5, Resampling(100, confidence, 0)), []) for confidence in (0.95, 0.8)
    )
    assert alike["metrics"]["sensitivity"]["difference"]["low"] is not None
    assert alike["internal"]["other_confidence"] is None
    for each in (*other["metrics"].values(), *other["classes"]):
        assert each["difference"]["low"] is None and each["internal"]["low"] is None
    assert other["metrics"]["sensitivity"]["difference"]["value"] == -0.5
    assert other["metrics"]["sensitivity"]["external"]["low"] is not None
    assert "its limits, of 95 %, are not of the level of these and left out" in elsewhere.internal(other)


def test_without_test_figures_those_of_validation_stand_there_and_it_is_said(tmp_path: Path) -> None:
    bundle = brightness_bundle(tmp_path / "b").update(
        metrics={"validation": {"roc_auc": 0.9, "sensitivity": None}},
        calibration={"images": 30, "units": 9, "called": "blocks"},
    )
    there = outcomes_there(tmp_path, bundle, MEASURED)
    found = beside(bundle.info, there, there.metrics(0.5, RESAMPLING), [])
    assert found["metrics"]["roc_auc"]["internal"] == {"value": 0.9, "low": None, "high": None}
    assert found["metrics"]["sensitivity"]["difference"]["value"] is None
    assert elsewhere.internal(found) == "its own validation split (30 images of 9 blocks)"
    assert internal_figures(bundle.info)["reliability"] is None


@pytest.mark.parametrize(
    ("label", "side", "untold"), [(0, "negative", "what is found"), (1, "positive", "false alarms")]
)
def test_of_one_side_it_is_said_what_cannot_be_told(tmp_path: Path, label: int, side: str, untold: str) -> None:
    bundle = brightness_bundle(tmp_path / "b")
    there = outcomes_there(tmp_path, bundle, [(200, label), (60, label), (90, label)])
    found = beside(bundle.info, there, there.metrics(0.5, RESAMPLING), [])
    assert found["one_side"] == side and found["threshold"]["right"] is None
    said = " ".join(elsewhere.about_classes({"matched": [], "unmatched": {}, "left_out": {}, **found}))
    assert untold in said and "cannot be told there" in said
