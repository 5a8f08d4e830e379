"""Which images each metric rests on, and what an adverse subject would do to it, as `adverse` takes it."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.adverse import FEWEST_UNITS, METHOD, Area, AveragePrecision, Bounded, mean_size, share
from pipeline.evaluation.definitions import Floats, Ints
from pipeline.evaluation.intervals import called_units


@dataclass(frozen=True)
class Answers:
    """What a model said of N images, and whose they are."""

    truth: Ints  # (N,) class index
    called: Ints  # (N,)
    codes: Ints  # (N,) number of the subject, of `subject_codes`
    unit: str  # 'subject' or 'image'
    subjects: Sequence[str | None] | None
    scores: Floats | None = None  # (N,) probability of class 1, of two classes
    threshold: float | None = None  # at and above which class 1 is called

    @property
    def units(self) -> int:
        return int(self.codes.max()) + 1

    def of(self, rows: Ints) -> "Answers":
        """Some of the images; their subjects keep their numbers, and with these their weights in every sample."""
        subjects = None if self.subjects is None else [self.subjects[row] for row in rows.tolist()]
        scores = None if self.scores is None else self.scores[rows]
        return replace(
            self,
            truth=self.truth[rows],
            called=self.called[rows],
            codes=self.codes[rows],
            subjects=subjects,
            scores=scores,
        )


Parts = dict[Hashable, Bounded | None]
Means = dict[Hashable, tuple[Hashable, ...]]


def binary_parts(answers: Answers) -> tuple[Parts, Means]:
    """By name the metrics of `definitions.weighted_binary`, and (name, class) those of each class."""
    truth, scores, codes = answers.truth, answers.scores, answers.codes
    assert scores is not None, "two classes have scores"
    positive = truth == 1
    classes: Parts = {(name, k): part for k in (0, 1) for name, part in class_parts(answers, k).items()}
    parts: Parts = {
        **classes,
        "accuracy": share(codes, answers.called == truth, np.ones(len(truth))),
        "precision": classes["precision", 1],
        "sensitivity": classes["recall", 1],
        "specificity": classes["recall", 0],
        "f1": classes["f1", 1],
        "roc_auc": area(positive, scores, codes),
        "pr_auc": AveragePrecision(positive, scores, codes) if _has_sides(codes, positive) else None,
        "brier": share(codes, (scores - positive) ** 2, np.ones(len(truth))),
        **{("side", k): recall(answers, k, column=k) for k in (0, 1)},
    }
    return parts, {"balanced_accuracy": (("side", 0), ("side", 1))}


def multiclass_parts(answers: Answers, probabilities: Floats) -> tuple[Parts, Means]:
    """By name the metrics of `definitions.weighted_multiclass`, by (name, class) those of one; probabilities (N, C)."""
    truth, codes, classes = answers.truth, answers.codes, range(probabilities.shape[1])
    errors = ((probabilities - (truth[:, None] == np.array(classes))) ** 2).sum(axis=1)  # 0..2
    parts: Parts = {
        "accuracy": share(codes, answers.called == truth, np.ones(len(truth))),
        "brier": share(codes, errors, np.ones(len(truth)), right=(2.0, 1.0)),
    }
    for k in classes:
        parts |= {(name, k): part for name, part in class_parts(answers, k).items()}
        parts["roc_auc", k] = area(truth == k, probabilities[:, k], codes)
        parts["side", k] = recall(answers, k, column=k)
    present = [int(k) for k in np.unique(truth)]
    rated = present if len(present) > 1 else []
    means: Means = {
        "balanced_accuracy": tuple(("side", k) for k in present),
        "f1_macro": tuple(("f1", k) for k in present),
        "roc_auc_macro": tuple(("roc_auc", k) for k in rated),
    }
    return parts, means


def class_parts(answers: Answers, k: int) -> dict[str, Bounded | None]:
    """Recall, precision and F1 of class `k`."""
    is_class, is_called, codes = answers.truth == k, answers.called == k, answers.codes
    hits = is_class & is_called
    found = recall(answers, k)
    # not of what is called: more false alarms would make it larger
    size = mean_size(codes[is_class]) or mean_size(codes)
    f1 = share(codes, 2.0 * hits, 1.0 * is_class + is_called, size=size, right=(2.0, 2.0))
    return {
        "recall": found,
        "precision": share(codes, hits, is_called, size=size),
        "f1": None if found is None else f1,
    }


def recall(answers: Answers, k: int, column: int = 0) -> Bounded | None:
    """Of class `k` the share called so. `column`: of the adverse subject; one for each class that is averaged."""
    is_class = answers.truth == k
    return share(answers.codes, is_class & (answers.called == k), is_class, column=column)


def area(positive: NDArray[np.bool_], scores: Floats, codes: Ints) -> Area | None:
    return Area(positive, scores, codes) if _has_sides(codes, positive) else None


def _has_sides(codes: Ints, positive: NDArray[np.bool_]) -> bool:
    return min(len(np.unique(codes[side])) for side in (positive, ~positive)) >= FEWEST_UNITS


def method_of(unit: str, called: str) -> str:
    """The method in words, for a table whose units are 'subject' (`called` as the manifest does) or 'image'."""
    units = called_units(unit, called)
    return METHOD.format(units=units, unit=units.removesuffix("s"))
