"""FDA's predetermined change control plan in its three parts, filled from a promotion or a single evaluation.

After FDA's guidance on such plans for AI-enabled device software functions (final, December 2024; FDA-2022-D-2628). It
is a draft for a person: whether the software is a device, and what harm a wrong answer does, no run can know.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.comparison.result import Comparison
from pipeline.evaluation.comparison.words import metric_name, signed, verdict
from pipeline.evaluation.promotion.criteria import Criterion
from pipeline.evaluation.study.facts import Fact, Facts
from pipeline.model.bundle import Bundle

_FIELDS = (
    "architecture",
    "input_size",
    "classes",
    "temperature",
    "threshold",
    "review_band",
    "manifest_digest",
    "turns",
)
_SETTINGS = ("weights", "unfreeze", "epochs", "learning_rate", "batch_size", "optimizer", "balance", "augment", "seed")


@dataclass(frozen=True)
class Decision:
    """What was decided of a version, by a protocol."""

    criteria: Sequence[Criterion]
    action: str  # of the archive of promotions
    by: str
    why: str
    protocol: Mapping[str, Any]  # uri, text, sha256


@dataclass(frozen=True)
class Part:
    """One of the three parts: rows of what it asks, and what the run knows of it."""

    title: str
    rows: Sequence[tuple[str, Fact | None]]


def parts(comparison: Comparison, facts: Facts, decision: Decision | None) -> list[Part]:
    """The plan. `comparison`: of one version, or of it and the best one before."""
    return [
        Part("Description of modifications", _modifications(comparison)),
        Part("Modification protocol", _protocol(comparison, facts, decision)),
        Part("Impact assessment", _impact(comparison, facts)),
    ]


def changes(old: Bundle, new: Bundle) -> list[str]:
    """'threshold: 0.31 -> 0.35', of what differs between two versions."""
    found = [(name, getattr(old.info, name), getattr(new.info, name)) for name in _FIELDS]
    found += [(name, old.info.training.get(name), new.info.training.get(name)) for name in _SETTINGS]
    return [f"{name}: {_short(before)} -> {_short(after)}" for name, before, after in found if before != after]


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def _modifications(comparison: Comparison) -> list[tuple[str, Fact | None]]:
    told = None
    if len(comparison.evaluations) == 2:
        new, old = (of.bundle for of in comparison.evaluations)
        differing = changes(old, new) or ["none but the weights"]
        told = Fact(f"From {old.info.version} to {new.info.version}: {'; '.join(differing)}", is_whole=False)
    return [
        ("what changes from the version before", told),
        ("which changes are foreseen, and their bounds", None),
        ("why, and for whom", None),
        ("automatic or by hand, for all places or for some", Fact("By hand: best.json moves by a command of a person")),
    ]


def _protocol(comparison: Comparison, facts: Facts, decision: Decision | None) -> list[tuple[str, Fact | None]]:
    new = comparison.evaluations[0]
    digest = new.manifest.split_digest(new.split)
    data = f"{facts['partitions'].text}. Digest of the images measured {digest}"
    judged = None if decision is None else Fact("; ".join(f"{one.asked}: {one.state}" for one in decision.criteria))
    update = None
    if decision is not None:
        why = f", reason given: {decision.why}" if decision.why else ""
        update = Fact(
            f"{decision.action.capitalize()} by {decision.by}{why}; protocol {decision.protocol['sha256']}; archived "
            "with all figures; `leukoray promote --rollback` goes back",
            is_whole=False,
        )
    return [
        ("management of data: collection, parts, truth", Fact(data, is_whole=False)),
        ("how it is trained anew", facts.get("training")),
        ("what it must reach, and how that is measured", judged),
        ("statistics", facts.get("uncertainty")),
        ("how it is rolled out, told of and rolled back", update),
        ("watching it in use", None),
        ("which change needs which part of this", None),
    ]


def _impact(comparison: Comparison, facts: Facts) -> list[tuple[str, Fact | None]]:
    compared = disagreed = None
    if len(comparison.pairs) == 1:
        [pair] = comparison.pairs
        told = [
            f"{metric_name(k)} {signed(judged.difference.value)} ({verdict(judged, comparison.units)})"
            for k, judged in pair.differences.items()
        ]
        compared = Fact("New less before: " + "; ".join(told), is_whole=False)
        disagreed = Fact(
            f"{len(pair.only_first):,} images are now right that were wrong, {len(pair.only_second):,} now wrong that "
            "were right: comparison.html",
            is_whole=False,
        )
    return [
        ("with and without the change, compared", compared),
        ("images whose answer turns", disagreed),
        ("groups of people", facts.get("slices")),
        ("images unlike those of training", facts.get("ood")),
        ("benefits and risks, and what limits them", None),
        ("several changes together", None),
        ("other functions of the device", None),
    ]
