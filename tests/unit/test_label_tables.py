"""Tables that people bring: whichever way paths are written, the right image or a reason; all columns, typed."""

from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import InputError, UsageError
from pipeline.ingest.annotation import Annotation
from pipeline.ingest.further_columns import typed
from pipeline.ingest.label_table import annotate_from_table
from pipeline.ingest.subject_table import join_subjects
from pipeline.ingest.table_paths import AMBIGUOUS, locate
from pipeline.sources.manifest import MANIFEST_SCHEMA
from pipeline.sources.tables import read_table
from tests.searches import search

PATHS = ("wards/A/cell 1.PNG", "wards/B/gr\u00fcn.png", "wards/B/3.png")


@pytest.mark.parametrize(
    ("written", "position"),
    [
        ("wards\\A\\cell 1.PNG", 0),
        ("C:\\study\\wards\\A\\cell 1.PNG", 0),
        (r"\\nas\share\wards\A\cell 1.PNG", 0),
        (" wards/A / cell 1.PNG ", 0),
        ("WARDS/a/Cell 1.png", 0),
        ("'wards/A/cell 1.PNG'", 0),
        ("cell 1", 0),
        ("wards/B/gru\u0308n.png", 1),
        ("images/wards/A/cell 1.PNG", 0),  # below the base
        ("/mnt/old/B/3.png", 2),  # another folder at the beginning
        ("D:/old/wards/B/3.PNG", 2),
        ("other/3.png", None),
        ("A/3.png", None),
        ("4.png", None),
        ("", None),
    ],
)
def test_a_path_of_another_system_finds_the_one_image_it_can_mean(written: str, position: int | None) -> None:
    assert locate([written], PATHS, base="/data/images").positions == [position]


def test_letter_case_is_looked_past_only_where_one_image_is_left() -> None:
    assert locate(["A.png", "a.png", "A.PNG"], ["a.png", "A.png"]).positions == [1, 0, AMBIGUOUS]
    assert locate(["A.png", "a.png"], ["a.png"]).positions == [None, 0]  # not the image of the other row


@pytest.mark.parametrize(
    ("there", "here"), [("train", "test"), ("patient_1", "patient_2"), ("leukemia", "healthy"), ("Patient 07", "P8")]
)
def test_a_folder_of_the_same_kind_is_not_another_name_of_it(there: str, here: str) -> None:
    assert locate([f"/data/{there}/images/1.png"], [f"{here}/images/1.png"]).positions == [None]
    assert locate([f"{there}/images/1.png"], [f"{here}/images/1.png"]).positions == [None]


def test_two_foreign_folders_are_not_taken_for_one_here() -> None:
    rows = ["/x/images/1.png", "/y/images/2.png"]
    assert locate(rows, ["in/images/1.png", "in/images/2.png"]).positions == [None, None]


@pytest.mark.parametrize("own", ["s3://b/P1", "/data/P1", "/data/Smith", "/data/x"])
@pytest.mark.parametrize("below", ["", "slide/"])
def test_the_image_of_another_patient_is_not_found_under_its_folder(own: str, below: str) -> None:
    """A table of two patients of which one is the source: the same file names, and the row of one is missing."""
    other = own.replace("P1", "P2").replace("Smith", "Jones").replace("x", "y")
    rows = [f"{own}/{below}{n}.jpg" for n in (1, 2, 3)] + [f"{other}/{below}4.jpg"]
    paths = [f"{below}{n}.jpg" for n in (1, 2, 3, 4)]
    for there in (rows, [row.partition("/")[2].rpartition("/data/")[2].lstrip("/") for row in rows]):
        assert locate(there, paths, base=own).positions == [0, 1, 2, None]
        assert locate([there[3], there[0]], paths, base=own).positions == [None, 0]
    assert locate([*rows, f"{other}/{below}1.jpg"], paths, base=own).positions == [0, 1, 2, None, None]


