"""Layouts: what paths say, which layout is recognized, and what the user's words change."""

import pyarrow as pa
import pytest

from pipeline.base.errors import InputError, UsageError
from pipeline.ingest.annotation import Annotation
from pipeline.ingest.class_names import common_label
from pipeline.ingest.class_rules import ClassRules, apply_rules
from pipeline.ingest.label_table import annotate_from_table
from pipeline.ingest.layouts import LAYOUTS, annotate, describe_layouts, recognize

KAGGLE = "dataset2-master/dataset2-master/images"
EXAMPLES = [
    ("kaggle-blood-cells", f"{KAGGLE}/TRAIN/EOSINOPHIL/_0_1169.jpeg", Annotation("EOSINOPHIL", None, None, "train")),
    ("kaggle-blood-cells", f"{KAGGLE}/TEST/MONOCYTE/_0_2.jpeg", Annotation("MONOCYTE", None, None, "test")),
    ("kaggle-blood-cells", f"{KAGGLE}/TEST_SIMPLE/MONOCYTE/_0_2.jpeg", Annotation("MONOCYTE", None, None, "test")),
    ("c-nmc-2019", "training_data/fold_0/all/UID_11_10_1_all.bmp", Annotation("all", 1, "11", "train")),
    ("c-nmc-2019", "fold_1/all/UID_11_5_4_all (1).bmp", Annotation("all", 1, "11")),
    ("c-nmc-2019", "fold_1/hem/UID_H11_5_4_hem.bmp", Annotation("hem", 0, "H11")),
    ("all-idb2", "ALL_IDB2/img/Im012_1.tif", Annotation("lymphoblast", 1, "lymphoblast-block-002", is_block=True)),
    ("all-idb2", "Im131_0.jpg", Annotation("healthy", 0, "healthy-block-014", is_block=True)),
    ("taleqani-all", "Original/Benign/WBC-Benign-036.jpg", Annotation("Benign", 0, "Benign-block-001", is_block=True)),
    (
        "taleqani-all",
        "Original/Early/WBC-Malignant-Early-073.jpg",
        Annotation("Early", 1, "Early-block-003", is_block=True),
    ),
    ("taleqani-all", "a.zip!/Pro/WBC-Malignant-Pro-037.jpg", Annotation("Pro", 1, "Pro-block-002", is_block=True)),
    ("aml-cytomorphology-lmu", "AML/MYO/MYO_0001.tiff", Annotation("MYO", 1)),
    ("aml-cytomorphology-lmu", "MOB/MOB_0001.tiff", Annotation("MOB", 1)),
    ("aml-cytomorphology-lmu", "NGS/NGS_0001.tiff", Annotation("NGS", 0)),
    ("leukoray-samples", "leukemia/S003_0007.jpg", Annotation("leukemia", 1, "S003")),
    ("leukoray-samples", "cells.tar!/healthy/S004_0007.png", Annotation("healthy", 0, "S004")),
    ("class-folders", "x/train/leukemia/1.jpg", Annotation("leukemia", 1, None, "train")),
    ("class-folders", "healthy.zip!/1.jpg", Annotation("healthy", 0)),
    ("flat", "a.jpg", Annotation()),
    ("flat", "shard-000.tar!/a.jpg", Annotation()),
    ("flat", "images/a.jpg", Annotation()),
]


@pytest.mark.parametrize(("name", "path", "expected"), EXAMPLES)
def test_each_layout_is_recognized_and_read(name: str, path: str, expected: Annotation) -> None:
    layout = recognize([path])
    assert layout.name == name
    assert annotate([path], layout) == [expected]


def test_segmented_copy_is_the_same_subject_as_its_original() -> None:
    original, segmented = "Original/Pre/WBC-Malignant-Pre-050.jpg", "Segmented/Pre/WBC-Malignant-Pre-050.jpg"
    first, second = annotate([original, segmented], LAYOUTS["taleqani-all"])
    assert first.subject_id == second.subject_id == "Pre-block-002"


def test_public_set_with_unlabelled_part_keeps_its_layout() -> None:
    paths = [f"train/UID_1_{i}_1_all.bmp" for i in range(7)] + [
        f"C-NMC_test_final_phase_data/{i}.bmp" for i in range(3)
    ]
    layout = recognize(paths)
    assert layout.name == "c-nmc-2019"
    assert [a.class_name for a in annotate(paths, layout)] == ["all"] * 7 + [None] * 3


