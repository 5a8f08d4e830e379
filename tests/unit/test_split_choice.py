"""The user's word is the last: given splits, flags and tables hold on every layout, or the refusal says why."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.base.errors import InputError, UsageError
from pipeline.ingest.annotate import IngestOptions
from pipeline.ingest.draft import ManifestDraft, ingest

TALEQANI = {
    f"{name}/WBC-{'' if name == 'Benign' else 'Malignant-'}{name}-{number:03d}.jpg"
    for name in ("Benign", "Early")
    for number in range(1, 361)
}


def put(folder: Path, *paths: str) -> str:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(path.encode())
    return str(folder)


def table(path: Path, *rows: str) -> str:
    path.write_text("\n".join(rows))
    return str(path)


OPTIONS = IngestOptions(near_copies=False)


def splits(draft: ManifestDraft) -> dict[str, str]:
    return dict(zip(draft.listing.paths, draft.table["split"].to_pylist(), strict=True))


def said(draft: ManifestDraft) -> str:
    return "\n".join(draft.warnings)


def test_the_splits_of_a_table_hold_on_a_known_layout_and_torn_blocks_are_told(tmp_path: Path) -> None:
    source = put(tmp_path / "in", *TALEQANI)
    of = {path: ("test", "val", "train", "train")[int(path[-7:-4]) % 4] for path in TALEQANI}
    labels = table(tmp_path / "t.csv", "path,split", *(f"{path},{split}" for path, split in of.items()))
    draft = ingest([source], IngestOptions(labels=labels))
    assert (draft.layout.name, draft.split.rule, draft.units) == ("taleqani-all", "given", "blocks")
    assert {path: split[:3] for path, split in splits(draft).items()} == {path: split[:3] for path, split in of.items()}
    assert draft.positive == {"Benign": 0, "Early": 1}
    assert "divide 20 of 20 blocks" in said(draft)


def test_folders_of_parts_hold_on_a_known_layout(tmp_path: Path) -> None:
    source = put(tmp_path / "in", *(f"{'Test' if '1.' in path else 'Training'}/{path}" for path in TALEQANI))
    draft = ingest([source])
    assert (draft.layout.name, draft.split.rule) == ("taleqani-all", "given")
    assert all((split == "test") == path.startswith("Test/") for path, split in splits(draft).items())
    assert "blocks of consecutive" not in said(draft)  # folders may number their files anew
    anew = ingest([source], IngestOptions(split_rule="subjects"))
    assert anew.split.rule == "subjects"
    assert "--split-rule subjects: that folders or a table give train and test counts for nothing" in said(anew)
    parts: dict[str, set[str]] = {}
    for subject, split in zip(anew.table["subject_id"].to_pylist(), anew.table["split"].to_pylist(), strict=True):
        parts.setdefault(subject, set()).add(split)
    assert all(len(found) == 1 for found in parts.values())  # neighbours of both folders stay together


def test_one_folder_called_training_above_all_is_no_given_split(tmp_path: Path) -> None:
    source = put(tmp_path, *(f"training_data/fold_0/all/UID_{n}_1_1_all.bmp" for n in range(20)))
    draft = ingest([source])
    assert (draft.layout.name, draft.split.rule) == ("c-nmc-2019", "subjects")


def test_a_table_of_labels_leaves_blocks_what_they_are(tmp_path: Path) -> None:
    source = put(tmp_path / "in", *TALEQANI)
    named = [f"{path},{path.split('/')[0]}" for path in sorted(TALEQANI)]
    draft = ingest([source], IngestOptions(labels=table(tmp_path / "t.csv", "path,class", *named)))
    assert (draft.units, draft.split.rule) == ("blocks", "subjects")
    assert draft.split.reason.startswith("every block is in one split only") and "20 blocks" in draft.split.reason
    assert draft.positive == {"Benign": 0, "Early": 1}  # the layout knows its classes by whoever names them
    of_patients = [f"{row},p{n // 40}" for n, row in enumerate(named)]
    labels = table(tmp_path / "t.csv", "path,class,patient", *of_patients)
    assert ingest([source], IngestOptions(labels=labels)).units == "subjects"
    with pytest.raises(UsageError, match="would replace the subjects"):
        ingest([source], IngestOptions(labels=labels, subject_blocks=5))


def test_subjects_of_a_table_are_kept_together_where_the_layout_knows_none(tmp_path: Path) -> None:
    names = [f"{code}/{code}_{n:04d}.tiff" for code in ("MYO", "NGS") for n in range(40)]
    labels = table(tmp_path / "t.csv", "path,patient", *(f"{name},p{n // 4}" for n, name in enumerate(names)))
    draft = ingest([put(tmp_path / "in", *names)], IngestOptions(labels=labels))
    assert (draft.layout.name, draft.split.rule) == ("aml-cytomorphology-lmu", "subjects")


def test_a_table_overrules_folders_and_says_so(tmp_path: Path) -> None:
    names = [f"{part}/{kind}/{n}.jpg" for part in ("train", "test") for kind in ("blast", "healthy") for n in range(9)]
    labels = table(tmp_path / "t.csv", "path,split", "train/blast/1.jpg,test", "test/blast/1.jpg,test")
    draft = ingest([put(tmp_path / "in", *names)], IngestOptions(labels=labels))
    assert splits(draft)["train/blast/1.jpg"] == "test" and splits(draft)["test/blast/2.jpg"] == "test"
    assert set(draft.table["class_name"].to_pylist()) == {"blast", "healthy"}  # a table of splits takes no labels away
    assert "the table gives 1 images another split than their folders do" in said(draft)


KAGGLE = [f"images/{part}/{name}/_0_{n}.jpeg" for part in ("TRAIN", "TEST") for name in ("EOSINOPHIL", "MONOCYTE")
          for n in range(20)]  # fmt: skip


@pytest.mark.parametrize("below", ["", "x/", "y{}/"])
def test_a_table_of_labels_leaves_a_test_folder_a_test_set(below: str, tmp_path: Path) -> None:
    paths = [f"{part}/{below.format(n % 2)}{n}.png" for part in ("train", "testset") for n in range(12)]
    labels = table(tmp_path / "l.csv", "path,label", *(f"{path},{n % 2}" for n, path in enumerate(paths)))
    draft = ingest([put(tmp_path / "in", *paths)], replace(OPTIONS, labels=labels))
    assert {path for path, split in splits(draft).items() if split == "test"} == set(paths[12:])
    assert "splits of 24 images are those that their folders name" in said(draft)


def test_labels_of_a_table_against_those_of_folders_are_told(tmp_path: Path) -> None:
    paths = [f"{c}/{n}.png" for c in ("healthy", "leukemia") for n in range(20)]
    labels = table(tmp_path / "l.csv", "path,label", *(f"{path},{int(n > 16)}" for n, path in enumerate(paths)))
    draft = ingest([put(tmp_path / "in", *paths)], replace(OPTIONS, labels=labels))
    assert sum(draft.table["label"].to_pylist()) == 23
    assert "the table gives 3 images another label than the names of their folders" in said(draft)


def test_a_table_of_labels_leaves_patients_together(tmp_path: Path) -> None:
    paths = [f"P{patient:02d}/{n}.png" for patient in range(12) for n in range(4)]
    labels = table(tmp_path / "l.csv", "path,label", *(f"{path},{n % 2}" for n, path in enumerate(paths)))
    draft = ingest([put(tmp_path / "in", *paths)], replace(OPTIONS, labels=labels))
    assert draft.split.rule == "subjects" and len(set(draft.table["subject_id"].to_pylist())) == 12


def test_labelled_folders_of_another_source_are_not_left_out(tmp_path: Path) -> None:
    put(tmp_path, *(f"a/{code}/{code}_000{n}.tiff" for code in ("MYO", "LYT") for n in range(5)), "b/blast/1.png")
    with pytest.raises(InputError, match=r"blast \(1 images\)"):
        ingest([str(tmp_path / "a"), str(tmp_path / "b")], OPTIONS)


def test_fractions_divide_what_is_not_given_and_are_refused_where_all_is(tmp_path: Path) -> None:
    source = put(tmp_path / "in", *KAGGLE)
    draft = ingest([source], IngestOptions(fractions=(0.5, 0.25, 0.25)))
    assert "--fractions: test stays as given; train is divided" in said(draft)
    assert Counter(draft.table["split"].to_pylist()) == {"train": 26, "validation": 14, "test": 40}
    with pytest.raises(UsageError, match="--fractions has nothing to divide: train and test are given"):
        ingest([source], IngestOptions(fractions=(0.6, 0.0, 0.4)))
    anew = ingest([source], IngestOptions(fractions=(0.5, 0.25, 0.25), split_rule="images"))
    assert Counter(anew.table["split"].to_pylist()) == {"train": 40, "validation": 20, "test": 20}


CLASSES = [f"{kind}/{n}.jpg" for kind in ("blast", "healthy") for n in range(6)]


@pytest.mark.parametrize("options", [IngestOptions(use="test"), IngestOptions(fractions=(0.0, 0.0, 1.0))])
def test_a_set_for_testing_alone_is_all_test(options: IngestOptions, tmp_path: Path) -> None:
    draft = ingest([put(tmp_path, *CLASSES)], options)
    assert set(draft.table["split"].to_pylist()) == {"test"}
    assert draft.split.rule == "test" and "--use test" in draft.split.reason


def test_given_parts_that_are_all_test_are_asked_about_or_taken_by_the_users_word(tmp_path: Path) -> None:
    source = put(tmp_path, *(f"test/{path}" for path in CLASSES), *(f"test2/{path}" for path in CLASSES))
    with pytest.raises(InputError, match=r"every labelled image is in 'test' .* --use test"):
        ingest([source])
    given = ingest([source], IngestOptions(split_rule="given"))
    assert (given.split.rule, set(given.table["split"].to_pylist())) == ("test", {"test"})
    assert ingest([source], IngestOptions(split_rule="images")).split.rule == "images"


def test_given_parts_without_one_to_train_on_are_asked_about(tmp_path: Path) -> None:
    source = put(tmp_path / "in", *(f"{part}/{c}/{n}.png" for part in ("val", "test") for c in "ab" for n in range(5)))
    with pytest.raises(InputError, match="'validation' or 'test' by its folder or table: --use test"):
        ingest([source], replace(OPTIONS, layout="class-folders"))


def test_images_given_for_training_are_test_by_the_users_word_and_said(tmp_path: Path) -> None:
    source = put(tmp_path, *(f"train/{path}" for path in CLASSES), *(f"test/{path}" for path in CLASSES))
    draft = ingest([source], IngestOptions(use="test"))
    assert set(draft.table["split"].to_pylist()) == {"test"}
    assert "12 images that the source gives for training are test here" in said(draft)
    with pytest.raises(UsageError, match="leave out --split-rule and --fractions"):
        ingest([source], IngestOptions(use="test", split_rule="subjects"))


def test_the_site_is_read_from_the_path_a_table_or_a_table_of_subjects(tmp_path: Path) -> None:
    names = [f"site{site}/{kind}/patient_{n}/1.jpg" for site in "AB" for kind in ("blast", "healthy") for n in range(3)]
    names = [name.replace("patient_", f"patient_{name[4]}") for name in names]
    source = put(tmp_path / "in", *names)
    subjects = table(
        tmp_path / "s.csv", "patient;centre;age", *(f"Patient {s}{n};C{s};{n}" for s in "AB" for n in range(3))
    )
    labels = table(tmp_path / "l.csv", "path,hospital", *(f"{name},H{name[4]}" for name in names))
    for options, site in (
        (IngestOptions(subjects=subjects), "CA"),
        (IngestOptions(subjects=subjects, labels=labels), "HA"),
        (IngestOptions(subjects=subjects, labels=labels, site_pattern=r"site(\w)/"), "A"),
    ):
        draft = ingest([source], options)
        assert draft.table["site"].to_pylist() == [site] * 6 + [site.replace("A", "B")] * 6
        assert draft.table["age"].to_pylist() == [0, 1, 2] * 4
    with pytest.raises(UsageError, match=r"--site-pattern '.Q.' finds a site in no path"):
        ingest([source], IngestOptions(site_pattern="(Q)"))


def test_a_site_that_tells_the_label_is_told(tmp_path: Path) -> None:
    source = put(tmp_path, *(f"{folder}/{n}.jpg" for folder in ("A/blast", "B/healthy") for n in "123"))
    options = IngestOptions(site_pattern="(.)/")
    assert "all positive images are of A, all negative ones of B" in said(ingest([source], options))
    put(tmp_path, "A/healthy/9.jpg")
    assert "the site tells" not in said(ingest([source], options))


def test_every_site_is_in_one_split_where_the_user_wants_it(tmp_path: Path) -> None:
    names = [f"{site}/{kind}/{site}{n}.jpg" for site in "ABCDE" for kind in ("blast", "healthy") for n in range(4)]
    source = put(tmp_path / "in", *names)
    options = IngestOptions(split_rule="sites", site_pattern=r"^(\w)/", subject_pattern=r"(\w\d)\.")
    draft = ingest([source], options)
    assert draft.split.rule == "sites" and draft.split.reason.startswith("every site is in one split only")
    pairs = set(zip(draft.table["site"].to_pylist(), draft.table["split"].to_pylist(), strict=True))
    assert len(pairs) == 5 and {split for _, split in pairs} == {"train", "validation", "test"}
    with pytest.raises(UsageError, match="no site is known"):
        ingest([source], IngestOptions(split_rule="sites"))
    with pytest.raises(InputError, match="subjects are in more than one split"):
        ingest([source], replace(options, subject_pattern=r"(\d)\.", subjects_shared=True))


def test_a_table_that_does_not_fit_is_named(tmp_path: Path) -> None:
    source = put(tmp_path / "in", *CLASSES)
    bad = table(tmp_path / "bad.csv", "a,b", "1,2")
    for options in (IngestOptions(labels=bad), IngestOptions(subjects=bad, subject_pattern=r"(\d)\.")):
        with pytest.raises(InputError, match=r"bad\.csv: the table of \w+ has the columns a, b"):
            ingest([source], options)
