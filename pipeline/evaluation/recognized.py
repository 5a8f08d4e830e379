"""Images of training among those measured, known again by the bundle's sketch; and the figures without them.

A model remembers its training images, so whatever is measured on them says nothing of others.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.base.csv_text import csv_of
from pipeline.evaluation.intervals import Resampling
from pipeline.evaluation.outcomes import Outcomes
from pipeline.model.sketch import PARTS, How

RECOGNIZED = "recognized.csv"
_HOW: tuple[How, ...] = ("bytes", "looks")
_COLUMNS = ("uri", "member", "image_id", "subject_id", "class_name")


@dataclass(frozen=True)
class Recognized:
    """How many of the images measured took part in making the model, of those that could be read."""

    why_not: str = ""  # nothing was asked
    images: int = 0  # that were compared
    by: Mapping[How, int] = field(default_factory=dict)  # how they are known: same bytes, or same looks alone
    parts: Mapping[str, int] = field(default_factory=dict)  # learned from, or chosen by
    without: Mapping[str, Any] | None = None  # metrics with limits of the other images; None where none are left, too
    left: int = 0  # images in `without`

    @property
    def count(self) -> int:
        return sum(self.by.values())

    def record(self) -> dict[str, Any]:
        """For `metrics.json`."""
        return {
            "why_not": self.why_not or None,
            "images": self.images,
            "recognized": None if self.why_not else self.count,
            "by": dict(self.by),
            "parts": dict(self.parts),
            "without": None if self.without is None else {"images": self.left, "metrics": dict(self.without)},
        }

    def __str__(self) -> str:
        if self.why_not == OWN:
            return f"all: {OWN}"
        if self.why_not:
            return f"not known ({self.why_not})"
        return f"{self.count:,} of {self.images:,}" if self.count else f"none of {self.images:,} recognized"


NO_SKETCH = "the bundle has no sketch of them"
OWN = "these are images of its training"


def recognize(
    outcomes: Outcomes, why_not: str, threshold: float, resampling: Resampling, units: str = "subjects"
) -> Recognized:
    """Count what was met, and measure the others. `why_not`: why nothing could be or was asked, else empty."""
    if why_not:
        return Recognized(why_not)
    met = [outcome.met for outcome in outcomes.scored if outcome.met is not None]
    by, parts = Counter(one.how for one in met), Counter(one.part for one in met)
    others = [outcome for outcome in outcomes.scored if outcome.met is None]
    without = None
    if met and others:
        without = Outcomes(outcomes.info, others).metrics(threshold, resampling, units)["metrics"]
    return Recognized(
        images=len(outcomes.scored),
        by={how: by[how] for how in _HOW},
        parts={part: parts[part] for part in PARTS},
        without=without,
        left=len(others),
    )


def table_of_met(outcomes: Outcomes) -> str:
    """CSV: the images that were recognized, where they lie, in which part of training they were, how that is known."""
    rows = [
        [*(getattr(outcome.row, name) for name in _COLUMNS), outcome.met.part, outcome.met.how]
        for outcome in outcomes.scored
        if outcome.met is not None
    ]
    return csv_of([[*_COLUMNS, "part", "recognized_by"], *rows])
