"""Normalization statistics measured anew before validation ('precise BN': Wu & Johnson 2021, arXiv:2105.07576).

Training normalizes by each batch and keeps a running mean of the batches for prediction. That mean trails behind the
weights, and after few steps still holds its initial values: torchvision's MobileNetV3 and EfficientNet keep 1 % of each
batch, so after 45 steps 64 % of it says nothing of the data, and validation sees a network that nobody trained.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

MOST_IMAGES = 1024  # over all workers: the paper finds no gain from more than 10^3 to 10^4
_SETTLED = 5.0  # steps x momentum: less than exp(-5), 0.7 %, of the initial values is left
_CHEAP = 0.1  # share of an epoch's images: forward alone, that is some 3 % of its time


def measuring(model: nn.Module, steps: int, images: int) -> list[_BatchNorm]:
    """The layers to measure before validation: those that train by batch statistics, where measuring is due.

    It is always due where it is cheap: at most a tenth of the epoch's `images` make up the sample. Else only for layers
    whose running statistics are still fresh after the run's `steps`. Frozen layers (in evaluation mode while the model
    trains) are never measured.
    """
    model.train()
    training = [layer for layer in _layers(model) if layer.training and layer.track_running_stats]
    if min(images, MOST_IMAGES) <= _CHEAP * images:
        return training
    return [layer for layer in training if layer.momentum is None or steps * layer.momentum < _SETTLED]


@torch.no_grad()
def measure_statistics(model: nn.Module, layers: Iterable[_BatchNorm], batches: Iterable[Tensor]) -> None:
    """Set running statistics of `layers` to those of uint8 `batches` (B, S, S, 3), over all ranks.

    The model is left in evaluation mode. Every rank must bring as many batches: statistics that are synchronized
    (GPUs) wait for each other.
    """
    measured = list(layers)
    if not measured:
        model.eval()
        return
    sums = [torch.zeros(3, layer.num_features, dtype=torch.float64) for layer in measured]  # of 1, x, x^2
    counts: dict[int, int] = {}  # values a channel in the batch, by layer

    def count(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counts[id(layer)] = inputs[0].numel() // inputs[0].shape[1]

    with _last_batch_only(model, measured, count):
        for images in batches:
            if not len(images):
                continue
            model(images)
            for total, layer in zip(sums, measured, strict=True):
                number = counts[id(layer)]
                mean, variance = (value.detach().double().cpu() for value in _of(layer))
                square = variance * (number - 1) / number + mean**2
                total += number * torch.stack([torch.ones_like(mean), mean, square])
    for total, layer in zip(_over_ranks(sums, measured[0]), measured, strict=True):
        values = total[0].clamp(min=2.0)
        mean, square = total[1] / values, total[2] / values
        running_mean, running_variance = _of(layer)
        running_mean.copy_(mean)
        running_variance.copy_((square - mean**2).clamp(min=0.0) * values / (values - 1))


def _layers(model: nn.Module) -> Iterator[_BatchNorm]:
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            yield module


def _of(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Running mean and variance, which layers that track them have."""
    assert layer.running_mean is not None and layer.running_var is not None
    return layer.running_mean, layer.running_var


@contextlib.contextmanager
def _last_batch_only(model: nn.Module, layers: list[_BatchNorm], hook: Callable[..., None]) -> Iterator[None]:
    """Within, `layers` call `hook`, normalize by the batch and hold its statistics alone; all else predicts."""
    momenta = [layer.momentum for layer in layers]
    seen = [None if (n := layer.num_batches_tracked) is None else n.clone() for layer in layers]
    model.eval()
    for layer in layers:
        layer.train()
        layer.momentum = 1.0
    hooks = [layer.register_forward_pre_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
        for layer, momentum, batches in zip(layers, momenta, seen, strict=True):
            layer.momentum = momentum
            if batches is not None and layer.num_batches_tracked is not None:
                layer.num_batches_tracked.copy_(batches)
        model.eval()


def _over_ranks(values: list[Tensor], layer: _BatchNorm) -> list[Tensor]:
    """Sums over all ranks, the same on each."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return values
    device = _of(layer)[0].device
    return [_summed(value.to(device)).cpu() for value in values]


def _summed(value: Tensor) -> Tensor:
    torch.distributed.all_reduce(value)
    return value
