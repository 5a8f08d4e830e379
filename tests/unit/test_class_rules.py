"""What a class is called and what its name says, and what the user says of it."""

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs import ingest as job
from pipeline.base.errors import InputError, UsageError
from pipeline.base.text import folded
from pipeline.ingest.annotation import Annotation
from pipeline.ingest.class_names import common_label, is_no_cell_of_health
from pipeline.ingest.class_rules import ClassRules, apply_rules, draft_of_rules, one_spelling
from pipeline.ingest.layouts import annotate, recognize
from pipeline.ingest.split_names import split_named, unread_parts
from pipeline.sources.manifest import read_manifest
from tests.images import encoded, scene
from tests.unit.test_archives import tar_bytes


def of(*names: str) -> list[Annotation]:
    return [Annotation(name, common_label(name)) for name in names]


def labels(rows: Sequence[Annotation]) -> list[int | None]:
    return [row.label for row in rows]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("Blast, no lineage spec", 1),
        ("Blast_no_lineage_spec", 1),
        ("Blasts (not classified)", 1),
        ("AML without maturation", 1),
        ("no leukemia", 0),
        ("non-ALL", 0),
        ("non all", 0),
        ("NonLeukemic", 0),
        ("no evidence of acute leukemia", 0),
        ("negative for leukemia", 0),
        ("healthy control, no leukemia", 0),
        ("leukemia: no", None),
        ("no lineage spec, blast", None),
        ("non leukemic blasts", None),
        ("BCR-ABL negative ALL", None),
        ("AML, no blasts", None),
        ("not non-leukemia", None),
        ("leukemia-free", None),
        ("blasts absent", None),
        ("AML in remission", None),
        ("Kein Blast", None),
        ("ALL-", None),
        ("ALL+", 1),
        ("blast?", None),
        ("non-APL", None),  # of a set of acute leukemias: another one
        ("BCR-ABL negative", None),
        ("MPO positive", None),
        ("negative cells", 0),
        ("normal karyotype", None),
        ("quality control", None),
    ],
)
def test_a_negation_counts_only_where_it_denies_the_disease(name: str, label: int | None) -> None:
    assert common_label(name) == label


@pytest.mark.parametrize("other", ["1", "CD34", "Bla st"])
def test_a_minus_and_a_blank_within_a_word_are_no_spelling(other: str) -> None:
    twin = {"1": "-1", "CD34": "CD34-"}.get(other, "Blast")
    assert folded(twin) != folded(other)


@pytest.mark.parametrize(
    "twin", ["Blast \u2013 L1", "\uff22\uff4c\uff41\uff53\uff54 L1", "Blast\u200b\u00a0L1", "blast\u2011L1"]
)
def test_dashes_full_width_and_invisible_letters_are_spellings(twin: str) -> None:
    assert folded(twin) == folded("Blast - L1")


def test_labels_of_images_stay_where_a_spelling_has_both() -> None:
    rows = [Annotation("Lympho", 1), Annotation("Lympho", 0), Annotation("lympho", 1), Annotation("lympho")]
    assert labels(one_spelling(rows)[0]) == [1, 0, 1, None]


@pytest.mark.parametrize("twin", ["blast", "BLAST", " Blast ", "Bla\u0308st", "Sternberg_Reed"])
def test_spellings_of_one_name_are_one_name(twin: str) -> None:
    other = {"Bla\u0308st": "Bl\u00e4st", "Sternberg_Reed": "sternberg-reed"}.get(twin, "Blast")
    assert folded(twin) == folded(other)


def test_spelling_twins_are_one_class_and_said() -> None:
    rows, said = one_spelling(of("Blast", "Blast", "blast", "LYT"))
    assert [row.class_name for row in rows] == ["Blast", "Blast", "Blast", "LYT"]
    assert said == ["'Blast' and 'blast' are one class, 'Blast'"]
    assert labels(apply_rules(rows, ClassRules(positive=("BLAST",)))) == [1, 1, 1, 0]


def test_spelling_twins_of_subjects_stay_one_subject() -> None:
    rows, said = one_spelling([Annotation("a", None, "Patient_01"), Annotation("a", None, "patient-01")])
    assert len({row.subject_id for row in rows}) == 1 and "1 subjects" in said[0]


def test_a_decomposed_name_is_found_by_a_composed_flag() -> None:
    rows = of(unicodedata.normalize("NFD", "Bläschen"), "LYT")
    assert labels(apply_rules(rows, ClassRules(positive=("Bläschen",)))) == [1, 0]


def test_only_positive_makes_cells_of_health_negative() -> None:
    assert labels(apply_rules(of("c1", "c2", "c3"), ClassRules(positive=("C2",)))) == [0, 1, 0]


