"""Forward passes over decoded images, each for the model that it waits for, and how long they took."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import Code, ImageRejected, Stage
from pipeline.model.prediction import Prediction
from serving.access import without_words
from serving.model import LoadedModel

log = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Waiting:
    """One decoded image on its way to the model that its request started with."""

    model: LoadedModel
    pixels: NDArray[np.uint8]  # (S, S, 3), RGB


class Answer(NamedTuple):
    """What was said of one image, and its part of the pass."""

    said: Prediction | ImageRejected
    seconds: float = 0.0
    together: int = 1  # images of its model in the pass


def predict_waiting(waiting: Sequence[Waiting], is_asked: bool = True) -> list[Answer]:
    """One forward pass a model; right after a swap a batch can hold images for two. `is_asked`: by clients."""
    failed = (ImageRejected(Code.PREDICT_FAILED, "the model failed on this image", Stage.PREDICT) for _ in waiting)
    answers = [Answer(one) for one in failed]
    for model in {id(item.model): item.model for item in waiting}.values():
        places = [place for place, item in enumerate(waiting) if item.model is model]
        clock = clock_of(model)
        with model.passing:
            started, began = time.perf_counter_ns(), clock()
            try:
                said = model.predictor.predict_each([waiting[place].pixels for place in places])
            except Exception as error:
                log.error("the forward pass failed:\n%s", without_words(error))
                continue
            seconds = (clock() - began) / len(places)
        if is_asked:
            model.work.count(len(places), time.perf_counter_ns() - started)
        for place, answer in zip(places, said, strict=True):
            answers[place] = Answer(answer, seconds, len(places))
    return answers


def clock_of(model: LoadedModel) -> Callable[[], float]:
    """The processor's time of this thread, where the pass is all in it: a busy machine is not the model's fault."""
    return time.thread_time if model.is_in_one_thread else time.perf_counter
