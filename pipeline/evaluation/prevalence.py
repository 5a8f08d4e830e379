"""What an alarm and an all-clear mean where disease is as common as somebody says, not as in the split measured.

Bayes' rule on sensitivity and specificity, which do not depend on how common the disease is as long as the images are
alike: PPV = Se p / (Se p + (1 - Sp) (1 - p)), NPV = Sp (1 - p) / (Sp (1 - p) + (1 - Se) p).
"""

from collections.abc import Mapping, Sequence
from typing import Any

Metric = Mapping[str, Any]


def predictive_values(sensitivity: Metric, specificity: Metric, prevalences: Sequence[float]) -> list[dict[str, Any]]:
    """One JSON-ready row a prevalence (a share of images, 0..1); metrics as `value`, `low` and `high`, 0..1 or null.

    Limits take those of both metrics at their worst and at their best together, and so are a little too wide.
    """
    rows = []
    for share in prevalences:
        row: dict[str, Any] = {"prevalence": share, "ppv": {}, "npv": {}}
        for end in ("value", "low", "high"):
            found, cleared = sensitivity.get(end), specificity.get(end)
            row["ppv"][end] = row["npv"][end] = None
            if found is not None and cleared is not None:
                row["ppv"][end] = _share(found * share, (1 - cleared) * (1 - share))
                row["npv"][end] = _share(cleared * (1 - share), (1 - found) * share)
        rows.append(row)
    return rows


def _share(right: float, wrong: float) -> float | None:
    """Of all that are called so, those that are rightly; None where none is called."""
    return right / (right + wrong) if right + wrong else None
