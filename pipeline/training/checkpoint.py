"""What an interrupted run continues from: weights, optimizer, and where it was. Tensors and JSON, never code.

last.safetensors  best.safetensors  optimizer.pt (tensors; loaded with weights_only)  validation.npz  state.json
"""

import io
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pipeline.storage.stores import Stores
from pipeline.storage.uris import join
from pipeline.training.run_folder import STATE
from pipeline.training.validation import Scores

Weights = dict[str, Tensor]
Files = dict[str, bytes]


@dataclass(frozen=True)
class State:
    """Where a run stands after `epoch` epochs and `step` optimizer steps. `history` has a row an epoch, from 1."""

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_metric: float = float("-inf")
    best_loss: float = float("inf")
    beaten_at: int = 0  # the step at which the metric was last beaten
    finished: bool = False
    history: list[dict[str, float]] = field(default_factory=list)

    def after(self, row: dict[str, float], monitor: str | None, patience: int, steps: int) -> "State":
        """The state one epoch on, `row["step"]` optimizer steps into the run.

        It ends at `steps`, or `patience` steps after the metric was last beaten (0: never early). A tie goes to the
        lower validation loss, but does not buy more patience. Without a monitor the last epoch is the best, and all
        are run.
        """
        if monitor is None:
            epoch, step = self.epoch + 1, int(row["step"])
            return replace(
                self, epoch=epoch, step=step, best_epoch=epoch, history=[*self.history, row], finished=step >= steps
            )
        metric, loss = row[monitor], row["val_loss"]
        beaten = metric > self.best_metric + 1e-6
        better = beaten or (metric > self.best_metric - 1e-6 and loss < self.best_loss)
        epoch, step = self.epoch + 1, int(row["step"])
        beaten_at = step if beaten else self.beaten_at
        moved = replace(
            self, epoch=epoch, step=step, beaten_at=beaten_at, history=[*self.history, row],
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


def weights_of(model: nn.Module) -> Weights:
    """A copy on the CPU."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in model.state_dict().items()}


def packed(state: State, model: nn.Module, optimizer: torch.optim.Optimizer, best: Best) -> Files:
    """A checkpoint's files by name; the one that says that it is whole comes last."""
    arrays, tensors = io.BytesIO(), io.BytesIO()
    np.savez(arrays, **asdict(best.scores))
    torch.save(optimizer.state_dict(), tensors)
    return {
        "last.safetensors": save(weights_of(model)),
        "best.safetensors": save(best.weights),
        "optimizer.pt": tensors.getvalue(),
        "validation.npz": arrays.getvalue(),
        STATE: json.dumps(asdict(state)).encode(),
    }


def upload(files: Files, uri: str, stores: Stores) -> None:
    """Every file, under `uri`, in the order given. Raises StoreError, PlatformError where a disk is full.

    Ray would copy them through PyArrow, which passes over a failure that a file meets when it is closed.
    """
    for name, data in files.items():
        stores.of(uri).write(join(uri, name), data)


def read_state(folder: Path) -> State:
    return State(**json.loads((folder / STATE).read_text()))


def read_best(folder: Path) -> Best:
    with np.load(folder / "validation.npz", allow_pickle=False) as arrays:
        scores = Scores(arrays["image_ids"], arrays["targets"], arrays["logits"])
    return Best(load_file(folder / "best.safetensors"), scores)


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[State, Best]:
    model.load_state_dict(load_file(folder / "last.safetensors"))
    saved: dict[str, Any] = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    optimizer.load_state_dict(saved)
    return read_state(folder), read_best(folder)
