"""Fitting what a model's own images look like, and how far new subjects of its laboratory lie from them.

The limits come from subjects, not from a test: each subject of the reference (and sets of several) is compared with
the others as another laboratory will be, and 19 of 20 lie within the limits in all statistics at once.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.intervals import called_units, subject_codes
from pipeline.model.drift import LEVELS, STATISTICS, ReferenceStatistics, Statistic

Floats = NDArray[np.floating]

FEWEST_IMAGES = 40  # of a reference
FEWEST_SUBJECTS = 10  # whose distances say how far another one may lie
SETS = (1, 2, 5, 10)  # subjects in a set
UNKNOWN_LIMIT = 2.0  # spreads, where subjects are not known; measured where they are: docs/another-laboratory.md
_SMALLEST_LIMIT = 0.5  # spreads: half of what images of one laboratory differ by
_OUTSIDE = 0.05
_DRAWS = 200
_FEWEST_OF_ONE = 5  # images of a set, for its distance to be one of subjects
_DIGITS = 5


def fit(
    values: Mapping[str, Floats], subjects: Sequence[str | None], called: str, seed: int = 0
) -> ReferenceStatistics | None:
    """Of statistics (N,) of the same images, NaN where an image has none; None for too few images.

    `subjects` of the images, which the manifest calls `called`.
    """
    count = len(subjects)
    if count < FEWEST_IMAGES:
        return None
    known = {name: found for name, found in values.items() if np.isfinite(found).sum() >= FEWEST_IMAGES}
    spreads = {name: _spread(found, STATISTICS[name].smallest) for name, found in known.items()}
    codes, unit = subject_codes(list(subjects), count)
    number = len(np.unique(codes))
    has_subjects = unit != "image" and number >= FEWEST_SUBJECTS
    limits = _limits(known, spreads, codes, seed) if has_subjects else {}
    named = called_units(unit, called)
    return ReferenceStatistics(
        images=count,
        subjects=number if unit != "image" else 0,
        called=named,
        rests_on=_rests_on(limits, number, named, unit),
        statistics={
            name: Statistic(
                quantiles=_rounded(np.nanquantile(found, LEVELS)),
                spread=round(spreads[name], _DIGITS),
                limits=_of_one(name, limits) or {1: UNKNOWN_LIMIT},
                shown=round(float(np.isfinite(found).mean()), _DIGITS),
            )
            for name, found in known.items()
        },
    )


def _of_one(name: str, limits: Mapping[int, Mapping[str, float]]) -> dict[int, float]:
    return {size: round(by_name[name], 3) for size, by_name in limits.items() if name in by_name}


def _rounded(values: Floats) -> tuple[float, ...]:
    return tuple(round(value, _DIGITS) for value in values.tolist())


def _spread(values: Floats, smallest: float) -> float:
    return max(float(np.nanstd(values)), smallest / 2)


def _limits(
    values: Mapping[str, Floats], spreads: Mapping[str, float], codes: NDArray[np.int64], seed: int
) -> dict[int, dict[str, float]]:
    """By subjects in a set, then by statistic: within so many spreads 19 of 20 sets lie, in all statistics at once.

    Each statistic's typical distance times one factor, so that those in which subjects differ more have more room. A
    statistic that too few sets show has none; nor has any for several subjects that has none for one, the widest.
    """
    found: dict[int, dict[str, float]] = {}
    subjects, names = np.unique(codes), list(values)
    rng = np.random.default_rng(seed)
    for size in SETS:
        if len(subjects) < max(2 * size, FEWEST_SUBJECTS):
            break
        sets = [[one] for one in subjects] if size == 1 else [rng.choice(subjects, size, False) for _ in range(_DRAWS)]
        inside = [chosen for chosen in (np.isin(codes, some) for some in sets) if chosen.sum() >= _FEWEST_OF_ONE]
        apart = {name: _distances(values[name], inside) / spreads[name] for name in names}
        names = [name for name in names if np.isfinite(apart[name]).sum() >= FEWEST_SUBJECTS]
        if not names:
            break
        typical = {name: max(float(np.nanmedian(apart[name])), 1e-9) for name in names}
        worst = np.sort(np.nanmax([apart[name] / typical[name] for name in names], axis=0))
        worst = worst[np.isfinite(worst)]  # of sets that show any of them
        place = min(len(worst), int(np.ceil((len(worst) + 1) * (1 - _OUTSIDE))))  # as a conformal limit
        wide = {name: max(typical[name] * worst[place - 1], _smallest(name, spreads[name])) for name in names}
        found[size] = {  # more subjects never have more room
            name: min(limit, *(earlier[name] for earlier in found.values())) if found else limit
            for name, limit in wide.items()
        }
    return found


def _smallest(name: str, spread: float) -> float:
    return max(_SMALLEST_LIMIT, STATISTICS[name].smallest / spread)


def _distances(values: Floats, sets: Sequence[NDArray[np.bool_]]) -> Floats:
    """Between the images of each set and the others, (len(sets),); NaN where one side shows nothing."""
    known = np.isfinite(values)
    order = np.argsort(values[known])
    ordered = values[known][order]
    return np.array([_distance(ordered, chosen[known][order]) for chosen in sets])


def _distance(ordered: Floats, chosen: NDArray[np.bool_]) -> float:
    here, others = ordered[chosen], ordered[~chosen]
    if len(here) < _FEWEST_OF_ONE or not len(others):
        return float("nan")
    return float(np.abs(quantiles_of(here) - quantiles_of(others)).mean())


def quantiles_of(ordered: Floats) -> Floats:
    """`np.quantile(ordered, LEVELS)`, to the bit, of values (N,) that ascend: a publication asks for ten thousand."""
    place = (len(ordered) - 1) * LEVELS
    below = np.floor(place).astype(np.int64)
    low, high = ordered[below], ordered[np.minimum(below + 1, len(ordered) - 1)]
    share, step = place - below, high - low
    return np.where(share >= 0.5, high - step * (1 - share), low + step * share)


def _rests_on(limits: Mapping[int, object], subjects: int, called: str, unit: str) -> str:
    if limits:
        sets = ", ".join(map(str, limits))
        few = f"; so few that they hold {subjects} of {subjects + 1} rather than 19 of 20" if subjects < 19 else ""
        return f"how far sets of {sets} of its {subjects:,} {called} lie from the others{few}"
    known = "no subjects known" if unit == "image" else f"{subjects} {called}, too few to tell"
    return f"an assumption ({known}): {UNKNOWN_LIMIT:g} spreads"
