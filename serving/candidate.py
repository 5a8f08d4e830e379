"""The model on trial in one replica: which requests it answers, and what of them it is compared on.

Which: by a hash of the candidate and a key, the subject's id where one is given, else the request's. So a request that
is sent again with its id, or another image of a subject, gets the same model in every replica, and a larger share adds
keys and takes none away.
"""

import asyncio
import dataclasses
import hashlib
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import ImageRejected
from pipeline.model.prediction import Prediction
from serving.agreed import Trial
from serving.audit import notes
from serving.comparing import Comparing, Seen
from serving.forward import Answer
from serving.model import LoadedModel
from serving.monitoring.comparison import OTHER_SIZE, UNANSWERED
from serving.monitoring.recorder import Recorder
from serving.monitoring.state import TRIAL_IMAGES, TRIAL_REQUESTS
from serving.settings import ServingSettings

log = logging.getLogger("ray.serve")
_T = TypeVar("_T")
_ITS_TIME = 0.25  # of a request's time that it may take for an image: the rest is for the model that answers


class CandidateFailed(Exception):
    """It did not answer where it should have; says why. The model that answers takes its place."""


def is_in_share(candidate_sha256: str, key: str, share: float) -> bool:
    """Whether the key's hash, uniform in 0..1, lies below `share`."""
    digest = hashlib.sha256(f"{candidate_sha256}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


class Candidate:
    """None, until a trial is taken. For the replica's event loop."""

    def __init__(self, settings: ServingSettings, recorder: Recorder) -> None:
        self._settings, self._recorder = settings, recorder
        self._comparing = Comparing(recorder, settings.limits)
        self.trial: Trial | None = None
        self.model: LoadedModel | None = None

    def take(self, trial: Trial, model: LoadedModel) -> None:
        """Compare, and answer a share of requests where the trial says so, from now on."""
        if self.trial is None or trial.id != self.trial.id:
            self._comparing.forget()
        self.trial = trial
        if self.model is None or model.predictor is not self.model.predictor:
            self.model = dataclasses.replace(model, is_candidate=True)

    def drop(self) -> None:
        """The trial is over. Requests that it works on are still answered."""
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
        try:
            found = await answer(model)
        except CandidateFailed as error:
            log.warning("the candidate did not answer, %s does: %s", agreed.info.version, error)
            if trial is not None:
                self._recorder.count(TRIAL_REQUESTS, trial.id, "fallback")
            if (taken := notes.notes()) is not None:
                taken.begin_anew()
            return await answer(agreed)
        if trial is not None:
            self._recorder.count(TRIAL_REQUESTS, trial.id, "candidate")
        return found

    async def in_time(self, answer: Awaitable[Answer]) -> Answer:
        """The candidate's answer to one image. Raises CandidateFailed where there is none, or it takes too long."""
        limit_s = self._settings.request_timeout_s * _ITS_TIME
        try:
            async with asyncio.timeout(limit_s):
                found = await answer
        except TimeoutError:
            if self.trial is not None:
                self._recorder.count(TRIAL_IMAGES, self.trial.id, UNANSWERED)
            raise CandidateFailed(f"no answer to an image within {limit_s:g} s") from None
        if isinstance(found.said, ImageRejected):  # counted when it is asked again, behind the other one's answer
            raise CandidateFailed(found.said.message)
        return found

    def seen(
        self, model: LoadedModel, agreed: LoadedModel, said: Prediction, seconds: float,
        pixels: NDArray[np.uint8], data: bytes | None,
    ) -> None:  # fmt: skip
        """`model` answered an image, uint8 (S, S, 3), RGB; `data` as it was sent, where known. Ask the other one."""
        trial = self._running(agreed)
        if trial is None or self.model is None:
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
