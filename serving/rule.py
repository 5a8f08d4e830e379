"""The written rule by which a candidate is promoted, dropped, or waited for; judged of counts over all replicas.

Its words are those of `leukoray promote` (docs/promote.md): a criterion is met, not met, or cannot be told. It says how
far a candidate agrees with the model that answers, which is not how right either of them is.
"""

from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serving.bounds import limits

State = Literal["met", "not met", "cannot be told"]
_MET: State = "met"
_NOT_MET: State = "not met"
_UNTOLD: State = "cannot be told"


class Rule(BaseModel):
    """What a candidate must reach; written before anybody looks."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    min_images: int = Field(ge=1, description="images that both have answered")
    max_changed_share: float = Field(
        ge=0, lt=1, description="of images whose decision is another (of the class, where there are no decisions)"
    )
    max_unanswered_share: float = Field(
        0.0, ge=0, lt=1, description="of images that it fails on and the model that answers does not; 0: none"
    )
    max_latency_ratio: float | None = Field(
        None, gt=0, description="of its forward pass an image beside that of the model that answers, means"
    )
    min_hours: float = Field(0.0, ge=0, description="of the trial, at least: a day has other images at night")
    max_hours: float | None = Field(None, gt=0, description="after which one that is not promoted is dropped")
    confidence: float = Field(0.95, ge=0.5, lt=1, description="of the limits of shares, at all looks together")

    @model_validator(mode="after")
    def _fits_together(self) -> "Rule":
        if self.max_hours is not None and self.max_hours < self.min_hours:
            raise ValueError(f"max_hours {self.max_hours:g} is below min_hours {self.min_hours:g}")
        return self


class Figures(NamedTuple):
    """Of one trial, over all replicas. Seconds are means of a forward pass an image; None of no image."""

    images: int = 0  # that both answered
    changed: int = 0
    unanswered: int = 0  # that the model that answers did, and the candidate did not
    agreed_s: float | None = None
    candidate_s: float | None = None


class Criterion(BaseModel):
    """One line of the rule, as it stands. `value` is what lies beside `limit`: of a share its upper limit."""

    model_config = ConfigDict(frozen=True)

    name: str
    asks: str
    state: State
    figures: str
    value: float | None
    limit: float


class Verdict(BaseModel):
    """What the rule says now, and why."""

    model_config = ConfigDict(frozen=True)

    decision: Literal["promote", "drop", "wait"]
    reason: str
    criteria: tuple[Criterion, ...]


def judge(rule: Rule, found: Figures, hours: float) -> Verdict:
    """One that cannot become met any more, or was not within `max_hours`, is dropped; one that is all met promoted."""
    criteria = _criteria(rule, found, hours)
    lost = [one for one in criteria if one.state == _NOT_MET]
    untold = [one for one in criteria if one.state == _UNTOLD]
    if lost:
        return Verdict(decision="drop", reason=_told(lost), criteria=criteria)
    if not untold:
        return Verdict(decision="promote", reason=_told(criteria), criteria=criteria)
    if rule.max_hours is not None and hours >= rule.max_hours:
        reason = f"not decided within {rule.max_hours:g} h: {_told(untold)}"
        return Verdict(decision="drop", reason=reason, criteria=criteria)
    return Verdict(decision="wait", reason=_told(untold), criteria=criteria)


def _criteria(rule: Rule, found: Figures, hours: float) -> tuple[Criterion, ...]:
    changed = _share("max_changed_share", rule.max_changed_share, found.changed, found.images, rule.confidence)
    unanswered = _share(
        "max_unanswered_share", rule.max_unanswered_share, found.unanswered,
        found.images + found.unanswered, rule.confidence,
    )  # fmt: skip
    criteria = [_at_least("min_images", found.images, rule.min_images, "images"), changed, unanswered]
    if rule.max_latency_ratio is not None:
        criteria.append(_latency(rule.max_latency_ratio, found, rule.min_images))
    if rule.min_hours:
        criteria.append(_at_least("min_hours", hours, rule.min_hours, "hours"))
    return tuple(criteria)


def _at_least(name: str, value: float, limit: float, what: str) -> Criterion:
    return Criterion(
        name=name,
        asks=f"at least {limit:g} {what}",
        state=_MET if value >= limit else _UNTOLD,
        figures=f"{value:g} {what}" if isinstance(value, int) else f"{value:.2f} {what}",
        value=value,
        limit=limit,
    )


def _share(name: str, limit: float, found: int, trials: int, confidence: float) -> Criterion:
    low, high = limits(found, trials, confidence)
    if limit == 0:  # which no limit of finitely many can reach: none means none
        state = _NOT_MET if found else _MET if trials else _UNTOLD
    else:
        state = _MET if high <= limit else _NOT_MET if low > limit else _UNTOLD
    share = f"{found / trials:.2%}, " if trials else ""
    return Criterion(
        name=name,
        asks="none" if limit == 0 else f"upper limit at most {limit:.2%}",
        state=state,
        figures=f"{found} of {trials}, {share}limits {low:.2%} to {high:.2%}",
        value=float(found) if limit == 0 else high,
        limit=limit,
    )


def _latency(limit: float, found: Figures, min_images: int) -> Criterion:
    asks = f"at most {limit:g} times as long"
    if not (found.agreed_s and found.candidate_s):
        return Criterion(
            name="max_latency_ratio", asks=asks, state=_UNTOLD, figures="nothing timed", value=None, limit=limit
        )
    ratio = found.candidate_s / found.agreed_s
    state: State = _UNTOLD if found.images < min_images else _MET if ratio <= limit else _NOT_MET
    figures = f"{ratio:.2f}: {found.candidate_s * 1e3:.1f} ms beside {found.agreed_s * 1e3:.1f} ms"
    return Criterion(name="max_latency_ratio", asks=asks, state=state, figures=figures, value=ratio, limit=limit)


def _told(criteria: list[Criterion] | tuple[Criterion, ...]) -> str:
    return "; ".join(f"{one.name} {one.state} ({one.asks}; {one.figures})" for one in criteria)
