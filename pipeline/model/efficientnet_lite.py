"""EfficientNet-Lite: EfficientNet without squeeze-and-excitation, with ReLU6, its stem and head of one width.

Tan & Le 2019 (arXiv:1905.11946); stages, scaling and padding as in TensorFlow's `efficientnet/lite`. The names of the
tensors are those of the published PyTorch weights, less the leading underscores. Left out is stochastic depth;
BatchNorm keeps PyTorch's momentum, because at the original 0.01 the statistics of a short training stay fresh.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

# mean and standard deviation of pixels / 255 that the weights were trained with: (x - 127) / 128
LITE_MEAN = (127 / 255,) * 3
LITE_STD = (128 / 255,) * 3

# repeats, kernel, stride, expansion, channels
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _HEAD = 32, 1280
_EPSILON = 1e-3


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: S pixels become ceil(S / stride), an odd pixel is added at the end."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        vertical, horizontal = (max(0, (math.ceil(s / stride) - 1) * stride + kernel - s) for s in input.shape[-2:])
        before = (horizontal // 2, vertical // 2)
        padded = functional.pad(input, (before[0], horizontal - before[0], before[1], vertical - before[1]))
        convolved: Tensor = super()._conv_forward(padded, weight, bias)
        return convolved


def _normalised(convolution: nn.Conv2d, norm: nn.Module, features: Tensor) -> Tensor:
    """A convolution and its normalization.

    While a network trains with statistics that stay, both are one linear map, and the same gradients come of a
    convolution with rescaled weights: a pass over the features less each way, a fifth to a quarter of a step's time.
    """
    if not isinstance(norm, nn.BatchNorm2d) or norm.training or not torch.is_grad_enabled():
        normalised: Tensor = norm(convolution(features))
        return normalised
    assert norm.running_mean is not None and norm.running_var is not None
    gain = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    weight = convolution.weight * gain.view(-1, 1, 1, 1)
    both: Tensor = convolution._conv_forward(features, weight, norm.bias - norm.running_mean * gain)
    return both


class Block(nn.Module):
    """Mobile inverted bottleneck: widen, look around channel by channel, narrow; added to its input where it fits."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = before * expansion
        self.adds = stride == 1 and before == after
        self.expands = expansion > 1
        if self.expands:
            self.expand_conv = nn.Conv2d(before, wide, 1, bias=False)
            self.bn0 = nn.BatchNorm2d(wide, _EPSILON)
        self.depthwise_conv = _around(wide, wide, kernel, stride, groups=wide)
        self.bn1 = nn.BatchNorm2d(wide, _EPSILON)
        self.project_conv = nn.Conv2d(wide, after, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after, _EPSILON)

    def forward(self, features: Tensor) -> Tensor:
        wide = functional.relu6(_normalised(self.expand_conv, self.bn0, features)) if self.expands else features
        wide = functional.relu6(_normalised(self.depthwise_conv, self.bn1, wide))
        narrow = _normalised(self.project_conv, self.bn2, wide)
        return narrow + features if self.adds else narrow


class EfficientNetLite(nn.Module):
    """float (B, 3, S, S) -> (B, outputs). `width` and `depth` scale all but the stem, the head, the outer repeats."""

    def __init__(self, outputs: int, *, width: float = 1.0, depth: float = 1.0, dropout: float = 0.2) -> None:
        super().__init__()
        self.conv_stem = _around(3, _STEM, 3, 2)
        self.bn0 = nn.BatchNorm2d(_STEM, _EPSILON)
        self.blocks = nn.ModuleList()
        before = _STEM
        for number, (repeats, kernel, stride, expansion, channels) in enumerate(_STAGES):
            outer = number in (0, len(_STAGES) - 1)
            after = _to_eights(channels * width)
            for repeat in range(repeats if outer else math.ceil(repeats * depth)):
                self.blocks.append(Block(before, after, kernel, 1 if repeat else stride, expansion))
                before = after
        self.conv_head = nn.Conv2d(before, _HEAD, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_HEAD, _EPSILON)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(_HEAD, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, images: Tensor) -> Tensor:
        features = functional.relu6(_normalised(self.conv_stem, self.bn0, images))  # (B, 32, S/2, S/2)
        for block in self.blocks:
            features = block(features)
        features = functional.relu6(_normalised(self.conv_head, self.bn1, features))  # (B, 1280, S/32, S/32)
        logits: Tensor = self.fc(self.dropout(features.mean(dim=(2, 3))))
        return logits


def _around(before: int, after: int, kernel: int, stride: int, groups: int = 1) -> nn.Conv2d:
    if stride == 1:  # both sides alike: no need to ask for the size
        return nn.Conv2d(before, after, kernel, padding=kernel // 2, groups=groups, bias=False)
    return SameConv(before, after, kernel, stride, groups=groups, bias=False)


def _to_eights(channels: float) -> int:
    """The nearest multiple of 8 that takes away no more than a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8
