"""Which labels are likely wrong, by what models that did not see the images say: confident learning.

Northcutt, Jiang and Chuang 2021, 'Confident Learning: Estimating Uncertainty in Dataset Labels', JAIR 70: of a class a
threshold, the mean probability that images of this label get for it. An image that reaches the threshold of another
class, and not better its own, is counted there; such images are suspects, in the order of their margin.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.definitions import Floats, Ints


@dataclass(frozen=True)
class LabelErrors:
    """Of N images, what their probabilities say of their labels."""

    suggested: Ints  # (N,) the class that is likely the true one; the given one where nothing speaks against it
    margin: Floats  # (N,) probability of the given class less that of the likeliest other one, -1..1; low is suspect
    thresholds: Floats  # (C,) NaN for a class without images
    is_suspect: NDArray[np.bool_]  # (N,)

    @property
    def order(self) -> Ints:
        """The suspects, most suspicious first."""
        found = np.flatnonzero(self.is_suspect)
        return found[np.argsort(self.margin[found], kind="stable")].astype(np.int64)


def label_errors(given: Ints, probabilities: Floats) -> LabelErrors:
    """`given`: class indices (N,); `probabilities`: (N, C), each of a model that did not learn from the image."""
    images, classes = probabilities.shape
    own = probabilities[np.arange(images), given]  # (N,)
    counts = np.bincount(given, minlength=classes)
    sums = np.bincount(given, weights=own, minlength=classes)
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)  # NaN compares as not reached
    likeliest = confident.argmax(axis=1)
    is_suspect = (confident.max(axis=1) >= 0) & (likeliest != given)
    others = probabilities.copy()
    others[np.arange(images), given] = -1.0
    return LabelErrors(
        suggested=np.where(is_suspect, likeliest, given).astype(np.int64),
        margin=own - others.max(axis=1),
        thresholds=thresholds,
        is_suspect=is_suspect,
    )
