"""What a candidate says of the images that were answered, asked behind the answers: in a thread of its own, within its
part of a processor, out of a queue that drops what does not fit. Nothing waits for it, and nothing of it is an answer.
"""

import asyncio
import logging
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import ImageRejected
from pipeline.images.cost import worst_seconds
from pipeline.images.load import Limits, decode_image, read_header
from pipeline.model.prediction import Prediction
from serving.access import without_words
from serving.decoding import SMALL_S
from serving.forward import Answer, Waiting, predict_waiting
from serving.model import LoadedModel
from serving.monitoring.comparison import (
    AGREED_UNANSWERED,
    DROPPED,
    OTHER_SIZE,
    UNANSWERED,
    note,
    note_seconds,
)
from serving.monitoring.recorder import Recorder
from serving.monitoring.state import TRIAL_IMAGES

log = logging.getLogger("ray.serve")
_PLACES = 64
_BYTES = 32 << 20
_AT_ONCE = 4  # in one pass: the thread holds a processor for no longer


@dataclass(frozen=True)
class Seen:
    """An image that one of two models has answered, for the other."""

    trial: str
    other: LoadedModel
    said: Prediction
    seconds: float  # of its pass
    image: NDArray[np.uint8] | bytes  # (S, S, 3), RGB, where the other takes the same; else as it was sent

    @property
    def size_bytes(self) -> int:
        return len(self.image) if isinstance(self.image, bytes) else self.image.nbytes


class Comparing:
    """Of one replica; for its event loop."""

    def __init__(self, recorder: Recorder, limits: Limits) -> None:
        self._recorder, self._limits = recorder, limits
        self._waiting: deque[Seen] = deque()
        self._bytes = 0
        self._cores = 1.0
        self._thread = ThreadPoolExecutor(1, "compare")
        self._task: asyncio.Task[None] | None = None

    def offer(self, seen: Seen, cores: float) -> None:
        """Compare it some time later, or count that it is not. `cores`: of a processor that may be taken, up to 1."""
        if len(self._waiting) >= _PLACES or self._bytes + seen.size_bytes > _BYTES:
            self._recorder.count(TRIAL_IMAGES, seen.trial, DROPPED)
            return
        self._waiting.append(seen)
        self._bytes += seen.size_bytes
        self._cores = cores
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())

    def forget(self) -> None:
        """What waits is not compared: its trial is over."""
        self._waiting.clear()
        self._bytes = 0

    async def _work(self) -> None:
        while self._waiting:
            some = [self._waiting.popleft() for _ in range(min(_AT_ONCE, len(self._waiting)))]
            self._bytes -= sum(one.size_bytes for one in some)
            spent, answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._ask, some)
            for seen, answer in zip(some, answers, strict=True):
                self._note(seen, answer)
            await asyncio.sleep(spent * (1 / self._cores - 1))

    def _ask(self, some: list[Seen]) -> tuple[float, list[Answer | None]]:
        """The processor's seconds that it took, and answers; None where it cannot be asked."""
        is_told = all(seen.other.is_in_one_thread for seen in some)
        clock = time.thread_time if is_told else time.perf_counter
        began = clock()
        answers: list[Answer | None] = [None] * len(some)
        try:
            pixels = [self._pixels(seen) for seen in some]
            places = [place for place, found in enumerate(pixels) if found is not None]
            waiting = [Waiting(some[place].other, found) for place, found in enumerate(pixels) if found is not None]
            for place, answer in zip(places, predict_waiting(waiting, is_asked=False), strict=True):
                answers[place] = answer
        except Exception as error:
            log.error("%d images were not compared:\n%s", len(some), without_words(error))
        return clock() - began, answers

    def _pixels(self, seen: Seen) -> NDArray[np.uint8] | None:
        """None of an image that would have to be decoded apart, where it can be ended."""
        if not isinstance(seen.image, bytes):
            return seen.image
        predictor = seen.other.predictor
        try:
            header = read_header(seen.image, self._limits)
            if worst_seconds(header, len(seen.image)) > SMALL_S:
                return None
            return decode_image(seen.image, header, predictor.size, predictor.info.bit_depth).pixels
        except ImageRejected:
            return None

    def _note(self, seen: Seen, answer: Answer | None) -> None:
        if answer is None:
            self._recorder.count(TRIAL_IMAGES, seen.trial, OTHER_SIZE)
            return
        is_candidates = seen.other.is_candidate
        if isinstance(answer.said, ImageRejected):
            outcome = UNANSWERED if is_candidates else AGREED_UNANSWERED
            self._recorder.count(TRIAL_IMAGES, seen.trial, outcome)
            return
        agreed, candidate = (seen.said, answer.said) if is_candidates else (answer.said, seen.said)
        note(self._recorder, seen.trial, agreed, candidate)
        agreed_s, candidate_s = (seen.seconds, answer.seconds) if is_candidates else (answer.seconds, seen.seconds)
        note_seconds(self._recorder, seen.trial, agreed_s, candidate_s)
