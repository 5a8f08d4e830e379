"""Subjects across sites: a bare name in two places is two people, one person by the user's word, or asked about."""

from pathlib import Path

import pyarrow as pa
import pytest

from jobs import ingest as job
from pipeline.base.errors import InputError
from pipeline.ingest.annotation import Annotation
from pipeline.ingest.subject_places import about_both_labels, told_apart
from pipeline.scoring.commit.subjects import roll_up
from pipeline.scoring.plan.subject_paths import SubjectPaths
from pipeline.sources.manifest import read_manifest
from tests.images import encoded, scene


def rows_of(paths: list[str], site: str | None = None) -> list[Annotation]:
    return [Annotation(path.split("/")[-3], None, path.split("/")[-2], site=site) for path in paths]


def subjects(paths: list[str], shared: bool | None = None, site: str | None = None) -> list[str | None]:
    return [row.subject_id for row in told_apart(rows_of(paths, site), paths, shared)[0]]


TWO_SITES = ["siteA/healthy/patient_01/1.png", "siteB/leukemia/Patient-01/1.png"]


@pytest.mark.parametrize("sites", [("siteA", "siteB"), ("Hospital 1", "Hospital 2"), ("lab-north", "lab-south")])
def test_a_bare_name_in_two_sites_carries_the_site(sites: tuple[str, str]) -> None:
    paths = [f"{site}/{name}/patient_01/1.png" for site, name in zip(sites, ("healthy", "leukemia"), strict=True)]
    assert subjects(paths) == [f"{site}/patient_01" for site in sites]
    assert len(set(subjects(TWO_SITES))) == 2, "spelled in two ways"


def test_other_folders_are_asked_about_and_the_answer_is_taken() -> None:
    paths = ["camera1/healthy/patient_01/1.png", "giemsa/leukemia/patient_01/1.png"]
    with pytest.raises(InputError, match=r"patient_01 in camera1 and giemsa: the same person.*--subjects-shared"):
        subjects(paths)
    assert subjects(paths, shared=True) == ["patient_01", "patient_01"]
    assert subjects(paths, shared=False) == ["camera1/patient_01", "giemsa/patient_01"]


@pytest.mark.parametrize(
    "paths",
    [
        ["2026-11-01/leukemia/patient_01/1.png", "2026-11-02/leukemia/patient_01/1.png"],  # days, parts, magnifications
        ["siteA/healthy/patient_01/1.png", "siteA/leukemia/patient_01/1.png"],  # one site
        ["berlin/healthy/20260131-77/1.png", "paris/leukemia/20260131-77/1.png"],  # a number of a person's own
        ["siteA/healthy/patient_01/1.png", "siteB/leukemia/patient_02/1.png"],
    ],
)
def test_what_is_one_person_or_no_two_names_stays_as_it_is(paths: list[str]) -> None:
    assert subjects(paths) == [path.split("/")[-2] for path in paths]


def test_a_known_site_is_the_place() -> None:
    paths = ["x/healthy/patient_01/1.png", "y/leukemia/patient_01/1.png"]
    assert subjects(paths, site="Berlin") == ["patient_01", "patient_01"]
    rows = [*rows_of(paths[:1], "Berlin"), *rows_of(paths[1:], "Paris")]
    assert [row.subject_id for row in told_apart(rows, paths, None)[0]] == ["Berlin/patient_01", "Paris/patient_01"]


def test_a_name_below_health_and_below_disease_is_told() -> None:
    paths = ["healthy/patient_01/1.png", "leukemia/patient_01/1.png"]
    rows = [Annotation("healthy", 0, "patient_01"), Annotation("leukemia", 1, "patient_01")]
    assert "1 subjects are in folders of positive and of negative" in about_both_labels(rows, paths)[0]
    of_one = ["patient_01/healthy/1.png", "patient_01/leukemia/1.png"]
    assert not about_both_labels(rows, of_one), "one folder is one person"


def test_ingest_asks_whether_two_sources_name_the_same_people(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("berlin", "paris"):
        for number in range(12):
            path = tmp_path / place / ("healthy", "leukemia")[number % 2] / f"patient_{number:02d}" / "1.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(encoded(scene(32 + number, 30 if place == "paris" else 40), "PNG"))
    command = [str(tmp_path / "berlin"), str(tmp_path / "paris"), "--no-near-copies", "--out", str(tmp_path / "m")]
    assert job.command(command) == 3
    assert "in berlin and paris: the same person" in capsys.readouterr().err and not (tmp_path / "m").exists()
    for flag, count in (("--subjects-shared", 12), ("--no-subjects-shared", 24)):
        assert job.command([*command, flag]) == 0
        assert len(set(read_manifest(str(tmp_path / "m")).table["subject_id"].to_pylist())) == count


# ---- scoring -----------------------------------------------------------------------------------------------


def scored_subjects(paths: list[str], pattern: str | None = None) -> list[str | None]:
    rule = SubjectPaths.of(paths, pattern)
    return [rule.subject(path) for path in paths]


def grid(*sites: str) -> list[str]:
    return [f"{site}/{name}/patient_{number:02d}/1.png" for site in sites for name in ("healthy", "leukemia")
            for number in range(3)]  # fmt: skip


def test_subjects_of_scored_images_carry_the_site_as_well() -> None:
    assert set(scored_subjects(grid("siteA", "siteB"))) == {
        f"{site}/patient_{number:02d}" for site in ("siteA", "siteB") for number in range(3)
    }
    assert len(set(scored_subjects(grid("berlin", "paris")))) == 6, "kept apart where nobody can be asked"
    assert len(set(scored_subjects(grid("2026-11-01", "2026-11-02")))) == 3


def test_a_pattern_names_one_person_a_site_and_is_the_last_word_on_other_folders() -> None:
    pattern = r"(patient_\d+)"
    assert len(set(scored_subjects(grid("siteA", "siteB"), pattern))) == 6
    assert set(scored_subjects(grid("berlin", "paris"), pattern)) == {f"patient_{n:02d}" for n in range(3)}
    assert scored_subjects(["siteA/x/patient_01/1.png"], r"^(.*patient_\d+)") == ["siteA/x/patient_01"]
    assert scored_subjects(["siteA/x/unnamed/1.png"], pattern) == [None]


def test_spellings_of_a_subject_are_one_row_of_the_roll_up() -> None:
    columns = {"subject_id": ["Patient_01", "patient-01", "P2"], "probability": [0.9, 0.1, 0.2]}
    table = pa.table({**columns, "decision": ["positive", "negative", "negative"], "image_id": [1, 2, 3]})
    rows = roll_up(iter([table]), "run").to_pylist()
    assert [(row["subject_id"], row["n_images"]) for row in rows] == [("Patient_01", 2), ("P2", 1)]
