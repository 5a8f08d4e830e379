"""One image under two labels: listed, out of every split, until a person says in the list which label counts."""

import csv
from pathlib import Path
from typing import Any

import pytest

from jobs import ingest as job
from pipeline.sources.manifest import Manifest, read_manifest
from tests.images import encoded, scene


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """24 images of two classes, of which the first of each class has the same bytes."""
    for number in range(24):
        path = tmp_path / "in" / ("blast", "LYT")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(scene(40 + max(number, 1)), "PNG"))
    return tmp_path / "in"


def ingested(source: Path, *flags: str) -> Manifest:
    out = source.parent / "m"
    assert job.command([str(source), "--positive", "blast", "--no-near-copies", "--out", str(out), *flags]) == 0
    return read_manifest(str(out))


def found(manifest: Manifest, source: Path) -> set[tuple[Any, ...]]:
    """(class, label, whether in a split) of the two."""
    names = {str(source / "blast" / "00.png"), str(source / "LYT" / "01.png")}
    rows = [row for row in manifest.table.to_pylist() if row["uri"] in names]
    assert len(rows) == 2
    return {(row["class_name"], row["label"], row["split"] is not None) for row in rows}


def answer(source: Path, **answers: str) -> str:
    """The list, with the words of a person beside each class."""
    path = source.parent / "m" / "contradictions.csv"
    rows = list(csv.DictReader(path.read_text().splitlines()))
    edited = source.parent / "edited.csv"
    with edited.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=";")
        writer.writeheader()
        writer.writerows({**row, "this_label_counts": answers.get(row["class_name"], "")} for row in rows)
    return str(edited)


def test_byte_identical_images_under_two_labels_are_listed_and_in_no_split(source: Path) -> None:
    manifest = ingested(source)
    assert found(manifest, source) == {("blast", 1, False), ("LYT", 0, False)}
    assert manifest.info.contradictions == 2 and manifest.info.counts.splits["none"] == 2
    assert "say in contradictions.csv which label counts" in " ".join(manifest.info.warnings)
    rows = (source.parent / "m" / "contradictions.csv").read_text().splitlines()
    assert rows == [
        "group,path,class_name,label,this_label_counts",
        f"1,{source}/LYT/01.png,LYT,0,",
        f"1,{source}/blast/00.png,blast,1,",
    ]


def test_the_label_that_counts_is_read_back_from_the_edited_list(source: Path) -> None:
    ingested(source)
    edited = answer(source, blast="Yes", LYT="no")
    manifest = ingested(source, "--contradictions", edited)
    assert found(manifest, source) == {("blast", 1, True)}
    assert manifest.info.contradictions == 0
    kept = (source.parent / "m" / "contradictions.csv").read_text()
    assert f"{source}/blast/00.png,blast,1,yes" in kept, "the answer is not lost with the next manifest"
    assert found(ingested(source, "--contradictions", str(source.parent / "m" / "contradictions.csv")), source)


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"blast": "yes", "LYT": "x"}, "of which two labels are said to count"),
        ({"blast": "perhaps"}, "this_label_counts is 'perhaps'"),
    ],
)
def test_an_answer_that_settles_nothing_is_refused(
    source: Path, answers: dict[str, str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ingested(source)
    edited = answer(source, **answers)
    assert job.command([str(source), "--contradictions", edited, "--out", str(source.parent / "n")]) == 3
    assert words in capsys.readouterr().err


def test_answers_about_other_images_or_in_another_table_are_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.csv"
    out = ["--contradictions", str(other), "--no-near-copies", "--out", str(tmp_path / "n")]
    other.write_text("path,this_label_counts\n/elsewhere/a.png,yes\n")
    assert job.command([str(source), *out]) == 3
    assert "1 of 1 paths are no image of this source" in capsys.readouterr().err
    other.write_text("path,label\n/elsewhere/a.png,1\n")
    assert job.command([str(source), *out]) == 3
    assert "no column this_label_counts" in capsys.readouterr().err


def test_the_list_of_an_earlier_manifest_goes_when_nothing_contradicts_any_more(source: Path) -> None:
    ingested(source)
    (source / "LYT" / "01.png").unlink()
    ingested(source)
    assert not (source.parent / "m" / "contradictions.csv").exists()


def test_answers_that_a_run_would_drop_are_refused(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ingested(source)
    listed = source.parent / "m" / "contradictions.csv"
    Path(answer(source, blast="yes")).replace(listed)
    edited = listed.read_bytes()
    assert job.command([str(source), "--positive", "blast", "--no-near-copies", "--out", str(listed.parent)]) == 3
    assert "was edited" in capsys.readouterr().err and listed.read_bytes() == edited
    assert found(ingested(source, "--contradictions", str(listed)), source)
    other = source.parent / "unanswered.csv"
    other.write_text(listed.read_text().replace("yes", ""))
    answered = listed.read_bytes()
    command = [str(source), "--positive", "blast", "--no-near-copies", "--out", str(listed.parent), "--contradictions"]
    assert job.command([*command, str(other)]) == 3 and listed.read_bytes() == answered
    other.write_bytes(answered)
    assert job.command([*command, str(other)]) == 0 and listed.read_bytes() == answered
