"""What an interval is, whose images count as independent, and the closed forms for proportions of independent trials.

How the intervals of a split are found: `adverse`.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from pipeline.evaluation.definitions import Floats, Ints


@dataclass(frozen=True)
class Interval:
    """A value with its confidence limits; NaN where undefined. `unit` is what was resampled or counted."""

    value: float
    low: float
    high: float
    unit: str = "image"


def known_or_none(value: float) -> float | None:
    return None if np.isnan(value) else value


def as_json(interval: Interval) -> dict[str, Any]:
    return {key: value if isinstance(value, str) else known_or_none(value) for key, value in asdict(interval).items()}


@dataclass(frozen=True)
class Resampling:
    """How samples are drawn: so many, limits of so much confidence, from this seed."""

    replicates: int = 1000
    confidence: float = 0.95
    seed: int = 0


def fewest_replicates(confidence: float) -> int:
    """Samples that limits of so much confidence need: of fewer than two beyond a limit, luck decides where it lies."""
    return math.ceil(4 / (1 - confidence) - 1e-6)


def wilson_interval(successes: int, total: int, confidence: float = 0.95) -> Interval:
    """Score interval of a proportion (Wilson, 1927, doi:10.1080/01621459.1927.10502953); NaN of nothing."""
    if not 0 <= successes <= total:
        raise ValueError(f"successes must lie in 0..{total}, got {successes}")
    if total == 0:
        return Interval(np.nan, np.nan, np.nan)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    margin = z / (1 + z * z / total) * np.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    low = 0.0 if successes == 0 else float(centre - margin)  # exact at the ends, where rounding would leave 1e-17
    high = 1.0 if successes == total else float(centre + margin)
    return Interval(share, low, high)


def exact_interval(successes: float, trials: float, confidence: float = 0.95) -> Interval:
    """Clopper and Pearson's interval of a proportion (1934, doi:10.1093/biomet/26.4.404); trials need not be whole.

    What the method of `adverse` comes to where every unit holds one image. NaN of nothing.
    """
    from scipy.stats import beta  # 0.5 s to import: scoring needs none of it

    if not 0 <= successes <= trials:
        raise ValueError(f"successes must lie in 0..{trials}, got {successes}")
    if trials == 0:
        return Interval(np.nan, np.nan, np.nan)
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(beta.ppf(1 - tail, successes + 1, trials - successes))
    return Interval(successes / trials, low, high)


def clustered_error(values: Floats, codes: Ints) -> float:
    """Standard error of the mean of (N,), those of one unit of codes (N,) varying together, NaN of a single unit.

    Cluster-robust, with the factor for few units (Cameron & Miller 2015, doi:10.3368/jhr.50.2.317): to be taken with
    Student's t of as many degrees as there are units but one.
    """
    of_image = np.unique(codes, return_inverse=True)[1]
    of_units = np.bincount(of_image, values - values.mean())
    units = len(of_units)
    if units < 2:
        return np.nan
    return float(np.sqrt(units / (units - 1) * (of_units**2).sum())) / len(values)


def called_units(unit: str, called: str) -> str:
    """Units in words: of a 'subject' as the manifest calls them (`called`), else images."""
    return called if unit == "subject" else "images"


def subject_codes(subjects: Sequence[str | None] | None, images: int) -> tuple[Ints, str]:
    """Cluster number of every image, and the unit resampled: 'subject', or 'image' where no subject is known.

    Among known subjects, an image without one is a cluster of its own.
    """
    if subjects is None or all(subject is None or subject == "" for subject in subjects):
        return np.arange(images), "image"
    if len(subjects) != images:
        raise ValueError(f"{images} images but {len(subjects)} subjects")
    codes: dict[object, int] = {}
    keys = (subject if subject else (row,) for row, subject in enumerate(subjects))
    return np.array([codes.setdefault(key, len(codes)) for key in keys], dtype=np.int64), "subject"
