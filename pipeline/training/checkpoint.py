"""What an interrupted run continues from: weights, optimizer, and where it was. Tensors and JSON, never code.

last.safetensors  best.safetensors  optimizer.pt (tensors; loaded with weights_only)  validation.npz
statistics.safetensors (within an epoch: each rank's own)  state.json
"""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pipeline.storage.stores import Stores
from pipeline.storage.uris import join
from pipeline.training.rejected import Rejected
from pipeline.training.run_folder import STATE
from pipeline.training.validation import Scores

_LAST, _BEST, _OPTIMIZER = "last.safetensors", "best.safetensors", "optimizer.pt"
_SCORES, _STATISTICS = "validation.npz", "statistics.safetensors"

Weights = dict[str, Tensor]
Files = dict[str, bytes]


@dataclass(frozen=True)
class State:
    """Where a run stands after `epoch` epochs, `step` steps in all. `history` has a row an epoch, from 1."""

    epoch: int = 0
    step: int = 0
    losses: float = 0.0  # sum of the training losses of the steps since the last whole epoch
    best_epoch: int = 0
    best_metric: float = float("-inf")
    best_loss: float = float("inf")
    beaten_at: int = 0  # the step at which the metric was last beaten
    finished: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    noted: list[Any] = field(default_factory=list)  # `Noted.rows` of all ranks, where images are streamed
    epoch_steps: int = 0  # of an epoch when this was saved; 0: by a version that did not say

    def in_epochs_of(self, steps: int) -> "State":
        """The same place where an epoch has `steps` now: images that could not be used have come back, or others gone.

        Whole epochs stay whole. Of one that is begun as many steps are done, but for the last.
        """
        before = self.epoch_steps or (int(self.history[-1]["step"]) // self.epoch if self.history else steps)
        if before == steps:
            return replace(self, epoch_steps=steps)
        within = self.step - self.epoch * before
        done = min(within, steps - 1)
        return replace(
            self, epoch_steps=steps, step=self.epoch * steps + done, beaten_at=self.beaten_at // before * steps,
            losses=self.losses * done / max(1, within),
        )  # fmt: skip

    def after(self, row: dict[str, float], monitor: str | None, patience: int, steps: int) -> "State":
        """The state one epoch on, `row["step"]` optimizer steps into the run.

        It ends at `steps`, or `patience` steps after the metric was last beaten (0: never early). A tie goes to the
        lower validation loss, but does not buy more patience. Without a monitor the last epoch is the best, and all
        are run.
        """
        if monitor is None:
            epoch, step = self.epoch + 1, int(row["step"])
            return replace(
                self, epoch=epoch, step=step, losses=0.0, best_epoch=epoch, history=[*self.history, row],
                finished=step >= steps,
            )  # fmt: skip
        metric, loss = row[monitor], row["val_loss"]
        beaten = metric > self.best_metric + 1e-6
        better = beaten or (metric > self.best_metric - 1e-6 and loss < self.best_loss)
        epoch, step = self.epoch + 1, int(row["step"])
        beaten_at = step if beaten else self.beaten_at
        moved = replace(
            self, epoch=epoch, step=step, losses=0.0, beaten_at=beaten_at, history=[*self.history, row],
            finished=step >= steps or bool(patience and step - beaten_at >= patience),
        )  # fmt: skip
        if not better:
            return moved
        return replace(moved, best_epoch=epoch, best_metric=max(metric, self.best_metric), best_loss=loss)


@dataclass
class Best:
    """The best weights so far and what they said of the validation split."""

    weights: Weights
    scores: Scores


@dataclass(frozen=True)
class Trained:
    """What a run ends with."""

    state: State
    best: Best
    rejected: Rejected


def weights_of(model: nn.Module) -> Weights:
    """A copy on the CPU."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in model.state_dict().items()}


def packed(
    state: State,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: Best | None,
    statistics: Sequence[Weights] = (),
) -> Files:
    """A checkpoint's files by name; the one that says that it is whole comes last.

    `statistics`: each rank's `statistics_of`, where they differ, as they do within an epoch.
    """
    tensors = io.BytesIO()
    torch.save(optimizer.state_dict(), tensors)
    files = {_LAST: save(weights_of(model)), _OPTIMIZER: tensors.getvalue()}
    if best is not None:
        files |= {_BEST: save(best.weights), _SCORES: best.scores.packed()}
    if statistics:
        of_rank = {f"{rank}/{name}": value for rank, own in enumerate(statistics) for name, value in own.items()}
        files[_STATISTICS] = save(of_rank)
    return files | {STATE: json.dumps(asdict(state)).encode()}


def statistics_of(model: nn.Module) -> Weights:
    """What normalization layers have gathered, a copy on the CPU; empty where they gather nothing."""
    return {
        name: value.detach().to("cpu", copy=True) for name, value in model.named_buffers() if value.is_floating_point()
    }


def upload(files: Files, uri: str, stores: Stores) -> None:
    """Every file, under `uri`, in the order given. Raises StoreError, PlatformError where a disk is full.

    Ray would copy them through PyArrow, which passes over a failure that a file meets when it is closed.
    """
    for name, data in files.items():
        stores.of(uri).write(join(uri, name), data)


def read_state(folder: Path) -> State:
    return State(**json.loads((folder / STATE).read_text()))


def read_best(folder: Path) -> Best | None:
    """None within the first epoch."""
    if not (folder / _BEST).exists():
        return None
    return Best(load_file(folder / _BEST), Scores.unpacked((folder / _SCORES).read_bytes()))


def restore(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, world: int
) -> tuple[State, Best | None]:
    """Continue with what was saved; of ranks' own statistics with this rank's, or their mean for another `world`."""
    model.load_state_dict(load_file(folder / _LAST))
    saved: dict[str, Any] = torch.load(folder / _OPTIMIZER, map_location="cpu", weights_only=True)
    for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        group["fused"] = own["fused"]  # what this machine can, not the one that saved
    optimizer.load_state_dict(saved)
    if (folder / _STATISTICS).exists():
        by_rank: dict[int, Weights] = {}
        for key, value in load_file(folder / _STATISTICS).items():
            of, _, name = key.partition("/")
            by_rank.setdefault(int(of), {})[name] = value
        own = by_rank[rank] if len(by_rank) == world else _mean(list(by_rank.values()))
        model.load_state_dict(own, strict=False)
    return read_state(folder), read_best(folder)


def _mean(parts: list[Weights]) -> Weights:
    return {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}
