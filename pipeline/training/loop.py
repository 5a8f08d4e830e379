"""One worker: the loop over epochs. Every rank takes the same number of steps and reports equally often."""

import functools
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from safetensors.torch import load

from pipeline.base.errors import IncompleteError
from pipeline.base.resources import ClusterPlan
from pipeline.base.text import human_time
from pipeline.model.architectures import build
from pipeline.model.cell_classifier import CellClassifier
from pipeline.model.norms import synchronise
from pipeline.model.trainable import freeze
from pipeline.storage.stores import Stores
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Best, State
from pipeline.training.decoded import Noted
from pipeline.training.epoch import Learner
from pipeline.training.group import LeavingError, notice
from pipeline.training.memory import refusing_for_memory
from pipeline.training.midway import Midway, Rhythm, Stop
from pipeline.training.objective import learning_rate, make_loss, make_optimizer
from pipeline.training.pace import Pace
from pipeline.training.progress import SAVED, STANDING, Mailbox, Sender, checkpoint_name
from pipeline.training.rejected import refuse_missing_classes
from pipeline.training.reports import Reporter, Reports
from pipeline.training.run_folder import checkpoint_files
from pipeline.training.settings import Settings
from pipeline.training.shard import Shard, open_shards
from pipeline.training.speed import speed_of
from pipeline.training.statistics import MOST_IMAGES, measure_statistics, measuring
from pipeline.training.supply import Supply
from pipeline.training.suspicion import suspicion
from pipeline.training.validation import Scores, average_buffers, gather, measure, validate


@dataclass(frozen=True)
class Assignment:
    """What the driver sends to every worker."""

    settings: Settings
    train_rows: int
    validation_rows: int
    class_counts: tuple[int, ...]  # of the train split
    supply: Supply
    initial: Any  # ObjectRef of safetensors bytes, or None to start from the seed
    teacher: Any  # ObjectRef of a Teacher, or None
    mailbox: Mailbox
    max_error_share: float  # of damaged images, over both splits
    run_uri: str  # folder of the checkpoints
    resume: str | None  # a checkpoint to start from where Ray Train knows of none
    stores: Stores
    plan: ClusterPlan | None = None  # where Ray Train watches for nodes that are about to go away
    saving: Rhythm | None = None  # within an epoch; None: not at all
    threads: int | None = None  # of a worker; None: its share of the machine's cores
    reports: Callable[[int, str, Stores], Reporter] = Reports  # of rank, `run_uri` and `stores`


@dataclass
class _Worker:
    """A rank with everything it holds."""

    assignment: Assignment
    learner: Learner
    train: Shard
    validation: Shard
    sender: Sender
    reports: Reporter
    midway: Midway

    @property
    def settings(self) -> Settings:
        return self.assignment.settings

    @property
    def model(self) -> CellClassifier:
        return self.learner.model


@refusing_for_memory()
def train_worker(assignment: Assignment) -> dict[str, str] | None:
    """Train on one rank. Returns None, or why training was refused, on all ranks alike: no restart would cure it.

    Raises IncompleteError when too many images cannot be used, PlatformError when the store, a disk or want of memory
    is to blame.
    """
    worker, state, best = _start(assignment)
    _refuse_losses(worker)
    _tell_plan(worker, state)
    while not state.finished:
        started = time.monotonic()
        loss, pace = _train_epoch(worker, state, best)
        if not math.isfinite(loss):
            return {"refused": f"the loss is not finite in epoch {state.epoch + 1}; lower --learning-rate"}
        _settle(worker, state.epoch)
        scores = validate(worker.model, worker.validation, worker.settings, worker.learner.device)
        if (why := refusal(scores, state.epoch + 1)) is not None:
            return {"refused": why}
        _refuse_losses(worker)
        _refuse_gaps(worker, scores)
        row = _row(worker, state, loss, scores, pace, time.monotonic() - started)
        state = _moved(worker, state, row, scores)
        if best is None or state.best_epoch == state.epoch:
            best = Best(checkpoint.weights_of(worker.model), scores)
        if state.finished:
            best = _over_turns(worker, best)
            if (why := refusal(best.scores, state.epoch)) is not None:
                return {"refused": why}
        _report(worker, state, best, row)
    return None


