"""What a training would take, measured by a few steps of the real network on real images; nothing is kept of it."""

import contextlib
import math
import re
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from pipeline.base.errors import IncompleteError
from pipeline.base.machine import usable_cores
from pipeline.base.resources import ClusterPlan
from pipeline.storage.stores import Stores
from pipeline.training.batch import Batch
from pipeline.training.decoded import pixel_bytes
from pipeline.training.epoch import Learner
from pipeline.training.loop import begun, compute_repeatably
from pipeline.training.memory import refusing_for_memory
from pipeline.training.objective import make_loss
from pipeline.training.preview import read_images, some_of_each_class
from pipeline.training.rows import LabelledRows
from pipeline.training.settings import Settings
from pipeline.training.speed import Speed, speed_of
from pipeline.training.teacher import Teacher

_ENOUGH_S = 3.0


@dataclass(frozen=True)
class Rehearsal:
    """Seconds and bytes of one worker, while all that this machine would have work beside it."""

    parameters: int
    trainable: int
    cores: int  # that decode
    decode_s: float  # an image, on one core
    speed: Speed
    memory_bytes: int  # of a worker; on GPUs of the GPU
    pixels_bytes: int  # of all images, decoded

    def epoch_s(self, steps: int, rows: LabelledRows, workers: int) -> float:
        return self.speed.epoch_s(steps, rows.validation.num_rows, workers)

    def decoding_s(self, rows: LabelledRows) -> float:
        """Of all images, where none is in the cache."""
        images: int = rows.train.num_rows + rows.validation.num_rows
        return self.decode_s * images / self.cores


@refusing_for_memory()
def rehearse(
    settings: Settings,
    rows: LabelledRows,
    plan: ClusterPlan,
    stores: Stores,
    initial: bytes | None,
    teacher: Teacher | None,
) -> Rehearsal:
    """Decode a batch, take steps with it.

    Raises IncompleteError where none of its images can be used, PlatformError where the memory does not do.
    """
    device = torch.device("cuda" if plan.gpus else "cpu")
    beside = 1 if plan.gpus else min(plan.workers, usable_cores())
    threads = max(1, usable_cores() // beside)
    compute_repeatably()
    torch.set_num_threads(threads)
    batch, decode_s = _batch(settings, rows.train, plan.workers, stores)
    _forget_peak()  # of what came before: a worker does none of it
    learner = partial(_learner, settings, rows, initial, teacher, device)
    learners = [learner()]
    learners[0].step(batch, 0, 0)
    memory = _peak_bytes(device)  # before others lie beside it in this process
    learners += [learner() for _ in range(1, beside)]
    with ThreadPoolExecutor(beside, initializer=partial(torch.set_num_threads, threads)) as workers:
        measured = list(workers.map(partial(speed_of, batch=batch, enough_s=_ENOUGH_S), learners))
    model = learners[0].model
    return Rehearsal(
        parameters=sum(each.numel() for each in model.parameters()),
        trainable=sum(each.numel() for each in model.parameters() if each.requires_grad),
        cores=usable_cores(),
        decode_s=decode_s,
        speed=Speed.mean(measured),
        memory_bytes=memory,
        pixels_bytes=(rows.train.num_rows + rows.validation.num_rows) * pixel_bytes(settings.input_size),
    )


def _batch(settings: Settings, train: pa.Table, workers: int, stores: Stores) -> tuple[Batch, float]:
    """A worker's share of a step, images repeated where there are few; and the seconds that an image took to decode."""
    share = math.ceil(settings.batch_size / workers)
    chosen = some_of_each_class(train, share, settings.seed)
    began = time.perf_counter()
    read = read_images(chosen, settings, stores)
    decode_s = (time.perf_counter() - began) / chosen.num_rows
    if not read:
        raise IncompleteError(f"none of {chosen.num_rows} training images can be used, {chosen['uri'][0]} among them")
    rows = np.resize(np.arange(len(read)), share)
    images = np.stack([read[row][1] for row in rows])  # uint8 (B, S, S, 3)
    targets = torch.tensor([read[row][0].target for row in rows])
    return Batch(torch.from_numpy(images), targets, np.array([read[row][0].image_id for row in rows])), decode_s


def _learner(
    settings: Settings, rows: LabelledRows, initial: bytes | None, teacher: Teacher | None, device: torch.device
) -> Learner:
    torch.manual_seed(settings.seed)
    model, optimizer = begun(settings, initial, device, world=1)
    model.train()
    loss_of = make_loss(settings, tuple(rows.counts("train")), device)
    answers = None if teacher is None else teacher.on(device)
    return Learner(settings, 0, 1, device, model, model, optimizer, loss_of, rows.train.num_rows, answers)


def _forget_peak() -> None:
    """Have the kernel count this process's peak anew (proc(5), /proc/PID/clear_refs), where it lets us."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
