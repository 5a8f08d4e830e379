"""Inside one replica: bytes -> decoded in a bounded pool -> batched forward passes -> one answer an image.

Only coroutines touch the event loop; decoding (libjpeg-turbo, OpenCV, Pillow) and ONNX Runtime release the GIL in
threads. A request keeps the model it started with, so a swap never mixes two models in one answer.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import Code, ImageRejected, LeukorayError, Stage
from pipeline.model.predictor import Predictions
from serving.model import LoadedModel, load_model, probe, to_answer
from serving.schemas import ImageAnswer
from serving.settings import ModelChoice, ServingSettings

log = logging.getLogger("ray.serve")
_PROBE_IS_FRESH_S = 2.0


@dataclass(frozen=True)
class Job:
    """One decoded image on its way to the model that its request started with."""

    model: LoadedModel
    pixels: NDArray[np.uint8]  # (S, S, 3), RGB


Outcome = tuple[Predictions, int] | ImageRejected  # a batch's predictions and the row in it
# Turns the engine's function of many jobs into a function of one that is called with others; serve.batch is one.
Batcher = Callable[[Callable[[list[Job]], Awaitable[list[Outcome]]]], Callable[[Job], Awaitable[Outcome]]]


class Engine:
    """The current model and the threads that work for it."""

    def __init__(self, settings: ServingSettings, model: LoadedModel, batcher: Batcher | None = None) -> None:
        self.settings = settings
        self.model = model
        self.choice = ModelChoice()  # what the current model was chosen by
        self.refused: str | None = None  # why the model last asked for was not taken
        self._decoders = ThreadPoolExecutor(settings.decode_threads, "decode")
        self._forward = ThreadPoolExecutor(1, "forward")
        self._predict = batcher(self._run_batch) if batcher else self._run_alone
        self._probed_at = time.monotonic()

    async def answer(self, model: LoadedModel, data: bytes) -> ImageAnswer:
        """Decode and predict one encoded image. Raises ImageRejected."""
        loop = asyncio.get_running_loop()
        loaded = await loop.run_in_executor(self._decoders, model.predictor.load, data, self.settings.limits)
        outcome = await self._predict(Job(model, loaded.pixels))
        if isinstance(outcome, ImageRejected):
            raise outcome
        predictions, row = outcome
        return to_answer(model, predictions, row, loaded, len(data))

    async def _run_batch(self, jobs: list[Job]) -> list[Outcome]:
        return await asyncio.get_running_loop().run_in_executor(self._forward, _predict_jobs, jobs)

    async def _run_alone(self, job: Job) -> Outcome:
        return (await self._run_batch([job]))[0]

    async def check(self) -> None:
        """Make the current model answer the probe, unless it just did. Raises InputError."""
        if time.monotonic() - self._probed_at > _PROBE_IS_FRESH_S:
            await asyncio.get_running_loop().run_in_executor(self._forward, probe, self.model)
            self._probed_at = time.monotonic()

    async def swap(self, choice: ModelChoice) -> bool:
        """Load another model beside the current one, then take it; keep the current one when it is no good.

        True when the current model is now the chosen one. Never raises: whatever is wrong with a model, the one that
        answers goes on.
        """
        if choice == self.choice:
            self.refused = None
            return True
        uri = choice.model or self.settings.model
        try:
            model = await asyncio.to_thread(load_model, uri, self.settings, choice.threshold)
        except Exception as error:
            reason = str(error) if isinstance(error, LeukorayError) else f"{uri}: {type(error).__name__}: {error}"
            self.refuse(reason)
            return False
        before, self.model, self.choice, self.refused = self.model, model, choice, None
        log.info("model %s %s -> %s %s", before.info.name, before.info.version, model.info.name, model.info.version)
        return True

    def refuse(self, reason: str) -> None:
        """Note, and log once, why the model last asked for was not taken."""
        if reason != self.refused:
            log.error("model refused, %s %s stays: %s", self.model.info.name, self.model.info.version, reason)
        self.refused = reason


def _predict_jobs(jobs: list[Job]) -> list[Outcome]:
    """One forward pass a model; right after a swap a batch can hold jobs of two."""
    outcomes: dict[int, Outcome] = {}
    groups: dict[int, list[int]] = {}
    for index, job in enumerate(jobs):
        groups.setdefault(id(job.model), []).append(index)
    for indices in groups.values():
        outcomes.update(zip(indices, _predict_group([jobs[index] for index in indices]), strict=True))
    return [outcomes[index] for index in range(len(jobs))]


def _predict_group(jobs: list[Job]) -> list[Outcome]:
    predictor = jobs[0].model.predictor
    try:
        predictions = predictor(np.stack([job.pixels for job in jobs]))  # uint8 (B, S, S, 3)
    except ImageRejected as error:
        # One image without a finite answer must not take its neighbours along.
        return [error] if len(jobs) == 1 else [outcome for job in jobs for outcome in _predict_group([job])]
    except Exception:
        log.exception("the forward pass failed")
        return [ImageRejected(Code.PREDICT_FAILED, "the model failed on this image", Stage.PREDICT) for _ in jobs]
    return [(predictions, row) for row in range(len(jobs))]