def refusal(scores: Scores, epoch: int) -> str | None:
    """Why nothing is to be had of weights that say this of validation; None where they say numbers.

    The last step of an epoch moves weights that no loss is computed of any more.
    """
    silent = int((~np.isfinite(scores.logits).all(axis=1)).sum())
    if not silent:
        return None
    return (
        f"what the network says of {silent} of {len(scores.logits)} validation images is not finite after epoch "
        f"{epoch}; lower --learning-rate"
    )


def _start(assignment: Assignment) -> tuple[_Worker, State, Best | None]:
    context = ray.train.get_context()
    rank, settings = context.get_world_rank(), assignment.settings
    threads = assignment.threads or max(1, len(os.sched_getaffinity(0)) // context.get_local_world_size())
    torch.set_num_threads(threads)
    compute_repeatably()
    torch.manual_seed(settings.seed)
    device = ray.train.torch.get_device()
    initial = None if assignment.initial is None else ray.get(assignment.initial)
    model, optimizer = begun(settings, initial, device, context.get_world_size())
    state, best = State(), None
    saved = ray.train.get_checkpoint()
    name = assignment.resume if saved is None else checkpoint_name(saved.path)
    if name is not None:
        with checkpoint_files(assignment.run_uri, name, assignment.stores) as folder:
            state, best = checkpoint.restore(folder, model, optimizer, rank, context.get_world_size())
    sender = Sender(assignment.mailbox if rank == 0 else None)
    known = Noted.of_rows(0, state.noted)
    train, validation = open_shards(assignment.supply, rank, context.get_world_size(), known)
    for line in assignment.supply.told() if not state.step else ():  # once, not at each start of the workers
        sender.note(line)
    workers, each = _count(context.get_world_size(), "worker"), _count(threads, "thread")
    sender.started(state.history, state.step, f"{device.type}, {workers}, {each} each")
    ddp = ray.train.torch.prepare_model(model, parallel_strategy_kwargs={"broadcast_buffers": False})
    loss_of = make_loss(settings, assignment.class_counts, device)
    teacher = None if assignment.teacher is None else ray.get(assignment.teacher).on(device)
    learner = Learner(
        settings, rank, context.get_world_size(), device, model, ddp, optimizer, loss_of, len(train.targets), teacher
    )
    state = _where_steps_are(state, learner.steps, sender)
    reports = assignment.reports(rank, assignment.run_uri, assignment.stores)
    ask = None if assignment.plan is None else functools.partial(notice, assignment.plan)
    midway = Midway(gather, ask, assignment.saving)
    return _Worker(assignment, learner, train, validation, sender, reports, midway), state, best


def _where_steps_are(state: State, steps: int, sender: Sender) -> State:
    """Where a run stands that goes on with perhaps other images than it had; says so where its epochs are others."""
    now = state.in_epochs_of(steps)
    if now.step != state.step:
        sender.note(
            "note: other images can be used than before the interruption, so the curve is not that of one without: "
            f"an epoch has {_count(steps, 'step')} now"
        )
    return now


def compute_repeatably() -> None:
    """The same sums from the same numbers, where torch can."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    # by default that fills every new tensor with NaN, to show what reads it too soon: a tenth to a fifth of all time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def begun(
    settings: Settings, initial: bytes | None, device: torch.device, world: int
) -> tuple[CellClassifier, torch.optim.Optimizer]:
    """The network before its first step, and what will move it. `initial`: safetensors; None: as the seed has it."""
    model = build(settings.architecture, settings.outputs, settings.norm, settings.seen)
    if initial is not None:
        model.load_state_dict(load(initial))
    freeze(model, settings.unfreeze)
    model = _on_device(model, device, world)
    return model, make_optimizer(settings, model)


def _on_device(model: CellClassifier, device: torch.device, world: int) -> CellClassifier:
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        if world > 1:  # gloo has no fast road for it, and the statistics are averaged each epoch anyway
            synchronise(model)
    return model.to(memory_format=torch.channels_last).to(device)


def _tell_plan(worker: _Worker, state: State) -> None:
    """How much is to be done and how long it will take, before it begins."""
    settings, learner = worker.settings, worker.learner
    if state.finished:
        return
    epoch_s = speed_of(learner).epoch_s(learner.steps, worker.assignment.validation_rows, learner.world)
    total = settings.epochs * learner.steps
    planned = f"{_count(settings.epochs, 'epoch')} of {_count(learner.steps, 'step')} of {settings.batch_size} images"
    left = f"{total - state.step} of {total} steps left, " if state.step else ""
    seconds = epoch_s * (total - state.step) / learner.steps
    worker.sender.note(f"plan: {left}{planned}, about {human_time(seconds)}")
    if learner.no_graph:
        worker.sender.note(f"note: steps are no CUDA graph, and slower for it: {learner.no_graph}")


def _refuse_losses(worker: _Worker) -> None:
    """Raise when too many images are damaged, or no other is left of a class, by what all ranks have met."""
    train, validation = _noted(worker.assignment, worker.train), _noted(worker.assignment, worker.validation)
    lost = Noted.union(train.total + validation.total, [train, validation]).rejected
    worker.sender.left_out(lost)
    lost.refuse_too_many(worker.assignment.max_error_share)
    train.rejected.refuse_all()
    validation.rejected.refuse_all()
    classes = worker.settings.classes
    refuse_missing_classes(usable_counts(worker.train, train, len(classes)), classes, "training")
    if worker.settings.choose == "best":  # a fold may hold one class alone
        refuse_missing_classes(usable_counts(worker.validation, validation, len(classes)), classes, "validation")


def _met(worker: _Worker) -> list[tuple[int, str | None, str | None, str | None]]:
    """What all ranks have met in images that are streamed: a run that goes on would know only of those to come."""
    if worker.assignment.supply.cache is not None:
        return []
    shards = (worker.train, worker.validation)
    return Noted.union(0, [_noted(worker.assignment, shard) for shard in shards]).rows()


def usable_counts(shard: Shard, noted: Noted, classes: int) -> list[int]:
    """Images of each class in a split that are not among those noted as damaged."""
    damaged = [number for number, note in noted.notes.items() if note.code is not None]
    usable = ~np.isin(shard.image_ids, np.array(damaged, np.int64))
    counts: list[int] = np.bincount(shard.targets[usable], minlength=classes).tolist()
    return counts


def _noted(assignment: Assignment, shard: Shard) -> Noted:
    """Of a split, over all ranks: each knows all of what is held, and its own part of what is streamed."""
    own = shard.noted()
    return own if assignment.supply.cache is not None else Noted.union(own.total, gather(own))


def _refuse_gaps(worker: _Worker, scores: Scores) -> None:
    """Raise when a row of the validation split is neither scored nor rejected."""
    found = len(scores.image_ids) + _noted(worker.assignment, worker.validation).rejected.count
    if found != worker.assignment.validation_rows:
        raise IncompleteError(
            f"validation saw {found} of {worker.assignment.validation_rows} images; please report this"
        )


def _train_epoch(worker: _Worker, state: State, best: Best | None) -> tuple[float, Pace]:
    """Mean training loss of the epoch that `state` is in, over all ranks, and how fast this one went.

    Raises LeavingError when a node is about to go away, after what was done until then is saved.
    """
    learner, pace, epoch = worker.learner, Pace(), state.epoch
    first = state.step - epoch * learner.steps  # more than 0 after a checkpoint within the epoch
    learner.ddp.train()
    total = torch.zeros((), device=learner.device)
    worker.midway.epoch_begins()
    batches = worker.train.batches(learner.order(worker.train.targets, epoch)[first:])
    for step, batch in enumerate(pace.waiting_for(batches), start=first):
        total += learner.step(batch, epoch, step)
        done = (step + 1 - first) * worker.settings.batch_size
        shown = (total * learner.world + state.losses) / (step + 1)  # by this rank's share alone
        worker.sender.step(epoch + 1, step + 1, learner.steps, shown, done, pace)
        stop = worker.midway.after_step() if step + 1 < learner.steps else None
        if stop is not None:
            _save_midway(worker, replace(state, step=epoch * learner.steps + step + 1), float(total), best, stop)
    mean = (sum(gather(float(total))) + state.losses) / learner.steps  # waits for a GPU
    pace.end()
    return mean, pace


def _save_midway(worker: _Worker, state: State, losses: float, best: Best | None, stop: Stop) -> None:
    """Save where all workers stand within an epoch; `losses` is this rank's part of what `state.losses` lacks."""
    began = time.monotonic()
    everyones = gather((losses, checkpoint.statistics_of(worker.model)))
    losses = state.losses + sum(part for part, _ in everyones)
    state = replace(state, losses=losses, noted=_met(worker))
    statistics = [own for _, own in everyones]
    files = functools.partial(
        checkpoint.packed, state, worker.model, worker.learner.optimizer, best, statistics if any(statistics) else ()
    )
    leave = stop is Stop.SAVE_AND_LEAVE
    worker.reports.send({SAVED: state.step}, files, wait=leave)
    if leave:
        raise LeavingError
    worker.midway.saved(time.monotonic() - began)


def _settle(worker: _Worker, epoch: int) -> None:
    """Make normalization statistics fit the weights, the same on every rank, after epoch `epoch` (from 0)."""
    learner = worker.learner
    average_buffers(worker.model)
    layers = measuring(worker.model, (epoch + 1) * learner.steps, learner.images)
    count = -(-min(learner.images, MOST_IMAGES) // worker.settings.batch_size) if layers else 0
    batches = worker.train.batches(learner.order(worker.train.targets, epoch)[:count])
    measure_statistics(worker.model, layers, (learner.pixels(batch, epoch) for batch in batches))


def _moved(worker: _Worker, state: State, row: dict[str, float], scores: Scores) -> State:
    """The state after the epoch of `row`; says once when the loss falls while validation stays at chance."""
    settings, steps = worker.settings, worker.learner.steps
    monitor = settings.monitor if settings.choose == "best" else None
    after = state.after(row, monitor, settings.patience * steps, settings.epochs * steps)
    counts = np.bincount(scores.targets, minlength=len(settings.classes)).tolist()
    before, now = (suspicion(each.history, settings.monitor, counts) for each in (state, after))
    if now and not before:
        worker.sender.note(f"note: {now}")
    return after


def _over_turns(worker: _Worker, best: Best) -> Best:
    """The best weights with what they say of validation as the bundle will ask them, over all turns."""
    if worker.settings.turns == 1:
        return best
    worker.model.load_state_dict(best.weights)
    scores = validate(worker.model, worker.validation, worker.settings, worker.learner.device, worker.settings.turns)
    return Best(best.weights, scores)


def _row(worker: _Worker, state: State, loss: float, scores: Scores, pace: Pace, seconds: float) -> dict[str, float]:
    """One line of the history, the same on every rank. Images/s are those of training, validation left out."""
    settings, steps = worker.settings, worker.learner.steps
    paces = gather((seconds, pace.seconds, pace.waiting_share))
    seconds, train_seconds = (max(values[part] for values in paces) for part in (0, 1))
    return {
        "epoch": state.epoch + 1,
        "step": (state.epoch + 1) * steps,
        "train_loss": loss,
        **measure(scores, settings.task),
        "learning_rate": learning_rate(settings, (state.epoch + 1) * steps - 1, settings.epochs * steps),
        "seconds": seconds,
        "train_seconds": train_seconds,
        "images_per_s": ((state.epoch + 1) * steps - state.step) * settings.batch_size / train_seconds,
        "waiting_share": float(np.mean([values[2] for values in paces])),
        "ended_at": max(gather(time.time())),
    }


def _report(worker: _Worker, state: State, best: Best, row: dict[str, float]) -> None:
    """Hand the epoch to Ray Train; rank 0 brings the checkpoint."""
    state = replace(state, noted=_met(worker))
    reported = row | {name: getattr(state, name) for name in STANDING}
    began = time.monotonic()
    worker.reports.send(reported, lambda: checkpoint.packed(state, worker.model, worker.learner.optimizer, best))
    worker.midway.saved(time.monotonic() - began)
