"""Whether a run's images look like the model's own, by what its rows hold anyway: `ood_score` and the probability.

Counted as `pipeline/model/drift_counts.py` does. What differs (light, stain, focus) only pixels tell:
`leukoray transfer-check`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.model.drift import OOD_SCORE, Shift, told
from pipeline.model.drift_counts import Counted
from pipeline.scoring.record import ModelUsed


@dataclass
class Drift:
    """Scores of a run, added up."""

    features: Counted | None  # `ood_score`; None: nothing is known of the model's own
    images: int = 0
    probability: float = 0.0  # sum

    @classmethod
    def of(cls, model: ModelUsed) -> "Drift":
        return cls(None if model.features is None else Counted(model.features))

    def add(self, probabilities: NDArray[np.floating], ood_scores: NDArray[np.floating]) -> None:
        """Of rows; a score that is not known is NaN."""
        self.images += len(probabilities)
        self.probability += float(probabilities.sum(dtype=np.float64))
        if self.features is not None:
            self.features.add(ood_scores)

    def shift(self, subjects: int) -> Shift | None:
        """Of the features; None where nothing is known of the model's own, or too few images of these."""
        return None if self.features is None else self.features.shift(OOD_SCORE, subjects)

    def note(self, model: ModelUsed, subjects: int) -> str:
        """A sentence or two for a person; empty where nothing can be compared."""
        shift = self.shift(subjects)
        if shift is None:
            return ""
        said = f"{told(shift)} ({shift.distance:.1f} spreads, new subjects of its own stay within {shift.limit:.1f})"
        if not shift.is_beyond:
            said = f"the network's features lie as at home ({shift.here:.2f}, there {shift.at_home:.2f})"
        if model.mean_probability is not None:
            mean = self.probability / self.images
            said += f"; mean probability {mean:.2f}, of held-out images of training {model.mean_probability:.2f}"
        return said + ("; leukoray transfer-check tells what differs" if shift.is_beyond else "")
