"""Drift of a stream of images against a bundle's own, counted so that the counts of several processes add up.

Values are counted in steps of the reference's spread, so that memory does not grow with the stream: fine near its
middle, half a percent of the distance far from it. From the counts: Wasserstein's distance as `drift.shift_of` has it,
within a few thousandths of a spread, and the population stability index of the probabilities (PSI; what it is by
chance: Yurdakul & Naranjo 2020, Journal of Risk Model Validation 14(4)).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.images.appearance import NAMES
from pipeline.model.bundle import BundleInfo
from pipeline.model.drift import FEWEST_IMAGES, LEVELS, OOD_SCORE, Floats, Shift, Statistic, Verdict, shift_at, verdict
from pipeline.model.prediction import Prediction

_FINE = 0.1  # spreads: nearer to the middle steps are equal, farther they grow with the distance
_STEP = 0.005
_HALF = 3400  # steps to each side: up to some million spreads
Counts = NDArray[np.int64]


def _none() -> Counts:
    return np.zeros(2 * _HALF, np.int64)


@dataclass
class Counted:
    """Values of one statistic beside its reference."""

    known: Statistic
    steps: Counts = field(default_factory=_none)  # (2 * _HALF,)

    @property
    def images(self) -> int:
        return int(self.steps.sum())

    def add(self, values: Floats) -> None:
        """(N,); NaN where an image has none."""
        apart = (values[np.isfinite(values)].astype(np.float64) - self.known.middle) / self.known.spread
        at = np.floor(np.arcsinh(apart / _FINE) / _STEP).astype(np.int64) + _HALF
        self.steps += np.bincount(at.clip(0, 2 * _HALF - 1), minlength=2 * _HALF)

    def quantiles(self) -> NDArray[np.float64]:
        """At LEVELS; of no image there are none, so ask `images` first."""
        shares = self.steps.cumsum() / self.steps.sum()
        at = np.searchsorted(shares, LEVELS) + 0.5 - _HALF
        found: NDArray[np.float64] = self.known.middle + self.known.spread * _FINE * np.sinh(at * _STEP)
        return found

    def shift(self, name: str, subjects: int) -> Shift | None:
        """Beside the reference; None of too few images."""
        if self.images < FEWEST_IMAGES:
            return None
        return shift_at(name, self.known, self.quantiles(), self.images, subjects)


@dataclass
class DriftCounts:
    """What a model was shown, added up; `added` puts those of two processes together.

    Scores are the probabilities of `Prediction.probability`, in bins between quantiles of held-out images of training.
    """

    model: str  # `BundleInfo.identity`
    edges: tuple[float, ...]  # (K,) rising, between the bins; empty where nothing is known of held-out scores
    expected: tuple[float, ...]  # (K + 1,) share of held-out images in each bin
    held_out: int  # images that these shares come from
    scores: Counts  # (K + 1,)
    statistics: dict[str, Counted]
    images: int = 0
    probability: float = 0.0  # sum
    flagged: int = 0  # of those that something tells by
    told: int = 0

    @classmethod
    def of(cls, info: BundleInfo) -> "DriftCounts":
        """Of a bundle; one of an older version knows less of its own images, and less is told."""
        edges, expected = _bins(info.reference_scores)
        known = {} if info.reference_statistics is None else info.reference_statistics.statistics
        counted = {name: Counted(one) for name, one in known.items()}
        held_out = int(info.reference_scores.get("count", 0))
        return cls(info.identity(), edges, expected, held_out, np.zeros(len(edges) + 1, np.int64), counted)

    def add(self, said: Sequence[Prediction], looks: Floats | None = None) -> None:
        """Of images that got an answer; `looks` (B, 8): `images.appearance.appearances` of them, where measured."""
        if not said:
            return
        values = np.array([one.probability for one in said])
        self.images += len(said)
        self.probability += float(values.sum())
        self.scores += np.bincount(np.searchsorted(self.edges, values, side="right"), minlength=len(self.scores))
        self.told += sum(one.is_ood is not None for one in said)
        self.flagged += sum(bool(one.is_ood) for one in said)
        found: dict[str, Floats] = {} if looks is None else dict(zip(NAMES, looks.T, strict=True))
        found[OOD_SCORE] = np.array([np.nan if one.ood_score is None else one.ood_score for one in said])
        for name, counted in self.statistics.items():
            if name in found:
                counted.add(found[name])

    def added(self, other: "DriftCounts") -> "DriftCounts":
        """Both together. Raises ValueError where they are of two models."""
        if (self.model, self.edges) != (other.model, other.edges):
            raise ValueError(f"counts of model {self.model[:12]} and of {other.model[:12]} do not add up")
        both = {
            name: Counted(one.known, one.steps + other.statistics[name].steps) for name, one in self.statistics.items()
        }
        return replace(
            self, scores=self.scores + other.scores, statistics=both, images=self.images + other.images,
            probability=self.probability + other.probability, flagged=self.flagged + other.flagged,
            told=self.told + other.told,
        )  # fmt: skip

    def psi(self) -> float | None:
        """Population stability index of the probabilities; 0.1 is commonly called a small change, 0.25 a large one.

        None of too few images, or where the bundle does not know its held-out scores. Bins that nothing fell into count
        as half an image.
        """
        if self.images < FEWEST_IMAGES or not self.edges:
            return None
        here = np.maximum(self.scores, 0.5) / np.maximum(self.scores, 0.5).sum()
        there = np.asarray(self.expected)
        return float(((here - there) * np.log(here / there)).sum())

    def psi_by_chance(self) -> float | None:
        """What `psi` is on average where nothing has changed, images being independent: those of one subject are not,
        and have more.
        """
        if self.images < FEWEST_IMAGES or not self.edges:
            return None
        return len(self.edges) * (1 / self.images + 1 / max(1, self.held_out))

    def shifts(self, subjects: int = 1) -> list[Shift]:
        """Of each statistic that enough images show; `subjects` as `drift.shifts` takes them."""
        found = (counted.shift(name, subjects) for name, counted in self.statistics.items())
        return [shift for shift in found if shift is not None]

    def verdict(self, subjects: int = 1) -> Verdict:
        share = self.flagged / self.told if self.told else None
        return verdict(self.shifts(subjects), self.images, share)

    def packed(self) -> dict[str, Any]:
        """As JSON takes it: the counts alone, which `unpacked` reads beside the same bundle."""
        steps = {name: _sparse(counted.steps) for name, counted in self.statistics.items()}
        numbers = {name: getattr(self, name) for name in ("model", "images", "probability", "flagged", "told")}
        return {**numbers, "scores": self.scores.tolist(), "statistics": steps}

    @classmethod
    def unpacked(cls, info: BundleInfo, record: Mapping[str, Any]) -> "DriftCounts":
        """Raises ValueError where the record is of another model."""
        made = cls.of(info)
        if record["model"] != made.model:
            raise ValueError(f"counts of model {str(record['model'])[:12]}, not of {made.model[:12]}")
        for name, counts in record["statistics"].items():
            made.statistics[name].steps[counts["at"]] = counts["count"]
        numbers = {name: record[name] for name in ("images", "probability", "flagged", "told")}
        return replace(made, scores=np.array(record["scores"], np.int64), **numbers)


def _sparse(steps: Counts) -> dict[str, list[int]]:
    at = np.flatnonzero(steps)
    return {"at": at.tolist(), "count": steps[at].tolist()}


def _bins(reference: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Edges between bins and the share of held-out images in each, from the quantiles of their scores.

    A bin has its lower edge, in single precision as probabilities are told. Equal quantiles, as of a model that is sure
    of most images, are one edge, below which lies the lowest of their levels.
    """
    told = reference.get("quantiles", {}).items()
    known = sorted((float(level), float(np.float32(value))) for level, value in told)
    below = {value: level for level, value in reversed(known) if 0 < level < 1 and value > known[0][1]}
    edges = tuple(sorted(below))
    shares = np.diff([0.0, *(below[edge] for edge in edges), 1.0])
    return edges, tuple(shares.tolist())
