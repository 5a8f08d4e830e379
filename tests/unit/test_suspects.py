"""Labels that are likely wrong: found by what others say of the image, listed, corrected, read back by ingest."""

import csv
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.label_errors import label_errors
from pipeline.ingest.annotate import IngestOptions
from pipeline.ingest.class_rules import ClassRules
from pipeline.ingest.draft import ingest
from pipeline.ingest.suspects import SUSPECT_COLUMNS, Suspect, SuspectsTable
from pipeline.sources.manifest import Manifest, ManifestInfo, write_manifest
from pipeline.storage.stores import Stores
from pipeline.training.suspects import PAGE, TABLE, keep_suspects, suspects_of
from pipeline.training.validation import Scores
from tests.bundles import make_bundle
from tests.images import encoded
from tests.unit.test_near_copies import smear

# Given labels and probabilities of the second class. Thresholds: mean of the own class's probability, by hand
# (0.9 + 0.8 + 0.7 + 0.1) / 4 = 0.625 for the first class, (0.9 + 0.8 + 0.45 + 0.05) / 4 = 0.55 for the second.
GIVEN = np.array([0, 0, 0, 0, 1, 1, 1, 1])
SECOND = np.array([0.1, 0.2, 0.3, 0.9, 0.9, 0.8, 0.45, 0.05])


def test_who_reaches_another_class_and_not_its_own_is_a_suspect() -> None:
    found = label_errors(GIVEN, np.stack([1 - SECOND, SECOND], axis=1))
    np.testing.assert_allclose(found.thresholds, [0.625, 0.55])
    # image 6 (0.45 of its own class) reaches neither threshold: it is unsure, not contradicted
    assert found.order.tolist() == [7, 3]
    assert found.suggested.tolist() == [0, 0, 0, 1, 1, 1, 1, 0]
    np.testing.assert_allclose(found.margin[[7, 3, 6]], [0.05 - 0.95, 0.1 - 0.9, 0.45 - 0.55])


def test_an_image_that_reaches_its_own_class_better_is_none() -> None:
    probabilities = np.array([[0.6, 0.4, 0.0], [0.5, 0.4, 0.1], [0.3, 0.4, 0.3], [0.1, 0.2, 0.7]])
    found = label_errors(np.array([0, 0, 1, 2]), probabilities)
    np.testing.assert_allclose(found.thresholds, [0.55, 0.4, 0.7])
    # image 1 misses its own threshold (0.55) and reaches that of class 1
    assert (found.order.tolist(), found.suggested.tolist()) == ([1], [0, 1, 1, 2])


def test_a_class_without_images_is_never_suggested() -> None:
    probabilities = np.array([[0.1, 0.1, 0.8], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1]])
    found = label_errors(np.array([0, 0, 1]), probabilities)
    assert np.isnan(found.thresholds).tolist() == [False, False, True]
    assert 2 not in found.suggested.tolist()


