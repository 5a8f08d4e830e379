"""Inside one replica: bytes -> decoded in a bounded pool -> batched forward passes -> one answer an image.

Only coroutines touch the event loop; decoding (libjpeg-turbo, OpenCV, Pillow) and ONNX Runtime release the GIL in
threads. A request keeps the model it started with, so a swap never mixes two models in one answer.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import Code, ImageRejected, InputError
from pipeline.images.load import LoadedImage
from pipeline.model.prediction import Prediction
from serving import tracing
from serving.access import without_words
from serving.agreed import News, Order
from serving.audit import notes
from serving.audit.notes import ImageNote
from serving.candidate import Candidate, CandidateFailed, once_answered, refused_by_both
from serving.decoding import Decoding, LargeDecoder
from serving.errors import HttpError
from serving.forward import Answer, Waiting, predict_waiting
from serving.gate import Gate
from serving.model import LoadedModel, to_answer
from serving.monitoring.recorder import Recorder
from serving.monitoring.state import Answering, State
from serving.schemas import ImageAnswer
from serving.settings import ServingSettings

log = logging.getLogger("ray.serve")
_T = TypeVar("_T")
_PROBE_IS_FRESH_S = 2.0


class NoMap(Exception):
    """A map was asked for, and none is known of this model; says why."""


class Mapped(NamedTuple):
    """Where one image speaks for a class."""

    shares: NDArray[np.float32]  # (S, S), 0..1 of its own peak
    peak: float  # in logits; 0: no place speaks for the class


# Turns the engine's function of many images into a function of one that is called with others; serve.batch is one.
Batcher = Callable[[Callable[[list[Waiting]], Awaitable[list[Answer]]]], Callable[[Waiting], Awaitable[Answer]]]


class Engine:
    """The current model and the threads that work for it. It may be given one later, before the first request."""

    def __init__(
        self,
        settings: ServingSettings,
        model: LoadedModel | None,
        batcher: Batcher | None = None,
        large: LargeDecoder | None = None,
    ) -> None:
        self.settings = settings
        self.gate = Gate()
        self.news = News(order=Order.STAY, generation=0)  # what the keeper last said; alone: nothing
        self._model = model
        self.recorder = Recorder()
        self._settling: Future[None] | None = None
        self._decoding = Decoding(settings, self.recorder, large)
        self._forward = ThreadPoolExecutor(1, "forward")
        self._mapping = ThreadPoolExecutor(1, "map")  # its session is opened when a map is first asked for
        self._apart = ThreadPoolExecutor(1, "candidate")  # a slow one holds up none of the others
        self._mapping_apart = ThreadPoolExecutor(1, "candidate-map")
        self._predict = batcher(self._run_batch) if batcher else self._run_alone
        self._predict_apart = batcher(self._run_batch_apart) if batcher else self._run_alone_apart
        self.candidate = Candidate(settings, self.recorder)
        self._probed_at = time.monotonic()

    @property
    def model(self) -> LoadedModel:
        """What answers now; a request keeps the one it began with. Raises InputError before the first."""
        if self._model is None:
            raise InputError("this replica has no model yet")
        return self._model

    def take(self, model: LoadedModel) -> None:
        """Answer with another model from now on."""
        before, self._model = self._model, model
        self.recorder.changed()
        if before is not None:
            log.info("model %s %s -> %s %s", before.info.name, before.info.version, model.info.name, model.info.version)

    def hear(self, news: News) -> None:
        """Note what the keeper says, and log once why a model was not taken, and what came of a candidate."""
        if news.refused is not None and news.refused != self.news.refused:
            log.error("model refused, the one that answers stays: %s", news.refused)
        before, trials = self.news.trials, news.trials
        if trials.refused is not None and trials.refused != before.refused:
            log.error("candidate refused: %s", trials.refused)
        last = trials.last
        if last is not None and last != before.last and before.revision:
            log.warning("candidate %s %s by %s: %s", last.trial, last.decision, last.by, last.reason)
        if (news.refused, trials) != (self.news.refused, before):
            self.recorder.changed()
        self.news = news

    async def by_share(
        self,
        key: str,
        answer: Callable[[LoadedModel], Awaitable[_T]],
        agreed: LoadedModel | None = None,
        suits: Callable[[LoadedModel], bool] = lambda candidate: True,
    ) -> _T:
        """`answer` by the model that is to answer the request of this key, the candidate's share among them.

        `agreed`: the model that the request began with; `suits`: whether this request can be asked of the candidate.
        """
        agreed = agreed or self.model
        chosen = self.candidate.chosen(key, agreed)
        if chosen.is_candidate and not suits(chosen):
            chosen = agreed
        return await self.candidate.answered(chosen, agreed, answer)

    async def answer(self, model: LoadedModel, data: bytes) -> ImageAnswer:
        """Decode and predict one encoded image. Raises ImageRejected, and HttpError 503 where there is no room."""
        loaded = await self.load(model, data)
        return to_answer(model, await self.predict(model, loaded.pixels, data), loaded, len(data))

    async def load(self, model: LoadedModel, data: bytes, size: int | None = None) -> LoadedImage:
        """Decode one encoded image, to the model's size or another. Raises as `answer`."""
        predictor, asked = model.predictor, time.perf_counter()
        note = await self._noted(data) if size is None else None
        try:
            return await self._decoding.load(data, size or predictor.size, predictor.info.bit_depth)
        except (ImageRejected, HttpError) as error:
            self._refused(note, str(error.code))
            tracing.stage("decode", asked, attributes={tracing.ERROR: str(error.code)})
            raise

    async def decoding(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """`work` of milliseconds, which reads a request or draws an image, in the threads of small images."""
        return await self._decoding.beside(work, *arguments)

    async def map_of(self, model: LoadedModel, pixels: NDArray[np.uint8], class_name: str, data: bytes) -> Mapped:
        """Where a decoded image, sent as `data`, speaks for a class, by a thread for that. Raises NoMap where the model
        cannot tell; CandidateFailed where the candidate cannot, fails or is slow."""
        asked = time.perf_counter()
        thread = self._mapping_apart if model.is_candidate else self._mapping
        mapped = asyncio.get_running_loop().run_in_executor(thread, _map_of, model, pixels, class_name)
        found = await (self._of_candidate(mapped, data) if model.is_candidate else mapped)
        tracing.stage("map", asked)
        return found

    async def _of_candidate(self, mapped: Awaitable[Mapped], data: bytes) -> Mapped:
        try:
            return await self.candidate.in_time(mapped, data)
        except NoMap as error:  # it is of a kind that has none: no failure
            raise CandidateFailed(str(error)) from error
        except CandidateFailed:
            raise
        except Exception as error:
            log.error("the candidate's map failed:\n%s", without_words(error))
            raise self.candidate.failed(f"its map failed: {type(error).__name__}", data) from error

    async def predict(self, model: LoadedModel, pixels: NDArray[np.uint8], data: bytes | None = None) -> Prediction:
        """Predict one decoded image, uint8 (S, S, 3), RGB, in the model's size; `data`: as it was sent.

        Raises ImageRejected, and CandidateFailed where it is the candidate that gives no answer.
        """
        note = notes.image() or await self._noted(pixels)
        asked = time.perf_counter()
        waiting = Waiting(model, pixels)
        sent = pixels if data is None else data
        if model.is_candidate:
            said, seconds, together = await self.candidate.in_time(self._predict_apart(waiting), sent)
        else:
            said, seconds, together = await self._predict(waiting)
        ended = time.perf_counter()
        self.recorder.stage("predict", ended - asked)
        code = str(said.code) if isinstance(said, ImageRejected) else None
        tracing.predicted(asked, ended, model.info.sha256, together, code)
        if isinstance(said, ImageRejected):
            if model.is_candidate:
                raise self.candidate.failed(said.message, sent)
            refused_by_both(sent)
            self._refused(note, str(said.code))
            raise said
        if note is not None:
            note.predicted(said, model.info.name, model.info.version, model.info.sha256)

        def count() -> None:
            if self.recorder.predicted(model.info.sha256, model.predictor.info, said, pixels):
                self._settling = self._decoding.later(self.recorder.settle, self.recorder.take())
            self.candidate.seen(model, self.model, said, seconds, pixels, data)

        once_answered(count)
        return said

    async def _noted(self, data: bytes | NDArray[np.uint8]) -> ImageNote | None:
        """A note of an image, where the request is put on record."""
        taken = notes.notes()
        if taken is None:
            return None
        note = taken.image(data.nbytes if isinstance(data, np.ndarray) else len(data))
        note.sha256 = await self.decoding(notes.sha256, data)
        return note

    def too_large(self, size_bytes: int) -> None:
        """Count an image that was not even held."""
        taken = notes.notes()
        self._refused(None if taken is None else taken.image(size_bytes), Code.TOO_LARGE.value)

    def _refused(self, note: ImageNote | None, code: str) -> None:
        once_answered(lambda: self.recorder.refused(code))
        if note is not None:
            note.error_code = code

    async def counts(self) -> State:
        """What this process has done since it began."""
        last = asyncio.get_running_loop().run_in_executor(None, self.recorder.settle, self.recorder.take())
        before = [] if self._settling is None else [asyncio.wrap_future(self._settling)]
        await asyncio.wait([last, *before])  # which does not end them where whoever asks is gone
        info = None if self._model is None else self._model.info
        answering = None if info is None else Answering(info.name, info.version, info.sha256)
        state = self.recorder.state(answering, is_refusing=self.news.refused is not None)
        trial, trials = self.candidate.trial, self.news.trials
        return replace(
            state,
            trying=Counter() if trial is None else Counter([trial]),
            ended=Counter() if trials.last is None else Counter([trials.last]),
            candidate_refused=int(trials.refused is not None),
        )

    async def _run_batch(self, waiting: list[Waiting]) -> list[Answer]:
        self.recorder.batch(len(waiting))
        return await asyncio.get_running_loop().run_in_executor(self._forward, predict_waiting, waiting)

    async def _run_batch_apart(self, waiting: list[Waiting]) -> list[Answer]:
        self.recorder.batch(len(waiting))
        return await asyncio.get_running_loop().run_in_executor(self._apart, predict_waiting, waiting)

    async def _run_alone(self, waiting: Waiting) -> Answer:
        return (await self._run_batch([waiting]))[0]

    async def _run_alone_apart(self, waiting: Waiting) -> Answer:
        return (await self._run_batch_apart([waiting]))[0]

    async def check(self) -> None:
        """Make the current model answer the probe, unless it just did. Raises InputError."""
        if time.monotonic() - self._probed_at > _PROBE_IS_FRESH_S:
            await asyncio.get_running_loop().run_in_executor(self._forward, self.model.predictor.probe)
            self._probed_at = time.monotonic()

    async def refuse_unready(self) -> None:
        """The same for who asks, in a request's time. Raises HttpError 503."""
        try:
            async with asyncio.timeout(self.settings.request_timeout_s):
                await self.check()
        except (InputError, TimeoutError) as error:
            headers = {"Retry-After": str(self.settings.retry_after_s)}
            raise HttpError(503, "not_ready", "the model does not answer its probe", headers) from error


def _map_of(model: LoadedModel, pixels: NDArray[np.uint8], class_name: str) -> Mapped:
    if why_not := model.predictor.why_no_map():
        raise NoMap(why_not)
    maps, peaks = model.predictor.maps([pixels], [class_name])
    return Mapped(maps[0], float(peaks[0]))
