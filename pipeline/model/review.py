"""The review band: which probabilities of disease are decided by a person, and what is promised of the others.

Two cuts, one for each error. `low`: at most `error` of the truly positive images of new subjects lie below it. `high`:
at most `error` of the truly negative ones lie at or above it. Neither depends on how common the disease is, nor on the
threshold; what lies between the cuts, or between one of them and the threshold, is for a person. How they are found:
`pipeline/evaluation/abstention.py`.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Band = tuple[float, float]  # [low, high); a high of 1 holds 1 as well


class ReviewRule(BaseModel):
    """`review` of `bundle.json`."""

    model_config = ConfigDict(frozen=True)

    method: Literal["hierarchical conformal"] = "hierarchical conformal"
    error: float = Field(gt=0, lt=0.5)  # of each side, on average over subjects
    low: float = Field(ge=0, le=1)  # what lies below may be called negative
    high: float = Field(ge=0, le=1)  # what lies at or above may be called positive
    on: Literal["validation", "out-of-fold", "local"] = "validation"  # whose scores the cuts come from
    images: int
    negative_units: int  # subjects with a negative image among them, and with a positive one
    positive_units: int
    called: str = "subjects"  # what the units are
    why_not: str = ""  # why nothing is promised; empty: it is

    @property
    def is_promised(self) -> bool:
        return not self.why_not

    def band(self, threshold: float) -> Band | None:
        """What is left to a person at a threshold; None where that holds both errors by itself."""
        low, high = min(self.low, threshold), max(self.high, threshold)
        return (low, high) if low < high else None

    def __str__(self) -> str:
        rests = (
            f"{self.images:,} {self.on} images of {self.negative_units:,} {self.called} with negative and "
            f"{self.positive_units:,} with positive ones"
        )
        if self.why_not:
            return f"meant to leave {self.error:.3g} of each side wrong, from {rests}; not promised: {self.why_not}"
        return (
            f"without a person at most {self.error:.3g} of the truly positive images are called negative and at most "
            f"{self.error:.3g} of the truly negative ones positive, on average over new {self.called} of the same "
            f"laboratory (hierarchical conformal prediction, from {rests})"
        )


def is_in(band: Band | None, probability: float, *, is_ruled: bool = True) -> bool:
    """Whether a probability is left to a person. `is_ruled`: by a ReviewRule; bands from before it never hold 1."""
    if band is None:
        return False
    return band[0] <= probability and (probability < band[1] or (is_ruled and band[1] >= 1.0))