@pytest.mark.parametrize(
    "written",
    [
        "/data/set/train/a.png", "set/train/a.png", "/train/a.png", "../set/train/a.png", "train/a.png", "a.png",
        "file:///data/set/train/a.png", "C:/data/set/train/a.png", "https://host/data/set/train/a.png",
        "/export/set/train/a.png", "/other/train/a.png", "renamed/train/a.png",
    ],
)  # fmt: skip
def test_one_image_is_found_below_whatever_the_set_was_kept_in(written: str) -> None:
    assert locate([written], ["train/a.png", "train/b.png"], base="/data/set").positions == [0]


def test_a_flat_folder_is_known_under_another_root_by_its_own_name_alone() -> None:
    for written, position in (("/export/images/a.png", 0), ("/images/a.png", 0), ("/export/cells/a.png", None)):
        assert locate([written], ["a.png"], base="/data/images").positions == [position]


@search(50)
@given(st.lists(st.text("aAbB0/. \\", max_size=8), max_size=6), st.lists(st.text("aAbB0/.", min_size=1), max_size=5))
def test_whatever_is_written_a_row_finds_one_listed_image_or_none(names: list[str], paths: list[str]) -> None:
    found = locate(names, paths, base="/base").positions
    assert len(found) == len(names)
    assert all(at is None or at == AMBIGUOUS or 0 <= at < len(paths) for at in found)
    exact = [(name, at) for name, at in zip(names, found, strict=True) if paths.count(name) == 1]
    plain = {name for name, _ in exact if name.strip("/.") == name and "//" not in name and "/./" not in name}
    assert all(at is not None for name, at in exact if name in plain and name.strip())


# ---- rows that find nothing --------------------------------------------------------------------------------


def labels(*paths: str) -> pa.Table:
    return pa.table({"path": list(paths), "label": ["1"] * len(paths)})


def test_half_of_the_rows_without_an_image_is_an_error_with_reasons_and_examples() -> None:
    rows = labels("a/1.png", "b/2.png", "a/3.tif", "a/9.png")
    with pytest.raises(InputError) as refused:
        annotate_from_table(rows, ["a/1.png", "a/2.png", "a/3.png", "a/4.png"])
    for words in (
        "3 of 4 rows", "another folder, e.g. row 1 'b/2.png' (listed: 'a/2.png')",
        "another suffix, e.g. row 2 'a/3.tif' (listed: 'a/3.png')", "not listed, e.g. row 3 'a/9.png'",
    ):  # fmt: skip
        assert words in str(refused.value)


def test_fewer_rows_without_an_image_are_said_with_examples_and_so_are_images_without_a_row() -> None:
    found = annotate_from_table(labels("1.png", "2.png", "9.png"), ["1.png", "2.png", "3.png", "4.png"])
    assert [row.label for row in found.annotations] == [1, 1, None, None]
    assert found.said == [
        "1 of 3 rows of the table of labels name no image of the source: 1 name a file that is not listed, e.g. "
        "row 2 '9.png'",
        "2 of 4 images have no row in the table of labels, e.g. '3.png', '4.png'",
    ]


def test_a_table_of_a_larger_set_is_read_where_every_image_finds_its_row() -> None:
    rows = labels("1.png", *(f"{n}.png" for n in range(5, 20)))
    assert annotate_from_table(rows, ["1.png"]).annotations[0].label == 1
    assert annotate_from_table(rows, ["1.png", "2.png"], is_part=True).annotations[0].label == 1
    with pytest.raises(InputError, match="15 of 16 rows"):
        annotate_from_table(rows, ["1.png", "2.png"])


def test_what_was_looked_past_is_said() -> None:
    found = annotate_from_table(labels("A\\1.PNG", "a/2.png"), ["a/1.png", "a/2.png"])
    assert found.said == ["1 rows of the table name their image but for letter case, slashes, drive letters or blanks"]


# ---- one column a class ------------------------------------------------------------------------------------