def test_both_lists_leave_the_rest_unlabelled() -> None:
    rules = ClassRules(positive=("c2",), negative=("c1",))
    assert labels(apply_rules(of("c1", "c2", "c3"), rules)) == [0, 1, None]


@pytest.mark.parametrize(
    "name",
    ["Smudge_cells", "artefacts", "Unidentified", "Giant_thrombocyte", "Promyelocyte", "immature", "blast", "NRBC"],
)
def test_with_positive_alone_what_is_no_healthy_cell_is_asked_about(name: str) -> None:
    with pytest.raises(InputError, match=r"(?s)no healthy cells.*1 images.*--ignore"):
        apply_rules(of("AML", "Lymphocyte", name), ClassRules(positive=("AML",)))
    ignored = apply_rules(of("AML", "Lymphocyte", name), ClassRules(positive=("AML",), ignored=(name,)))
    assert labels(ignored) == [1, 0, None] and ignored[2].is_ignored and ignored[2].class_name == name


@pytest.mark.parametrize("name", ["normal", "smudge"])
def test_with_negative_alone_what_is_no_leukemia_is_asked_about(name: str) -> None:
    assert labels(apply_rules(of("LYT", "Early", "blast"), ClassRules(negative=("LYT",)))) == [0, 1, 1]
    with pytest.raises(InputError, match="no leukemia"):
        apply_rules(of("LYT", "Early", name), ClassRules(negative=("LYT",)))


@pytest.mark.parametrize("name", ["Lymphocyte", "Monocyte", "Segmented_neutrophils", "Eosinophils", "Basophil", "LYT"])
def test_mature_cells_are_not_asked_about(name: str) -> None:
    assert not is_no_cell_of_health(name)


def test_unknown_names_and_names_in_two_rules_are_refused() -> None:
    with pytest.raises(UsageError, match="--positive names no class of this source: nope; classes found: c1, c2"):
        apply_rules(of("c1", "c2"), ClassRules(positive=("nope",)))
    with pytest.raises(UsageError, match="c1: named by two"):
        apply_rules(of("c1", "c2"), ClassRules(positive=("c1",), ignored=("C1",)))


def test_a_file_of_rules_is_drafted_edited_and_read_back() -> None:
    rows = of("MYO", "MOB", "LYT", "smudge", "yes", "odd: name")
    text = draft_of_rules(rows)
    with pytest.raises(InputError, match="still"):
        ClassRules.from_yaml(text, "classes.yaml")
    edited = (
        text.replace("MYO: '?'", "MYO: positive").replace("MOB: '?'", "MOB: MYO").replace("LYT: '?'", "LYT: negative")
    )
    rules = ClassRules.from_yaml(edited.replace("'?'", "ignore"), "classes.yaml")
    found = apply_rules(rows, rules)
    assert [(row.class_name, row.label, row.is_ignored) for row in found] == [
        ("MYO", 1, False), ("MYO", 1, False), ("LYT", 0, False),
        ("smudge", None, True), ("yes", None, True), ("odd: name", None, True),
    ]  # fmt: skip


def test_a_file_of_rules_is_read_as_it_is_written() -> None:
    rules = ClassRules.from_yaml("no: negative\n1.0: Positive\nx: IGNORE\ny: ' z '", "f")
    assert rules == ClassRules(("1.0",), ("no",), ("x",), {"y": "z"})


@pytest.mark.parametrize("text", ["a: pos", "a: ''", "a: true", "a: positive\nA: negative", "a: positive\na: ignore"])
def test_what_may_mean_something_else_in_a_file_of_rules_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        ClassRules.from_yaml(text, "f")


def test_a_class_that_is_put_into_another_has_its_label_and_its_spelling() -> None:
    rules = ClassRules(renamed={"Smudge": "blast", "healthy": "Blast"})
    rows = apply_rules(of("Blast", "Smudge", "healthy"), rules)
    assert [(row.class_name, row.label) for row in rows] == [("Blast", 1)] * 3


@pytest.mark.parametrize("text", ["[1, 2]", "a: [b]", "a: {", "a: 1"])
def test_a_file_that_is_no_mapping_of_names_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"classes\.yaml"):
        ClassRules.from_yaml(text, "classes.yaml")


# ---- folders -----------------------------------------------------------------------------------------------


def read(paths: Sequence[str]) -> tuple[str, set[tuple[str | None, int | None, str | None, str | None]]]:
    layout = recognize(paths)
    return layout.name, {(a.class_name, a.label, a.subject_id, a.split) for a in annotate(paths, layout)}


