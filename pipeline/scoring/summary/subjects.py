"""Subjects of a run in words: what their rows say beyond counts. Rows of older versions lack these columns."""

from collections.abc import Mapping
from typing import Any

from pipeline.model.subject_rules import percent
from pipeline.scoring.summary.summary import Summary


def corrected_share(row: Mapping[str, Any], name: str = "share_corrected") -> str:
    """`12 % (5.1-24)`, or a dash."""
    if row.get(name) is None:
        return "-"
    low, high = (percent(row[f"{name}_{end}"]).removesuffix(" %") for end in ("low", "high"))
    return f"{percent(row[name])} ({low}-{high})"


def detection_of(summary: Summary) -> list[str]:
    """What the cells of a middling one of the subjects shown cannot show; nothing where that is not known."""
    told = sorted((row["n_images"], row["detection"]) for row in summary.subjects if row.get("detection"))
    return [told[len(told) // 2][1]] if told else []
