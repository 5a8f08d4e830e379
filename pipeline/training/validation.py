"""Validation over all ranks: every image exactly once, whatever the sizes of the shards; one result for all.

The forward passes exchange nothing, so ranks may have different numbers of batches; only finished logits are gathered.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import nn

from pipeline.evaluation.definitions import binary_metrics, multiclass_metrics
from pipeline.model.prediction import probabilities
from pipeline.model.turns import Turns, over_turns
from pipeline.training.settings import Settings
from pipeline.training.shard import Shard


@dataclass(frozen=True)
class Scores:
    """Logits of validation images in id order."""

    image_ids: NDArray[np.int64]  # (N,)
    targets: NDArray[np.int64]  # (N,)
    logits: NDArray[np.float32]  # (N, 1 or C)

    def packed(self) -> bytes:
        """As an npz file."""
        buffer = io.BytesIO()
        np.savez(buffer, image_ids=self.image_ids, targets=self.targets, logits=self.logits)
        return buffer.getvalue()

    @classmethod
    def unpacked(cls, data: bytes) -> "Scores":
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return cls(arrays["image_ids"], arrays["targets"], arrays["logits"])


def gather(value: Any) -> list[Any]:
    """`value` of every rank, on every rank."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return [value]
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, value)
    return everyone


@torch.inference_mode()
def validate(model: nn.Module, shard: Shard, settings: Settings, device: torch.device, turns: Turns = 1) -> Scores:
    """Logits of all ranks' validation images, averaged over `turns`. Raises RuntimeError when an image came twice."""
    model.eval()

    def forward(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(model(torch.from_numpy(images).to(device)).float().cpu().numpy())

    ids, targets, logits = [], [], []
    for batch in shard.once(settings.batch_size):
        ids.append(batch.image_ids)
        targets.append(batch.targets.numpy())
        logits.append(over_turns(forward, batch.images.numpy(), turns))
    own = _concatenated(ids, np.int64, 1), _concatenated(targets, np.int64, 1)
    return joined(gather(Scores(*own, _concatenated(logits, np.float32, settings.outputs))))


def joined(parts: Sequence[Scores]) -> Scores:
    """Scores of ranks or of folds as one, in id order. Raises RuntimeError when an image came twice."""
    whole = Scores(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("image_ids", "targets", "logits"))
    )
    order = np.argsort(whole.image_ids, kind="stable")
    if (np.diff(whole.image_ids[order]) == 0).any():
        raise RuntimeError("validation counted an image twice")
    return Scores(whole.image_ids[order], whole.targets[order], whole.logits[order])


def _concatenated(parts: list[NDArray[Any]], dtype: type, width: int) -> NDArray[Any]:
    if parts:
        return np.concatenate(parts)
    return np.empty(0 if width == 1 and dtype is np.int64 else (0, width), dtype)


def measure(scores: Scores, task: str) -> dict[str, float]:
    """What an epoch reports: unweighted loss, spread of the logits, metrics at the natural operating point."""
    classes = probabilities(scores.logits)
    truth = scores.targets
    chosen = np.clip(classes[np.arange(len(truth)), truth], 1e-12, 1.0)
    found = {"val_loss": float(-np.log(chosen).mean())}
    is_binary = task == "binary"
    metrics = binary_metrics(truth, classes[:, 1], 0.5) if is_binary else multiclass_metrics(truth, classes)
    found["val_auc"] = metrics["roc_auc" if is_binary else "roc_auc_macro"]
    found["val_spread"] = float(scores.logits.std(axis=0).mean()) if len(truth) else math.nan
    found |= {f"val_{name}": metrics[name] for name in ("accuracy", "balanced_accuracy")}
    return {name: value if math.isfinite(value) else float("nan") for name, value in found.items()}


def average_buffers(model: nn.Module) -> None:
    """Give every rank the mean of all ranks' BatchNorm statistics, so that all validate the model that is saved."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return
    world = torch.distributed.get_world_size()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            torch.distributed.all_reduce(buffer)
            buffer /= world
