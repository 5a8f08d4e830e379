"""A split subject by subject: the share of its cells that is positive, corrected; how probable it is positive itself;
and which of its cells to look at first. Takes the outcomes of cells, gives a JSON-ready record, and a CSV table.

What a model calls positive is corrected by rates known from other subjects, those its threshold comes from: rates of
the subjects measured here would make every share right on average, whatever the model is worth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.base.csv_text import csv_of
from pipeline.evaluation.adverse import interval_of, limits
from pipeline.evaluation.definitions import Floats, Ints, rank_metrics
from pipeline.evaluation.intervals import Interval, Resampling, as_json, subject_codes, wilson_interval
from pipeline.evaluation.limits import area
from pipeline.evaluation.outcomes import Outcomes
from pipeline.evaluation.subject_fit import count_cells, fit_rates
from pipeline.evaluation.subject_labels import labels_in, labels_of, why_no_subjects
from pipeline.model.bundle import BundleInfo
from pipeline.model.cell_rates import detection_limit
from pipeline.model.prediction import Prediction
from pipeline.model.subject_rules import SubjectLabel, SubjectRules, detection
from pipeline.sources.manifest import Manifest
from pipeline.sources.rows import place_of

SUBJECTS_CSV = "subjects.csv"
OWN_RATES = "The rates are of these very subjects, so of how many the interval holds the true share says nothing."
UNLABELLED = (
    "The model knows subjects by the column {column}, which this manifest lacks: nobody knows which are positive."
)
_BY_LUCK = 0.025
LOOK_AT = 5  # cells of a subject
OLDER = "the bundle does not say how often its model calls cells of other subjects rightly: train it again"


@dataclass(frozen=True)
class Roll:
    """What was counted of one subject."""

    subject: str
    rows: Ints  # of its cells among the scored
    called: int
    positive: int  # truly
    is_positive: bool | None  # as a whole, by its label


def by_subject(
    outcomes: Outcomes, manifest: Manifest, threshold: float, rules: SubjectRules | None, resampling: Resampling,
    *, are_own: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """`by_subject` of `metrics.json`; only `why_not` where nothing can be said of subjects.

    `are_own`: the rates of `rules` were found on the subjects measured, so how often intervals hold says nothing.
    """
    unit = manifest.info.unit or outcomes.info.unit
    why_not = why_no_subjects(unit, manifest.info.units, outcomes.subjects)
    if outcomes.diseased is None:
        why_not = "the model's classes do not say which mean disease"
    if why_not:
        return {"why_not": why_not}
    temperature = outcomes.info.temperature
    older = SubjectRules(threshold=threshold, temperature=temperature, no_rates=OLDER, no_roll_up=OLDER)
    used = older if rules is None else rules.at(threshold, temperature)
    rolls = _rolls(outcomes, manifest, threshold, used.label)
    rows = [_row(roll, outcomes, used, resampling.confidence) for roll in rolls]
    rows.sort(key=lambda row: (-_suspicion(row), row["subject_id"]))
    median = int(np.median([row["cells"] for row in rows]))
    return {
        "why_not": None,
        "label": str(used.label),
        "label_column": used.label.column,
        "label_note": "" if _knows_labels(used.label, manifest) else UNLABELLED.format(column=used.label.column),
        "confidence": resampling.confidence,
        "rates": _rates_record(used),
        "no_rates": used.no_rates or None,
        "roll_up": None if used.roll_up is None else used.roll_up.model_dump(include={"positives", "negatives"}),
        "no_roll_up": used.no_roll_up or None,
        "coverage": None if are_own else _coverage(rows),
        "coverage_note": OWN_RATES if are_own and used.rates is not None else None,
        "roc_auc": _area(rows, resampling),
        "median_cells": median,
        "detection": [] if used.rates is None else detection(used.rates, median),
        "rows": rows,
    }


def refuse_contradictions(info: BundleInfo, manifest: Manifest) -> None:
    """Before anything is predicted: InputError where a subject has two values of the label that the model knows."""
    label = SubjectLabel() if info.subject_rules is None else info.subject_rules.label
    has_subjects = not why_no_subjects(
        manifest.info.unit or info.unit, manifest.info.units, manifest.table["subject_id"].to_pylist()
    )
    if has_subjects and info.positive_classes and label.column is not None and _knows_labels(label, manifest):
        labels_in(manifest, label, of_any_value=True)


def rules_here(validation: Outcomes, manifest: Manifest, threshold: float, rules: SubjectRules | None) -> SubjectRules:
    """The rates at a threshold chosen anew, from what the model says of the manifest's validation split."""
    label = SubjectLabel() if rules is None else rules.label
    assert validation.diseased is not None, "a threshold was chosen, so classes mean disease"
    called = validation.probability >= threshold
    counts = count_cells(validation.diseased.astype(bool), called, validation.subjects)
    rates, why = fit_rates(counts, "validation")
    return SubjectRules(
        threshold=threshold,
        temperature=validation.info.temperature,
        rates=rates,
        no_rates=why,
        label=label,
        no_roll_up="it was fitted to cells called by the bundle's threshold",
    )


