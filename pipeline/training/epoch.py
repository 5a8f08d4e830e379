"""One epoch of optimizer steps on one worker: the same steps for any number of workers that share a global batch."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.base.text import first_line
from pipeline.model.cell_classifier import CellClassifier, in_the_middle
from pipeline.training.augment import augmented
from pipeline.training.batch import Batch
from pipeline.training.buffers import kept_buffers
from pipeline.training.captured import CapturedPass
from pipeline.training.dropout import Dropouts
from pipeline.training.objective import Loss, learning_rate, set_learning_rate
from pipeline.training.order import Rows, parts_of_share, share, steps_of_epoch, steps_per_epoch
from pipeline.training.settings import Settings
from pipeline.training.teacher import Answers


@dataclass
class Learner:
    """A rank's network and what moves it. `ddp` is `model`, or a wrap of it that averages gradients over the ranks."""

    settings: Settings
    rank: int
    world: int
    device: torch.device
    model: CellClassifier
    ddp: nn.Module
    optimizer: torch.optim.Optimizer
    loss_of: Loss
    images: int  # of the train split
    teacher: Answers | None = None
    dropouts: Dropouts = field(init=False)
    no_graph: str = ""  # why passes on a GPU are no CUDA graph, where one was tried
    _captured: CapturedPass | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.dropouts = Dropouts(self.model, self.settings.seed)

    @property
    def steps(self) -> int:
        """Optimizer steps an epoch, the same on every rank."""
        return steps_per_epoch(self.images, self.settings.batch_size)

    def order(self, targets: NDArray[np.int64], epoch: int) -> list[Rows]:
        """What this rank takes of each global batch of an epoch (from 0)."""
        balanced = self.settings.balance == "sample"
        steps = steps_of_epoch(targets, self.settings.batch_size, self.settings.seed, epoch, balanced=balanced)
        return [share(rows, self.rank, self.world) for rows in steps]

    def pixels(self, batch: Batch, epoch: int) -> Tensor:
        """What the network sees of a batch, on the device, changed as it is in this epoch."""
        images, settings = batch.images.to(self.device, non_blocking=True), self.settings
        if not settings.augment:
            return in_the_middle(images, settings.seen)
        return augmented(images, batch.image_ids, settings.seed, epoch, settings.seen)

    def step(self, batch: Batch, epoch: int, step: int) -> Tensor:
        """The `step`-th optimizer step of an epoch (both from 0); this rank's part of the mean loss, float32 ()."""
        settings = self.settings
        torch.manual_seed(step_seed(settings.seed, epoch, step, self.rank))  # if a network draws: alike after a restart
        rate = learning_rate(settings, epoch * self.steps + step, settings.epochs * self.steps)
        set_learning_rate(self.optimizer, rate)
        total = self.gradients(batch, epoch)
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        self.optimizer.step()
        return total

    def gradients(self, batch: Batch, epoch: int) -> Tensor:
        """Put the gradient of a global batch's mean loss, of which `batch` is this rank's share, into the weights.

        Returns this rank's part of that loss, float32 ().
        """
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        settings = self.settings
        parts = _parts(batch, parts_of_share(settings.batch_size, self.world, settings.accumulate))
        for number, part in enumerate(parts):
            with self._quiet() if number < len(parts) - 1 else contextlib.nullcontext():
                total += self._backward(part, epoch)
        return total

    def _backward(self, part: Batch, epoch: int) -> Tensor:
        """Add the gradient of a part of a batch, and give its part of the loss."""
        images, targets = self.pixels(part, epoch), part.targets.to(self.device, non_blocking=True)
        if not len(images):  # the others wait for this rank's gradients: of a black image, times 0
            self.dropouts.show(np.zeros(1, np.int64), epoch)
            with kept_buffers(self.model):
                return self._pass(images.new_zeros((1, *images.shape[1:])), targets.new_zeros(1), weight=0.0)
        self.dropouts.show(part.image_ids, epoch)
        if self._is_capturable(images):
            return self._graph_pass(images, targets)
        return self._pass(images, targets)

    def _pass(self, images: Tensor, targets: Tensor, weight: float = 1.0) -> Tensor:
        """Forward and back. DDP takes the mean over ranks: times their number, it is the sum."""
        settings = self.settings
        # no casts are kept for a second use: there is none, and a graph must not hold what is freed
        is_half = settings.amp and self.device.type == "cuda"
        with torch.autocast("cuda", torch.bfloat16, enabled=is_half, cache_enabled=False):
            taught = None if self.teacher is None else self.teacher(images)
            logits = self.ddp(images)
        loss = self.loss_of(logits.float(), targets, taught).sum() * (weight / settings.batch_size)
        torch.autograd.backward(loss * self.world)
        return loss.detach()

    def _is_capturable(self, images: Tensor) -> bool:
        """One GPU, whole batches: a graph has one size, and its gradients take the place of what was there before."""
        is_alone = self.ddp is self.model and self.settings.accumulate == 1 and self.teacher is None
        is_whole = len(images) == self.settings.batch_size
        return self.device.type == "cuda" and is_alone and is_whole and not self.no_graph

    def _graph_pass(self, images: Tensor, targets: Tensor) -> Tensor:
        if self._captured is None:
            self.no_graph = self._capture(images, targets)
        if self._captured is not None:
            return self._captured(images, targets)
        # the network does what no graph can hold: kernel by kernel, with all memory that the attempt took
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        return self._pass(images, targets)

    def _capture(self, images: Tensor, targets: Tensor) -> str:
        """Why there is no graph; empty where there is one."""
        try:
            self._captured = CapturedPass(self._pass, self.model, self.dropouts, images, targets)
        except RuntimeError as error:
            return first_line(error)
        return ""

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """Gradients stay on the rank: others are asked at the end of the step only."""
        with self.ddp.no_sync() if isinstance(self.ddp, DistributedDataParallel) else contextlib.nullcontext():
            yield


def _parts(batch: Batch, count: int) -> list[Batch]:
    """A batch in `count` parts whose sizes differ by one at most; the last ones are empty where images are too few."""
    cuts = np.array_split(np.arange(len(batch.image_ids)), count)
    return [
        Batch(batch.images[at : at + len(cut)], batch.targets[at : at + len(cut)], batch.image_ids[at : at + len(cut)])
        for cut, at in zip(cuts, np.cumsum([0, *map(len, cuts)]), strict=False)
    ]


def step_seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint32)[0])
