"""The keeper's part about a candidate: what is asked for is found and proved, loaded by all, compared, and ended.

It knows no rule's outcome by itself: counts of all replicas are given to it, and it says what they come to.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Literal

from pipeline.base.errors import InputError
from pipeline.model.bundle import Bundle, BundleInfo
from serving.agreed import Agreed, CandidateWish, Chosen, Ended, Report, Trial, Trials
from serving.rule import Verdict

log = logging.getLogger("ray.serve")
Decision = Literal["promoted", "dropped"]
By = Literal["rule", "administrator", "configuration", "replica"]
TRY_AGAIN_S = 60.0  # what was in the way may have been a store that was out


class TrialDesk:
    """For the keeper's event loop. `wake`: members are to hear of a change."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self.now = Trials()
        self._bundle: Bundle | None = None  # the candidate's, with its files
        self._tried_at = -TRY_AGAIN_S

    def learn(self, theirs: Trials) -> None:
        """A keeper that was lost and started anew is told by members."""
        if theirs.revision > self.now.revision:
            self.now, self._bundle = theirs, None

    def ask(self, wish: CandidateWish | None, is_anew: bool = False) -> None:
        """What the configuration asks for. `is_anew`: also where that had its trial already."""
        trial = self.now.current
        if wish == self.now.asked and not (is_anew and wish is not None and trial is None):
            return
        if trial is not None and wish is not None and _is_same_model(trial.wish, wish):
            log.info("candidate %s: share %g, rule %s", trial.id, wish.share, wish.rule)
            self._set(asked=wish, refused=None, current=trial.model_copy(update={"wish": wish}))
            return
        if trial is not None:
            self.end(
                "dropped", "configuration", "the configuration asks for another one" if wish else "no longer asked for"
            )
        self._tried_at = -TRY_AGAIN_S
        self._set(asked=wish, is_dealt_with=wish is None, refused=None)

    def wanted(self) -> CandidateWish | None:
        """What is to be found now; a refused one now and then."""
        return self.now.asked if not self.now.is_dealt_with and self.is_due else None

    def leave(self) -> bool:
        """What is asked for is not to begin, as an administrator says; False where nothing is asked for."""
        if self.now.is_dealt_with:
            return False
        log.warning("candidate dropped by administrator: before it began")
        self._set(is_dealt_with=True, refused="dropped by an administrator before it began")
        return True

    def refuse(self, wish: CandidateWish, reason: str) -> None:
        """It does not begin; it is tried again later."""
        if wish == self.now.asked and not self.now.is_dealt_with:
            self._told(reason)

    def not_taken(self, reason: str) -> None:
        """Its rule is met, and something is in the way. It stays on trial, and is to be taken later."""
        self._told(f"the candidate's rule is met, but it was not taken, which is tried again: {reason}")

    @property
    def is_due(self) -> bool:
        """Whether what was refused may be tried now."""
        return self.now.refused is None or time.monotonic() - self._tried_at > TRY_AGAIN_S

    def _told(self, reason: str) -> None:
        self._tried_at = time.monotonic()
        if reason != self.now.refused:
            log.error("candidate refused: %s", reason)
            self._set(refused=reason)

    def begin(self, wish: CandidateWish, found: Bundle, agreed: Agreed, answering: BundleInfo) -> None:
        """The candidate was found, proved and held; beside the model that answers."""
        if wish != self.now.asked or self.now.is_dealt_with:
            return  # asked otherwise meanwhile
        if reason := why_not(found.info, answering):
            self.refuse(wish, reason)
            return
        self._bundle = found
        chosen = Chosen(
            uri=found.uri, sha256=found.info.identity(), name=found.info.name, version=found.info.version,
            threshold=wish.threshold,
        )  # fmt: skip
        trial = _trial(chosen, agreed.chosen.sha256, wish)
        log.info("candidate %s beside %s: loading", trial.id, agreed.chosen.version)
        self._set(is_dealt_with=True, refused=None, current=trial)

    def tend(self, agreed: Agreed, answering: BundleInfo | None, reports: Iterable[Report]) -> Trial | None:
        """Bring the trial on by what members said; the one that may be judged now. `answering`: of the agreed model,
        where that is known here."""
        trial = self.now.current
        if trial is None:
            return None
        if agreed.chosen.sha256 != trial.against:
            self._go_on_beside(trial, agreed, answering)
            return None
        said = list(reports)
        for report in said:
            if report.trial_failed == trial.id and not trial.is_running:  # else it answers without, and tries again
                self.end("dropped", "replica", f"a replica could not load it: {report.trial_reason}")
                return None
        if not trial.is_running and said and all(report.trial_ready == trial.id for report in said):
            trial = trial.model_copy(update={"is_running": True, "since": utc_now()})
            log.info("candidate %s: %s, share %g", trial.id, trial.stage, trial.wish.share)
            self._set(current=trial)
            trial = self.now.current
        return trial if trial is not None and trial.is_running else None

    def is_counted_in(self, life: str) -> bool:
        """Whether all counts of the trial are in that life of their actor. Where that was lost, those of dead replicas
        were: what is left is no comparison, and it is compared anew."""
        trial = self.now.current
        if trial is None or trial.counted_in == life:
            return trial is not None
        if trial.counted_in:
            log.warning("candidate %s: counts were lost, it is compared anew", trial.id)
            trial = _trial(trial.chosen, trial.against, trial.wish)
        self._set(current=trial.model_copy(update={"counted_in": life}))
        return False

    def _go_on_beside(self, trial: Trial, agreed: Agreed, answering: BundleInfo | None) -> None:
        """Another model answers now: what was counted beside the one before says nothing of it."""
        if agreed.chosen.sha256 == trial.chosen.sha256:
            self.end("promoted", "configuration", f"the service took it by itself ({agreed.cause})")
            return
        if answering is None:
            return
        if self._bundle is not None and (reason := why_not(self._bundle.info, answering)):
            self.end("dropped", "configuration", reason)
            return
        log.info("candidate %s: another model answers now (%s), it is compared anew", trial.id, agreed.chosen.version)
        self._set(current=_trial(trial.chosen, agreed.chosen.sha256, trial.wish))

    def end(self, decision: Decision, by: By, reason: str, verdict: Verdict | None = None) -> None:
        """The trial is over; what it rests on is told and kept."""
        trial = self.now.current
        if trial is None:
            return
        rule = trial.wish.rule
        log.warning(
            "candidate %s %s by %s: %s; rule: %s", trial.id, decision, by, reason,
            "none" if rule is None else rule.model_dump_json(exclude_none=True),
        )  # fmt: skip
        ended = Ended(
            trial=trial.id, version=trial.chosen.version, sha256=trial.chosen.sha256, decision=decision, by=by,
            reason=reason, at=utc_now(), rule=rule, verdict=verdict,
        )  # fmt: skip
        self._bundle = None
        self._set(current=None, last=ended, is_dealt_with=True, refused=None)

    async def bundle(self, trial_id: str, read: Callable[[Chosen], Awaitable[Bundle]]) -> Bundle:
        """The candidate with its files, by `read` where they were lost. Raises InputError where it is on trial no
        more."""
        trial = self.now.current
        if trial is not None and trial.id == trial_id and self._bundle is None:
            self.given(trial_id, await read(trial.chosen))
            trial = self.now.current
        if trial is None or trial.id != trial_id or self._bundle is None:
            raise InputError(f"candidate {trial_id} is not on trial any more")
        return self._bundle

    def given(self, trial_id: str, bundle: Bundle) -> None:
        """The files that this keeper has not."""
        trial = self.now.current
        if self._bundle is None and trial is not None and trial.id == trial_id:
            self._bundle = bundle

    def _set(self, **changes: Any) -> None:
        revision = self.now.revision + 1
        if isinstance(trial := changes.get("current"), Trial):
            changes["current"] = trial.model_copy(update={"revision": revision})
        self.now = self.now.model_copy(update={**changes, "revision": revision})
        self._wake()


