"""What is minimised, and how fast: loss, optimizer, learning rate."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.model.cell_classifier import CellClassifier
from pipeline.model.trainable import layers_of
from pipeline.training.settings import Settings


class Loss(Protocol):
    def __call__(self, logits: Tensor, targets: Tensor, taught: Tensor | None = None) -> Tensor:
        """Losses (B,) of logits (B, 1 or C) and targets int64 (B,); `taught`: a teacher's logits of them."""


_FRESH_HEAD = 5.0  # times the learning rate of features that are known already (FastAI's and timm's habit is 5-10)

# of what is learnt from a teacher, as in Tian et al. 2020 (arXiv:1910.10699) and Cho & Hariharan 2019
# (arXiv:1910.01348): how far answers are softened, and their share of the loss
TEACHER_TEMPERATURE, TEACHER_SHARE = 4.0, 0.9


def make_loss(settings: Settings, class_counts: Sequence[int], device: torch.device) -> Loss:
    """Losses (B,) of logits (B, 1 or C) and targets int64 (B,): BCE for two classes, cross-entropy for more.

    Labels are smoothed by `settings.label_smoothing` (Szegedy et al. 2016, arXiv:1512.00567). Weights of classes, by
    their rarity and by what mistakes cost, have the mean 1 over the train split, whatever the batch, so that workers
    with other shares of a batch agree. Of two classes they move no probability: the loss sees the logit of a world in
    which the classes are as frequent as they weigh, the network gives that of the world as it is (Elkan 2001).
    With a teacher most of the loss is how far its softened answers and the network's lie apart; labels keep the rest.
    """
    counts = torch.tensor(class_counts, dtype=torch.float32)
    weights = class_weights(settings, counts).to(device)
    smoothing = settings.label_smoothing

    def multiclass(logits: Tensor, targets: Tensor, taught: Tensor | None = None) -> Tensor:
        losses = functional.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")
        return _with_teacher(losses, logits, taught) * weights[targets]

    if settings.task == "multiclass":
        return multiclass
    drawn = counts[0] / counts[1] if settings.balance == "sample" else torch.tensor(1.0)
    shift = (weights[1] / weights[0] * drawn.to(device)).log()

    def binary(logits: Tensor, targets: Tensor, taught: Tensor | None = None) -> Tensor:
        soft = targets.float() * (1.0 - smoothing) + 0.5 * smoothing
        losses = functional.binary_cross_entropy_with_logits(logits[:, 0] + shift, soft, reduction="none")
        return _with_teacher(losses, logits, taught) * weights[targets]

    return binary


def _with_teacher(losses: Tensor, logits: Tensor, taught: Tensor | None) -> Tensor:
    """Losses (B,) by labels, and with a teacher's logits mixed with the Kullback-Leibler divergence from them.

    Hinton et al. 2015 (arXiv:1503.02531), times the squared temperature, so that gradients keep their size.
    """
    if taught is None:
        return losses
    own, given = (functional.log_softmax(_of_classes(each) / TEACHER_TEMPERATURE, dim=1) for each in (logits, taught))
    apart = functional.kl_div(own, given, reduction="none", log_target=True).sum(dim=1)
    return (1.0 - TEACHER_SHARE) * losses + TEACHER_SHARE * TEACHER_TEMPERATURE**2 * apart


def _of_classes(logits: Tensor) -> Tensor:
    """(B, C); a single logit is that of the second of two classes."""
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


def class_weights(settings: Settings, counts: Tensor) -> Tensor:
    """What the loss of an image of each class counts, float32 (C,): the mean over images as they are drawn is 1."""
    weights = 1.0 / counts if settings.balance == "loss" else torch.ones_like(counts)
    if settings.costs is not None:
        is_positive = torch.zeros_like(counts, dtype=torch.bool)
        is_positive[list(settings.positive)] = True
        missed, false_alarm = settings.costs
        weights *= torch.where(is_positive, missed, false_alarm)
    shares = torch.ones_like(counts) if settings.balance == "sample" else counts
    return weights * shares.sum() / (weights * shares).sum()


def make_optimizer(settings: Settings, model: CellClassifier) -> torch.optim.Optimizer:
    """Adam or AdamW over what `freeze` lets train; biases and normalization are not decayed.

    A layer trains slower than the one after it by `settings.layer_decay` (Bao et al. 2022, arXiv:2106.08254), a head
    that starts fresh on known features faster than them. Each group has its share of the learning rate as `share`.
    """
    layers = layers_of(model)
    groups = []
    for number, layer in enumerate(layers):
        is_head = number == len(layers) - 1
        share = settings.layer_decay ** max(0, len(layers) - 2 - number)
        if is_head and settings.pretrained:
            share *= _FRESH_HEAD
        for is_matrix, decay in ((True, settings.weight_decay), (False, 0.0)):
            chosen = [p for p in layer if p.requires_grad and (p.ndim > 1) == is_matrix]
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "share": share})
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    is_on_gpu = any(weight.is_cuda for weight in model.parameters())
    return kind(groups, lr=settings.learning_rate, fused=True if is_on_gpu else None)  # one kernel a group


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


def learning_rate(settings: Settings, step: int, steps: int) -> float:
    """Linear warm-up over `settings.warmup` of all `steps`, then half a cosine down to 1 %. `step` from 0.

    Loshchilov & Hutter 2017 (arXiv:1608.03983).
    """
    warmup = max(1, round(settings.warmup * steps))
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return settings.learning_rate * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * share)))
