"""How long steps and validation take, by passes of the real network that leave no trace in it."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from pipeline.training.batch import Batch
from pipeline.training.buffers import kept_buffers
from pipeline.training.epoch import Learner


@dataclass(frozen=True)
class Speed:
    """Seconds of a step without the optimizer's part, and of an image of validation on one worker."""

    step_s: float
    predict_s: float

    def epoch_s(self, steps: int, validation: int, workers: int) -> float:
        """`validation` images in all, shared by `workers`."""
        return self.step_s * steps + self.predict_s * validation / workers

    @classmethod
    def mean(cls, speeds: Sequence[Self]) -> Self:
        return cls(*(statistics.fmean(getattr(each, part) for each in speeds) for part in ("step_s", "predict_s")))


def speed_of(learner: Learner, batch: Batch | None = None, enough_s: float = 0.0) -> Speed:
    """Measure gradients and prediction once each after a warm-up; all ranks must call it together.

    `batch`: None: images of noise, as many as a worker's share. `enough_s`: a rank that is alone repeats steps until
    they took so long. Weights, optimizer and normalization statistics stay as they are.
    """
    batch = batch or _noise(learner)
    learner.ddp.train()
    with kept_buffers(learner.model):
        _gradients_s(learner, batch)
        steps = [_gradients_s(learner, batch)]
        while learner.world == 1 and sum(steps) < enough_s:
            steps.append(_gradients_s(learner, batch))
    learner.optimizer.zero_grad(set_to_none=True)
    learner.model.eval()
    _prediction_s(learner, batch)
    return Speed(statistics.median(steps), _prediction_s(learner, batch) / len(batch.images))


def _noise(learner: Learner) -> Batch:
    """Of all classes in turn: a CUDA graph proves itself on the first batch."""
    share = -(-learner.settings.batch_size // learner.world)
    size = learner.settings.input_size
    pixels = np.random.default_rng(0).integers(0, 256, (share, size, size, 3), dtype=np.uint8)
    targets = torch.arange(share) % len(learner.settings.classes)
    return Batch(torch.from_numpy(pixels), targets, np.arange(share))


def _gradients_s(learner: Learner, batch: Batch) -> float:
    began = time.perf_counter()
    float(learner.gradients(batch, 0))  # waits for a GPU
    return time.perf_counter() - began


@torch.inference_mode()
def _prediction_s(learner: Learner, batch: Batch) -> float:
    began = time.perf_counter()
    learner.model(batch.images.to(learner.device)).cpu()
    return time.perf_counter() - began