@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(1, 60))
def test_the_order_of_images_decides_nothing(seed: int, classes: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    labels, said = rng.integers(0, classes, images), rng.dirichlet(np.ones(classes), images)
    found, order = label_errors(labels, said), rng.permutation(images)
    again = label_errors(labels[order], said[order])
    np.testing.assert_array_equal(found.suggested[order], again.suggested)
    np.testing.assert_allclose(found.margin[order], again.margin)
    assert (np.abs(found.margin) <= 1).all()
    assert ((found.suggested != labels) == found.is_suspect).all()
    assert (np.diff(found.margin[found.order]) >= 0).all()


def test_planted_errors_are_found_and_nothing_else() -> None:
    """Of 1,000 images of two classes whose scores part well, 50 labels are turned."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 1000)
    second = 1 / (1 + np.exp(-rng.normal(6 * truth - 3, 1.5)))
    turned = rng.choice(1000, 50, replace=False)
    labels = truth.copy()
    labels[turned] = 1 - labels[turned]
    order = label_errors(labels, np.stack([1 - second, second], axis=1)).order
    assert set(order) <= set(turned)
    assert len(order) >= 38


def source(folder: Path) -> Path:
    """Two classes of five images each in folders, one of them in a tar, and what a table says of sex."""
    root, number = folder / "cells", 0
    for patient in range(5):
        for name in ("blast", "mature"):
            path = root / name / f"patient_{patient:02d}_{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(smear(number), "JPEG", quality=90))
            number += 1
    inside = encoded(smear(99), "JPEG", quality=90)
    with tarfile.open(root / "blast" / "more.tar", "w") as tar:
        info = tarfile.TarInfo("patient_09_77.jpg")
        info.size = len(inside)
        tar.addfile(info, io.BytesIO(inside))
    return root


RULES = ClassRules(positive=("blast",), negative=("mature",))


def written(root: Path, out: Path, **options: object) -> Manifest:
    subjects = {} if "labels" in options else {"subject_pattern": r"patient_(\d+)"}
    draft = ingest([str(root)], IngestOptions(classes=RULES, **subjects, **options))  # type: ignore[arg-type]
    return write_manifest(str(out), [draft.table], ManifestInfo(source=[str(root)], synthetic=True), Stores())


def known(manifest: Manifest) -> dict[str, tuple[object, ...]]:
    names = ("class_name", "label", "subject_id", "split")
    places = manifest.table["member"].to_pylist(), manifest.table["uri"].to_pylist()
    rows = zip(*(manifest.table[name].to_pylist() for name in names), strict=True)
    return dict(
        zip(((member or uri).rsplit("/", 1)[-1] for member, uri in zip(*places, strict=True)), rows, strict=True)
    )


def test_the_table_corrected_by_a_person_makes_the_corrected_manifest(tmp_path: Path) -> None:
    root = source(tmp_path)
    manifest = written(root, tmp_path / "first")
    before = known(manifest)
    ids = dict(zip(before, manifest.table["image_id"].to_pylist(), strict=True))
    suspects = [Suspect(ids[name], "negative", -0.9, "said so") for name in ("patient_09_77.jpg", "patient_02_4.jpg")]
    text = SuspectsTable(manifest).csv(suspects)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 11
    assert [row["path"].rsplit("/", 1)[-1] for row in rows[:2]] == ["patient_09_77.jpg", "patient_02_4.jpg"]
    assert [row["suspect_rank"] for row in rows] == ["1", "2", *[""] * 9]
    assert (rows[0]["suspect_given"], rows[0]["suspect_suggested"], rows[0]["suspect_margin"]) == (
        "blast",
        "mature",
        "-0.900",
    )
    for row in rows[:2]:
        row["class_name"] = "mature"
    edited = tmp_path / "suspects.csv"
    with edited.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    corrected = written(root, tmp_path / "second", labels=str(edited))
    expected = before | {name: ("mature", 0, *before[name][2:]) for name in ("patient_09_77.jpg", "patient_02_4.jpg")}
    assert known(corrected) == expected
    assert not set(SUSPECT_COLUMNS) & set(corrected.table.column_names)
    assert corrected.table.column_names == manifest.table.column_names


def test_a_table_that_nobody_edited_changes_nothing(tmp_path: Path) -> None:
    root = source(tmp_path)
    manifest = written(root, tmp_path / "first")
    table = tmp_path / "suspects.csv"
    table.write_text(SuspectsTable(manifest).csv([]))
    assert known(written(root, tmp_path / "second", labels=str(table))) == known(manifest)


def test_further_columns_stay_and_a_manifest_without_classes_is_edited_by_label() -> None:
    table = pa.table(
        {
            "image_id": pa.array([1, 2], pa.int64()),
            "uri": ["/a/1.png", "/a/2.png"],
            "member": pa.array([None, None], pa.string()),
            "class_name": pa.array([None, None], pa.string()),
            "label": pa.array([0, 1], pa.int8()),
            "subject_id": pa.array([None, None], pa.string()),
            "split": ["train", None],
            "site": pa.array([None, None], pa.string()),
            "sex": ["female", "male"],
        }
    )
    manifest = Manifest("m", table, ManifestInfo(source=["/a"]))
    asked = SuspectsTable(manifest)
    assert asked.command == "leukoray ingest /a --labels suspects.csv"
    rows = list(csv.reader(io.StringIO(asked.csv([Suspect(2, "negative", -0.5, "why, so")]))))
    assert rows == [
        ["path", "label", "split", "sex", *SUSPECT_COLUMNS],
        ["/a/2.png", "1", "", "male", "1", "1", "0", "-0.500", "why, so"],
        ["/a/1.png", "0", "train", "female", "", "", "", "", ""],
    ]


def of_classes(pairs: list[tuple[str, int | None]], **info: Any) -> SuspectsTable:
    """A manifest of an image a pair of class and label, each of a subject of its own."""
    count = len(pairs)
    columns = {
        "image_id": pa.array(range(count), pa.int64()),
        "uri": [f"/a/{number}.png" for number in range(count)],
        "member": pa.array([None] * count, pa.string()),
        "class_name": [name for name, _ in pairs],
        "label": pa.array([label for _, label in pairs], pa.int8()),
        "subject_id": [f"block-{number}" for number in range(count)],
        "split": ["train"] * count,
        "site": pa.array([None] * count, pa.string()),
    }
    return SuspectsTable(Manifest("m", pa.table(columns), ManifestInfo(source=["/a b"], **info)))


def test_labels_that_follow_from_classes_are_changed_by_class_and_the_command_says_which_mean_what() -> None:
    table = of_classes([("MON", 0), ("LYT", 0), ("BLA", 1), ("SMU", None)], ignored=["SMU"])
    assert table.edited == "class_name"
    assert table.command == (
        "leukoray ingest '/a b' --labels suspects.csv --positive BLA --negative LYT MON --ignore SMU"
    )
    assert table.suggestion("positive") == "BLA" and table.suggestion("negative") == "one of LYT, MON (negative)"
    assert table.suggestion("MON") == "MON"  # of a model of classes


def test_labels_that_do_not_follow_from_classes_are_changed_themselves() -> None:
    table = of_classes([("BAS", 0), ("BAS", 1), ("MOO", 1)])
    assert table.edited == "label" and table.suggestion("positive") == "1"
    first, *rows = csv.reader(io.StringIO(table.csv([])))
    assert first[:3] == ["path", "label", "class_name"]
    assert [row[1:3] for row in rows] == [["0", "BAS"], ["1", "BAS"], ["1", "MOO"]]
    assert "--positive" not in table.command


def test_what_only_stands_for_something_is_made_again_by_the_command() -> None:
    blocks = of_classes([("BLA", 1), ("MON", 0)], units="blocks", configuration={"subject_blocks": 10})
    assert "--subject-blocks 10" in blocks.command and "subject_id" not in blocks.csv([])
    images = of_classes([("BLA", 1), ("MON", 0)], split_rule="images")
    assert images.command.endswith("--split-rule images") and "split," not in images.csv([])


@pytest.fixture(scope="module")
def scores() -> Scores:
    """Of GIVEN: logits of SECOND."""
    return Scores(np.arange(8), GIVEN, np.log(SECOND / (1 - SECOND))[:, None].astype(np.float32))


def test_suspects_are_told_with_their_probabilities(scores: Scores) -> None:
    found = suspects_of(scores, 1.0, ("negative", "positive"))
    assert [(each.image_id, each.suggested) for each in found] == [(7, "negative"), (3, "positive")]
    assert found[0].reason == "negative with 0.950, positive with 0.050, by a model that did not see it"
    assert found[1].margin == pytest.approx(-0.8, abs=1e-6)


def test_a_bundle_gets_the_table_and_the_page(tmp_path: Path) -> None:
    manifest = written(source(tmp_path), tmp_path / "manifest")
    ids = np.array(manifest.table["image_id"].to_pylist())
    labels = np.array(manifest.table["label"].to_pylist())
    said = np.where(labels == 1, 4.0, -4.0)
    said[[0, 5]] *= -1
    bundle = make_bundle(tmp_path / "bundle", 32)
    told = keep_suspects(bundle, Scores(ids, labels, said[:, None].astype(np.float32)), manifest, Stores())
    assert told.startswith("labels that are likely wrong: 2 of 11")
    page = bundle.file(PAGE).decode()
    assert page.count("data:image/jpeg;base64,") == 2
    assert "2 of 11 images get another class" in page
    assert "http" not in page and "<script" not in page
    ranked = [row for row in csv.DictReader(io.StringIO(bundle.file(TABLE).decode())) if row["suspect_rank"]]
    places = [manifest.table["uri"].to_pylist()[row] for row in (0, 5)]
    assert len(ranked) == 2 and {row["path"].split("!/")[0] for row in ranked} == set(places)
