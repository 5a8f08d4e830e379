"""The keeper of one application: it knows what all replicas answer with, has its files, and decides every change.

A plain class for one event loop; `line.py` makes it a Ray actor. It resolves a registry, proves a model away from those
that answer, and follows best.json.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable

from pipeline.base.errors import InputError
from pipeline.model.bundle import Bundle
from pipeline.storage.types import StoreError
from serving.agreed import Agreed, CandidateWish, Chosen, Follows, Joined, News, Order, Outcome, Report, Trial, Wish
from serving.lifecycle import switch
from serving.lifecycle.finding import Found, digest, find, read, why
from serving.lifecycle.switch import POLL_S, Switch
from serving.lifecycle.trials import By, TrialDesk, utc_now
from serving.model import is_trusted
from serving.rule import Verdict
from serving.settings import ServingSettings

log = logging.getLogger("ray.serve")
TRY_AGAIN_S = 60.0  # a refused model, whose store may have been out
ROLLBACK, PROMOTION = "rollback", "promotion"
_RECALL_S = 6.0  # how long running replicas are waited for after the keeper itself was lost


class Keeper:
    """`has_running`: whether replicas of this application run, asked when nothing is known."""

    def __init__(self, has_running: Callable[[], Awaitable[bool]]) -> None:
        self._has_running = has_running
        self._switch = Switch()
        self.trials = TrialDesk(self._switch.wake)
        self._settings: ServingSettings | None = None
        self._agreed: Agreed | None = None
        self._asked: Wish | str | None = None  # by the configuration; a text: what is wrong with it
        self._bundles: dict[int, Bundle] = {}  # by generation: the agreed one, the next one, the one before
        self._refused: str | None = None
        self._tried_at = 0.0
        self._learned_at = -math.inf  # from members, after the keeper was lost
        self._attempt = 0  # the generation last tried: none is tried twice
        self._follows: Follows | None = None
        self._told = 0
        self._deciding = asyncio.Lock()
        self._given = asyncio.Event()  # the files of the agreed model are here

    # ---- what members ask ---------------------------------------------------------------------------------------

    async def join(
        self, settings: ServingSettings, asked: Wish | str, candidate: CandidateWish | None = None
    ) -> Joined:
        """A member tells what it is asked for, gets what is agreed; a candidate is looked at later (`tend`)."""
        async with self._deciding:
            before, self._settings = self._settings, settings
            await self._recall()
            if asked != self._asked or (before is not None and before.verify != settings.verify):
                await self._consider(asked)
            if isinstance(asked, Wish):
                self.trials.ask(candidate)
            return Joined(agreed=self._agreed, refused=self._refused)

    async def bundle(self, generation: int) -> Bundle:
        """The model of a generation with its files. Raises InputError where it is no longer known."""
        if generation not in self._bundles:
            await _within(self._given.wait(), _RECALL_S)
        if generation not in self._bundles and self._agreed is not None and generation == self._agreed.generation:
            self._keep(generation, await asyncio.to_thread(self._read, self._agreed.chosen))
        if generation not in self._bundles:
            raise InputError(f"generation {generation} is not known here any more")
        return self._bundles[generation]

    async def news(self, member: str, report: Report, patience_s: float = POLL_S) -> News:
        """What the member is to do, as soon as there is something; after `patience_s` at the latest."""
        self._learn(report)
        self.trials.learn(report.trials)
        self._switch.hear(member, report)
        if self._agreed is not None and self._agreed.generation == report.generation and not self._given.is_set():
            return self._news(Order.GIVE, report.generation)

        def has_news() -> bool:
            return (report.told, report.trials.revision) != (self._told, self.trials.now.revision)

        order, generation = await self._switch.order(member, patience_s, has_news)
        return self._news(order, generation)

    async def tell(self, member: str, report: Report) -> None:
        """A report between two questions."""
        self._switch.hear(member, report)

    async def give(
        self, settings: ServingSettings, generation: int, bundle: Bundle, candidate: tuple[str, Bundle] | None = None
    ) -> None:
        """A member hands over what the keeper lost, the candidate of a trial as well where it has one."""
        self._settings = self._settings or settings
        if candidate is not None:
            self.trials.given(*candidate)
        if self._agreed is not None and generation == self._agreed.generation:
            self._keep(generation, bundle)

    async def candidate(self, trial: str) -> Bundle:
        """The candidate of a trial with its files. Raises InputError where it is on trial no more."""
        return await self.trials.bundle(trial, lambda chosen: asyncio.to_thread(self._read, chosen))

    # ---- what administrators order --------------------------------------------------------------------------------

    async def reload(self) -> Outcome:
        """Look again at what the configuration names, and take it."""
        async with self._deciding:
            await self._recall()
            agreed = self.known()
            if isinstance(self._asked, Wish):
                await self._take_wish(self._asked, "reload")
            self.trials.ask(self.trials.now.asked, is_anew=True)
            return self._outcome(agreed, self._refused)

    async def rollback(self) -> Outcome:
        """Take the model from before the last change. It stays until the next change of best.json or configuration."""
        async with self._deciding:
            await self._recall()
            agreed = self.known()
            if agreed.before is None:
                return self._outcome(agreed, "nothing to go back to: no earlier model of this service is known")
            return self._outcome(agreed, await self._take_before(agreed.before))

    async def promote(self) -> Outcome:
        """Take the candidate, whatever its rule says."""
        async with self._deciding:
            await self._recall()
            agreed = self.known()
            return self._outcome(agreed, await self._promote("administrator", "ordered"))

    async def drop(self) -> Outcome:
        """End the trial. It does not begin again until the configuration asks otherwise, or `reload`."""
        async with self._deciding:
            await self._recall()
            agreed, trial = self.known(), self.trials.now.current
            if trial is not None:
                self.trials.end("dropped", "administrator", "ordered")
            elif not self.trials.leave():
                return self._outcome(agreed, "there is no candidate")
            return self._outcome(agreed, None)

    def _outcome(self, before: Agreed, refused: str | None) -> Outcome:
        now = self.known()
        return Outcome(has_changed=now.generation != before.generation, refused=refused, agreed=now)

    # ---- what time brings -----------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Called now and then: look at best.json where one is followed, try a refused model again."""
        if self._agreed is None or self._settings is None:
            return
        async with self._deciding:
            is_old = time.monotonic() - self._tried_at > TRY_AGAIN_S
            if self._refused is not None and is_old and isinstance(self._asked, Wish):
                await self._take_wish(self._asked, "configuration")
            await self._look_at_pointer()

    def bring_on_trial(self) -> Trial | None:
        """The candidate that may be judged now, after what members said of it; none while a change goes on."""
        if self._deciding.locked():
            return None
        known = self._bundles.get(self.known().generation)
        reports = self._switch.reports() if self.heard() is not None else []
        return self.trials.tend(self.known(), None if known is None else known.info, reports)

    def heard(self) -> frozenset[str] | None:
        """Names of the members; None while some may not be known yet, as after the keeper was lost."""
        return self._switch.names() if time.monotonic() > self._learned_at + switch.GONE_S else None

    async def decide(self, trial: Trial, found: Verdict) -> None:
        """As the rule of a trial says. What is in the way of a promotion ends no trial."""
        async with self._deciding:
            if self.trials.now.current != trial or trial.against != self.known().chosen.sha256:
                return  # ended, asked otherwise, or beside another model meanwhile
            if found.decision == "drop":
                self.trials.end("dropped", "rule", found.reason, found)
            elif self.trials.is_due and (reason := await self._promote("rule", found.reason, found)):
                self.trials.not_taken(reason)

    async def _look_at_pointer(self) -> None:
        agreed, every_s = self.known(), self._set().follow_s
        if not (agreed.best_json and every_s and isinstance(self._asked, Wish)):
            self._tell(self._refused, None)
            return
        try:
            content = await asyncio.to_thread(self._set().stores.read_if_there, agreed.best_json)
            error = None if content is not None else f"{agreed.best_json} is gone"
        except (StoreError, OSError) as failure:
            content, error = None, str(failure)
        looked_at = utc_now() if error is None else (self._follows.looked_at if self._follows else None)
        follows = Follows(uri=agreed.best_json, every_s=every_s, looked_at=looked_at, error=error)
        self._tell(self._refused, follows)
        if content is not None and digest(content) != agreed.pointer:
            await self._take_wish(self._asked, "best.json")

    # ---- deciding, under the lock -----------------------------------------------------------------------------------

    async def _consider(self, asked: Wish | str) -> None:
        self._asked = asked
        if isinstance(asked, Wish):
            await self._take_wish(asked, "configuration")
        else:
            self._tell(asked, self._follows)
        if self._agreed is None:  # a first start that failed is tried anew by the next replica
            self._asked = None
        else:
            self._agreed = self._agreed.model_copy(update={"asked": asked})

    async def _take_wish(self, wish: Wish, cause: str) -> None:
        """Take what a wish means now, or say why not. Whatever is wrong with it, the model that answers goes on."""
        self._tried_at = time.monotonic()
        try:
            found = await asyncio.to_thread(self.find, wish)
        except Exception as error:
            self._refuse(why(error, wish.model))
            await self._note_pointer()
            return
        reason = await self._take(found, wish.threshold, cause)
        if reason is not None:
            self._refuse(reason)

    async def _take_before(self, chosen: Chosen) -> str | None:
        """None, or why not: then all stays as it was, and is not tried again."""
        try:
            same = [one for one in self._bundles.values() if one.info.identity() == chosen.sha256]
            known = [one for one in same if is_trusted(one, self._set())]
            bundle = known[0] if known else await asyncio.to_thread(self._read, chosen)
        except Exception as error:
            return why(error, chosen.uri)
        agreed = self.known()
        return await self._take(Found(bundle, agreed.best_json, agreed.pointer), chosen.threshold, ROLLBACK)

    async def _promote(self, by: By, reason: str, found: Verdict | None = None) -> str | None:
        """None, or why the candidate cannot be taken."""
        agreed, trial = self.known(), self.trials.now.current
        if trial is None:
            return "there is no candidate"
        if not trial.is_running or trial.against != agreed.chosen.sha256:
            return f"candidate {trial.chosen.version} is not loaded by every replica yet"
        try:
            bundle = await self.candidate(trial.id)
        except Exception as error:
            return why(error, trial.chosen.uri)
        seen = Found(bundle, agreed.best_json, agreed.pointer)
        refused = await self._take(seen, trial.chosen.threshold, PROMOTION)
        if refused is None:
            self.trials.end("promoted", by, reason, found)
        return refused

    async def _take(self, found: Found, threshold: float | None, cause: str) -> str | None:
        """None, or why the members cannot follow."""
        agreed, info = self._agreed, found.bundle.info
        chosen = Chosen(
            uri=found.bundle.uri,
            sha256=info.identity(),
            name=info.name,
            version=info.version,
            threshold=threshold,
        )
        seen = {"best_json": found.best_json, "pointer": found.pointer}
        if agreed is not None and chosen.sha256 == agreed.chosen.sha256:
            self._agreed = agreed.model_copy(update={"chosen": chosen, **seen})
            self._keep(agreed.generation, found.bundle)  # perhaps by another key
            self._tell(None, self._follows)
            return None
        await self._all_heard()
        self._attempt = generation = max(self._attempt, agreed.generation if agreed is not None else 0) + 1
        upcoming = Agreed(
            generation=generation,
            chosen=chosen,
            before=None if agreed is None or cause == ROLLBACK else agreed.chosen,
            cause=cause,
            since=utc_now(),
            asked=self._asked,
            **seen,
        )
        self._bundles[generation] = found.bundle
        try:
            reason = await self._switch.change(generation, lambda: self._agree(upcoming, found.bundle))
        finally:
            if self._agreed is None or self._agreed.generation < generation:
                self._bundles.pop(generation, None)
        if reason is None:
            log.info("model %s %s (%s): generation %d", chosen.name, chosen.version, cause, generation)
            return None
        if agreed is not None:
            self._agreed = agreed.model_copy(update=seen)
        return f"{chosen.uri}: {reason}"

    async def _note_pointer(self) -> None:
        """What best.json names was refused: it is looked at again when it changes, or with the next try."""
        agreed = self._agreed
        if agreed is None or not agreed.best_json:
            return
        try:
            content = await asyncio.to_thread(self._set().stores.read_if_there, agreed.best_json)
        except (StoreError, OSError):
            return  # looked at again
        if content is not None:
            self._agreed = agreed.model_copy(update={"pointer": digest(content)})

    def find(self, wish: Wish | CandidateWish) -> Found:
        """Blocking. Raises what is wrong with it."""
        return find(wish, self._set())

    def _read(self, chosen: Chosen) -> Bundle:
        return read(chosen, self._set())

    # ---- what is known ----------------------------------------------------------------------------------------------

    def _learn(self, report: Report) -> None:
        """A keeper that was lost and started anew knows nothing: members tell it what they agreed on."""
        theirs, own = report.agreed, self._agreed
        if theirs is not None and (own is None or theirs.generation > own.generation):
            self._agreed, self._asked = theirs, theirs.asked
            self._switch.generation = theirs.generation
            self._learned_at = time.monotonic()
            if theirs.generation not in self._bundles:
                self._given.clear()

    async def _recall(self) -> None:
        """Where nothing is known but replicas run, the keeper was lost: wait until one of them says what was agreed."""
        if self._agreed is None and await self._has_running():
            await _within(self._given.wait(), _RECALL_S)

    async def _all_heard(self) -> None:
        """A keeper that was lost changes nothing before every member had the time to come back to it."""
        await asyncio.sleep(max(0.0, self._learned_at + switch.GONE_S - time.monotonic()))

    def _agree(self, upcoming: Agreed, bundle: Bundle) -> None:
        self._agreed = upcoming
        self._keep(upcoming.generation, bundle)
        self._tell(None, self._follows)

    def _keep(self, generation: int, bundle: Bundle) -> None:
        """The one before it stays, and the next one, which members may be loading now."""
        before = max((key for key in self._bundles if key < generation), default=0)
        self._bundles = {key: value for key, value in self._bundles.items() if key == before or key > generation}
        self._bundles[generation] = bundle
        self._given.set()

    def _refuse(self, reason: str) -> None:
        if reason != self._refused:
            log.error("model refused: %s", reason)
        self._tell(reason, self._follows)

    def _tell(self, refused: str | None, follows: Follows | None) -> None:
        """Note what members are to say, and let them know where it changed."""
        if (refused, follows) != (self._refused, self._follows):
            self._refused, self._follows = refused, follows
            self._told += 1
            self._switch.wake()

    def _news(self, order: Order, generation: int) -> News:
        return News(
            order=order,
            generation=generation,
            agreed=self._agreed,
            refused=self._refused,
            follows=self._follows,
            told=self._told,
            trials=self.trials.now,
        )

    @property
    def members(self) -> int:
        return self._switch.members

    @property
    def follow_s(self) -> float:
        return self._settings.follow_s if self._settings is not None else 0.0

    @property
    def is_settled(self) -> bool:
        """Whether there is a model that a candidate may stand beside."""
        return self._agreed is not None and self._settings is not None

    def known(self) -> Agreed:
        """Raises InputError where nothing is agreed on."""
        if self._agreed is None:
            raise InputError("no model is agreed on yet")
        return self._agreed

    def _set(self) -> ServingSettings:
        if self._settings is None:
            raise InputError("no replica has joined yet")
        return self._settings


async def _within(waiting: Awaitable[object], seconds: float) -> None:
    """Wait for it, that long at most."""
    try:
        await asyncio.wait_for(waiting, seconds)
    except TimeoutError:
        log.warning("no running replica said within %g s what is agreed on", seconds)