def test_columns_of_0_and_1_are_classes_and_odd_rows_are_named() -> None:
    rows = pa.table({
        "image": ["1", "2", "3", "4", "5"], "age": ["5", "6", "7", "8", "9"],
        "Blast": ["1", "0", "0", "1", "0"], "Lymphocyte": ["0", "1.0", "1", "1", "0"],
    })  # fmt: skip
    found = annotate_from_table(rows, [f"{n}.png" for n in range(1, 6)])
    assert [row.class_name for row in found.annotations] == ["Blast", "Lymphocyte", "Lymphocyte", None, None]
    assert [column.field.name for column in found.further] == ["age"]
    assert "2 rows" in found.said[1] and "row 3 (Blast and Lymphocyte), row 4 (none)" in found.said[1]


def test_columns_of_0_and_1_that_are_no_classes_are_not_taken_for_them() -> None:
    rows = pa.table({"path": ["1", "2", "3"], "male": ["1", "0", "1"], "smoker": ["1", "0", "0"]})
    with pytest.raises(InputError, match=r"male, smoker\) are not one class a row: 2 of 3 rows"):
        annotate_from_table(rows, ["1.png", "2.png", "3.png"])
    sexes = pa.table({"path": ["1", "2"], "patient": ["a", "b"], "male": ["1", "0"], "female": ["0", "1"]})
    found = annotate_from_table(sexes, ["1.png", "2.png"], needs_class=False)
    assert [row.class_name for row in found.annotations] == [None, None]
    assert [column.field.name for column in found.further] == ["male", "female"]


def test_a_column_set_that_names_no_split_is_a_further_one() -> None:
    rows = pa.table({"path": ["1"], "label": ["1"], "Set": ["B-ALL"]})
    found = annotate_from_table(rows, ["1.png"])
    assert found.annotations[0].split is None and [column.field.name for column in found.further] == ["Set"]
    with pytest.raises(InputError, match=r"split column .* holds B-ALL"):
        annotate_from_table(rows.rename_columns(["path", "label", "split"]), ["1.png"])


@pytest.mark.parametrize(("name", "words"), [("Usage", ("Training", "PublicTest")), ("fold", ("train", "test"))])
def test_a_split_is_found_under_another_name(name: str, words: tuple[str, str]) -> None:
    rows = pa.table({"path": ["1", "2"], "label": ["1", "0"], name: list(words)})
    found = annotate_from_table(rows, ["1.png", "2.png"])
    assert [row.split for row in found.annotations] == ["train", "test"] and name in found.said[0]


def test_a_flag_of_a_split_is_asked_about() -> None:
    rows = pa.table({"path": ["1", "2"], "ALL": ["1", "0"], "hem": ["0", "1"], "is_test": ["0", "1"]})
    with pytest.raises(InputError, match=r"'is_test' .* write a column 'split'"):
        annotate_from_table(rows, ["1.png", "2.png"])


@pytest.mark.parametrize("nobody", ["NA", "n/a", "-", "None", "unknown", "#N/A"])
def test_no_subject_is_nobody_and_not_one_person(nobody: str) -> None:
    rows = pa.table({"path": ["1", "2", "3"], "label": ["1", "NA", "0"], "patient": [nobody, "7.0", "7"]})
    found = annotate_from_table(rows, ["1.png", "2.png", "3.png"]).annotations
    assert [row.subject_id for row in found] == [None, "7", "7"] and [row.label for row in found] == [1, None, 0]


# ---- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\r\npath;label\r\n1.png;7, 8\r\n", '"sep=|"\npath|label\n1.png|7, 8\n',
        "\ufeffsep=;\npath;label\n1.png;7, 8\n", "sep=;;\npath;label;\n1.png;7, 8;\n",
        "path\tlabel\n1.png\t7, 8\n", "sep=\t\npath\tlabel\n1.png\t7, 8\n", 'path;label\n1.png;"7, 8"\n',
        "\n\npath;label;\n1.png;7, 8;\n", '"path",label\n1.png,"7, 8"\n', '"path; of image",label\n1.png,"7, 8"\n',
    ],
)  # fmt: skip
def test_a_table_that_a_spreadsheet_wrote_is_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text, newline="")
    table = read_table(str(tmp_path / "t.csv"))
    assert [column.to_pylist() for column in table.columns[:2]] == [["1.png"], ["7, 8"]]


