"""Who is counted: from what the model says of each image of one subject to counts by class, and by why not.

Only images outside the review band that look like those of training are counted. The leukocytes among them are the
denominator of every share.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.images.unit import DESCRIBED, Unit
from serving.protocols.fhir.codes import BLASTS, OTHER_LEUKOCYTES, Kind, kind_of
from serving.schemas import ErrorDetail, ImageAnswer, ModelInfo

Outcome = Literal["counted", "review", "out-of-distribution", "rejected"]


@dataclass(frozen=True)
class Sent:
    """One file of a request: the model's answer or why there is none, and the SHA-256 of its bytes where kept."""

    answer: ImageAnswer | None
    error: ErrorDetail | None
    sha256: str | None  # hex


@dataclass(frozen=True)
class Meaning:
    """What the classes of a model are: kinds of cells, or nothing that could be counted (`why_not` says why)."""

    kinds: Mapping[str, Kind]  # of each class; empty: none
    is_differential: bool  # of many kinds, not only blasts against others
    why_not: str


def meaning(info: ModelInfo, unit: Unit | None, class_labels: Mapping[str, int]) -> Meaning:
    """`class_labels` are the classes of training behind a model of two sides; empty: not known.

    Kinds are known only of a model of single cells, each of whose classes names one. A model of two sides counts blasts
    where every class of training on its positive side is one by name, and every other a leukocyte by name.
    """
    if unit != "cell":
        shown = f"images of the model show {DESCRIBED[unit]}" if unit else "nobody has said what its images show"
        return Meaning({}, False, f"{shown}: nothing is counted")
    found = {name: kind for name in info.classes if (kind := kind_of(name))}
    if len(found) == len(info.classes):
        return Meaning(found, len(found) > 2, "")
    if len(info.classes) == 2 and len(info.positive_classes) == 1:
        sides = [[kind_of(name) for name, label in class_labels.items() if label == side] for side in (0, 1)]
        roles = [{kind.role if kind else None for kind in side} for side in sides]
        if roles == [{"leukocyte"}, {"blast"}]:
            (positive,) = info.positive_classes
            (other,) = set(info.classes) - {positive}
            return Meaning({positive: BLASTS, other: OTHER_LEUKOCYTES}, False, "")
    unknown = ", ".join(repr(name) for name in info.classes if name not in found)
    why_not = f"classes of the model are no kinds of cells by name ({unknown}): no cell is counted by its kind"
    return Meaning({}, False, why_not)


def outcome(sent: Sent) -> Outcome:
    if sent.answer is None:
        return "rejected"
    if sent.answer.is_ood:
        return "out-of-distribution"
    return "review" if sent.answer.decision == "review" else "counted"


def named(info: ModelInfo, answer: ImageAnswer) -> str:
    """The class that an image counts as: the most probable one on the side of its decision.

    Of several classes and a threshold other than one half this can be another than the most probable of all.
    """
    if answer.decision not in ("positive", "negative"):
        return answer.class_name
    is_positive = answer.decision == "positive"
    side = [name for name in info.classes if (name in info.positive_classes) == is_positive]
    return answer.class_name if answer.class_name in side or not side else max(side, key=answer.classes.__getitem__)


@dataclass(frozen=True)
class Tally:
    """Images by outcome, the counted ones by class. `leukocytes` is the denominator; 0 where nothing is counted.

    `again` files hold the same bytes as another: they are counted, as everything that was sent, and told of.
    `not_looked_for`: outcomes that this model has no rule for.
    """

    outcomes: Mapping[Outcome, int]
    classes: Mapping[str, int]
    leukocytes: int
    beside: int
    again: int = 0
    not_looked_for: tuple[Outcome, ...] = ()

    @property
    def files(self) -> int:
        return sum(self.outcomes.values())


def tally(info: ModelInfo, meant: Meaning, files: Sequence[Sent]) -> Tally:
    outcomes = Counter(outcome(sent) for sent in files)
    classes = Counter(named(info, sent.answer) for sent in files if sent.answer and outcome(sent) == "counted")
    roles = Counter[str]()
    for name, count in classes.items():
        if kind := meant.kinds.get(name):
            roles[kind.role] += count
    every: dict[Outcome, int] = {"counted": 0, "review": 0, "out-of-distribution": 0, "rejected": 0}
    digests = [sent.sha256 for sent in files if sent.sha256]
    return Tally(
        outcomes=every | dict(outcomes),
        classes=dict(classes),
        leukocytes=roles["leukocyte"] + roles["blast"],
        beside=roles["beside"],
        again=len(digests) - len(set(digests)),
        not_looked_for=_not_looked_for(info, files),
    )


def _not_looked_for(info: ModelInfo, files: Sequence[Sent]) -> tuple[Outcome, ...]:
    has_limit = any(sent.answer.is_ood is not None for sent in files if sent.answer)
    rules: dict[Outcome, bool] = {"review": info.review_band is not None, "out-of-distribution": has_limit}
    return tuple(kind for kind, has_rule in rules.items() if not has_rule)
