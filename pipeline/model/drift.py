"""Whether a set of images looks like those that a model learnt from: what differs, by how much, and what follows.

Each statistic has a distance, Wasserstein's between this set and the reference, in spreads (standard deviations) of the
reference; and a limit, which is how far new subjects of the model's own laboratory lie. So many images are no reason
to find a difference, as they are for a p-value. `pipeline/evaluation/drift.py` fits it. It decides no prediction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pipeline.images.appearance import FIGURES, Figure

Floats = NDArray[np.floating]

OOD_SCORE = "ood_score"
FEATURES = Figure(OOD_SCORE, "distance of features", "ood_score, about 1 at home", 0.05)
STATISTICS = {figure.name: figure for figure in (*FIGURES, FEATURES)}
FEWEST_IMAGES = 20  # fewer say more of themselves than of the microscope; docs/another-laboratory.md
QUANTILES = 41
LEVELS = (np.arange(QUANTILES) + 0.5) / QUANTILES  # (QUANTILES,)
TOO_FAR = 2.0  # times the limit of a single new subject, the widest there is
_HARMLESS = "grain"  # noise and compression are seen in it long before they cost right answers
_MOST_SHOW = 0.5  # of the reference images: that so many fewer show it here is no luck
MANY_OOD, MOST_OOD = 0.2, 0.5  # of the images, out of distribution: a check is due; more unlike than like


class Statistic(BaseModel):
    """One statistic of the reference images."""

    model_config = ConfigDict(frozen=True)

    quantiles: tuple[float, ...] = Field(min_length=QUANTILES, max_length=QUANTILES)  # at LEVELS
    spread: float = Field(gt=0)  # what distances are told in
    # by the number of subjects in a set: the distance within which 19 of 20 such sets of new subjects of this
    # laboratory stay, in all statistics at once
    limits: dict[int, float] = Field(min_length=1)
    shown: float = Field(1.0, ge=0, le=1)  # share of the reference images that have a value; bundles of before: most

    @property
    def middle(self) -> float:
        return self.quantiles[QUANTILES // 2]

    def distance(self, values: Floats) -> float:
        """Wasserstein's distance of values (N,), NaN among them left out, in spreads; NaN of none."""
        known = values[np.isfinite(values)]
        if not len(known):
            return float("nan")
        return self.distance_at(np.quantile(known, LEVELS))

    def distance_at(self, quantiles: Floats) -> float:
        """The same of quantiles at LEVELS."""
        return float(np.abs(quantiles - np.asarray(self.quantiles)).mean() / self.spread)

    def limit(self, subjects: int) -> float:
        """For a set of images of so many subjects: of the largest known number that is not above."""
        return self.limits[max((known for known in self.limits if known <= subjects), default=min(self.limits))]


class ReferenceStatistics(BaseModel):
    """`reference_statistics` of `bundle.json`: what its own images look like. Not part of its identity."""

    model_config = ConfigDict(frozen=True)

    images: int
    subjects: int  # of them; 0: not known
    called: str = "subjects"
    rests_on: str = ""  # the limits, for a person
    statistics: dict[str, Statistic]  # of STATISTICS


class Verdict(StrEnum):
    """What follows for the threshold."""

    said: str

    def __new__(cls, value: str, said: str = "") -> "Verdict":
        member = str.__new__(cls, value)
        member._value_, member.said = value, said
        return member

    ALIKE = "alike", "looks like the images of training"
    DIFFERS = (
        "differs",
        "differs from the images of training: check the threshold with local cells (leukoray calibrate)",
    )
    TOO_DIFFERENT = "too_different", "this microscope is too different: do not trust the threshold"
    UNKNOWN = "unknown", "cannot be told"


@dataclass(frozen=True)
class Shift:
    """How one statistic of a set of images lies to the reference."""

    name: str
    images: int  # that show it
    distance: float  # in spreads; NaN where fewer than FEWEST_IMAGES show it
    limit: float
    widest: float  # the limit of a single subject
    here: float  # the median; NaN likewise
    at_home: float
    is_missing: bool = False  # hardly an image shows what most of the reference do: a difference without a distance

    @property
    def figure(self) -> Figure:
        return STATISTICS[self.name]

    @property
    def is_beyond(self) -> bool:
        """Whether so many new subjects of the own laboratory would not explain it."""
        return self.is_missing or self.distance > self.limit

    @property
    def is_told(self) -> bool:
        """Whether enough images show it for a distance."""
        return bool(np.isfinite(self.distance))

    @property
    def is_far_beyond(self) -> bool:
        return self.name != _HARMLESS and self.distance > TOO_FAR * self.widest

    def record(self) -> dict[str, Any]:
        values = {"distance": self.distance, "limit": self.limit, "here": self.here, "at_home": self.at_home}
        known = {name: value if np.isfinite(value) else None for name, value in values.items()}
        told = {"name": self.name, "unit": self.figure.unit, "images": self.images, "is_missing": self.is_missing}
        return told | {"is_beyond": self.is_beyond} | known