@pytest.mark.parametrize("beginning", [b"PK\x03\x04", b"\xd0\xcf\x11\xe0"])
def test_a_workbook_is_named_as_one(beginning: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(beginning + bytes(100))
    with pytest.raises(InputError, match="a workbook of a spreadsheet; save it as CSV"):
        read_table(str(tmp_path / "t.csv"))


def test_a_table_without_rows_is_refused() -> None:
    with pytest.raises(InputError, match="has no rows"):
        annotate_from_table(pa.table({"path": [], "label": []}), ["1.png"])


# ---- further columns ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "kind", "values"),
    [
        (["1", " 22", None, "-3"], pa.int64(), [1, 22, None, -3]),
        (["1", "2.5", ".5", "1e-05"], pa.float64(), [1.0, 2.5, 0.5, 1e-05]),
        (["yes", "No", ""], pa.bool_(), [True, False, None]),
        (["TRUE", "false"], pa.bool_(), [True, False]),
        (["2021-02-03", None], pa.date32(), [date(2021, 2, 3), None]),
        (["2021-02-30"], pa.string(), ["2021-02-30"]),
        (["007", "12"], pa.string(), ["007", "12"]),
        (["12E3", "1"], pa.string(), ["12E3", "1"]),
        (["1,5", "2"], pa.string(), ["1,5", "2"]),
        (["9" * 30], pa.string(), ["9" * 30]),
        (["", None], pa.string(), [None, None]),
        (["A ", "b"], pa.string(), ["A", "b"]),
    ],
)
def test_a_column_has_the_type_of_all_its_values(
    texts: list[str | None], kind: pa.DataType, values: list[object]
) -> None:
    found = typed(pa.chunked_array([pa.array(texts, pa.string())]))
    assert found is not None and found.type == kind and found.to_pylist() == values


@search(50)
@given(st.lists(st.text("0123456789.-+eE ,:tTrRuUyYnNoO", max_size=10), max_size=5))
def test_any_words_make_a_column(texts: list[str]) -> None:
    found = typed(pa.chunked_array([pa.array(texts, pa.string())]))
    assert found is not None and len(found) == len(texts)


def test_columns_of_parquet_keep_their_types_and_nested_ones_are_left_out() -> None:
    rows = pa.table({
        "path": ["1"], "label": [1], "small": pa.array([3], pa.int8()), "nan": [float("nan")], "list": [[1]],
        "word": pa.array(["x"]).dictionary_encode(), "big": pa.array([2**63], pa.uint64()),
    })  # fmt: skip
    further = {column.field.name: column.values for column in annotate_from_table(rows, ["1.png"]).further}
    assert {name: (str(values.type), values.to_pylist()) for name, values in further.items()} == {
        "small": ("int64", [3]), "nan": ("double", [None]), "word": ("string", ["x"]), "big": ("string", [str(2**63)]),
    }  # fmt: skip


def test_names_of_further_columns_are_words_and_never_those_of_the_manifest() -> None:
    names = ["path", "label", "Age at diagnosis", "URI", "offset", "age", "AGE", "site", ""]
    rows = pa.table([pa.array(["1.png"])] * len(names), names=names)
    found = annotate_from_table(rows, ["1.png"])
    assert [column.field.name for column in found.further] == [
        "Age_at_diagnosis", "image_URI", "image_offset", "age_3", "AGE_4",
    ]  # fmt: skip
    assert found.annotations[0].site == "1.png"
    assert found.further[0].field.metadata == {b"meaning": b"'Age at diagnosis' of the table of images"}


# ---- subjects ----------------------------------------------------------------------------------------------


