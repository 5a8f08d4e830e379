"""CSV that a spreadsheet does not run, and that is read as it was meant."""

import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.csv_text import csv_of, guarded, unguarded
from pipeline.sources.tables import read_table
from tests.searches import search


@search(300)
@given(st.text(alphabet=st.sampled_from("=+-@\uff1d\uff20\t\r\n;'1.5ab \"")))
def test_what_is_guarded_is_never_a_formula_and_comes_back(cell: str) -> None:
    written = guarded(cell)
    assert unguarded(written) == cell
    for part in [written, *re.split("[;\t\r\n]", written)]:  # as a spreadsheet may part it
        if part[:1] and part[0] in "=+-@\uff1d\uff20":
            float(written)  # a number, which runs nothing
    assert written.replace("'", "") == cell.replace("'", "")


@pytest.mark.parametrize(
    "cell", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\tx", "'=1", "\uff1d1+1", "\uff0d2+3"]
)
def test_formulas_are_guarded(cell: str) -> None:
    assert guarded(cell) == "'" + cell


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("x;=1+1;.png", "x;'=1+1;.png"),
        ("x; =1;+2", "x;' =1;'+2"),
        ("x\t@SUM(A1)", "x\t'@SUM(A1)"),
        ("x\n-2+3", "x\n'-2+3"),
        ("=a;'=b", "'=a;''=b"),
        ("\t=1", "'\t'=1"),
        ("x;y=1", "x;y=1"),
    ],
)
def test_a_formula_where_other_spreadsheets_part_cells_is_guarded(cell: str, written: str) -> None:
    assert guarded(cell) == written and unguarded(written) == cell


@pytest.mark.parametrize("cell", ["-0.532", "+5", "-1e-3", "", "blast", "a=b", "/data/=x.png", "'quoted'"])
def test_numbers_and_words_stay(cell: str) -> None:
    assert guarded(cell) == cell


def test_a_cell_of_several_lines_is_one_cell() -> None:
    rows = [["a\rb", "c\nd", "e\r\nf"], ["g", "h\r", ""]]
    assert list(csv.reader(io.StringIO(csv_of(rows), newline=""))) == rows


def test_every_table_that_people_open_is_written_by_it() -> None:
    root = Path(__file__).parents[2]
    writers = [
        path.relative_to(root).as_posix()
        for room in ("pipeline", "jobs", "serving")
        for path in (root / room).rglob("*.py")
        if "csv.writer(" in path.read_text() or "DictWriter(" in path.read_text()
    ]
    assert writers == ["pipeline/base/csv_text.py"]


def test_a_table_is_read_by_our_reader_as_it_was_meant(tmp_path: Path) -> None:
    rows = [
        ["path", "class_name", "margin"],
        ["/a/1.png", "=blast", "-0.5"],
        ["=b.png", "'+x", "0.1"],
        ["c;=1.png", "-", None],
    ]
    text = csv_of(rows)
    assert list(csv.reader(io.StringIO(text)))[1:3] == [["/a/1.png", "'=blast", "-0.5"], ["'=b.png", "''+x", "0.1"]]
    (tmp_path / "t.csv").write_text(text)
    found = read_table(str(tmp_path / "t.csv"))
    assert found.to_pylist() == [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
