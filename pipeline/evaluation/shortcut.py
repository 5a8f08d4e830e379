"""What colour alone tells of the classes: fitted on training images, judged on those that the model is judged on.

Whoever reads a model's figures must know how much of them a look at the glass beside the cell would reach. The colours
are those of `colours`, the classifier a support vector machine with a radial kernel (C = 10, classes weighted alike):
stains that differ by class seldom lie on one side of a plane.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from pipeline.evaluation.chance import balanced_limits
from pipeline.evaluation.definitions import Floats, Ints
from pipeline.evaluation.intervals import Resampling, subject_codes
from pipeline.evaluation.metrics import evaluate_binary, evaluate_multiclass
from pipeline.evaluation.outcomes import Outcomes, true_class
from pipeline.evaluation.predict import Glance
from pipeline.evaluation.report.words import with_interval
from pipeline.model.bundle import BundleInfo
from pipeline.sources.manifest import Manifest, ManifestRow
from pipeline.sources.rows import read_rows

_NOTABLE = 0.2  # of the way from guessing to no error: from here on a reader must hear of it
_FEWEST = 10  # training images of a class: fewer tell nothing of its colours
NOT_ASKED = "models are compared here; `leukoray evaluate` of one alone tells it"
_WHAT = {
    "border": "The colour of the image border alone, without any cell,",
    "whole": "The colour of the whole image, without any shape,",
}


@dataclass(frozen=True)
class Shortcut:
    """Balanced accuracies, JSON-ready (value, low, high, unit); `why_not` says why there are none.

    Those of colours say whether they are `above_guessing`: null where subjects are too few to show even a perfect one.
    """

    why_not: str = ""
    train_images: int = 0  # whose colours were learnt
    train_images_of: int = 0  # labelled ones that the train split holds
    chance: float = 0.0
    border: Mapping[str, Any] | None = None
    whole: Mapping[str, Any] | None = None
    model: Mapping[str, Any] | None = None  # the model's own, on the same images
    few: tuple[str, ...] = ()  # of many classes those with fewer than _FEWEST images learnt from

    def record(self) -> dict[str, Any]:
        """For `metrics.json`."""
        return {"why_not": self.why_not} if self.why_not else {"why_not": None, **_without(asdict(self), "why_not")}

    def notes(self) -> list[str]:
        """What speaks against the model's figures, each a sentence; or that nothing can be said."""
        if self.border is None or self.whole is None or self.model is None:
            return [f"Whether colour alone tells the classes apart was not checked: {self.why_not}."]
        notes = []
        if self._is_notable(self.border):
            notes.append(self._sentence("border", self.border) + " Part of the result may come from stain and camera.")
        if self._is_notable(self.whole) and self.whole["value"] >= self._floor(self.model):
            notes.append(self._sentence("whole", self.whole) + " Nothing shows that this model has learnt more.")
        return notes

    def _is_notable(self, found: Mapping[str, Any]) -> bool:
        is_far = found["value"] >= self.chance + _NOTABLE * (1 - self.chance)
        return bool(is_far and found["above_guessing"] is not False)

    @staticmethod
    def _floor(model: Mapping[str, Any]) -> float:
        return float(model["value"] if model["low"] is None else model["low"])

    def _sentence(self, part: str, found: Mapping[str, Any]) -> str:
        assert self.model is not None
        return (
            f"{_WHAT[part]} tells the classes apart with a balanced accuracy of {with_interval(found)}, learnt from "
            f"{self.train_images:,} training images; the model reaches {with_interval(self.model)}, guessing "
            f"{self.chance:.3g}."
        )


def _without(record: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != key}


def images_to_learn_from(manifest: Manifest, info: BundleInfo, split: str, count: int) -> list[ManifestRow]:
    """At most `count` labelled images of the train split, of all classes alike, drawn always the same way.

    None where the train split is itself what is measured.
    """
    if split == "train":
        return []
    table = _training(manifest, info)
    names = table[_class_column(info)].to_pylist()
    of_class: dict[object, list[int]] = {}
    for at in np.random.default_rng(0).permutation(len(names)).tolist():
        of_class.setdefault(names[at], []).append(at)
    in_turn = chain.from_iterable(zip_longest(*(of_class[name] for name in sorted(of_class, key=str))))
    chosen = [at for at in in_turn if at is not None][:count]  # one of each class, again and again
    return read_rows(table.take(pa.array(chosen, pa.int64())), ManifestRow)