def subjects_of(*names: str | None) -> list[Annotation]:
    return [Annotation("x", None, name) for name in names]


def test_a_table_of_subjects_is_joined_by_their_ids_however_spelled() -> None:
    table = pa.table(
        {"Patient ID": ["patient 1", "Patient-02", "9"], "Hospital": ["N", "S", "S"], "Age": ["3", "4", "5"]}
    )
    found = join_subjects(table, subjects_of("Patient_1", None, "patient_02", "Patient_1"), MANIFEST_SCHEMA.names)
    assert found.sites == ["N", None, "S", "N"]
    assert found.further[0].values.to_pylist() == [3, None, 4, 3]
    assert found.said == ["1 of 3 rows of the table of subjects are of no image, e.g. '9'"]


def test_subjects_are_joined_by_their_number_where_that_is_unambiguous() -> None:
    table = pa.table({"patient": [1, 2, 3], "age": [5, 6, 7]})
    found = join_subjects(table, subjects_of("Patient_01", "Patient_02", "Patient_003"), [])
    assert found.further[0].values.to_pylist() == [5, 6, 7]
    assert "3 subjects are found in the table by number" in found.said[-1]
    with pytest.raises(InputError, match="2 of 2 subjects have no row"):
        join_subjects(table, subjects_of("P1", "S1"), [])  # both are number 1
    with pytest.raises(InputError, match="1 of 1 subjects have no row"):
        join_subjects(table, subjects_of("AML1"), [])


def test_people_of_one_number_in_two_sites_find_their_own_rows_or_none() -> None:
    images = [Annotation("x", None, f"{site}/patient_1", site=site) for site in ("siteA", "siteB")]
    by_site = pa.table({"patient": ["1", "patient 1"], "site": ["siteA", "SITEB"], "age": [5, 6]})
    full = by_site.set_column(0, "patient", pa.array(["patient_1", "patient_1"]))
    assert join_subjects(full, images, []).further[0].values.to_pylist() == [5, 6]
    written = pa.table({"patient": ["siteA/patient_1", "siteB/Patient 1"], "age": [5, 6]})
    assert join_subjects(written, images, []).further[0].values.to_pylist() == [5, 6]
    with pytest.raises(InputError, match="2 of 2 subjects have no row"):  # one row, and two people it may be
        join_subjects(pa.table({"patient": ["patient_1"], "age": [5]}), images, [])
    one = [Annotation("x", None, "siteA/patient_1"), Annotation("x", None, "siteB/patient_2")]
    two = pa.table({"patient": ["patient_1", "2"], "age": [5, 6]})
    assert join_subjects(two, one, []).further[0].values.to_pylist() == [5, 6]


def test_subjects_without_a_row_are_told_and_half_of_them_refused() -> None:
    table = pa.table({"patient": ["a", "b", "c"], "age": [5, 6, 7]})
    assert (
        "1 of 3 subjects have no row in the table of subjects, e.g. 'x'"
        in join_subjects(table, subjects_of("a", "b", "x"), []).said
    )
    with pytest.raises(InputError, match=r"2 of 3 subjects have no row .* 'x', 'y'.* do not fit"):
        join_subjects(table, subjects_of("a", "x", "y"), [])


def test_two_rows_of_a_subject_that_differ_are_refused() -> None:
    table = pa.table({"patient": ["a", "A ", "a"], "age": [5, 5, 6]})
    with pytest.raises(InputError, match=r"two rows for 'a' \(rows 0 and 2\), which differ in 'age' \(5 and 6\)"):
        join_subjects(table, subjects_of("a"), [])


def test_blocks_are_no_subjects_to_join() -> None:
    with pytest.raises(UsageError, match="no subject of the images is known"):
        join_subjects(pa.table({"patient": ["a"]}), [Annotation("x", None, "x-block-001", is_block=True)], [])
    with pytest.raises(InputError, match="none of which is a subject"):
        join_subjects(pa.table({"age": [1]}), subjects_of("a"), [])
