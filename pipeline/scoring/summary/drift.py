"""Whether a run's images look like the model's own, by what its rows hold anyway: `ood_score` and the probability.

Counted in steps, so that memory does not grow with the run. What differs (light, stain, focus) only pixels tell:
`leukoray transfer-check`.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.model.drift import FEWEST_IMAGES, LEVELS, OOD_SCORE, Shift, shift_of, told
from pipeline.scoring.record import ModelUsed

_SMALLEST, _LARGEST, _STEPS = 1e-2, 1e5, 2000  # of ood_score, in equal ratios of less than 1 %
_RATIO = (_LARGEST / _SMALLEST) ** (1 / _STEPS)


@dataclass
class Drift:
    """Scores of a run, added up."""

    images: int = 0
    probability: float = 0.0  # sum
    scores: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_STEPS, np.int64))

    def add(self, probabilities: NDArray[np.floating], ood_scores: NDArray[np.floating]) -> None:
        """Of rows; a score that is not known is NaN."""
        self.images += len(probabilities)
        self.probability += float(probabilities.sum(dtype=np.float64))
        known = ood_scores[np.isfinite(ood_scores)]
        steps = np.log(np.clip(known, _SMALLEST, _LARGEST) / _SMALLEST) / np.log(_RATIO)
        self.scores += np.bincount(np.minimum(steps, _STEPS - 1).astype(np.int64), minlength=_STEPS)

    def shift(self, model: ModelUsed, subjects: int) -> Shift | None:
        """Of the features; None where nothing is known of the model's own, or too few images of these."""
        if model.features is None or self.scores.sum() < FEWEST_IMAGES:
            return None
        shares = self.scores.cumsum() / self.scores.sum()
        quantiles = _SMALLEST * _RATIO ** (np.searchsorted(shares, LEVELS) + 0.5)
        return shift_of(OOD_SCORE, model.features, quantiles, subjects)

    def note(self, model: ModelUsed, subjects: int) -> str:
        """A sentence or two for a person; empty where nothing can be compared."""
        shift = self.shift(model, subjects)
        if shift is None:
            return ""
        said = f"{told(shift)} ({shift.distance:.1f} spreads, new subjects of its own stay within {shift.limit:.1f})"
        if not shift.is_beyond:
            said = f"the network's features lie as at home ({shift.here:.2f}, there {shift.at_home:.2f})"
        if model.mean_probability is not None:
            mean = self.probability / self.images
            said += f"; mean probability {mean:.2f}, of held-out images of training {model.mean_probability:.2f}"
        return said + ("; leukoray transfer-check tells what differs" if shift.is_beyond else "")