def _class_column(info: BundleInfo) -> str:
    return "label" if info.task == "binary" else "class_name"


def _training(manifest: Manifest, info: BundleInfo) -> pa.Table:
    """The labelled rows of the train split, of classes that the model knows."""
    table = manifest.table.filter(pc.equal(manifest.table["split"], "train"))
    found = table[_class_column(info)]
    known = pc.is_valid(found) if info.task == "binary" else pc.is_in(found, pa.array(info.classes, pa.string()))
    return table.filter(known)


def judge_colours(
    glances: Sequence[Glance],
    asked: int | None,
    manifest: Manifest,
    outcomes: Outcomes,
    model: Mapping[str, Any],
    resampling: Resampling,
) -> Shortcut:
    """Learn from `glances` (of `asked` training images at most; None where models are compared), judge on `outcomes`.

    `model` is the model's own balanced accuracy there, JSON-ready.
    """
    info, total = outcomes.info, _training(manifest, outcomes.info).num_rows
    seen = [(true_class(info, glance.row), glance.colours) for glance in glances if glance.colours is not None]
    truth = np.array([target for target, _ in seen], np.int64)
    if why_not := _why_not(outcomes, truth, asked, total):
        return Shortcut(why_not)
    found: dict[str, Any] = {}
    chance = 1 / len(np.unique(truth))
    for part in ("border", "whole"):
        known = np.array([getattr(colours, part) for _, colours in seen])
        measured = np.array([getattr(outcome.colours, part) for outcome in outcomes.scored])
        guesser = make_pipeline(StandardScaler(), SVC(C=10, class_weight="balanced")).fit(known, truth)
        reached = _balanced_accuracy(outcomes, guesser.predict(measured), resampling)
        found[part] = reached | {"above_guessing": _is_above(chance, reached, outcomes)}
    counts = zip(info.classes, np.bincount(truth, minlength=len(info.classes)).tolist(), strict=True)
    few = tuple(name for name, count in counts if count < _FEWEST)
    return Shortcut("", len(seen), total, chance, **found, model=dict(model), few=few)


def _why_not(outcomes: Outcomes, truth: Ints, asked: int | None, total: int) -> str:
    """Why nothing can be learnt or judged; empty where it can."""
    if outcomes.all[0].row.split == "train":
        return "the train split itself is measured"
    if not total:
        return "this manifest has no labelled training images"
    if asked is None:
        return NOT_ASKED
    if not asked:
        return "--colour-images is 0"
    if (np.unique(truth, return_counts=True)[1] >= _FEWEST).sum() < 2:
        return f"too few training images could be read ({len(truth)}; {_FEWEST} of each of two classes are needed)"
    if len(np.unique(outcomes.truth)) < 2:
        return "the images measured are of one class only"
    return ""


def _balanced_accuracy(outcomes: Outcomes, guessed: Ints, resampling: Resampling) -> dict[str, Any]:
    """Of class numbers guessed (N,), with limits by the same method as the model's."""
    truth, subjects = outcomes.truth, outcomes.subjects
    said: Floats = np.eye(len(outcomes.info.classes))[guessed]
    if outcomes.info.task == "binary":
        found = evaluate_binary(truth, said[:, 1], threshold=0.5, subjects=subjects, resampling=resampling)
    else:
        names = outcomes.info.classes
        found = evaluate_multiclass(truth, said, class_names=names, subjects=subjects, resampling=resampling)
    return dict(found["metrics"]["balanced_accuracy"])


def _is_above(chance: float, reached: Mapping[str, Any], outcomes: Outcomes) -> bool | None:
    """Whether a balanced accuracy is shown to be above `chance`; None where no answers could show it.

    The limits of the page allow for an adverse subject: of three subjects a class they hold guessing even where each
    is right. A warning must not fall silent by that, so those of `chance.balanced_limits` do as well.
    """
    codes, _ = subject_codes(outcomes.subjects, len(outcomes.truth))
    sides = [codes[outcomes.truth == k] for k in np.unique(outcomes.truth)]
    if balanced_limits(1.0, sides).low <= chance:
        return None
    return max(reached["low"] or 0.0, balanced_limits(reached["value"], sides).low) > chance