def grid(*levels: Sequence[str]) -> list[str]:
    paths = [""]
    for level in levels:
        paths = [f"{path}{name}/" for path in paths for name in level]
    return [f"{path}{number}.jpg" for path in paths for number in range(4)]


@pytest.mark.parametrize(
    ("wrapper", "classes"),
    [("PBC_dataset_normal_DIB", ["basophil", "eosinophil", "ig"]), ("Leukemia", ["L1", "L2", "L3"])],
)
def test_a_folder_around_all_classes_is_no_class(wrapper: str, classes: list[str]) -> None:
    name, found = read(grid([wrapper], classes))
    assert name == "class-folders" and found == {(each, None, None, None) for each in classes}


def test_a_class_that_stands_alone_keeps_its_patients() -> None:
    assert read(grid(["leukemia"], ["patient_01", "patient_02"]))[1] == {
        ("leukemia", 1, "patient_01", None), ("leukemia", 1, "patient_02", None)
    }  # fmt: skip


def test_bone_marrow_cells_are_not_taken_for_the_set_of_blood_cells() -> None:
    paths = [f"{c}/0001-1000/{c}_{n:05d}.jpg" for c in ("BLA", "BAS", "ART", "NGS", "EBO") for n in range(9)]
    name, found = read(paths)
    assert name == "class-folders"
    assert found == {(c, None, None, None) for c in ("BLA", "BAS", "ART", "NGS", "EBO")}


def test_classes_that_a_known_layout_would_leave_out_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("MYO", "LYT", "BLA"):
        for number in range(4):
            path = tmp_path / "set" / folder / f"{folder}_{number:04d}.tiff"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * (number + 1))
    assert job.command([str(tmp_path / "set"), "--out", str(tmp_path / "m")]) == 3
    assert "BLA (4 images)" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("Train", "train"), ("TestA", "test"), ("Test-B", "test"), ("train_set", "train"), ("test_set", "test"),
        ("training_data", "train"), ("testing_data", "test"), ("Training set", "train"), ("01_train", "train"),
        ("02_test", "test"), ("VALIDATION", "validation"), ("Hold-out", "test"), ("heldout_set", "test"),
        ("eval", "test"), ("dev", "validation"), ("test_positive", None), ("ALL_test", None), ("latest", None),
        ("TrainedNurse", None), ("blast", None), ("", None), ("train_test", None),
        ("testset", "test"), ("traindata", "train"), ("train_aug", "train"), ("train_val", "train"),
        ("Validaci\u00f3n", "validation"), ("Testdaten", "test"), ("\u6d4b\u8bd5\u96c6", "test"),
        ("external validation", None), ("external test", "test"), ("PBC_train", None),
    ],
)  # fmt: skip
def test_parts_of_a_set_are_read_inside_names(folder: str, split: str | None) -> None:
    assert split_named(folder) == split


@pytest.mark.parametrize("parts", [("Train", "TestA", "Test-B"), ("train_set", "test_set"), ("01_train", "Hold-out")])
def test_a_given_test_set_never_flows_into_training(parts: tuple[str, ...]) -> None:
    _, found = read(grid(parts, ["blast", "healthy"]))
    assert {row[0] for row in found} == {"blast", "healthy"} and {row[3] for row in found} == {"train", "test"}


