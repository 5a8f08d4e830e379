"""Byte-identical images under two labels: out of every split until a person says which label counts.

They are listed in a CSV (`CONTRADICTIONS`) that the person edits, and that ingest reads back.
"""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from pipeline.base.csv_text import csv_of
from pipeline.base.errors import InputError
from pipeline.ingest.annotation import Annotation

CONTRADICTIONS = "contradictions.csv"
_COLUMNS = ("group", "path", "class_name", "label", "this_label_counts")
_YES, _NO = frozenset({"yes", "y", "true", "1", "x"}), frozenset({"no", "n", "false", "0", "", "-"})


def find_contradictions(copies: Sequence[Sequence[int]], annotations: Sequence[Annotation]) -> list[list[int]]:
    """The groups of copies whose rows are not all of one class and label."""
    return [list(rows) for rows in copies if len({_said(annotations[row]) for row in rows}) > 1]


def settled(
    annotations: Sequence[Annotation],
    contradictions: Sequence[Sequence[int]],
    places: Sequence[str],
    verdicts: frozenset[str],
) -> list[Annotation]:
    """The annotations with what `verdicts` (places whose label counts) say of each group; other groups are set apart.

    Raises InputError where two labels of a group are said to count.
    """
    result = list(annotations)
    for rows in contradictions:
        right = {_said(annotations[row]): row for row in rows if places[row] in verdicts}
        if len(right) > 1:
            named = ", ".join(f"{places[row]} ({annotations[row].class_name})" for row in right.values())
            raise InputError(f"{named}: one image, of which two labels are said to count; say yes to one of them")
        for row in rows:
            if right:
                chosen = annotations[next(iter(right.values()))]
                result[row] = replace(result[row], class_name=chosen.class_name, label=chosen.label)
            else:
                result[row] = replace(result[row], is_contradicted=True)
    return result


def read_verdicts(table: pa.Table, where: str) -> frozenset[str]:
    """The places whose label counts, from an edited CSV.

    Raises InputError for a table of another kind, and for a word that is neither yes nor no.
    """
    path, word = _COLUMNS[1], _COLUMNS[-1]
    if missing := [name for name in (path, word) if name not in table.column_names]:
        raise InputError(f"{where}: no column {' and '.join(missing)}; give {CONTRADICTIONS} of a manifest, edited")
    said = {}
    for place, answer in zip(table[path].to_pylist(), table[word].to_pylist(), strict=True):
        said[str(place)] = str(answer if answer is not None else "").strip().casefold()
    if unread := sorted(place for place, answer in said.items() if answer not in _YES | _NO):
        answer = said[unread[0]]
        raise InputError(f"{where}: {word} is '{answer}' for {unread[0]}; write yes beside the label that counts")
    return frozenset(place for place, answer in said.items() if answer in _YES)


def to_csv(
    contradictions: Sequence[Sequence[int]],
    annotations: Sequence[Annotation],
    places: Sequence[str],
    verdicts: frozenset[str],
) -> str:
    """Both paths of each group with what is said of them, and what a person has said of that so far."""
    lines: list[Sequence[object]] = [_COLUMNS]
    for number, rows in enumerate(contradictions, start=1):
        for row in rows:
            label = annotations[row].label
            answer = "yes" if places[row] in verdicts else ""
            lines.append((number, places[row], annotations[row].class_name, label, answer))
    return csv_of(lines)


def _said(annotation: Annotation) -> tuple[str | None, int | None]:
    return annotation.class_name, annotation.label