def _knows_labels(label: SubjectLabel, manifest: Manifest) -> bool:
    """Whether the manifest says which subjects are positive. Another label would not be what the model answers."""
    return label.column is None or label.column in manifest.further


def _rolls(outcomes: Outcomes, manifest: Manifest, threshold: float, label: SubjectLabel) -> list[Roll]:
    assert outcomes.diseased is not None
    sick, called = outcomes.diseased.astype(bool), outcomes.probability >= threshold
    counts = count_cells(sick, called, outcomes.subjects)
    has_column = label.column is not None and _knows_labels(label, manifest)
    given = labels_in(manifest, label, of_any_value=True) if has_column else {}
    labels = labels_of(counts, given, label)
    rows_of: dict[str, list[int]] = {}
    for row, subject in enumerate(outcomes.subjects):
        if subject:
            rows_of.setdefault(subject, []).append(row)
    numbers = zip(counts.subjects, counts.called.tolist(), counts.diseased.tolist(), labels, strict=True)
    return [Roll(name, np.array(rows_of[name]), said, true, given) for name, said, true, given in numbers]


def _row(roll: Roll, outcomes: Outcomes, rules: SubjectRules, confidence: float) -> dict[str, Any]:
    cells = len(roll.rows)
    share, probability = (find(roll.called, cells, confidence) for find in (rules.share, rules.probability))
    true = roll.positive / cells
    said = [outcomes.scored[row].result for row in roll.rows.tolist()]
    return {
        "subject_id": roll.subject,
        "cells": cells,
        "called_positive": roll.called,
        "to_review": sum(isinstance(result, Prediction) and result.decision == "review" for result in said),
        "observed": as_json(wilson_interval(roll.called, cells, confidence)),
        "corrected": None if share is None else asdict(share),
        "true": true,
        "is_covered": None if share is None else share.low <= true <= share.high,
        "is_positive": roll.is_positive,
        "probability": None if probability is None else asdict(probability),
        "look_at": _look_at(roll, outcomes),
    }


def _look_at(roll: Roll, outcomes: Outcomes) -> list[dict[str, Any]]:
    """The cells of the highest probability."""
    first = roll.rows[np.argsort(-outcomes.probability[roll.rows], kind="stable")][:LOOK_AT]
    found = []
    for row in first.tolist():
        place = outcomes.scored[row].row
        found.append(
            {
                "image_id": place.image_id,
                "uri": place.uri,
                "member": place.member,
                "name": str(place.member or place.uri).rsplit("/", 1)[-1],
                "probability": float(outcomes.probability[row]),
            }
        )
    return found


