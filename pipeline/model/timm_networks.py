"""Networks of timm (https://huggingface.co/docs/timm), the extra `timm`: any of its names, after `timm:`.

A name carries the tag of its weights, `mobilenetv4_conv_small.e2400_r224_in1k`, because mean and standard deviation of
pixels belong to them; one without gets timm's default.
"""

import difflib
import functools
import logging
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from pipeline.base.errors import InputError, PlatformError, UsageError
from pipeline.base.text import first_line
from pipeline.model.cell_classifier import Architecture

PREFIX = "timm:"


def architecture(name: str) -> Architecture:
    """How timm's network is made. Raises UsageError for a name unknown to it, PlatformError where timm is missing."""
    config = _config(name)
    heads = config.classifier
    if not isinstance(heads, str) or not heads:
        raise UsageError(f"--architecture {name}: has {'no' if not heads else 'more than one'} classifier; use another")
    _, *least = config.min_input_size or (3, 32, 32)
    return Architecture(
        functools.partial(_make, name, heads),
        heads,
        smallest_size=max(least),
        only_size=max(config.input_size[1:]) if config.fixed_input_size else None,
        mean=tuple(config.mean),
        std=tuple(config.std),
        hub=functools.partial(_pretrained, name),
    )


def full_name(name: str) -> str:
    """With the tag of its weights."""
    config = _config(name)
    return f"{PREFIX}{config.architecture}.{config.tag}" if config.tag else name


def _make(name: str, head: str, outputs: int) -> nn.Module:
    network = _create(name, num_classes=outputs)
    if not isinstance(network.get_submodule(head), nn.Linear):
        raise UsageError(f"--architecture {name}: its classifier {head} is no linear layer; use another")
    return network


def _pretrained(name: str) -> dict[str, Tensor]:
    """The weights of its hub, or of what the hub left in its cache. Raises InputError where neither has them."""
    quiet = logging.getLogger("huggingface_hub")
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # it tells every attempt
    try:
        return dict(_create(name, pretrained=True).state_dict())
    except (OSError, RuntimeError) as error:  # no network, no such file, a full disk; no weights of that name
        raise InputError(
            f"--weights imagenet: {name}'s weights cannot be had from its hub ({first_line(error)}); fetch the "
            ".safetensors file where there is a network and give --weights FILE"
        ) from error
    finally:
        quiet.setLevel(level)


def _create(name: str, **options: Any) -> nn.Module:
    network: nn.Module = _timm(name).create_model(name.removeprefix(PREFIX), **options)
    return network


def _config(name: str) -> Any:
    timm, (base, _, tag) = _timm(name), name.removeprefix(PREFIX).partition(".")
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=3) or ["mobilenetv4_conv_small", "hgnetv2_b0"]
        raise UsageError(f"--architecture {name}: timm {timm.__version__} has no such network; perhaps {_either(near)}")
    try:
        return timm.get_pretrained_cfg(f"{base}.{tag}" if tag else base)
    except RuntimeError as error:
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")]
        raise UsageError(
            f"--architecture {name}: timm {timm.__version__} knows no weights {tag!r} of {base}, but {_either(tags)}"
        ) from error


def _either(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _timm(name: str) -> ModuleType:
    """It takes seconds to import: only its users pay."""
    try:
        import timm
    except ImportError as error:
        raise PlatformError(f"--architecture {name}: needs the extra 'timm': pip install 'leukoray[timm]'") from error
    module: ModuleType = timm
    return module
