"""DeLong's test of two ROC-AUCs of the same images: which are independent, so each subject has one.

DeLong, DeLong & Clarke-Pearson 1988 (doi:10.2307/2531595), by midranks as Sun & Xu 2014 (doi:10.1109/LSP.2014.2337313).
"""

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from pipeline.evaluation.definitions import Floats

METHOD = "DeLong's paired test"


def placements(positive: NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats]:
    """Of each positive (m,) the share of negatives below it, of each negative (n,) the share of positives above it.

    Ties count half. The mean of either is the ROC-AUC.
    """
    sick, healthy = scores[positive], scores[~positive]
    ranks = rankdata(np.concatenate([sick, healthy]))
    among_sick, among_healthy = rankdata(sick), rankdata(healthy)
    above = (ranks[: len(sick)] - among_sick) / len(healthy)
    below = 1 - (ranks[len(sick) :] - among_healthy) / len(sick)
    return np.asarray(above, np.float64), np.asarray(below, np.float64)


def standard_error(positive: NDArray[np.bool_], first: Floats, second: Floats) -> float:
    """Of the difference of the ROC-AUCs of two scores (N,); NaN with fewer than two images of a side."""
    sides = [one - other for one, other in zip(placements(positive, first), placements(positive, second), strict=True)]
    if min(map(len, sides)) < 2:
        return float("nan")
    return float(np.sqrt(sum(np.var(side, ddof=1) / len(side) for side in sides)))


def p_value(difference: float, error: float) -> float:
    """Two-sided, by the normal distribution; 1 where both scores rank alike."""
    if error == 0:
        return 1.0 if difference == 0 else 0.0
    return 2 * (1 - NormalDist().cdf(abs(difference) / error))