@pytest.mark.parametrize(
    "parts", [("Train", "set_b"), ("training", "Final phase"), ("test", "kept"), ("train", "external_validation")]
)
def test_a_part_beside_given_ones_that_is_not_understood_is_refused(
    parts: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = cells(tmp_path / "in", *(f"{part}/{name}" for part in parts for name in ("blast", "healthy")))
    arguments = [str(source), "--out", str(tmp_path / "m")]
    assert job.command(arguments) == 3
    assert parts[1] in capsys.readouterr().err
    assert job.command([*arguments, "--split-rule", "images"]) == 0


@pytest.mark.parametrize(("parts", "warned"), [(("setA", "setB"), True), (("siteA", "siteB"), False)])
def test_parts_that_nobody_names_are_warned_of_in_capitals(
    parts: tuple[str, ...], warned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = cells(tmp_path / "in", *(f"{part}/{name}" for part in parts for name in ("blast", "healthy")))
    assert job.command([str(source), "--out", str(tmp_path / "m")]) == 0
    assert ("SETA, SETB: IF ONE OF THESE" in " ".join(capsys.readouterr().out.split())) == warned
    assert any("KEPT APART" in note for note in read_manifest(str(tmp_path / "m")).info.warnings) == warned


def test_parts_within_the_names_of_classes_are_warned_of() -> None:
    assert unread_parts(["train_ALL", "test_ALL", "train_hem", "test_hem"])[0]
    assert unread_parts(["a/C-NMC_training", "a/C-NMC_test"]) == (["C-NMC_test", "C-NMC_training"], False)
    assert unread_parts(["test_positive", "test_negative"]) == ([], False)


def test_folders_of_patients_alone_are_no_classes() -> None:
    assert recognize([f"patient_{number:02d}/1.png" for number in range(9)]).name == "flat"


# ---- the command -------------------------------------------------------------------------------------------


def cells(root: Path, *folders: str) -> Path:
    for place, folder in enumerate(folders):
        for number in range(6):
            path = root / folder / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(scene(16 + place, 16 + number), "PNG"))
    return root


def test_twins_of_two_sites_have_one_label_in_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = cells(tmp_path / "in", "siteA/Blast", "siteB/blast", "siteA/LYT", "siteB/LYT")
    assert job.command([str(source), "--positive", "Blast", "--out", str(tmp_path / "m")]) == 0
    table = read_manifest(str(tmp_path / "m")).table
    assert set(zip(table["class_name"].to_pylist(), table["label"].to_pylist(), strict=True)) == {
        ("Blast", 1),
        ("LYT", 0),
    }
    assert "are one class" in capsys.readouterr().out


def test_ignored_classes_stay_in_the_manifest_and_in_no_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = cells(tmp_path / "in", "blast", "LYT", "smudge")
    out = ["--out", str(tmp_path / "m")]
    assert job.command([str(source), "--positive", "blast", *out]) == 3
    assert "smudge (6 images)" in capsys.readouterr().err and not (tmp_path / "m").exists()
    assert job.command([str(source), "--positive", "blast", "--ignore", "Smudge", *out]) == 0
    manifest = read_manifest(str(tmp_path / "m"))
    rows = list(zip(*(manifest.table[name].to_pylist() for name in ("class_name", "label", "split")), strict=True))
    assert {row for row in rows if row[0] == "smudge"} == {("smudge", None, None)}
    assert None not in {row[2] for row in rows if row[0] != "smudge"} and manifest.info.ignored == ["smudge"]


def test_the_classes_are_written_edited_and_given_back(tmp_path: Path) -> None:
    source, file = cells(tmp_path / "in", "MYO", "LYT", "smudge"), tmp_path / "classes.yaml"
    assert job.command([str(source), "--write-classes", str(file)]) == 0
    assert job.command([str(source), "--write-classes", str(file)]) == 2, "never overwritten"
    file.write_text("MYO: positive\nLYT: negative\nsmudge: ignore\n")
    assert job.command([str(source), "--classes", str(file), "--out", str(tmp_path / "m")]) == 0
    assert read_manifest(str(tmp_path / "m")).info.positive == {"LYT": 0, "MYO": 1}


def test_a_sidecar_describes_its_own_image_only(tmp_path: Path) -> None:
    pictures = [encoded(scene(16, 16 + number), "PNG") for number in range(12)]
    members: list[tuple[str, bytes]] = []
    for number, data in enumerate(pictures):
        other = (number + 6) % 12
        said = {
            "class": "blast" if number < 6 else "LYT",
            "path": f"{other:03d}.png",
            "key": f"{other:03d}",
            "subset": "lab",
        }
        members += [(f"{number:03d}.png", data), (f"{number:03d}.json", json.dumps(said).encode())]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "shard.tar").write_bytes(tar_bytes(members))
    assert job.command([str(tmp_path / "in"), "--out", str(tmp_path / "m")]) == 0
    table = read_manifest(str(tmp_path / "m")).table
    found = dict(zip(table["member"].to_pylist(), table["class_name"].to_pylist(), strict=True))
    assert found == {f"{number:03d}.png": "blast" if number < 6 else "LYT" for number in range(12)}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_a_file_of_classes_is_read_as_editors_write_it(tmp_path: Path, encoding: str) -> None:
    for place, name in enumerate(("gesünd", "Blästen")):
        for number in range(3):
            path = tmp_path / "in" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(scene(20 + number, 20 + place), "PNG"))
    classes, out = tmp_path / "classes.yaml", tmp_path / "manifest"
    classes.write_bytes("gesünd: negative\r\nBlästen: positive\r\n".encode(encoding))
    assert job.command([str(tmp_path / "in"), "--classes", str(classes), "--out", str(out), "--no-near-copies"]) == 0
    table = read_manifest(str(out)).table
    found = set(zip(table["class_name"].to_pylist(), table["label"].to_pylist(), strict=True))
    assert found == {("gesünd", 0), ("Blästen", 1)}
