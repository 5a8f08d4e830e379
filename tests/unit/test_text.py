"""Words for a person: one line, never empty."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.text import column_names, first_line, human_time
from tests.searches import search


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("disk full", "disk full"),
        ("\n\n  The actor died.  \n\tmore of it\n", "The actor died."),
        ("", "ValueError"),
        (" \n", "ValueError"),
        ("x" * 999, "x" * 200),
    ],
)
def test_an_error_is_told_in_its_first_line_with_words(text: str, line: str) -> None:
    assert first_line(ValueError(text)) == line


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89.4, "89 s"), (90, "1 min 30 s"), (5399, "89 min 59 s"), (7500, "2 h 05 min")],
)
def test_time_is_told_in_the_units_of_its_size(seconds: float, words: str) -> None:
    assert human_time(seconds) == words


@search(50)
@given(st.lists(st.text(max_size=8), unique=True, max_size=8), st.sampled_from(["", "prob_", "meta_"]))
def test_columns_of_any_names_are_words_that_differ_in_every_case(names: list[str], prefix: str) -> None:
    columns = column_names(names, prefix, taken=["a", "Meta_A"])
    assert len({name.casefold() for name in [*columns, "a", "meta_a"]}) == len(names) + 2
    assert all(re.fullmatch(r"[^\W\d]\w*", name) for name in columns)


def test_columns_that_a_number_would_make_equal_differ() -> None:
    assert column_names(["a b", "a-b", "a_b_0"], "prob_") == ["prob_a_b_0_", "prob_a_b_1", "prob_a_b_0"]
