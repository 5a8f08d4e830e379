"""What is left of a model's figures when images are changed: copies of some images against these images themselves.

The images are a sample of those measured, of all classes alike. Copies of one image stay together: the difference to
the image as it is comes from the same samples of subjects (`adverse.paired_limits`).
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import numpy as np

from pipeline.evaluation.adverse import (
    NO_LIMITS,
    Limits,
    interval_of,
    limits_of,
    paired_limits,
    samples,
    share,
)
from pipeline.evaluation.chance import against_chance_of_present
from pipeline.evaluation.changes import UNCHANGED
from pipeline.evaluation.definitions import Floats, Ints, binary_metrics, multiclass_metrics, ratio
from pipeline.evaluation.intervals import Resampling, as_json, subject_codes
from pipeline.evaluation.limits import Answers, Means, Parts, area, recall
from pipeline.evaluation.outcomes import Outcomes, true_class
from pipeline.evaluation.shown import Shown
from pipeline.model.bundle import BundleInfo
from pipeline.model.prediction import Prediction
from pipeline.model.reference import is_far_above
from pipeline.sources.manifest import ManifestRow

Key = tuple[str, int]  # kind of change, severity
MAIN = {"binary": "roc_auc", "multiclass": "balanced_accuracy"}
SIDES = ("sensitivity", "specificity")


def sample_of(outcomes: Outcomes, count: int, seed: int) -> list[ManifestRow]:
    """At most `count` rows of images that got an answer: of each class in turn, of its subjects in turn; by `seed`."""
    rows = [outcome.row for outcome in outcomes.scored]
    of_class: dict[int, dict[object, list[int]]] = {}
    for at in np.random.default_rng(seed).permutation(len(rows)).tolist():
        whose = rows[at].subject_id or at
        of_class.setdefault(int(outcomes.truth[at]), {}).setdefault(whose, []).append(at)
    in_turn = _alternating([_alternating(list(of_class[k].values())) for k in sorted(of_class)])
    return [rows[at] for at in in_turn[:count]]


def _alternating(lists: Sequence[Sequence[int]]) -> list[int]:
    return [at for at in chain.from_iterable(zip_longest(*lists)) if at is not None]


@dataclass(frozen=True)
class Remaining:
    """Figures of each copy, JSON-ready, by kind and severity."""

    metric: str  # the main one of the task: key of METRIC_NAMES
    chance: float  # what guessing gives of it
    images: int
    units: int
    unit: str  # 'subject' or 'image'
    figures: Mapping[Key, Mapping[str, Any]]

    def of(self, kind: str, severity: int = 0) -> Mapping[str, Any]:
        return self.figures[kind, severity]

    @property
    def unchanged(self) -> Mapping[str, Any]:
        return self.of(UNCHANGED)

    def kept(self, kind: str, severity: int = 0) -> float | None:
        """Share of the way from guessing to the figure of the images as they are; None where that is guessing."""
        way = self.unchanged["value"] - self.chance
        return None if way < 0.01 else float((self.of(kind, severity)["value"] - self.chance) / way)


def remaining(
    shown: Sequence[Shown], keys: Sequence[Key], info: BundleInfo, threshold: float, resampling: Resampling
) -> Remaining | None:
    """Of each of `keys` what is left; None where the images that have all answers are of one class.

    A figure has `value`, `low`, `high`, `unit`; `difference` to the images as they are; `above_guessing`, None where
    too few subjects could show it; `sensitivity` and `specificity` at the threshold, where classes mean disease;
    `ood`, the share flagged, where the model has a limit.
    """
    whole = sorted((each for each in shown if each.said), key=lambda each: int(each.row.image_id))
    truth = np.array([true_class(info, each.row) for each in whole], np.int64)
    if len(np.unique(truth)) < 2:
        return None
    subjects = [each.row.subject_id for each in whole]
    codes, unit = subject_codes(subjects, len(truth))
    copies = {
        key: _Copy(info, threshold, truth, codes, [each.said[at] for each in whole]) for at, key in enumerate(keys)
    }
    parts: Parts = {}
    means: Means = {}
    for key, copy in copies.items():
        own, of_own = copy.parts(key)
        parts |= own
        means |= of_own
    drawn = samples(parts, int(codes.max()) + 1, resampling, means)
    found = {key: limits_of(some, resampling.confidence) for key, some in drawn.items()}
    first = (UNCHANGED, 0)
    for key in copies:
        if (key, "main") in drawn:
            found[key, "difference"] = paired_limits(drawn[key, "main"], drawn[first, "main"], resampling.confidence)
    base = copies[first].value()
    chance = 0.5 if info.task == "binary" else 1 / len(np.unique(truth))
    figures = {key: copy.figures(key, found, base, chance, subjects, unit) for key, copy in copies.items()}
    return Remaining(MAIN[info.task], chance, len(truth), int(codes.max()) + 1, unit, figures)


class _Copy:
    """What was said of one copy of each of N images."""

    def __init__(
        self, info: BundleInfo, threshold: float, truth: Ints, codes: Ints, said: Sequence[Prediction]
    ) -> None:
        self._info, self._truth, self._codes = info, truth, codes
        self.classes = np.array([each.classes for each in said])  # (N, C)
        self._threshold = threshold
        is_binary = info.task == "binary"
        self._called = (
            (self.classes[:, 1] >= threshold).astype(np.int64) if is_binary else self.classes.argmax(axis=1)
        )  # (N,)
        has_sides = is_binary or info.diseased_side
        sides = (truth if is_binary else np.isin(truth, info.diseased_side)).astype(np.int64) if has_sides else None
        # images of one side alone have no sensitivity, or no specificity, to lose
        self._diseased = sides if sides is not None and 0 < sides.sum() < len(sides) else None
        scores = self.classes[:, 1] if is_binary else np.array([each.probability for each in said])
        self._alarms = (scores >= threshold).astype(np.int64)
        flags = [each.is_ood for each in said]
        self.is_ood = None if None in flags else np.array(flags, bool)  # (N,)

    def parts(self, key: Key) -> tuple[Parts, Means]:
        """What to bound, by (key, metric), and the means of it."""
        own = self._main()
        parts: Parts = {(key, "main", k): part for k, part in own.items()}
        if self._diseased is not None:
            sides = Answers(self._diseased, self._alarms, self._codes, "", None)
            parts |= {(key, name): recall(sides, k) for name, k in zip(SIDES, (1, 0), strict=True)}
        if self.is_ood is not None:
            parts[key, "ood"] = share(self._codes, self.is_ood, np.ones(len(self._truth)))
        return parts, {(key, "main"): tuple((key, "main", k) for k in own)}

    def _main(self) -> Parts:
        """The main metric is the mean of these."""
        if self._info.task == "binary":
            return {0: area(self._truth == 1, self.classes[:, 1], self._codes)}
        answers = Answers(self._truth, self._called, self._codes, "", None)
        return {int(k): recall(answers, int(k), column=int(k)) for k in np.unique(self._truth)}

    def value(self) -> float:
        """Of the main metric."""
        if self._info.task == "binary":
            return binary_metrics(self._truth, self.classes[:, 1], self._threshold)["roc_auc"]
        return multiclass_metrics(self._truth, self.classes)["balanced_accuracy"]

    def figures(
        self, key: Key, found: Mapping[Hashable, Limits], base: float, chance: float,
        subjects: Sequence[str | None], unit: str,
    ) -> dict[str, Any]:  # fmt: skip
        """One row of `Remaining.figures`."""
        value = self.value()
        row = as_json(interval_of(value, found.get((key, "main"), NO_LIMITS), unit))
        apart = interval_of(value - base, found.get((key, "difference"), NO_LIMITS), unit)
        row["difference"] = as_json(apart) if key != (UNCHANGED, 0) else None
        row["above_guessing"] = self._is_above(row["low"], chance, subjects)
        if self._diseased is not None:
            for name, k in zip(SIDES, (1, 0), strict=True):
                side = np.asarray(self._diseased == k)
                reached = float(ratio((self._alarms[side] == k).sum(), side.sum()))
                row[name] = as_json(interval_of(reached, found.get((key, name), NO_LIMITS), unit))
        row["ood"] = self._flagged(found.get((key, "ood"), NO_LIMITS), unit)
        return row

    def _is_above(self, low: float | None, chance: float, subjects: Sequence[str | None]) -> bool | None:
        """By the limits of the page or by those of `chance`, which allow for no adverse subject."""
        judged = against_chance_of_present(self._truth, self.classes, subjects, task=self._info.task)
        if low is not None and low > chance:
            return True
        return None if judged is None or judged.low is None else judged.low > chance

    def _flagged(self, found: Limits, unit: str) -> dict[str, Any] | None:
        if self.is_ood is None or self._info.ood is None:
            return None
        flagged, rate = int(self.is_ood.sum()), self._info.ood.false_flag_rate
        told = as_json(interval_of(float(self.is_ood.mean()), found, unit))
        return told | {"is_far_above": is_far_above(flagged, len(self.is_ood), rate)}


def border_colour(outcomes: Outcomes) -> tuple[float, float, float]:
    """Mean red, green and blue of the borders of all images measured, 0..255: what lies around cells."""
    seen = [outcome.colours.border[:3] for outcome in outcomes.scored if outcome.colours is not None]
    levels: Floats = np.mean(seen, axis=0) if seen else np.full(3, 127.5)
    red, green, blue = levels.tolist()
    return red, green, blue
