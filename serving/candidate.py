"""The model on trial in one replica: which requests it answers, and what of them it is compared on.

Which: by a hash of the candidate and a key, the subject's id where one is given, else the request's. So a request that
is sent again with its id, or another image of a subject, gets the same model in every replica, and a larger share adds
keys and takes none away.
"""

import asyncio
import dataclasses
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.model.prediction import Prediction
from serving.agreed import Trial
from serving.audit import notes
from serving.comparing import Comparing, Seen
from serving.model import LoadedModel
from serving.monitoring.comparison import OTHER_SIZE, UNANSWERED
from serving.monitoring.recorder import Recorder
from serving.monitoring.state import TRIAL_IMAGES, TRIAL_REQUESTS, Metric
from serving.settings import ServingSettings

log = logging.getLogger("ray.serve")
_T = TypeVar("_T")
Sent = bytes | NDArray[np.uint8]  # an image as it came: encoded, or pixels of a tensor
_OF_IMAGE = 0.25  # of a request's time, which the candidate may take for an image
_OF_REQUEST = 0.5  # for all its images: the rest is for the model that answers, from the beginning


class CandidateFailed(Exception):
    """It did not answer where it should have; says why. The model that answers takes its place."""


def is_in_share(candidate_sha256: str, key: str, share: float) -> bool:
    """Whether the key's hash, uniform in 0..1, lies below `share`."""
    digest = hashlib.sha256(f"{candidate_sha256}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


class _Attempt:
    """One request that the candidate is to answer. Its images are known by what was sent, which the request holds."""

    def __init__(self, limit_s: float) -> None:
        self._left_s = limit_s
        self._asked = 0  # images that wait for the candidate now, in this request
        self._since = 0.0
        self._held: list[Callable[[], None]] = []
        self.failed: set[int] = set()  # images that the candidate alone did not answer, as far as is known
        self.is_over = False  # the other model answers, or the request is answered

    @contextmanager
    def waiting(self) -> Iterator[float]:
        """Around an image that is asked of the candidate: the seconds that are left for it."""
        now = time.monotonic()
        self._count(now)
        self._asked += 1
        try:
            yield max(0.0, self._left_s)
        finally:
            self._count(time.monotonic())
            self._asked -= 1

    def _count(self, now: float) -> None:
        """Time in which several images wait counts once; what else a request takes is not the candidate's."""
        if self._asked:
            self._left_s -= now - self._since
        self._since = now

    def hold(self, work: Callable[[], None]) -> None:
        self._held.append(work)

    def end(self, is_answered: bool) -> None:
        """Do what was held back, or forget it."""
        self.is_over = True
        held, self._held = self._held, []
        for work in held if is_answered else ():
            work()


_ATTEMPT: ContextVar[_Attempt | None] = ContextVar("attempt", default=None)  # of this task and those that it starts


def once_answered(work: Callable[[], None]) -> None:
    """Count what a request's answer says, now; of a candidate's answer when the request has it, and else never."""
    attempt = _ATTEMPT.get()
    if attempt is None or attempt.is_over:
        work()
    else:
        attempt.hold(work)


def refused_by_both(sent: Sent) -> None:
    """The model that answers refuses the image as well: no failure of the candidate alone."""
    if (attempt := _ATTEMPT.get()) is not None:
        attempt.failed.discard(id(sent))


class Candidate:
    """None, until a trial is taken. For the replica's event loop."""

    def __init__(self, settings: ServingSettings, recorder: Recorder) -> None:
        self._settings, self._recorder = settings, recorder
        self._comparing = Comparing(recorder, settings.limits)
        self.trial: Trial | None = None
        self.model: LoadedModel | None = None
        self._trials = ("", "")  # ids of the last two, whose counts are kept

    def take(self, trial: Trial, model: LoadedModel) -> None:
        """Compare, and answer a share of requests where the trial says so, from now on."""
        if self.trial is None or trial.id != self.trial.id:
            self._comparing.forget()
        if trial.id != self._trials[-1]:
            self._trials = (self._trials[-1], trial.id)
            self._recorder.keep_trials(self._trials)
        if trial != self.trial:
            self._recorder.changed()
        self.trial = trial
        if self.model is None or model.predictor is not self.model.predictor:
            self.model = dataclasses.replace(model, is_candidate=True)

    def drop(self) -> None:
        """The trial is over. Requests that it works on are still answered."""
        if self.trial is not None:
            self._recorder.changed()
        self.trial = self.model = None
        self._comparing.forget()

    def answering(self, agreed: LoadedModel) -> LoadedModel | None:
        """The candidate, where a share of requests goes to it instead of to `agreed`."""
        trial = self._running(agreed)
        return self.model if trial is not None and trial.wish.share else None

    def chosen(self, key: str, agreed: LoadedModel) -> LoadedModel:
        """Which of the two answers a request."""
        trial, model = self._running(agreed), self.model
        if trial is None or model is None or not is_in_share(trial.chosen.sha256, key, trial.wish.share):
            return agreed
        return model

    async def answered(
        self, model: LoadedModel, agreed: LoadedModel, answer: Callable[[LoadedModel], Awaitable[_T]]
    ) -> _T:
        """`answer` by the model that was chosen; by `agreed` where that is the candidate and it fails."""
        trial = self._running(agreed)
        if not model.is_candidate:
            if trial is not None and trial.wish.share:
                self._recorder.count(TRIAL_REQUESTS, trial.id, "agreed")
            return await answer(model)
        attempt = _Attempt(self._settings.request_timeout_s * _OF_REQUEST)
        token = _ATTEMPT.set(attempt)
        try:
            return await self._attempted(attempt, trial, model, agreed, answer)
        finally:
            _ATTEMPT.reset(token)

    async def _attempted(
        self, attempt: _Attempt, trial: Trial | None, model: LoadedModel, agreed: LoadedModel,
        answer: Callable[[LoadedModel], Awaitable[_T]],
    ) -> _T:  # fmt: skip
        try:
            found = await answer(model)
        except CandidateFailed as error:
            log.warning("the candidate did not answer, %s does: %s", agreed.info.version, error)
            attempt.end(is_answered=False)
            self._count(trial, TRIAL_REQUESTS, "fallback")
            if (taken := notes.notes()) is not None:
                taken.begin_anew()
            try:
                return await answer(agreed)
            finally:  # whatever came of it
                for _ in attempt.failed:
                    self._count(trial, TRIAL_IMAGES, UNANSWERED)
        except Exception:  # an answer as well
            attempt.end(is_answered=True)
            raise
        attempt.end(is_answered=True)
        self._count(trial, TRIAL_REQUESTS, "candidate")
        return found

    def _count(self, trial: Trial | None, metric: Metric, label: str) -> None:
        if trial is not None:
            self._recorder.count(metric, trial.id, label)

    async def in_time(self, answer: Awaitable[_T], sent: Sent) -> _T:
        """The candidate's answer to one image. Raises CandidateFailed where it takes too long, or longer than
        is left of its part of the request."""
        limit_s = self._settings.request_timeout_s * _OF_IMAGE
        attempt = _ATTEMPT.get() or _Attempt(limit_s)
        with attempt.waiting() as left_s:
            limit_s = min(limit_s, left_s)
            try:
                async with asyncio.timeout(limit_s):
                    return await answer
            except TimeoutError:
                raise self.failed(f"no answer to an image within {limit_s:.3g} s", sent) from None

    def failed(self, reason: str, sent: Sent) -> CandidateFailed:
        """What to raise where the candidate failed on an image, which counts once the request is answered."""
        if (attempt := _ATTEMPT.get()) is not None:
            attempt.failed.add(id(sent))
        return CandidateFailed(reason)

    def seen(
        self, model: LoadedModel, agreed: LoadedModel, said: Prediction, seconds: float,
        pixels: NDArray[np.uint8], data: bytes | None,
    ) -> None:  # fmt: skip
        """`model` answered an image, uint8 (S, S, 3), RGB; `data` as it was sent, where known. Ask the other one."""
        trial = self._running(agreed)
        attempt = _ATTEMPT.get()
        sent = pixels if data is None else data
        if trial is None or self.model is None or (attempt is not None and id(sent) in attempt.failed):
            return
        other = agreed if model.is_candidate else self.model
        if (model.info.sha256, other.info.sha256) not in (
            (trial.against, trial.chosen.sha256),
            (trial.chosen.sha256, trial.against),
        ):
            return
        image = pixels if takes_the_same(model, other) else data
        if image is None:
            self._recorder.count(TRIAL_IMAGES, trial.id, OTHER_SIZE)
            return
        self._comparing.offer(Seen(trial.id, other, said, seconds, image), trial.wish.cores)

    def _running(self, agreed: LoadedModel) -> Trial | None:
        """None where there is none, or it is of another pair of models."""
        trial = self.trial
        if trial is None or self.model is None or not trial.is_running or trial.against != agreed.info.sha256:
            return None
        return trial if self.model.info.classes == agreed.info.classes else None


def takes_the_same(one: LoadedModel, other: LoadedModel) -> bool:
    """Whether decoded pixels of one are those of the other."""
    return (one.predictor.size, one.predictor.info.bit_depth) == (other.predictor.size, other.predictor.info.bit_depth)
