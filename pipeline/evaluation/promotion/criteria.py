"""Each criterion of a protocol against what was measured: met, not met, or cannot be told. Pure."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError
from pipeline.evaluation.comparison.result import Comparison, Judged, metric_keys, metrics_of
from pipeline.evaluation.comparison.speed import Speed
from pipeline.evaluation.comparison.words import metric_name, signed
from pipeline.evaluation.intervals import called_units, subject_codes
from pipeline.evaluation.promotion.protocol import MetricRule, Protocol, SliceRule
from pipeline.evaluation.report import words
from pipeline.evaluation.result import Evaluation
from pipeline.model.bundle import BundleInfo

State = Literal["met", "not met", "cannot be told"]
MET, NOT_MET, UNTOLD = State.__args__  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Criterion:
    """What was asked, what came of it, and the figures it rests on, in words."""

    asked: str
    state: State
    found: str

    def record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Best:
    """The best model of now beside the new one: differences 'new less best', or why there are none."""

    version: str | None  # None: there is no best model
    differences: dict[str, Judged] | None = None
    why_not: str = ""
    other_question: str = ""  # a sentence, where it answers another one than the new version
    is_readable: bool = True  # False: nobody can tell what it answers


def criteria(protocol: Protocol, found: Comparison, best: Best) -> list[Criterion]:
    """All of a protocol for the first model of `found`: what is always asked, then the rules in their order.

    Raises InputError where it asks for a figure that such models do not have.
    """
    new, speed = found.evaluations[0], found.speeds[0]
    return [
        _training_images(new),
        _answered(protocol.max_unanswered_share, found),
        _question(best),
        *(told for rule in protocol.metrics for told in _of_metric(rule, new, best)),
        *(_of_slice(rule, new) for rule in protocol.slices),
        *_of_latency(protocol.latency_p95_ms, speed),
        *_of_ood(protocol.max_ood_share, new),
    ]


def all_met(found: Sequence[Criterion]) -> bool:
    return all(one.state == MET for one in found)


def _training_images(new: Evaluation) -> Criterion:
    """Asked by every protocol: figures on images of training say nothing."""
    asked = "no image of its training is among those measured"
    seen = new.recognized
    info = new.bundle.info  # one that `calibrate` made has learnt from further images
    is_own = info.parent is None and bool(info.manifest_digest) and info.manifest_digest == new.manifest.info.digest
    if seen.why_not:
        state = MET if is_own else UNTOLD
        why = "another split of the manifest of its training" if is_own else seen.why_not
        return Criterion(asked, state, why)
    by_bytes = seen.by.get("bytes", 0)
    if by_bytes:
        return Criterion(asked, NOT_MET, f"{by_bytes:,} of {seen.images:,} are, byte by byte")
    if seen.count and not is_own:
        return Criterion(asked, UNTOLD, f"{seen.count:,} of {seen.images:,} look like some; see recognized.csv")
    return Criterion(asked, MET, str(seen))


def _answered(limit: float, found: Comparison) -> Criterion:
    """Asked by every protocol: figures leave out what a model says nothing of, which are its hardest images."""
    whose = f"at most {100 * limit:g} of 100 images" if limit else "no image"
    asked = f"{whose} without an answer"
    silent, images = len(found.evaluations[0].outcomes.rejections), found.images
    told = f"{silent:,} of {images:,} without an answer"
    if silent > limit * images:
        return Criterion(asked, NOT_MET, told)
    if found.left_out > limit * images:
        more = found.left_out - silent
        return Criterion(asked, UNTOLD, f"{told}; {more:,} more without one of the best model: not compared on those")
    return Criterion(asked, MET, told)


def _question(best: Best) -> Criterion:
    """Asked by every protocol: whoever follows best.json relies on its classes."""
    asked = "it answers the question of the best model"
    if best.version is None:
        return Criterion(asked, MET, "there is no best model yet")
    if not best.is_readable:
        return Criterion(asked, UNTOLD, f"{best.version}: {best.why_not}")
    if best.other_question:
        return Criterion(asked, NOT_MET, best.other_question)
    return Criterion(asked, MET, f"that of {best.version}")


def refuse_unknown(protocol: Protocol, info: BundleInfo) -> None:
    """Raise InputError where a rule names a figure that models of these classes are not compared by."""
    known = metric_keys(info)
    for rule in protocol.metrics:
        if rule.metric not in known:
            raise InputError(
                f"the protocol asks for {rule.metric!r}, which models of these classes are not compared by; "
                f"they are by {', '.join(known)}"
            )


def _of_metric(rule: MetricRule, new: Evaluation, best: Best) -> Iterator[Criterion]:
    figures = metrics_of(new)
    name = metric_name(rule.metric)
    if rule.minimum is not None:
        metric = figures[rule.metric]
        asked = f"{name}: lower limit at least {rule.minimum:g}"
        if metric["low"] is None:
            yield Criterion(
                asked, UNTOLD, f"{words.number(metric['value'])}, without an interval: too few {_units(new)}"
            )
        else:
            yield Criterion(asked, _state(metric["low"] >= rule.minimum), words.with_interval(metric))
    if rule.margin is not None:
        asked = f"{name}: not worse than the best model by more than {rule.margin:g}"
        yield Criterion(asked, *_against(best, rule.metric, rule.margin, _units(new)))


def _units(new: Evaluation) -> str:
    method = new.metrics["intervals"]
    return called_units(method["unit"], method["called"])


def _against(best: Best, metric: str, margin: float, units: str) -> tuple[State, str]:
    if best.version is None:
        return MET, "there is no best model yet"
    if best.differences is None:
        return (MET if best.why_not == SAME else UNTOLD), f"{best.version}: {best.why_not}"
    of = best.differences[metric].difference
    if math.isnan(of.low):
        return UNTOLD, f"difference to {best.version} {signed(of.value)}, without limits: too few {units}"
    told = f"difference to {best.version} {signed(of.value)} ({signed(of.low)} to {signed(of.high)})"
    return _state(of.low >= -margin), told


SAME = "it is the same model"


def _of_slice(rule: SliceRule, new: Evaluation) -> Criterion:
    said, units = new.outcomes, new.manifest.info.units
    named = f"{rule.metric} at least {rule.minimum:g} in each group of {rule.column}"
    asked = f"{named} with {rule.min_subjects} subjects or more"
    values = said.column(rule.column)
    if values is None:
        return Criterion(asked, UNTOLD, f"the images have no column {rule.column}")
    of = np.array([value or "" for value in values])
    groups = sorted(set(of.tolist()) - {""})
    if len(groups) < 2:
        return Criterion(asked, UNTOLD, f"the images have no two different values of {rule.column}")
    counted = _counted(new, rule.metric)
    if counted is None:
        return Criterion(asked, UNTOLD, f"no {rule.metric}: the classes do not say which mean disease")
    right, among = counted
    codes, unit = subject_codes(said.subjects, len(right))
    if unit != "subject":
        return Criterion(asked, UNTOLD, "no subjects are known")
    if units != "subjects" and rule.min_subjects > 1:  # many may be of one subject
        return Criterion(asked, UNTOLD, f"no subjects are known, only {units}; `min_subjects: 1` judges every group")
    judged, few = dict[str, float](), []
    for value in groups:
        rows = among & (of == value)
        if len(np.unique(codes[rows])) < rule.min_subjects:
            few.append(value)
        else:
            judged[value] = float(right[rows].mean())
    left = f"; not judged, fewer {units}: {', '.join(few)}" if few else ""
    if unknown := int((of == "").sum()):
        left += f"; {unknown:,} images without a value are in no group"
    if not judged:
        return Criterion(asked, UNTOLD, f"no group has so many {units}{left}")
    told = ", ".join(f"{value} {words.number(share)}" for value, share in judged.items())
    return Criterion(asked, _state(min(judged.values()) >= rule.minimum), told + left)


def _counted(new: Evaluation, metric: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Which images are right (N,), and among which of them `metric` is the share."""
    said, threshold = new.outcomes, new.threshold.value
    if metric == "accuracy":
        right = said.called(threshold) == said.truth
        return np.asarray(right), np.ones(len(right), bool)
    if said.diseased is None:
        return None
    is_sick = said.diseased == 1
    alarmed = said.probability >= threshold
    return np.asarray(alarmed == is_sick), is_sick if metric == "sensitivity" else ~is_sick


def _of_latency(limit: float | None, speed: Speed) -> list[Criterion]:
    if limit is None:
        return []
    asked = f"one image in {limit:g} ms or less on a core of this machine, 95 of 100 times"
    told = f"{speed.p95_ms:.1f} ms (median {speed.median_ms:.1f}, {speed.rounds} rounds)"
    return [Criterion(asked, _state(speed.p95_ms <= limit), told)]


def _of_ood(limit: float | None, new: Evaluation) -> list[Criterion]:
    if limit is None:
        return []
    asked = f"at most {100 * limit:g} of 100 images flagged as unlike those of training"
    if new.ood is None:
        return [Criterion(asked, UNTOLD, "the model has no limit to tell them by")]
    told = f"{new.ood['flagged']:,} of {new.ood['images']:,}"
    return [Criterion(asked, _state(new.ood["share"] <= limit), told)]


def _state(is_met: bool) -> State:
    return "met" if is_met else "not met"
