"""Whether class-activation maps explain anything: three scores of single maps, and what they say together.

Pointing game (Zhang et al. 2018, arXiv:1608.00507): does the map's maximum lie in a nucleus, beside what any point and
the image's middle would reach. Deletion (Petsiuk et al. 2018, arXiv:1806.07421): how fast the probability falls as the
places that the map calls important are blurred, beside places in random order. Model randomization (Adebayo et al.
2018, arXiv:1810.03292): a map that stays the same when the last layers have drawn weights tells of the image,
not of the model. Images of one subject count as one draw: limits are over subjects where they are known.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.adverse import FEWEST_UNITS, interval_of, limits, share
from pipeline.evaluation.definitions import Floats, Ints
from pipeline.evaluation.intervals import Resampling, as_json, clustered_error, subject_codes

SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)  # of what is seen that is blurred, in turn
_BLUR = 1 / 12  # sigma, of a side
MOST_ALIKE = 0.5  # mean rank correlation beyond which maps of drawn weights are the same maps
HOLDS, FAILS, UNKNOWN = "Holds.", "FAILS.", "Cannot be told."
_RESAMPLING = Resampling()

Map = NDArray[np.float32]
Probability = Callable[[NDArray[np.uint8]], NDArray[np.float64]]  # of the map's class, (B,), of images (B, S, S, 3)


@dataclass(frozen=True)
class MapScores:
    """Of one image's map; None where there is nothing to say: no nucleus is found, no place speaks for the class."""

    hits: bool | None  # the map's maximum lies in a nucleus
    any_point: float | None  # share of what is seen that is nucleus
    middle: bool | None  # the middle is nucleus
    deletion: float | None  # area under the probability, 0..1, as the map orders
    random: float | None  # and in random order
    alike: float | None  # rank correlation with the map of drawn last layers
    subject: str | None = None  # that the image is of; None: not known


def pointing(map_: Map, nucleus: NDArray[np.bool_], seen: slice) -> tuple[bool, float, bool] | None:
    """(hits, any point, the middle) of a map (S, S); None where it is empty or no nucleus is within what is seen."""
    if not map_.any() or not nucleus[seen, seen].any():
        return None
    peak = np.unravel_index(int(map_.argmax()), map_.shape)
    middle = len(map_) // 2
    return bool(nucleus[peak]), float(nucleus[seen, seen].mean()), bool(nucleus[middle, middle])


def deletion(image: NDArray[np.uint8], order: Map, seen: slice, probability: Probability) -> float:
    """Area under the probability over `SHARES`, 0..1, as the pixels seen are blurred by falling `order`."""
    blurred = cv2.GaussianBlur(image, (0, 0), _BLUR * (seen.stop - seen.start))
    window = order[seen, seen]
    rank = np.argsort(np.argsort(-window, axis=None, kind="stable"), kind="stable").reshape(window.shape)
    steps = np.repeat(image[None], len(SHARES), axis=0)
    for step, part in zip(steps, SHARES, strict=True):
        gone = rank < part * rank.size
        step[seen, seen][gone] = blurred[seen, seen][gone]
    found = probability(steps)
    return float(np.sum((found[1:] + found[:-1]) / 2 * np.diff(SHARES)))


def random_order(rng: np.random.Generator, grid: tuple[int, int], size: int, seen: slice) -> Map:
    """An order without a reason, as smooth as a map of such a grid, float32 (S, S)."""
    order = np.zeros((size, size), np.float32)
    side = seen.stop - seen.start
    drawn = rng.random(grid, dtype=np.float32)
    order[seen, seen] = cv2.resize(drawn, (side, side), interpolation=cv2.INTER_LINEAR)
    return order


def rank_correlation(one: Map, other: Map) -> float | None:
    """Spearman's, of two maps of one shape; None where one is flat."""
    ranks = [np.argsort(np.argsort(values, axis=None)).astype(np.float64) for values in (one, other)]
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def judged(scores: Sequence[MapScores], asked: int, sampled: str) -> dict[str, Any]:
    """What the maps of a sample show together: the record `explanation` of metrics.json.

    Limits are over subjects, `unit` (each image by itself where none is known); `holds` is None of fewer than two.
    """
    _, unit = subject_codes([score.subject for score in scores], len(scores))
    return {
        "images": len(scores),
        "asked": asked,
        "sampled": sampled,
        "unit": unit,
        "pointing": _pointing(scores),
        "deletion": _deletion(scores),
        "randomization": _randomization(scores),
    }


