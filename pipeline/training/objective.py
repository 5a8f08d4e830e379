"""What is minimised, and how fast: loss, optimizer, learning rate."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.training.settings import Settings

Loss = Callable[[Tensor, Tensor], Tensor]


def make_loss(settings: Settings, class_counts: Sequence[int], device: torch.device) -> Loss:
    """Mean loss of logits (B, 1 or C) and targets int64 (B,): BCE for two classes, cross-entropy for more."""
    counts = torch.tensor(class_counts, dtype=torch.float32)
    if settings.task == "binary":
        weight = (counts[0] / counts[1]).to(device) if settings.balance else None

        def binary(logits: Tensor, targets: Tensor) -> Tensor:
            return functional.binary_cross_entropy_with_logits(logits[:, 0], targets.float(), pos_weight=weight)

        return binary
    weights = (counts.sum() / (len(counts) * counts)).to(device) if settings.balance else None

    def multiclass(logits: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(logits, targets, weight=weights)

    return multiclass


def make_optimizer(settings: Settings, model: nn.Module) -> torch.optim.Optimizer:
    """Adam or AdamW; biases and normalisation are not decayed."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.learning_rate)


def learning_rate(settings: Settings, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up, then half a cosine down to 1 % (Loshchilov & Hutter 2017, arXiv:1608.03983). `step` from 0."""
    warmup = max(1, round(settings.warmup_epochs * steps_per_epoch))
    total = settings.epochs * steps_per_epoch
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    share = (step - warmup) / max(1, total - warmup)
    return settings.learning_rate * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * share)))