def test_mixed_public_sets_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"c-nmc-2019.*all-idb2.*--layout class-folders"):
        recognize(["a/UID_1_2_3_all.bmp", "b/Im001_1.jpg"])


def test_unknown_forced_layout_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="kaggle-blood-cells"):
        recognize(["a.jpg"], forced="kagle")


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["leukemia/p1/1.jpg", "healthy/p2/1.jpg"], [("leukemia", "p1"), ("healthy", "p2")]),
        (["lymphocyte/case 7/1.jpg", "monocyte/case 8/1.jpg"], [("lymphocyte", "case 7"), ("monocyte", "case 8")]),
        (["siteA/leukemia/1.jpg", "siteB/healthy/1.jpg"], [("leukemia", None), ("healthy", None)]),
        (["leukemia/images/1.jpg", "healthy/images/1.jpg"], [("leukemia", None), ("healthy", None)]),
        (["leukemia/p1/1.jpg", "healthy/1.jpg"], [("leukemia", "p1"), ("healthy", None)]),
        (["healthy/cells/1.jpg", "leukemia/cells/2.jpg"], [("healthy", None), ("leukemia", None)]),
        (["healthy/lymphocyte/1.jpg", "leukemia/lymphocyte/2.jpg"], [("healthy", None), ("leukemia", None)]),
        (["leukemia/L1/1.jpg", "healthy/x/1.jpg"], [("leukemia", None), ("healthy", None)]),
        (
            ["patient_1/healthy/1.jpg", "patient_2/leukemia/1.jpg"],
            [("healthy", "patient_1"), ("leukemia", "patient_2")],
        ),
        (["P1/LYT/1.jpg", "P2/MON/1.jpg", "P2/LYT/2.jpg"], [("LYT", "P1"), ("MON", "P2"), ("LYT", "P2")]),
        (["fold_0/healthy/1.jpg", "fold_1/leukemia/1.jpg"], [("healthy", None), ("leukemia", None)]),
        (["healthy/fold_0/1.jpg", "lymphocyte/fold_0/1.jpg"], [("healthy", None), ("lymphocyte", None)]),
        (["EOSINOPHIL/fold0/1.jpg", "LYMPHOCYTE/fold1/1.jpg"], [("EOSINOPHIL", None), ("LYMPHOCYTE", None)]),
        (["healthy/2024-01-05/1.jpg", "leukemia/2024-02-11/1.jpg"], [("healthy", None), ("leukemia", None)]),
        (["healthy/40x/p1/1.jpg", "leukemia/100x/p2/1.jpg"], [("healthy", "p1"), ("leukemia", "p2")]),
        (
            ["malignant/early/1.jpg", "malignant/pro/1.jpg", "benign/1.jpg"],
            [("malignant", None)] * 2 + [("benign", None)],
        ),
        ([f"healthy/p01/{k}.jpg" for k in range(3)], [("healthy", "p01")] * 3),
        (["n.tar!/./healthy/p1/1.jpg", "n.tar!/./leukemia/p2/1.jpg"], [("healthy", "p1"), ("leukemia", "p2")]),
        (["n.tar!/./1.jpg", "healthy/2.jpg", "blast/3.jpg"], [(None, None), ("healthy", None), ("blast", None)]),
        (["z.zip!/healthy\\1.jpg", "z.zip!/blast\\1.jpg"], [("healthy", None), ("blast", None)]),
    ],
)
def test_folders_above_an_image_name_class_and_subject(
    paths: list[str], expected: list[tuple[str, str | None]]
) -> None:
    layout = recognize(paths)
    assert layout.name == "class-folders"
    assert [(a.class_name, a.subject_id) for a in annotate(paths, layout)] == expected


@pytest.mark.parametrize(
    ("usual", "stray", "expected"),
    [
        ("leukemia/p{}/1.jpg", "healthy/1.jpg", ("leukemia", "p7")),
        ("leukemia/{}.jpg", "leukemia/extra/1.jpg", ("leukemia", None)),
        ("LYT/{}.jpg", "LYT/extra/1.jpg", ("LYT", None)),
        ("LYT/case_{}/1.jpg", "leftover/1.jpg", ("LYT", "case_7")),
        ("leukemia/p{}/1.jpg", "1.jpg", ("leukemia", "p7")),
    ],
)
def test_a_stray_file_does_not_change_how_all_others_are_read(
    usual: str, stray: str, expected: tuple[str, str | None]
) -> None:
    other = usual.replace("LYT", "MON").replace("leukemia", "healthy")
    paths = [usual.format(i) for i in range(40)] + [other.format(i + 50) for i in range(40)] + [stray]
    layout = recognize(paths)
    found = annotate(paths, layout)
    assert (found[7].class_name, found[7].subject_id) == expected
    assert len({a.class_name for a in found} - {None}) == 2


