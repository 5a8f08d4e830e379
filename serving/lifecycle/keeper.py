"""The keeper of one application: it knows what all replicas answer with, has its files, and decides every change.

A plain class for one event loop; `line.py` makes it a Ray actor. It resolves a registry, proves a model away from those
that answer, and follows best.json.
"""

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline.base.errors import InputError, LeukorayError
from pipeline.model.bundle import Bundle
from pipeline.model.predictor import Predictor
from pipeline.model.registry import pointer_of, resolve
from pipeline.storage.types import StoreError
from serving.agreed import Agreed, Chosen, Follows, Joined, News, Order, Outcome, Report, Wish
from serving.lifecycle import switch
from serving.lifecycle.switch import POLL_S, Switch
from serving.settings import ServingSettings

log = logging.getLogger("ray.serve")
TRY_AGAIN_S = 60.0  # a refused model, whose store may have been out
ROLLBACK = "rollback"
_RECALL_S = 6.0  # how long running replicas are waited for after the keeper itself was lost


@dataclass(frozen=True)
class _Found:
    """A model that proved itself, and the pointer that it was found by (empty: none)."""

    bundle: Bundle  # with its files
    best_json: str
    pointer: str


class Keeper:
    """`has_running`: whether replicas of this application run, asked when nothing is known."""

    def __init__(self, has_running: Callable[[], Awaitable[bool]]) -> None:
        self._has_running = has_running
        self._switch = Switch()
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

    async def join(self, settings: ServingSettings, asked: Wish | str) -> Joined:
        """A member tells what its configuration asks for, and gets what is agreed once that is decided."""
        async with self._deciding:
            self._settings = settings
            await self._recall()
            if asked != self._asked:
                await self._consider(asked)
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
        self._switch.hear(member, report)
        if self._agreed is not None and self._agreed.generation == report.generation and not self._given.is_set():
            return self._news(Order.GIVE, report.generation)
        order, generation = await self._switch.order(member, patience_s, lambda: report.told != self._told)
        return self._news(order, generation)

    async def tell(self, member: str, report: Report) -> None:
        """A report between two questions."""
        self._switch.hear(member, report)

    async def give(self, settings: ServingSettings, generation: int, bundle: Bundle) -> None:
        """A member hands over what the keeper lost."""
        self._settings = self._settings or settings
        if self._agreed is not None and generation == self._agreed.generation:
            self._keep(generation, bundle)

    # ---- what administrators order --------------------------------------------------------------------------------

    async def reload(self) -> Outcome:
        """Look again at what the configuration names, and take it."""
        async with self._deciding:
            await self._recall()
            agreed = self._known()
            if isinstance(self._asked, Wish):
                await self._take_wish(self._asked, "reload")
            return self._outcome(agreed, self._refused)

    async def rollback(self) -> Outcome:
        """Take the model from before the last change. It stays until the next change of best.json or configuration."""
        async with self._deciding:
            await self._recall()
            agreed = self._known()
            if agreed.before is None:
                return self._outcome(agreed, "nothing to go back to: no earlier model of this service is known")
            return self._outcome(agreed, await self._take_before(agreed.before))

    def _outcome(self, before: Agreed, refused: str | None) -> Outcome:
        now = self._known()
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

    async def _look_at_pointer(self) -> None:
        agreed, every_s = self._known(), self._set().follow_s
        if not (agreed.best_json and every_s and isinstance(self._asked, Wish)):
            self._tell(self._refused, None)
            return
        try:
            content = await asyncio.to_thread(self._set().stores.read_if_there, agreed.best_json)
            error = None if content is not None else f"{agreed.best_json} is gone"
        except (StoreError, OSError) as failure:
            content, error = None, str(failure)
        looked_at = _now() if error is None else (self._follows.looked_at if self._follows else None)
        follows = Follows(uri=agreed.best_json, every_s=every_s, looked_at=looked_at, error=error)
        self._tell(self._refused, follows)
        if content is not None and _digest(content) != agreed.pointer:
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
            found = await asyncio.to_thread(self._find, wish)
        except Exception as error:
            self._refuse(_reason(wish.model, error))
            await self._note_pointer()
            return
        reason = await self._take(found, wish.threshold, cause)
        if reason is not None:
            self._refuse(reason)

    async def _take_before(self, chosen: Chosen) -> str | None:
        """None, or why not: then all stays as it was, and is not tried again."""
        known = [bundle for bundle in self._bundles.values() if bundle.info.identity() == chosen.sha256]
        try:
            bundle = known[0] if known else await asyncio.to_thread(self._read, chosen)
        except Exception as error:
            return _reason(chosen.uri, error)
        agreed = self._known()
        return await self._take(_Found(bundle, agreed.best_json, agreed.pointer), chosen.threshold, ROLLBACK)

    async def _take(self, found: _Found, threshold: float | None, cause: str) -> str | None:
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
            self._tell(None, self._follows)
            return None
        await self._all_heard()
        self._attempt = generation = max(self._attempt, agreed.generation if agreed is not None else 0) + 1
        upcoming = Agreed(
            generation=generation,
            chosen=chosen,
            before=None if agreed is None or cause == ROLLBACK else agreed.chosen,
            cause=cause,
            since=_now(),
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
            self._agreed = agreed.model_copy(update={"pointer": _digest(content)})

    def _find(self, wish: Wish) -> _Found:
        """Resolve, read and prove; in a thread. Raises what is wrong with it."""
        stores = self._set().stores
        bundle = resolve(wish.model, stores)
        path = pointer_of(wish.model, bundle)
        content = stores.read_if_there(path) if path else None
        # a pointer that moved since then is looked at again
        is_of_it = content is not None and bundle.info.version.encode() in content
        pointer = _digest(content) if content is not None and is_of_it else ""
        return _Found(_proved(bundle.with_threshold(wish.threshold)), path, pointer)

    def _read(self, chosen: Chosen) -> Bundle:
        """Exactly that model out of its store; in a thread. Raises InputError where another one lies there now."""
        bundle = resolve(chosen.uri, self._set().stores).with_threshold(chosen.threshold)
        if bundle.info.identity() != chosen.sha256:
            raise InputError(f"{chosen.uri}: is no longer the model {chosen.sha256[:12]} that was agreed on")
        return _proved(bundle)

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
        )

    @property
    def members(self) -> int:
        return self._switch.members

    @property
    def follow_s(self) -> float:
        return self._settings.follow_s if self._settings is not None else 0.0

    def _known(self) -> Agreed:
        if self._agreed is None:
            raise InputError("no model is agreed on yet")
        return self._agreed

    def _set(self) -> ServingSettings:
        if self._settings is None:
            raise InputError("no replica has joined yet")
        return self._settings


def _proved(bundle: Bundle) -> Bundle:
    held = bundle.hold()
    Predictor(held, engine="onnx").prove()
    return held


def _reason(uri: str, error: Exception) -> str:
    return str(error) if isinstance(error, LeukorayError) else f"{uri}: {type(error).__name__}: {error}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


async def _within(waiting: Awaitable[object], seconds: float) -> None:
    """Wait for it, that long at most."""
    try:
        await asyncio.wait_for(waiting, seconds)
    except TimeoutError:
        log.warning("no running replica said within %g s what is agreed on", seconds)
