"""Words for a person: one line, never empty."""

import pytest

from pipeline.base.text import first_line, human_time


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
