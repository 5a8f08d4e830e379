"""What every network is here: uint8 images in, logits out, pixels scaled inside, so that all users do it alike."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pipeline.model.seen import middle_of

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Channels = tuple[float, float, float]  # red, green, blue


class CellClassifier(nn.Module):
    """uint8 (B, S, S, 3), RGB -> logits float32 (B, outputs).

    `fixed_statistics`: BatchNorm never follows the batch. `seen`: pixels a side, in the middle of larger images, that
    the backbone sees; what lies around a cell is another cell's. None: all of them.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        head: str,
        mean: Channels = IMAGENET_MEAN,
        std: Channels = IMAGENET_STD,
        *,
        fixed_statistics: bool = False,
        seen: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head  # path of the classifier in the backbone, `fc`
        self.fixed_statistics = fixed_statistics
        self.seen = seen
        self.register_buffer("shift", (torch.tensor(mean) * 255.0).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", (torch.tensor(std) * 255.0).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        images = in_the_middle(images, self.seen)
        pixels = images.permute(0, 3, 1, 2).to(torch.float32)  # (B, 3, S, S), channels last in memory
        normalised = (pixels - self.shift) / self.scale
        logits: Tensor = self.backbone(normalised)
        return logits.float()  # (B, outputs)

    def train(self, mode: bool = True) -> "CellClassifier":
        """As ever, but a BatchNorm whose weights do not train keeps its statistics too."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _NormBase) and (self.fixed_statistics or not _trains(module)):
                module.eval()
        return self


class WithFeatures(nn.Module):
    """The same network, which also gives what goes into its head.

    uint8 (B, S, S, 3), RGB -> logits float32 (B, outputs), features float32 (B, D).
    """

    def __init__(self, model: CellClassifier) -> None:
        super().__init__()
        self.trunk = without_head(model)
        self.head = copy.deepcopy(model.backbone.get_submodule(model.head))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features: Tensor = self.trunk(images)  # (B, D)
        return self.head(features).float(), features


def without_head(model: CellClassifier) -> CellClassifier:
    """A copy that gives what would go into the head, for predicting."""
    trunk = copy.deepcopy(model)
    trunk.backbone.set_submodule(trunk.head, nn.Identity())
    return trunk.eval()


def in_the_middle(images: Tensor, size: int | None) -> Tensor:
    """(B, S, S, 3) -> (B, size, size, 3); images that are no larger stay as they are."""
    if size is None or images.shape[1] <= size:
        return images
    middle = middle_of(images.shape[1], size)
    return images[:, middle, middle]


def _trains(module: nn.Module) -> bool:
    return any(weight.requires_grad for weight in module.parameters())


@dataclass(frozen=True)
class Architecture:
    """How one named network is made. `smallest_size` in pixels is what its strides can still divide; `only_size` of one
    that takes no other. `hub` gives weights over the network, `adapt` brings a file's tensors to our shapes.
    """

    make: Callable[[int], nn.Module]
    head: str  # path of its classifier, which no weights of another question bring
    pretrained: str | None = None  # torchvision's name for its ImageNet weights
    smallest_size: int = 32
    weights_package: str | None = None  # of the extra `pretrained`: its ImageNet weights, with no network
    mean: Channels = IMAGENET_MEAN  # of pixels / 255
    std: Channels = IMAGENET_STD
    only_size: int | None = None
    multiple_of: int = 1  # pixels
    hub: Callable[[], dict[str, Tensor]] | None = None
    adapt: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