@pytest.mark.parametrize(
    ("path", "class_name", "subject"),
    [
        ("{c}/patient_{n}/slide_1/x.png", "hem", "patient_3"),
        ("patient_{n}/slide_{n}/{c}/x.png", "hem", "patient_3"),
        ("patient_{n}/Field 2/{c}/x.png", "hem", "patient_3"),
        ("data/NPM1_{c}/patient{n}/x.tif", "NPM1_hem", "patient3"),
    ],
)
def test_slides_and_fields_of_a_patient_are_neither_class_nor_subject(path: str, class_name: str, subject: str) -> None:
    paths = [path.format(c=("ALL", "hem")[n % 2], n=n) for n in range(1, 9)]
    found = annotate(paths, recognize(paths))[2]
    assert (found.class_name, found.subject_id) == (class_name, subject)


def test_specimen_numbers_of_a_hospital_are_not_taken_for_the_samples() -> None:
    assert recognize([f"{name}/S{n:05d}_1.tif" for name in ("ALL", "Normal") for n in range(9)]).name == "class-folders"


@pytest.mark.parametrize(
    "names",
    [("=1+1", "Band"), ("a=b", "c=d"), ('"x"', "'y'"), ("it's", "@b"), ("бласт", "норма"), ("=A", '"B"', "<C>")],
)
def test_folders_with_signs_that_neither_dates_nor_numbers_have_are_classes(names: tuple[str, ...]) -> None:
    paths = [f"{name}/{k}.png" for name in names for k in range(8)]
    layout = recognize(paths)
    assert layout.name == "class-folders"
    assert {layout.annotate(path).class_name for path in paths} == set(names)


@pytest.mark.parametrize("names", [("1", "2"), ("a1", "b2"), ("10%", "20%"), ("2024.01.02", "mono"), ("A", "B")])
def test_folders_that_may_be_numbers_stay_without_a_class(names: tuple[str, ...]) -> None:
    assert recognize([f"{name}/{k}.png" for name in names for k in range(8)]).name == "flat"


def test_dates_and_many_folders_are_not_classes() -> None:
    assert recognize(["2024-01-01/1.jpg", "2024-01-02/1.jpg"]).name == "flat"
    assert recognize([f"patient{i}/x.jpg" for i in range(100)]).name == "flat"
    assert recognize([]).name == "flat"


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("ALL", 1),
        ("all", 1),
        ("ALL_L1", 1),
        ("all_cells", None),
        ("[Malignant] Pre-B", 1),
        ("Non-Leukemia", 0),
        ("ALL-negative", 0),
        ("healthy", 0),
        ("hem", 0),
        ("erythroblast", None),
        ("not normal", None),
        ("blast", 1),
        ("normal or abnormal", None),
        ("LYMPHOCYTE", None),
        ("positive", 1),
        ("", None),
    ],
)
def test_common_words_tell_the_label(name: str, label: int | None) -> None:
    assert common_label(name) == label


