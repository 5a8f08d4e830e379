"""A network's ONNX graph with drawn weights, into which those of any network of the same make are filled.

Exporting takes three to nine seconds of a core, filling a tenth of a second. So the graph can be made while a network
trains, and kept for the next one. Where each of the graph's tensors comes from is found by looking: drawn weights are
all different, so that equal values have the same source; what no weight gives is a number of the network's code.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.base.errors import PlatformError
from pipeline.model.architectures import build
from pipeline.model.cell_classifier import CellClassifier, WithFeatures
from pipeline.model.choices import Norm
from pipeline.model.export import check_parity, to_onnx

_SOURCES = "leukoray.sources"  # in the graph's metadata
_CLOSE, _NEAR = 1e-4, 1e-5  # of what the exporter computed in float32; drawn values are further apart

_Array = NDArray[np.float32]
_Source = tuple[str, ...]  # how, and names of tensors or modules


def drawn_template(architecture: str, outputs: int, norm: Norm, seen: int | None, input_size: int) -> bytes | None:
    """The graph of the named network with drawn weights, and the sources of its tensors.

    None where it cannot be filled: tried with other weights. Raises PlatformError where the two engines disagree.
    """
    model = build(architecture, outputs, norm, seen)
    _draw(model, seed=1)
    proto = onnx.load_from_string(to_onnx(model, input_size))
    weights = _Weights(model)
    sources = {tensor.name: weights.source_of(numpy_helper.to_array(tensor)) for tensor in proto.graph.initializer}
    onnx.helper.set_model_props(proto, {_SOURCES: json.dumps({name: how for name, how in sources.items() if how})})
    template: bytes = proto.SerializeToString()
    _draw(model, seed=2)
    try:
        filled(template, model, input_size)
    except PlatformError:
        return None
    return template


def filled(template: bytes, model: CellClassifier, input_size: int) -> bytes:
    """The ONNX graph of `model`, checked against it. Raises PlatformError where the template is not of its make."""
    proto = onnx.load_from_string(template)
    properties = {item.key: item.value for item in proto.metadata_props}
    model = model.cpu().eval()
    weights = _Weights(model)
    try:
        sources = json.loads(properties.pop(_SOURCES))
        for tensor in proto.graph.initializer:
            if (source := sources.pop(tensor.name, None)) is not None:
                values = weights.values(tuple(source)).reshape(tuple(tensor.dims))
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), tensor.name))
    except (KeyError, ValueError, TypeError) as error:
        raise PlatformError(f"a kept graph is of another network ({error}); it is made anew") from error
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, properties)
    graph: bytes = proto.SerializeToString()
    check_parity(WithFeatures(model).eval(), graph, input_size)
    return graph


def _draw(model: CellClassifier, seed: int) -> None:
    """Every weight and buffer anew: no two alike, none that an exporter could leave out, as a zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                drawn = torch.rand(value.shape, generator=generator)
                value.copy_(drawn + 0.5 if name.endswith("running_var") else (drawn - 0.5) * 0.2)


class _Weights:
    """What the graph's tensors can be made of: a network's own, and its BatchNorms folded into convolutions."""

    def __init__(self, model: CellClassifier) -> None:
        kept = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
        self._tensors: dict[str, _Array] = {name: value.detach().numpy() for name, value in kept.items()}
        self._norms = {name: _scale_and_shift(part) for name, part in model.named_modules() if _is_folded(part)}

    def source_of(self, values: _Array) -> _Source | None:
        """How to make them of the weights; None where nothing does."""
        if values.dtype != np.float32:
            return None
        for source in self._candidates(values):
            made = self.values(source).reshape(values.shape)
            if (made == values).all() or (
                source[0] in ("scaled", "shifted") and np.allclose(made, values, _CLOSE, _NEAR)
            ):
                return source
        return None

    def _candidates(self, values: _Array) -> Iterator[_Source]:
        same = [name for name, tensor in self._tensors.items() if tensor.size == values.size]
        yield from (("same", name) for name in same)
        if values.ndim == 2:
            yield from (("turned", name) for name in same if self._tensors[name].shape == values.shape[::-1])
        for norm, (scale, _) in self._norms.items():
            if values.size == scale.size:
                yield ("shifted", norm)
                yield from (("shifted", norm, name) for name in same if name.endswith(".bias"))
            elif values.ndim > 1 and len(values) == scale.size:
                yield from (("scaled", norm, name) for name in same if len(self._tensors[name]) == scale.size)

    def values(self, source: _Source) -> _Array:
        """float32. Raises KeyError for what the network does not have."""
        how, first, *more = source
        if how == "same":
            return self._tensors[first]
        if how == "turned":
            return self._tensors[first].T
        scale, shift = self._norms[first]
        if how == "scaled":
            weight = self._tensors[more[0]]
            return (weight * scale.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32)
        bias = self._tensors[more[0]] if more else np.float32(0)
        return (shift + bias * scale).astype(np.float32)


def _is_folded(part: torch.nn.Module) -> bool:
    return isinstance(part, _BatchNorm) and part.running_mean is not None


def _scale_and_shift(norm: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What a BatchNorm does while it predicts, as one multiplication and one sum."""
    mean, variance, weight, bias = (
        value.detach().numpy().astype(np.float64)
        for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    scale = weight / np.sqrt(variance + norm.eps)
    return scale, bias - mean * scale