def _suspicion(row: Mapping[str, Any]) -> float:
    if row["probability"] is not None:
        return float(row["probability"]["value"])
    return float(row["observed"]["value"])  # correction changes no order, but makes many of them 0


def _rates_record(rules: SubjectRules) -> dict[str, Any] | None:
    if rules.rates is None:
        return None
    leave_out = {"of_subject"}
    return rules.rates.model_dump(exclude={"found": leave_out, "alarms": leave_out})


def _coverage(rows: Sequence[Mapping[str, Any]]) -> dict[str, int] | None:
    """Of how many subjects the interval holds the true share of the cells scored; None without intervals."""
    known = [row["is_covered"] for row in rows if row["is_covered"] is not None]
    return {"subjects": len(known), "covered": sum(known)} if known else None


def _area(rows: Sequence[Mapping[str, Any]], resampling: Resampling) -> dict[str, Any] | None:
    """ROC-AUC of subjects by how suspicious they are, each counting once; None where all known ones are of one kind."""
    known = [row for row in rows if row["is_positive"] is not None]
    positive = np.array([row["is_positive"] for row in known], bool)
    if not len(known) or positive.all() or not positive.any():
        return None
    scores: Floats = np.array([_suspicion(row) for row in known])
    codes, unit = subject_codes([row["subject_id"] for row in known], len(known))
    value = float(rank_metrics(positive, scores)(np.ones((1, len(known))))[0][0])
    found = limits({"roc_auc": area(positive, scores, codes)}, len(known), resampling)["roc_auc"]
    interval: Interval = interval_of(value, found, unit)
    return as_json(interval) | {"positives": int(positive.sum()), "negatives": int((~positive).sum())}


_COLUMNS = (
    "subject_id", "cells", "called_positive", "to_review", "share_called", "share_called_low", "share_called_high",
    "share_corrected", "share_corrected_low", "share_corrected_high", "share_true", "is_covered", "is_positive",
    "probability", "probability_low", "probability_high", "smallest_share_told", "look_at_image_ids", "look_at_uris",
)  # fmt: skip


def table_of_subjects(record: Mapping[str, Any], rules: SubjectRules | None) -> str:
    """CSV of `by_subject`, most suspicious first; shares and probabilities in 0..1, empty where not known.

    `smallest_share_told`: missed with at most 5 %. Cells are named most suspicious first, with ' | ' between them.
    """
    lines: list[Sequence[object]] = [_COLUMNS]
    rates = None if rules is None else rules.rates
    for row in record["rows"]:
        told = None if rates is None else detection_limit(rates, row["cells"])
        places = (place_of(place["uri"], place["member"]) for place in row["look_at"])
        lines.append(
            [
                *(row[name] for name in _COLUMNS[:4]),
                *_three(row["observed"]),
                *_three(row["corrected"]),
                round(row["true"], 6),
                row["is_covered"],
                row["is_positive"],
                *_three(row["probability"]),
                None if told is None else round(told, 4),
                " | ".join(str(place["image_id"]) for place in row["look_at"]),
                " | ".join(places),
            ]
        )
    return csv_of(lines)


def _three(found: Mapping[str, float] | None) -> list[float | None]:
    return [None] * 3 if found is None else [round(found[end], 6) for end in ("value", "low", "high")]


def notes(record: Mapping[str, Any]) -> list[str]:
    """What the table shows against its own figures."""
    covered = record.get("coverage")
    if not covered or not _are_too_few(covered["covered"], covered["subjects"], record["confidence"]):
        return []
    return [
        f"the intervals of the corrected shares hold the true share of {covered['covered']} of {covered['subjects']} "
        f"subjects only: the rates that correct them, known from {record['rates']['on']} subjects, do not hold here"
    ]


def _are_too_few(covered: int, subjects: int, confidence: float) -> bool:
    """Whether intervals that hold as often as they say would hold so few of so many in less than one set in forty."""
    from scipy.stats import binom

    return bool(binom.cdf(covered, subjects, confidence) < _BY_LUCK)
