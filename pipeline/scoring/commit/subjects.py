"""The roll-up: one row a subject, from the predictions of a run.

The share of positive cells carries a Wilson score interval (Wilson 1927, J. Am. Stat. Assoc. 22), 95 %. It treats a
subject's cells as independent, so it is too narrow where they are alike; it ranks subjects, it does not diagnose.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.evaluation.intervals import wilson_interval
from pipeline.ingest.class_names import folded
from pipeline.storage.parquet import described

TOP_K = 10

SUBJECT_SCHEMA = pa.schema(
    [
        described("subject_id", pa.string(), "patient", nullable=False),
        described("n_images", pa.int64(), "images scored"),
        described("n_positive", pa.int64(), "of these decided positive"),
        described("n_review", pa.int64(), "of these left to a person"),
        described("share_positive", pa.float64(), "n_positive / n_images"),
        described("share_low", pa.float64(), "lower limit of share_positive, Wilson, 95 %"),
        described("share_high", pa.float64(), "upper limit"),
        described("mean_probability", pa.float64(), "mean over all images"),
        described("top_mean_probability", pa.float64(), f"mean of the {TOP_K} highest"),
        described("top_image_ids", pa.list_(pa.int64()), f"images of the {TOP_K} highest, most suspicious first"),
        described("run_id", pa.string(), "run that wrote the row"),
    ]
)


@dataclass
class _Sums:
    images: int = 0
    positive: int = 0
    review: int = 0
    probability: float = 0.0
    top: list[tuple[float, int]] = field(default_factory=list)


def roll_up(batches: Iterator[pa.Table], run_id: str) -> pa.Table:
    """SUBJECT_SCHEMA, most suspicious subject first, from tables of subject_id, probability, decision, image_id.

    Subjects that are spelled in several ways ('Patient_01', 'patient-01') are one row, under the first spelling.
    """
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
            one.probability += probability
            push = heapq.heappush if len(one.top) < TOP_K else heapq.heappushpop
            push(one.top, (probability, image_id))
    rows = [_row(subject, one, run_id) for subject, one in sums.items()]
    rows.sort(key=lambda row: (-row["share_low"], row["subject_id"]))
    return pa.Table.from_pylist(rows, SUBJECT_SCHEMA)


def _row(subject: str, one: _Sums, run_id: str) -> dict[str, Any]:
    interval = wilson_interval(one.positive, one.images)
    top: Sequence[tuple[float, int]] = sorted(one.top, reverse=True)
    return {
        "subject_id": subject,
        "n_images": one.images,
        "n_positive": one.positive,
        "n_review": one.review,
        "share_positive": one.positive / one.images,
        "share_low": interval.low,
        "share_high": interval.high,
        "mean_probability": one.probability / one.images,
        "top_mean_probability": sum(p for p, _ in top) / len(top),
        "top_image_ids": [image_id for _, image_id in top],
        "run_id": run_id,
    }
