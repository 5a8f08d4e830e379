"""A split in groups: by site, sex, class or subject, each with its figures and how far they can be trusted.

Takes arrays over images and a column that names each image's group, gives one JSON-ready row a group.
"""

from collections.abc import Hashable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from pipeline.base.text import as_word
from pipeline.evaluation.adverse import NO_LIMITS, Limits, interval_of, share
from pipeline.evaluation.definitions import Ints, binary_metrics
from pipeline.evaluation.intervals import Interval, as_json, exact_interval, known_or_none
from pipeline.evaluation.limits import Answers, Parts, area, method_of, recall

MOST_VALUES = 12  # of a column that is worth a table
MOST_NUMBERS = 5  # as stages are; of more, as of ages, each group would be a patient or two
WITHIN = "Clopper and Pearson, over the images of each group"
_BINARY = ("sensitivity", "specificity", "roc_auc")


def worth_a_table(columns: Mapping[str, Sequence[Any]]) -> dict[str, list[str | None]]:
    """Of further columns, those that divide the images into 2 to MOST_VALUES groups; as text, null where unknown.

    Numbers of more than MOST_NUMBERS values, as ages, are divided into thirds.
    """
    found = {}
    for name, given in columns.items():
        values = _known(given)
        groups = set(values) - {None}
        if groups and not _are_many(groups) and len(set(values)) > 1:
            found[name] = [None if value is None else as_word(value) for value in values]
        elif _are_many(groups) and (numbers := _numbers(values)) and (bands := thirds(numbers)):
            found[name] = bands
    return found


def groups_of(values: Sequence[Any]) -> list[str | None]:
    """The group that each value lies in, however many there are: many numbers in thirds, else the value as text; None
    where it is unknown.
    """
    known = _known(values)
    if _are_many(set(known) - {None}) and (numbers := _numbers(known)) and (bands := thirds(numbers)):
        return bands
    return [None if value is None else as_word(value) for value in known]


def _known(values: Sequence[Any]) -> list[Any]:
    """None where a value is not known: a number that is none is no group; what holds several values is one as text."""
    return [
        None if value is None or value != value else str(value) if isinstance(value, list | dict) else value
        for value in values
    ]


def _are_many(groups: Set[Any]) -> bool:
    are_numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in groups)
    return len(groups) > (MOST_NUMBERS if are_numbers else MOST_VALUES)


def _numbers(values: Sequence[Any]) -> list[float | None] | None:
    """None where one is no number."""
    try:
        return [None if value is None or isinstance(value, bool) else float(value) for value in values]
    except (TypeError, ValueError):
        return None


def thirds(values: Sequence[float | None]) -> list[str | None] | None:
    """The lowest, middle or highest third that each number lies in, in words; None where they do not divide so."""
    known = np.array([value for value in values if value is not None and np.isfinite(value)])
    if len(known) < 3:
        return None
    low, high = np.quantile(known, [1 / 3, 2 / 3])
    if not known.min() <= low < high < known.max():
        return None
    names = f"lowest third, up to {low:.4g}", f"middle third, to {high:.4g}", f"top third, above {high:.4g}"
    return [
        None if value is None or not np.isfinite(value) else names[int(value > low) + int(value > high)]
        for value in values
    ]


class Slice:
    """One column: its groups, what of them is to be bounded, and the table when the limits are there.

    All intervals of a table are over the units of the split, none where a group has one. Where no group can have more
    (the table by subject) they are of accuracy alone, over the images of each: they say nothing of other subjects.
    """

    def __init__(self, name: str, values: Sequence[str | None], answers: Answers) -> None:
        if len(values) != len(answers.truth):
            raise ValueError(f"{len(answers.truth)} images but {len(values)} values of the slice column")
        column = np.array(["unknown" if value is None else str(value) for value in values])
        self._name, self._answers = name, answers
        self._rows = {str(value): np.flatnonzero(column == value) for value in np.unique(column)}
        codes = answers.codes
        is_alone = all(len(np.unique(codes[rows])) == 1 for rows in self._rows.values())
        self.unit = "image" if answers.unit == "subject" and (name == "subject" or is_alone) else answers.unit

    def parts(self) -> Parts:
        """What to bound, by (column, group, metric)."""
        if self.unit != self._answers.unit:
            return {}
        found: Parts = {}
        for value, rows in self._rows.items():
            group = self._answers.of(rows)
            right = group.called == group.truth
            found[self._name, value, "accuracy"] = share(group.codes, right, np.ones(len(rows)))
            if group.scores is not None:
                found[self._name, value, "sensitivity"] = recall(group, 1)
                found[self._name, value, "specificity"] = recall(group, 0)
                found[self._name, value, "roc_auc"] = area(group.truth == 1, group.scores, group.codes)
        return found

    def table(self, limits: Mapping[Hashable, Limits], confidence: float) -> list[dict[str, Any]]:
        """One row a group, largest first: accuracy, and of two classes the metrics of both sides."""
        table = []
        for value, rows in self._rows.items():
            group = self._answers.of(rows)
            row: dict[str, Any] = {"value": value, "images": len(rows), "subjects": _count(group.subjects)}
            row["accuracy"] = as_json(self._accuracy(value, rows, limits, confidence))
            if group.scores is not None and group.threshold is not None:
                points = binary_metrics(group.truth, group.scores, group.threshold)
                row["positives"] = int(group.truth.sum())
                row |= {name: known_or_none(points[name]) for name in _BINARY}
                row["intervals"] = {
                    name: as_json(interval_of(points[name], limits[self._name, value, name], self.unit))
                    for name in _BINARY
                    if (self._name, value, name) in limits
                }
            table.append(row)
        return sorted(table, key=lambda row: (-row["images"], row["value"]))

    def method(self, called: str) -> str:
        """In words; `called`: what units are."""
        return method_of(self.unit, called) if self.unit == self._answers.unit else WITHIN

    def _accuracy(self, value: str, rows: Ints, limits: Mapping[Hashable, Limits], confidence: float) -> Interval:
        right = self._answers.called[rows] == self._answers.truth[rows]
        if self.unit != self._answers.unit:
            return exact_interval(int(right.sum()), len(rows), confidence)
        return interval_of(float(right.mean()), limits.get((self._name, value, "accuracy"), NO_LIMITS), self.unit)


def _count(subjects: Sequence[str | None] | None) -> int | None:
    return len({subject for subject in subjects or () if subject}) or None
