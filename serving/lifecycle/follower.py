"""A replica's part about a candidate: it has the one that all agreed on, loaded beside its model, and says so."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

from pipeline.model.bundle import Bundle
from serving.agreed import KeeperLost, Trial, Trials
from serving.engine import Engine
from serving.lifecycle.finding import why
from serving.lifecycle.trials import TRY_AGAIN_S
from serving.model import load_bundle

log = logging.getLogger("ray.serve")


class Follower:
    """`call`: to the keeper. `say`: what the replica reports from now on, `tell`: at once. For the event loop."""

    def __init__(
        self, engine: Engine, call: Callable[..., Any], say: Callable[..., None], tell: Callable[[], Awaitable[None]]
    ) -> None:
        self._engine, self._call, self._say, self._tell = engine, call, say, tell
        self._trial: Trial | None = None  # as last told
        self._loading: asyncio.Task[None] | None = None
        self._tried = ""  # id of the trial that loading was begun for
        self._failed_at = math.inf  # when that failed last

    def follow(self, trials: Trials) -> None:
        """What the keeper says of candidates now."""
        self._trial, candidate = trials.current, self._engine.candidate
        if self._trial is None:
            if candidate.trial is not None:
                candidate.drop()
            return
        model = candidate.model
        if model is not None and model.info.sha256 == self._trial.chosen.sha256:
            candidate.take(self._trial, model)
            self._say(trial_ready=self._trial.id)
        elif self._tried != self._trial.id or time.monotonic() - self._failed_at > TRY_AGAIN_S:
            candidate.drop()
            self._tried, self._failed_at = self._trial.id, math.inf
            self._loading = asyncio.create_task(self._load(self._trial.id))

    async def loaded(self) -> None:
        """Wait for the candidate that is being loaded, if one is."""
        if self._loading is not None:
            await asyncio.wait([self._loading])

    def held(self) -> tuple[str, Bundle] | None:
        """The trial and the candidate's bundle, for a keeper that lost it."""
        candidate = self._engine.candidate
        if candidate.trial is None or candidate.model is None:
            return None
        return candidate.trial.id, candidate.model.predictor.bundle

    async def _load(self, trial_id: str) -> None:
        try:
            bundle = await self._call("candidate", trial_id)
            model = await asyncio.to_thread(load_bundle, bundle, self._engine.settings)
        except KeeperLost:
            self._tried = ""  # whoever takes its place says again what is on trial
            return
        except Exception as error:
            if self._trial is not None and self._trial.id == trial_id:
                reason = why(error)
                log.error("candidate %s was not loaded here: %s", trial_id, reason)
                self._failed_at = time.monotonic()
                self._say(trial_failed=trial_id, trial_reason=reason)
                await self._tell()
            return
        if self._trial is not None and self._trial.id == trial_id:
            self._engine.candidate.take(self._trial, model)
            self._say(trial_ready=trial_id)
            await self._tell()