def _codes(scores: Sequence[MapScores]) -> tuple[Ints, int, str]:
    """Subject of each (N,), how many there are, and the unit."""
    codes, unit = subject_codes([score.subject for score in scores], len(scores))
    return codes, len(np.unique(codes)), unit


def _pointing(scores: Sequence[MapScores]) -> dict[str, Any] | None:
    told = [score for score in scores if score.hits is not None]
    if not told:
        return None
    codes, units, unit = _codes(told)
    hits = np.array([bool(score.hits) for score in told], np.float64)
    found = limits({"hits": share(codes, hits, np.ones(len(hits)))}, units, _RESAMPLING)["hits"]
    interval = interval_of(float(hits.mean()), found, unit)
    any_point = float(np.mean([score.any_point or 0.0 for score in told]))
    middle = float(np.mean([bool(score.middle) for score in told]))
    holds = None if units < FEWEST_UNITS else interval.low > any_point
    beside = {"any_point": any_point, "middle": middle, "holds": holds}
    return {"images": len(told), "units": units, "hits": as_json(interval), **beside}


def _deletion(scores: Sequence[MapScores]) -> dict[str, Any] | None:
    told = [score for score in scores if score.deletion is not None]
    if len(told) < 2:
        return None
    pairs = np.array([(one.deletion, one.random) for one in told], np.float64)
    codes, units, _ = _codes(told)
    gain = _mean_over(pairs[:, 1] - pairs[:, 0], codes, units)
    return {
        "images": len(pairs),
        "units": units,
        "map": float(pairs[:, 0].mean()),
        "random": float(pairs[:, 1].mean()),
        "gain": gain,
        "holds": None if gain["low"] is None else gain["low"] > 0,
    }


def _mean_over(values: Floats, codes: Ints, units: int) -> dict[str, float | None]:
    """Mean of (N,) and its limits, `codes` (N,) telling what varies together: `clustered_error` with Student's t."""
    mean = float(values.mean())
    if units < FEWEST_UNITS:
        return {"value": mean, "low": None, "high": None}
    from scipy.stats import t  # 0.5 s to import: a worker needs none of it

    around = float(t.ppf(0.5 + _RESAMPLING.confidence / 2, units - 1)) * clustered_error(values, codes)
    return {"value": mean, "low": mean - around, "high": mean + around}


def _randomization(scores: Sequence[MapScores]) -> dict[str, Any] | None:
    alike = [score.alike for score in scores if score.alike is not None]
    if not alike:
        return None
    mean = float(np.mean(np.abs(alike)))
    return {"images": len(alike), "alike": mean, "holds": mean < MOST_ALIKE}


def sentences(found: dict[str, Any]) -> list[str]:
    """What the record says, for a person; a check that fails is said to fail."""
    said = []
    if pointing := found["pointing"]:
        hits = pointing["hits"]
        said.append(
            f"{_verdict(pointing)} Pointing game: in {round(hits['value'] * pointing['images']):,} of "
            f"{pointing['images']:,} images ({_percent(hits['value'])}; {_within(hits, 100, 0, ' %')}) the map's "
            f"maximum is in a nucleus; any point would be in {_percent(pointing['any_point'])}, the middle of the "
            f"image in {_percent(pointing['middle'])}"
            + (": the map points no better than the middle does." if hits["value"] <= pointing["middle"] else ".")
        )
    if deletion := found["deletion"]:
        said.append(
            f"{_verdict(deletion)} Deletion: as what the map calls important is blurred first, the probability is "
            f"{deletion['map']:.3f} on average; in random order {deletion['random']:.3f} (difference "
            f"{deletion['gain']['value']:.3f}; {_within(deletion['gain'], 1, 3)})."
        )
    if drawn := found["randomization"]:
        said.append(
            f"{_verdict(drawn)} Randomization: maps of the same network with drawn last layers resemble these with a "
            f"rank correlation of {drawn['alike']:.2f} (sizes averaged; below {MOST_ALIKE} is asked for)."
        )
    return said


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _within(found: dict[str, Any], times: int, digits: int, sign: str = "") -> str:
    if found["low"] is None:
        return "all of them of one subject or block, which gives no limits"
    return f"95 % interval {times * found['low']:.{digits}f} to {times * found['high']:.{digits}f}{sign}"


def _verdict(check: dict[str, Any]) -> str:
    return UNKNOWN if check["holds"] is None else HOLDS if check["holds"] else FAILS
