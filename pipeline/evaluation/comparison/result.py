"""Several models compared: what each reaches, what may be said of the differences, on which images they disagree."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from string import ascii_uppercase
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.base.errors import ImageRejected, InputError, UsageError
from pipeline.evaluation.comparison.paired import Difference, Side, enough_samples, paired_differences
from pipeline.evaluation.comparison.speed import Speed
from pipeline.evaluation.intervals import Resampling, called_units, known_or_none, subject_codes
from pipeline.evaluation.limits import Answers
from pipeline.evaluation.multiplicity import holm
from pipeline.evaluation.names import MAIN_METRICS
from pipeline.evaluation.outcomes import Outcomes
from pipeline.evaluation.predict import Outcome
from pipeline.evaluation.reach import Chosen
from pipeline.evaluation.result import Evaluation, evaluation
from pipeline.model.bundle import Bundle, BundleInfo
from pipeline.model.prediction import Prediction
from pipeline.sources.manifest import Manifest
from pipeline.storage.parquet import to_parquet
from pipeline.storage.stores import Stores
from pipeline.storage.uris import join

MOST_MODELS = len(ascii_uppercase)
DISEASE = "disease_"  # before a metric of 'diseased or not' of many classes
_DISEASE_METRICS = ("sensitivity", "specificity", "roc_auc")
_ID = ("image_id", "uri", "member", "subject_id", "class_name", "label", "site")


@dataclass(frozen=True)
class Judged:
    """A difference, with the p that allows for the number of pairs, and whether it is one."""

    difference: Difference
    p_adjusted: float
    is_real: bool

    def record(self) -> dict[str, Any]:
        told = {k: v if isinstance(v, str) else known_or_none(v) for k, v in asdict(self.difference).items()}
        return {**told, "p_adjusted": known_or_none(self.p_adjusted), "is_real": self.is_real}


@dataclass(frozen=True)
class Pair:
    """Two of the models, by number: the metrics of the first less those of the second."""

    first: int
    second: int
    differences: Mapping[str, Judged]
    only_first: NDArray[np.int64]  # rows that the first alone gets right, farthest from right for the second first
    only_second: NDArray[np.int64]
    both_right: int
    both_wrong: int


@dataclass(frozen=True)
class Comparison:
    """Models on the images of a split that all of them could read."""

    evaluations: Sequence[Evaluation]
    pairs: Sequence[Pair]
    speeds: Sequence[Speed]
    left_out: int  # images that not every model gave an answer to
    resampling: Resampling

    @property
    def images(self) -> int:
        """Labelled images of the split, answered or not."""
        return len(self.evaluations[0].outcomes.scored) + self.left_out

    @property
    def letters(self) -> list[str]:
        return list(ascii_uppercase[: len(self.evaluations)])

    @property
    def units(self) -> str:
        """What was resampled, in words: subjects, blocks or images."""
        method = self.evaluations[0].metrics["intervals"]
        return called_units(method["unit"], method["called"])

    @property
    def names(self) -> list[str]:
        return [f"{of.bundle.info.name} / {of.bundle.info.version}" for of in self.evaluations]

    def record(self, configuration: Mapping[str, Any]) -> dict[str, Any]:
        """`comparison.json`."""
        one = self.evaluations[0]
        models = zip(self.letters, self.evaluations, self.speeds, strict=True)
        return {
            "split": one.split,
            "split_digest": one.manifest.split_digest(one.split),
            "images": one.metrics["images"],
            "subjects": one.metrics["subjects"],
            "left_out": self.left_out,
            "intervals": one.metrics["intervals"],
            "difference_samples": enough_samples(self.resampling, len(self.pairs)).replicates,
            "models": {letter: _model(found, speed) for letter, found, speed in models},
            "pairs": [self._pair(pair) for pair in self.pairs],
            "warnings": self.warnings,
            "configuration": configuration,
        }

    @property
    def warnings(self) -> list[str]:
        """What speaks against the comparison; what is of one model alone begins with its letter."""
        every = [[*found.notes, *found.cautions] for found in self.evaluations]
        shared = [note for note in every[0] if all(note in notes for notes in every)]
        alone = [
            f"{letter}: {note}"
            for letter, notes in zip(self.letters, every, strict=True)
            for note in notes
            if note not in shared
        ]
        left = f"{self.left_out:,} images that not every model gave an answer to are left out of all figures."
        return [*shared, *([left] if self.left_out else []), *alone]

    def _pair(self, pair: Pair) -> dict[str, Any]:
        ids = [outcome.row.image_id for outcome in self.evaluations[0].outcomes.scored]
        return {
            "first": self.letters[pair.first],
            "second": self.letters[pair.second],
            "differences": {name: judged.record() for name, judged in pair.differences.items()},
            "both_right": pair.both_right,
            "both_wrong": pair.both_wrong,
            "only_first_right": [ids[k] for k in pair.only_first.tolist()],
            "only_second_right": [ids[k] for k in pair.only_second.tolist()],
        }

    def table(self) -> pa.Table:
        """One row an image, with the probability of disease, or of the class named, and the answer of each model."""
        scored = self.evaluations[0].outcomes.scored
        columns: dict[str, Any] = {key: [getattr(outcome.row, key) for outcome in scored] for key in _ID}
        for letter, found in zip(self.letters, self.evaluations, strict=True):
            called, names = found.outcomes.called(found.threshold.value), found.bundle.info.classes
            rows = np.arange(len(called))
            scores = (
                found.outcomes.classes[:, 1]
                if found.bundle.info.task == "binary"
                else found.outcomes.classes[rows, called]
            )
            columns[f"probability_{letter}"] = pa.array(scores, pa.float32())
            columns[f"called_{letter}"] = [names[k] for k in called.tolist()]
            columns[f"is_right_{letter}"] = pa.array(called == found.outcomes.truth)
        return pa.table(columns)

    def save(self, out: str, record: Mapping[str, Any], page: str, stores: Stores) -> None:
        """comparison.json, comparison.html and comparison.parquet into the folder `out`."""
        store = stores.of(out)
        store.write(join(out, "comparison.parquet"), to_parquet(self.table()))
        store.write(join(out, "comparison.json"), json.dumps(record, indent=2, allow_nan=False).encode())
        store.write(join(out, "comparison.html"), page.encode())


def refuse_incomparable(bundles: Sequence[Bundle]) -> None:
    """Raise where two are the same model, UsageError, or answer different questions, InputError."""
    if len(bundles) > MOST_MODELS:
        raise UsageError(f"--model: {len(bundles)} models; at most {MOST_MODELS} can be compared at once")
    first = bundles[0]
    for k, bundle in enumerate(bundles):
        one, other = first.info, bundle.info
        if (one.task, one.classes, set(one.positive_classes)) != (
            other.task,
            other.classes,
            set(other.positive_classes),
        ):
            raise InputError(
                f"{first.uri} answers {_question(first)}, {bundle.uri} {_question(bundle)}: different questions cannot "
                "be compared; name models that were trained for the same classes"
            )
        for earlier in bundles[:k]:
            if earlier.info.identity() == other.identity():
                raise UsageError(f"--model: {earlier.uri} and {bundle.uri} are the same model; name each once")


def _question(bundle: Bundle) -> str:
    info = bundle.info
    disease = f", of which {', '.join(info.positive_classes)} mean disease" if info.positive_classes else ""
    return f"which of {', '.join(info.classes)}{disease}"


def comparison(
    bundles: Sequence[Bundle], manifest: Manifest, split: str, outcomes: Sequence[Sequence[Outcome]],
    thresholds: Sequence[Chosen], resampling: Resampling, speeds: Sequence[Speed],
) -> Comparison:  # fmt: skip
    """Compare what models that answer one question said of the same rows: `outcomes` and `thresholds` one a model."""
    common = set.intersection(
        *({of.row.image_id for of in found if isinstance(of.result, Prediction)} for found in outcomes)
    )
    every = {of.row.image_id for found in outcomes for of in found}
    further = manifest.table.select(["image_id", *manifest.further])
    evaluations = []
    for bundle, found, threshold in zip(bundles, outcomes, thresholds, strict=True):
        kept = [of for of in found if of.row.image_id in common or isinstance(of.result, ImageRejected)]
        said = Outcomes(bundle.info, kept, further)
        evaluations.append(evaluation(bundle, manifest, split, said, threshold, resampling))
    pairs = judged_pairs(evaluations, resampling)
    return Comparison(evaluations, pairs, speeds, len(every) - len(common), resampling)


def metric_keys(info: BundleInfo) -> tuple[str, ...]:
    """Names of the figures that models of these classes are compared by, as `metrics_of` has them."""
    has_disease = info.task == "multiclass" and bool(info.diseased_side)
    return (*MAIN_METRICS[info.task], *(DISEASE + name for name in _DISEASE_METRICS if has_disease))


def metrics_of(found: Evaluation) -> dict[str, Any]:
    """The figures that models are compared by, with limits; those of disease of many classes after `DISEASE`."""
    task = found.metrics["task"]
    main = {name: found.metrics["metrics"][name] for name in MAIN_METRICS[task]}
    disease = found.metrics.get("disease")
    more = {DISEASE + name: disease["metrics"][name] for name in _DISEASE_METRICS} if disease else {}
    return main | more


def judged_pairs(evaluations: Sequence[Evaluation], resampling: Resampling) -> list[Pair]:
    """Each two of them; p is adjusted for the number of pairs, for each metric by itself."""
    numbers = list(combinations(range(len(evaluations)), 2))
    sides = [_sides(found) for found in evaluations]
    called = evaluations[0].manifest.info.units
    enough = enough_samples(resampling, len(numbers))
    raw = [_differences(sides[one], sides[other], enough, called) for one, other in numbers]
    adjusted = {name: holm([found[name].p for found in raw]) for name in raw[0]} if raw else {}
    level = 1 - resampling.confidence
    pairs = []
    for place, (one, other) in enumerate(numbers):
        told = {}
        for name, difference in raw[place].items():
            p = adjusted[name][place]
            told[name] = Judged(difference, p, bool(p <= level))
        pairs.append(_pair(one, other, evaluations, told))
    return pairs


def _pair(one: int, other: int, evaluations: Sequence[Evaluation], told: Mapping[str, Judged]) -> Pair:
    first, second = evaluations[one], evaluations[other]
    right = [of.outcomes.called(of.threshold.value) == of.outcomes.truth for of in (first, second)]
    only = [np.flatnonzero(right[0] & ~right[1]), np.flatnonzero(~right[0] & right[1])]
    return Pair(
        one,
        other,
        told,
        second.outcomes.farthest(only[0], second.threshold.value),
        first.outcomes.farthest(only[1], first.threshold.value),
        int((right[0] & right[1]).sum()),
        int((~right[0] & ~right[1]).sum()),
    )


def _sides(found: Evaluation) -> dict[str, Side]:
    """By what stands before the names of its metrics."""
    said, threshold = found.outcomes, found.threshold.value
    codes = subject_codes(said.subjects, len(said.truth))
    points = {name: _value(metric) for name, metric in found.metrics["metrics"].items()}
    called = said.called(threshold)
    if found.metrics["task"] == "binary":
        scores = said.classes[:, 1]
        return {"": Side(Answers(said.truth, called, *codes, said.subjects, scores, threshold), points)}
    sides = {"": Side(Answers(said.truth, called, *codes, said.subjects), points, said.classes)}
    if said.diseased is not None:
        alarmed = (said.probability >= threshold).astype(np.int64)
        answers = Answers(said.diseased, alarmed, *codes, said.subjects, said.probability, threshold)
        values = {name: _value(metric) for name, metric in found.metrics["disease"]["metrics"].items()}
        sides[DISEASE] = Side(answers, values)
    return sides


def _differences(
    first: Mapping[str, Side], second: Mapping[str, Side], resampling: Resampling, called: str
) -> dict[str, Difference]:
    found: dict[str, Difference] = {}
    for before, side in first.items():
        task = "binary" if side.probabilities is None else "multiclass"
        names = _DISEASE_METRICS if before else MAIN_METRICS[task]
        told = paired_differences(names, side, second[before], resampling, called)
        found |= {before + name: difference for name, difference in told.items()}
    return found


def _value(metric: Mapping[str, Any]) -> float:
    return float("nan") if metric["value"] is None else float(metric["value"])


def _model(found: Evaluation, speed: Speed) -> dict[str, Any]:
    info = found.bundle.info
    return {
        "name": info.name,
        "version": info.version,
        "uri": found.bundle.uri,
        "identity": info.identity(),
        "architecture": info.architecture,
        "input_size": info.input_size,
        "threshold": found.threshold.value if info.positive_classes else None,
        "metrics": metrics_of(found),
        "all_metrics": found.metrics["metrics"],
        "training_images": found.recognized.record(),
        "ood": found.ood,
        "speed": speed.record(),
    }