def why_not(candidate: BundleInfo, answering: BundleInfo) -> str | None:
    """Why the two cannot be compared: answers of one are no answers to the other's question."""
    if candidate.identity() == answering.identity():
        return f"candidate {candidate.version} is the model that answers"
    one, other = ((info.task, info.classes, info.positive_classes) for info in (candidate, answering))
    if one != other:
        return f"candidate {candidate.version} {_tells(candidate)}, the model that answers {_tells(answering)}"
    units = candidate.unit, answering.unit
    if None not in units and units[0] != units[1]:
        return f"candidate {candidate.version} is for images of a {units[0]}, the model that answers of a {units[1]}"
    return None


def _tells(info: BundleInfo) -> str:
    return f"tells {', '.join(info.classes)} apart (disease: {', '.join(info.positive_classes) or 'none'})"


def _trial(chosen: Chosen, against: str, wish: CandidateWish) -> Trial:
    since = utc_now()
    name = f"{chosen.sha256[:12]}@{datetime.now(UTC).isoformat(timespec='milliseconds')}"
    return Trial(id=name, chosen=chosen, against=against, wish=wish, since=since)


def _is_same_model(one: CandidateWish, other: CandidateWish) -> bool:
    return (one.model, one.threshold) == (other.model, other.threshold)


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