class TestOverrides:
    paths = ("c1/P1_1.jpg", "c2/P2_2.jpg", "c3/P2_103.jpg")
    layout = LAYOUTS["class-folders"]

    @pytest.mark.parametrize("pattern", [r"/(P\d+)_", r"(/)(?P<subject>P\d+)_"])
    def test_subject_pattern_takes_named_or_first_group(self, pattern: str) -> None:
        result = annotate(self.paths, self.layout, subject_pattern=pattern)
        assert [a.subject_id for a in result] == ["P1", "P2", "P2"]

    @pytest.mark.parametrize(
        ("pattern", "message"), [("(", "not a regular expression"), ("P", "no group"), ("(Q)", "no path")]
    )
    def test_bad_subject_pattern_says_what_is_wrong(self, pattern: str, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            annotate(self.paths, self.layout, subject_pattern=pattern)

    def test_subject_blocks_count_file_numbers_within_a_class(self) -> None:
        result = annotate(self.paths, self.layout, subject_blocks=50)
        assert [a.subject_id for a in result] == ["c1-block-001", "c2-block-001", "c3-block-003"]

    def test_blocks_need_numbers_and_a_positive_size_and_no_pattern(self) -> None:
        with pytest.raises(UsageError, match="numbers in the file names"):
            annotate(["a/x.jpg"], self.layout, subject_blocks=3)
        with pytest.raises(UsageError, match="at least 1"):
            annotate(self.paths, self.layout, subject_blocks=0)
        with pytest.raises(UsageError, match="give one of them"):
            annotate(self.paths, self.layout, subject_blocks=2, subject_pattern="(P)")

    def test_blocks_do_not_replace_real_subjects(self) -> None:
        with pytest.raises(UsageError, match="would replace the subjects"):
            annotate(["UID_1_2_3_all.bmp"], LAYOUTS["c-nmc-2019"], subject_blocks=5)


class TestLabelTable:
    paths = ("a.tar!/x/1.jpg", "y/2.jpg", "y/3.png")

    def test_rows_match_by_path_uri_name_and_name_without_extension(self) -> None:
        for names in (["a.tar!/x/1.jpg", "y/2.jpg"], ["x/1.jpg", "2.jpg"], ["1", "2"], ["s3://b/p/y/2.jpg", "1.jpg"]):
            table = pa.table({"Filename": names, "label": [1, 0], "Patient_ID": ["p", "q"]})
            result = annotate_from_table(table, self.paths).annotations
            assert {(a.label, a.subject_id) for a in result} == {(1, "p"), (0, "q"), (None, None)}
            assert result[2] == Annotation()

    def test_whole_numbers_with_a_point_are_labels_as_pandas_writes_them(self) -> None:
        rows = pa.table({"path": ["a.jpg", "b.jpg", "c.jpg"], "label": ["1.0", "0.0", None]})
        found = annotate_from_table(rows, ["a.jpg", "b.jpg", "c.jpg"]).annotations
        assert [(a.class_name, a.label) for a in found] == [("positive", 1), ("negative", 0), (None, None)]

    def test_classes_and_splits_are_read(self) -> None:
        table = pa.table({"path": ["y/2.jpg", "y/3.png"], "label": ["blast", "LYT"], "split": ["val", "TEST"]})
        result = annotate_from_table(table, self.paths).annotations
        assert result[1:] == [Annotation("blast", 1, None, "validation"), Annotation("LYT", None, None, "test")]
        assert [a.label for a in apply_rules(result, ClassRules(("LYT",), ("blast",)))] == [None, 0, 1]

    def test_names_that_several_images_have_are_looked_for_beside_the_table(self) -> None:
        table = pa.table({"file": ["1.bmp"], "label": ["0"]})
        found = annotate_from_table(table, ["train/1.bmp", "valid/cells/1.bmp"], folder="valid").annotations
        assert [a.label for a in found] == [None, 0]

    def test_c_nmc_preliminary_table_gives_subjects(self) -> None:
        table = pa.table({"Patient_ID": ["UID_57_29_1_all.bmp"], "new_names": ["1.bmp"], "labels": [1]})
        assert annotate_from_table(table, ["d/1.bmp"]).annotations == [Annotation("all", 1, "57")]

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"foo": ["y/2.jpg"], "label": [1]}, "columns foo, label, none of which names the image"),
            ({"path": ["y/2.jpg"], "foo": [1]}, "but no label"),
            ({"path": ["y/2.jpg", "nope.jpg"], "label": [1, 1]}, "1 of 2 rows .* row 1 'nope.jpg'"),
            ({"path": ["y/2.jpg", "2.jpg"], "label": [1, 1]}, "1 images twice: rows 0 and 1"),
            ({"path": ["y/2.jpg"], "label": [7], "class": ["x"]}, "label column holds 7"),
            ({"path": ["y/2.jpg"], "label": [1], "split": ["fold1"]}, "split column .* holds fold1"),
        ],
    )
    def test_faults_of_the_table_are_named(self, columns: dict[str, list[object]], message: str) -> None:
        with pytest.raises(InputError, match=message):
            annotate_from_table(pa.table(columns), self.paths)

    def test_ambiguous_file_name_is_refused_and_larger_tables_can_be_allowed(self) -> None:
        with pytest.raises(InputError, match="fit several images"):
            annotate_from_table(pa.table({"path": ["1.jpg"], "label": [1]}), ["a/1.jpg", "b/1.jpg"])
        table = pa.table({"path": ["y/2.jpg", "gone.jpg"], "label": [1, 0]})
        assert annotate_from_table(table, self.paths, is_part=True).annotations[1].label == 1


def test_help_text_names_every_layout() -> None:
    text = describe_layouts()
    assert all(layout.name in text and layout.title in text for layout in LAYOUTS.values())
