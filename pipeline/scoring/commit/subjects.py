"""The roll-up: one row a subject, from the predictions of a run.

The share of positive cells carries a Wilson score interval (Wilson 1927, J. Am. Stat. Assoc. 22), 95 %. It treats a
subject's cells as independent, so it is too narrow where they are alike; it ranks subjects, it does not diagnose. Where
the bundle knows how often it calls cells rightly, the share is corrected too, with an interval that allows for that.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base.text import folded
from pipeline.evaluation.intervals import wilson_interval
from pipeline.images.unit import Unit
from pipeline.model.cell_rates import Share, detection_limit
from pipeline.model.subject_rules import SubjectRules, detection
from pipeline.storage.parquet import described

TOP_K = 10

SUBJECT_SCHEMA = pa.schema(
    [
        described("subject_id", pa.string(), "patient", nullable=False),
        described("n_images", pa.int64(), "images scored"),
        described("n_positive", pa.int64(), "of these decided positive"),
        described("n_review", pa.int64(), "of these left to a person"),
        described("share_positive", pa.float64(), "n_positive / n_images; null where the images are fields"),
        described("share_low", pa.float64(), "lower limit of share_positive, Wilson, 95 %"),
        described("share_high", pa.float64(), "upper limit"),
        described("mean_probability", pa.float64(), "mean over all images"),
        described("top_mean_probability", pa.float64(), f"mean of the {TOP_K} highest"),
        described("top_image_ids", pa.list_(pa.int64()), f"images of the {TOP_K} highest, most suspicious first"),
        described("n_called", pa.int64(), "images at or above the threshold, those in review too; null as below"),
        described("share_corrected", pa.float64(), "of cells, by the model's rates; null where they are not known"),
        described("share_corrected_low", pa.float64(), "lower limit, 95 %"),
        described("share_corrected_high", pa.float64(), "upper limit"),
        described(
            "smallest_share_told", pa.float64(), "missed with at most 5 % of so many cells; null: none, or as above"
        ),
        described("detection", pa.string(), "what so many cells cannot show, in words; null likewise"),
        described("subject_probability", pa.float64(), "that the subject is positive as a whole; null: not known"),
        described("subject_probability_low", pa.float64(), "lower limit, 95 %"),
        described("subject_probability_high", pa.float64(), "upper limit"),
        described("unit", pa.string(), "what the images show: cell or field; null unknown"),
        described("run_id", pa.string(), "run that wrote the row"),
    ]
)


@dataclass
class _Sums:
    images: int = 0
    positive: int = 0
    review: int = 0
    called: int = 0
    probability: float = 0.0
    top: list[tuple[float, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Rule:
    """What turns the count called of a subject into a share. The rules hold at their threshold."""

    threshold: float
    rules: SubjectRules


def roll_up(batches: Iterator[pa.Table], run_id: str, unit: Unit | None = None, rule: Rule | None = None) -> pa.Table:
    """SUBJECT_SCHEMA, most suspicious subject first, from tables of subject_id, probability, decision, image_id.

    A share of positive images is a share of cells only where an image is a cell: of fields it is null, and subjects are
    ordered by their highest probabilities. Spellings of a subject ('Patient_01', 'patient-01') are one row, under the
    first. `rule`: None where the model's rates are not known, or hold for other subjects than these.
    """
    cut = np.float32(np.inf if rule is None else rule.threshold)
    sums: dict[str, _Sums] = {}
    names: dict[str, str] = {}
    for table in batches:
        known = table.filter(pc.is_valid(table["subject_id"]))
        columns = [known[name].to_pylist() for name in ("subject_id", "probability", "decision", "image_id")]
        for subject, probability, decision, image_id in zip(*columns, strict=True):
            name = names.setdefault(folded(subject), subject)
            one = sums.setdefault(name, _Sums())
            one.images += 1
            one.positive += decision == "positive"
            one.review += decision == "review"
            one.called += probability >= cut
            one.probability += probability
            push = heapq.heappush if len(one.top) < TOP_K else heapq.heappushpop
            push(one.top, (probability, image_id))
    rows = [_row(subject, one, unit) | _corrected(one, rule) | {"run_id": run_id} for subject, one in sums.items()]
    order = "top_mean_probability" if unit == "field" else "share_low"
    rows.sort(key=lambda row: (-row[order], row["subject_id"]))
    return pa.Table.from_pylist(rows, SUBJECT_SCHEMA)


def _row(subject: str, one: _Sums, unit: Unit | None) -> dict[str, Any]:
    interval = wilson_interval(one.positive, one.images)
    shares = (one.positive / one.images, interval.low, interval.high) if unit != "field" else (None,) * 3
    top: Sequence[tuple[float, int]] = sorted(one.top, reverse=True)
    return {
        "subject_id": subject,
        "n_images": one.images,
        "n_positive": one.positive,
        "n_review": one.review,
        **dict(zip(("share_positive", "share_low", "share_high"), shares, strict=True)),
        "mean_probability": one.probability / one.images,
        "top_mean_probability": sum(p for p, _ in top) / len(top),
        "top_image_ids": [image_id for _, image_id in top],
        "unit": unit,
    }


def _corrected(one: _Sums, rule: Rule | None) -> dict[str, Any]:
    """The share by the model's rates, and what so many cells cannot show; nothing where these are not known."""
    if rule is None:
        return {}
    rates, found = rule.rules.rates, rule.rules.share(one.called, one.images)
    row: dict[str, Any] = {"n_called": one.called} | _limits("share_corrected", found)
    if rates is not None:
        row["smallest_share_told"] = detection_limit(rates, one.images)
        row["detection"] = " ".join(detection(rates, one.images))
    return row | _limits("subject_probability", rule.rules.probability(one.called, one.images))


def _limits(name: str, found: Share | None) -> dict[str, float | None]:
    if found is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