def shifts(reference: ReferenceStatistics, values: Mapping[str, Floats], subjects: int) -> list[Shift]:
    """Of each statistic that the reference knows and `values` (N,) has: those that are missing first, then the largest
    in units of its limit.

    `subjects`: of the images, 1 where it is not known, which has the widest limits.
    """
    found = []
    for name, known in reference.statistics.items():
        if name in values and name in STATISTICS:
            found.append(shift_of(name, known, values[name], subjects))
    return sorted(found, key=_far_first)


def _far_first(shift: Shift) -> tuple[bool, float]:
    return not shift.is_missing, -shift.distance / shift.limit if shift.is_told else 0.0


def shift_of(name: str, known: Statistic, values: Floats, subjects: int) -> Shift:
    """Of one statistic, whose values (N,) are NaN where an image has none. Fewer than FEWEST_IMAGES of them, which say
    more of these images than of the microscope, have no distance.
    """
    seen = values[np.isfinite(values)]
    if len(seen) >= FEWEST_IMAGES:
        return shift_at(name, known, np.quantile(seen, LEVELS), len(seen), subjects)
    found = shift_at(name, known, np.full(QUANTILES, np.nan), len(seen), subjects)
    is_usual = len(values) >= FEWEST_IMAGES and known.shown >= _MOST_SHOW
    return replace(found, is_missing=is_usual and len(seen) < len(values) * known.shown / 2)


def shift_at(name: str, known: Statistic, quantiles: Floats, images: int, subjects: int) -> Shift:
    """The same of the quantiles at LEVELS of so many images' values."""
    here, limit, widest = float(quantiles[QUANTILES // 2]), known.limit(max(1, subjects)), known.limit(1)
    return Shift(name, images, known.distance_at(quantiles), limit, widest, here, known.middle)


def verdict(found: Sequence[Shift], images: int, ood_share: float | None) -> Verdict:
    """What follows from the shifts of so many images and the share of them that is out of distribution.

    None: nothing tells that. The rate that a bundle states for its limit is no measure here: it holds for its own
    subjects, and other ones of the same laboratory are flagged more often.
    """
    if images < FEWEST_IMAGES:
        return Verdict.UNKNOWN
    if (ood_share or 0.0) > MOST_OOD or any(shift.is_far_beyond for shift in found):
        return Verdict.TOO_DIFFERENT
    share = ood_share or 0.0
    surely = share - 2 * (share * (1 - share) / images) ** 0.5  # of so many images: about the lower end of 95 %
    if surely > MANY_OOD or any(shift.is_beyond for shift in found):
        return Verdict.DIFFERS
    return Verdict.ALIKE


def told(shift: Shift, unit: str | None = None) -> str:
    """What differs and by how much, for a person; `unit` of the images, as `pipeline/images/unit.py` has it."""
    here, home = shift.here, shift.at_home
    if not shift.is_told:
        count = {0: "no image shows", 1: "1 image shows"}.get(shift.images, f"{shift.images} images show")
        why = "most at home do" if shift.is_missing else f"{FEWEST_IMAGES} are needed"
        return f"{shift.figure.title}: cannot be told, {count} it, {why}"
    more = here > home
    factor = 2 ** (here - home) if shift.figure.is_log else float("nan")
    match shift.name:
        case "brightness":
            way = "brighter" if more else "darker"
            return f"{way} by {abs(here - home):.0f}: lightness {here:.0f} of 100, at home {home:.0f}"
        case "redness":
            return f"{'redder' if more else 'greener'} by {abs(here - home):.0f} (a* {here:.0f}, at home {home:.0f})"
        case "yellowness":
            return f"{'yellower' if more else 'bluer'} by {abs(here - home):.0f} (b* {here:.0f}, at home {home:.0f})"
        case "saturation":
            return f"colours are {'stronger' if more else 'paler'}: chroma {here:.0f}, at home {home:.0f}"
        case "white_share":
            ground = "more" if more else "less"
            return f"{ground} bare ground: {100 * here:.0f} % of an image, at home {100 * home:.0f} %"
        case "sharpness":
            return f"{'sharper' if more else 'blurred'}: {100 * factor:.0f} % of the fine detail at home"
        case "grain":
            why = "noise" if more else "compressed or smoothed"
            return f"{'more' if more else 'less'} grain, {100 * factor:.0f} % of that at home: {why}"
        case "size":
            what = "cells look" if unit == "cell" else "nuclei look"
            return f"{what} {100 * abs(factor - 1):.0f} % {'larger' if more else 'smaller'}"
    return f"the network's features lie {'farther' if more else 'nearer'}: {here:.2f}, at home {home:.2f}"
