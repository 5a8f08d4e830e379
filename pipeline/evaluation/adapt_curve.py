"""What so many local images are worth: the whole of `adapt` on some of them, judged on those of other subjects.

Each draw gives about half of the subjects to learn from, takes n of their images, and measures on all images of the
other subjects, with the model as it was beside. Also: which sets of images are too few for any of that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.base.errors import InputError
from pipeline.evaluation.adapt import Asked, Change, Local, adapt, as_it_was, losses_of
from pipeline.evaluation.definitions import Floats, Ints, binary_metrics, multiclass_metrics
from pipeline.evaluation.temperature import fit_temperature
from pipeline.model.prediction import probabilities

SIZES = (10, 25, 50, 100)
FEWEST_IMAGES, FEWEST_OF_CLASS, FEWEST_UNITS = 10, 5, 3
MOST_IMAGES = 3000
DRAWS = 25
_FEWEST_LEFT = 0.2  # of the images, to judge on
_QUANTILES = (0.025, 0.975)
_Measured = dict[str, float]


def refuse_too_few(local: Local, classes: Sequence[str], units: str) -> list[str]:
    """Raise InputError where these images cannot carry a calibration, with the numbers that could; else what they
    cannot carry of it, in sentences.
    """
    refuse_counts(local.targets, local.groups, local.positive, classes, units)
    counts = np.bincount(local.targets, minlength=len(classes))
    if (probabilities(local.logits).argmax(axis=1) == local.targets).all():
        reason = fit_temperature(local.logits, local.targets, on="local").reason
        raise InputError(
            f"these {len(local)} images tell no temperature ({reason}); give more, until the model is wrong on some, "
            "or keep the model as it is"
        )
    few = [name for name, count in zip(classes, counts, strict=True) if count < FEWEST_OF_CLASS]
    if not few or local.logits.shape[1] == 1:
        return []
    return [
        f"Fewer than {FEWEST_OF_CLASS} images of {', '.join(few)}: only temperature and threshold are tried, no shift "
        "of classes and no head, which would forget them."
    ]


def refuse_counts(targets: Ints, groups: Ints, positive: Sequence[int], classes: Sequence[str], units: str) -> None:
    """Raise InputError where so many images (N,) of these classes and subjects are too few, whatever a model says."""
    counts = np.bincount(targets, minlength=len(classes))
    is_sick = np.isin(targets, positive)
    if len(targets) < FEWEST_IMAGES:
        raise InputError(f"{len(targets)} labelled images: {FEWEST_IMAGES} are the fewest to calibrate by")
    if len(targets) > MOST_IMAGES:
        raise InputError(f"{len(targets):,} labelled images: from {MOST_IMAGES:,} on train with them (leukoray train)")
    sides = {"diseased": is_sick, "healthy": ~is_sick} if positive else {}
    for name, rows in sides.items():
        images, of_units = int(np.sum(rows)), len(np.unique(groups[rows]))
        if images < FEWEST_OF_CLASS or of_units < FEWEST_UNITS:
            whose = "" if units == "images" else f" of {of_units} {units}"
            more = "" if units == "images" else f", of {FEWEST_UNITS} {units} or more"
            raise InputError(
                f"{images} {name} images{whose}: at least {FEWEST_OF_CLASS} of each side are needed{more}, to choose a "
                "threshold by some and judge it by others"
            )
    if not sides and int((counts >= FEWEST_OF_CLASS).sum()) < 2:
        raise InputError(f"fewer than two classes with {FEWEST_OF_CLASS} images each: {_listed(classes, counts)}")
    if len(np.unique(groups)) < 2 * FEWEST_UNITS:
        raise InputError(
            f"images of {len(np.unique(groups))} {units}: {2 * FEWEST_UNITS} are the fewest for some to "
            "be judged by others"
        )


def _listed(classes: Sequence[str], counts: Ints) -> str:
    return ", ".join(f"{name} {count}" for name, count in zip(classes, counts.tolist(), strict=True))


@dataclass(frozen=True)
class Point:
    """n images learnt from: by name mean and limits over draws of each metric, as it was, adapted, and the gain."""

    images: int
    draws: int
    judged: float  # images judged on, in the mean
    kinds: dict[str, int]  # what was taken, in how many draws
    metrics: dict[str, dict[str, dict[str, float | None]]]

    def record(self) -> dict[str, Any]:
        return {
            "images": self.images, "draws": self.draws, "judged": self.judged, "kinds": self.kinds, **self.metrics,
        }  # fmt: skip


def learning_curve(local: Local, asked: Asked, sizes: Sequence[int] = SIZES, draws: int = DRAWS) -> list[Point]:
    """A point for each size that half of the draws have the images for. Deterministic."""
    points = []
    for size in sizes:
        rng = np.random.default_rng((asked.seed, size))
        found: list[tuple[_Measured, _Measured]] = []
        kinds: dict[str, int] = {}
        judged = 0
        for _ in range(draws):
            parts = _drawn(local, size, rng)
            if parts is None:
                continue
            some, rest = (local.of(rows) for rows in parts)
            adapted = adapt(some, asked)
            kinds[adapted.change.kind] = kinds.get(adapted.change.kind, 0) + 1
            judged += len(rest)
            before, now = (as_it_was(local), local.threshold), (adapted.change, adapted.threshold)
            found.append((measured(rest, *before), measured(rest, *now)))
        if len(found) * 2 >= draws:
            points.append(Point(size, len(found), judged / len(found), kinds, _summed(found)))
    return points


def _drawn(local: Local, size: int, rng: np.random.Generator) -> tuple[Ints, Ints] | None:
    """Images to learn from and images to judge by, of other subjects; None where too few are left, or one side, or
    those to learn from are of too few subjects for folds that divide none.
    """
    groups = rng.permutation(np.unique(local.groups))
    counts = np.array([(local.groups == group).sum() for group in groups])
    taken = int(np.searchsorted(counts.cumsum(), max(len(local) // 2, size))) + 1
    pool = np.flatnonzero(np.isin(local.groups, groups[:taken]))
    rest = np.flatnonzero(np.isin(local.groups, groups[taken:]))
    if len(pool) < size or len(rest) < max(FEWEST_OF_CLASS, _FEWEST_LEFT * len(local)):
        return None
    some = np.sort(rng.choice(pool, size, replace=False))
    if len(np.unique(local.groups[some])) < FEWEST_UNITS:
        return None
    return (some, rest) if all(_has_sides(local.of(rows)) for rows in (some, rest)) else None


def _has_sides(local: Local) -> bool:
    sides = local.targets if local.diseased is None else local.diseased
    return len(np.unique(sides)) > 1


def measured(local: Local, change: Change, threshold: float) -> _Measured:
    """Log-loss, calibration error and balanced accuracy of all classes; sensitivity and specificity of disease."""
    logits = change(local)
    classes, found = probabilities(logits), {"log_loss": float(losses_of(logits, local.targets).mean())}
    truth = local.diseased
    of_sides = {} if truth is None else binary_metrics(truth, change.values(local), threshold)
    of_all = of_sides if classes.shape[1] == 2 and of_sides else multiclass_metrics(local.targets, classes)
    found |= {name: of_all[name] for name in ("ece", "balanced_accuracy")}
    return found | {name: of_sides[name] for name in ("sensitivity", "specificity") if name in of_sides}


def _summed(found: Sequence[tuple[_Measured, _Measured]]) -> dict[str, dict[str, dict[str, float | None]]]:
    names = list(found[0][0])
    before, now = (np.array([[one[at][name] for name in names] for one in found]) for at in (0, 1))
    told = {"as_it_was": before, "adapted": now, "gain": now - before}
    return {key: {name: _spread(values[:, at]) for at, name in enumerate(names)} for key, values in told.items()}


def _spread(values: Floats) -> dict[str, float | None]:
    known = values[np.isfinite(values)]
    if not len(known):
        return {"value": None, "low": None, "high": None}
    low, high = np.quantile(known, _QUANTILES)
    return {"value": float(known.mean()), "low": float(low), "high": float(high)}
