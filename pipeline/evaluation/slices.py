"""A split in groups: by site, sex, class or subject, each with its figures and how far they can be trusted.

Takes arrays over images and a column that names each image's group, gives one JSON-ready row a group.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.base.text import as_word
from pipeline.evaluation.definitions import Floats, Ints, binary_metrics, ratio
from pipeline.evaluation.intervals import (
    Interval,
    Resampling,
    as_json,
    bootstrap,
    bootstrap_intervals,
    honest,
    known_or_none,
    subject_codes,
    wilson_interval,
)

MOST_VALUES = 12  # of a column that is worth a table
_BINARY = ("sensitivity", "specificity", "roc_auc")


def worth_a_table(columns: Mapping[str, Sequence[Any]]) -> dict[str, list[str | None]]:
    """Of further columns, those that divide the images into 2 to MOST_VALUES groups; as text, null where unknown."""
    found = {}
    for name, values in columns.items():
        groups = {value for value in values if value is not None}
        if 1 <= len(groups) <= MOST_VALUES and len(set(values)) > 1:
            found[name] = [None if value is None else as_word(value) for value in values]
    return found


def slice_table(
    truth: Ints,
    scores: Floats | None,
    called: Ints,
    values: Sequence[str | None],
    threshold: float | None,
    subjects: Sequence[str | None] | None = None,
    resampling: Resampling = Resampling(),
) -> list[dict[str, Any]]:
    """One row a value of the slice column, largest first: accuracy, and of two classes the metrics of both sides.

    Intervals are over subjects where a group has several, else Wilson's over images, for accuracy alone.
    """
    column = np.array(["unknown" if value is None else str(value) for value in values])
    if len(column) != len(truth):
        raise ValueError(f"{len(truth)} images but {len(column)} values of the slice column")
    table = []
    for value in np.unique(column):
        rows = np.flatnonzero(column == value)
        within = None if subjects is None else [subjects[row] for row in rows.tolist()]
        row: dict[str, Any] = {"value": str(value), "images": len(rows), "subjects": _count(within)}
        of_group = None if scores is None else scores[rows]
        limits = _limits(truth[rows], of_group, called[rows], threshold, within, resampling)
        row["accuracy"] = as_json(limits.pop("accuracy"))
        if scores is not None and threshold is not None:
            points = binary_metrics(truth[rows], scores[rows], threshold)
            row["positives"] = int(truth[rows].sum())
            row |= {name: known_or_none(points[name]) for name in _BINARY}
            row["intervals"] = {name: as_json(interval) for name, interval in limits.items()}
        table.append(row)
    return sorted(table, key=lambda row: (-row["images"], row["value"]))


def _count(subjects: Sequence[str | None] | None) -> int | None:
    return len({subject for subject in subjects or () if subject}) or None


def _limits(
    truth: Ints,
    scores: Floats | None,
    called: Ints,
    threshold: float | None,
    subjects: Sequence[str | None] | None,
    resampling: Resampling,
) -> dict[str, Interval]:
    """Of accuracy, and of two classes of `_BINARY`."""
    codes, unit = subject_codes(subjects, len(truth))
    right = called == truth
    if unit == "image" or codes.max() == 0:
        return {"accuracy": wilson_interval(int(right.sum()), len(right), resampling.confidence)}
    if scores is not None and threshold is not None:
        found = bootstrap_intervals(truth, scores, subjects, threshold, resampling)
        return {name: found[name] for name in ("accuracy", *_BINARY)}

    def accuracy(weights: Floats) -> dict[str, Floats]:
        return {"accuracy": ratio(weights @ right, weights.sum(axis=1))}

    drawn = bootstrap(accuracy, codes, unit, resampling)["accuracy"][0]
    return {"accuracy": honest("accuracy", drawn, [codes], resampling.confidence)}
