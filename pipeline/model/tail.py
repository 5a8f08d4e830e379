"""The end of a network, from what it pools to its logits, as a few steps on rows: their values and their gradient.

Small enough for NumPy: matrices of a head, activations, layer normalization. The chain rule over them gives what a
class-activation map weighs channels by, without autograd and without torch (`model.map_graph` finds the steps).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Rows = Sequence[Array]  # what a step takes, each (B, D)
_SQRT_2, _SQRT_2_PI = np.sqrt(2.0), np.sqrt(2.0 * np.pi)


@dataclass(frozen=True)
class Step:
    """One operation on rows (B, D), by its name in `OPERATIONS`; tensors are called as in the graph."""

    operation: str
    takes: tuple[str, ...]
    gives: str
    constants: tuple[Array, ...] = ()


@dataclass(frozen=True)
class Tail:
    """Steps in the order in which they run; `logits` is what the last of them gives."""

    steps: tuple[Step, ...]
    logits: str

    def values(self, sources: Mapping[str, Array]) -> dict[str, Array]:
        """All tensors of it, by name, of its sources, each (B, D)."""
        found = dict(sources)
        for step in self.steps:
            taken = [found[name] for name in step.takes]
            found[step.gives] = OPERATIONS[step.operation].value(taken, step.constants)
        return found

    def gradient(self, values: Mapping[str, Array], direction: Array) -> dict[str, Array]:
        """The derivative of `direction` (B, K) . logits by each tensor (B, D), at `values`."""
        found: dict[str, Array] = {self.logits: direction}
        for step in reversed(self.steps):
            if step.gives not in found:
                continue
            taken = [values[name] for name in step.takes]
            back = OPERATIONS[step.operation].back(found[step.gives], taken, step.constants)
            for name, part in zip(step.takes, back, strict=True):
                found[name] = found[name] + part if name in found else part
        return found


class Operation(NamedTuple):
    value: Callable[[Rows, Sequence[Array]], Array]
    back: Callable[[Array, Rows, Sequence[Array]], Rows]  # of the gradient by what it gives, that by what it takes


def _elementwise(value: Callable[[Array], NDArray[Any]], slope: Callable[[Array], NDArray[Any]]) -> Operation:
    return Operation(
        lambda rows, _: value(rows[0]).astype(np.float32),
        lambda gradient, rows, _: [(gradient * slope(rows[0])).astype(np.float32)],
    )


def _sigmoid(values: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-values)), np.float32)


def _erf(values: Array) -> Array:
    from scipy.special import erf  # only transformers pay for it

    return np.asarray(erf(values), np.float32)


def _gelu_slope(values: Array) -> Array:
    density = np.exp(-0.5 * np.square(values)) / _SQRT_2_PI
    return np.asarray((1 + _erf(values / _SQRT_2)) / 2 + values * density, np.float32)


def _clip(rows: Rows, limits: Sequence[Array]) -> Array:
    return np.asarray(np.clip(rows[0], limits[0], limits[1]), np.float32)


def _clip_back(gradient: Array, rows: Rows, limits: Sequence[Array]) -> Rows:
    return [gradient * ((rows[0] > limits[0]) & (rows[0] < limits[1]))]


def _standard(values: Array, epsilon: Array) -> tuple[Array, Array]:
    """Rows of mean 0 and variance 1, and what they were divided by (B, 1)."""
    centred = values - values.mean(axis=1, keepdims=True)
    spread = np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + epsilon)
    return centred / spread, spread


def _layer_norm(rows: Rows, constants: Sequence[Array]) -> Array:
    scale, shift, epsilon = constants
    return np.asarray(_standard(rows[0], epsilon)[0] * scale + shift, np.float32)


def _layer_norm_back(gradient: Array, rows: Rows, constants: Sequence[Array]) -> Rows:
    scale, _, epsilon = constants
    standard, spread = _standard(rows[0], epsilon)
    scaled = gradient * scale
    along = (scaled * standard).mean(axis=1, keepdims=True)
    return [(scaled - scaled.mean(axis=1, keepdims=True) - standard * along) / spread]


def _affine(rows: Rows, weights: Sequence[Array]) -> Array:
    """A matrix (D, K), and a shift (K,) where there is one."""
    return np.asarray(sum(weights[1:], rows[0] @ weights[0]), np.float32)


def _parts(gradient: Array, rows: Rows, _: Sequence[Array]) -> Rows:
    return np.split(gradient, np.cumsum([part.shape[1] for part in rows])[:-1], axis=1)


OPERATIONS: dict[str, Operation] = {
    "same": Operation(lambda rows, _: rows[0], lambda gradient, *_: [gradient]),
    "affine": Operation(_affine, lambda gradient, _, weights: [gradient @ weights[0].T]),
    "shift": Operation(lambda rows, by: rows[0] + by[0], lambda gradient, *_: [gradient]),
    "scale": Operation(lambda rows, by: rows[0] * by[0], lambda gradient, _, by: [gradient * by[0]]),
    "sum": Operation(lambda rows, _: rows[0] + rows[1], lambda gradient, *_: [gradient, gradient]),
    "product": Operation(
        lambda rows, _: rows[0] * rows[1], lambda gradient, rows, _: [gradient * rows[1], gradient * rows[0]]
    ),
    "join": Operation(lambda rows, _: np.concatenate(rows, axis=1), _parts),
    "clip": Operation(_clip, _clip_back),
    "layer norm": Operation(_layer_norm, _layer_norm_back),
    "relu": _elementwise(lambda x: np.maximum(x, 0), lambda x: x > 0),
    "sigmoid": _elementwise(_sigmoid, lambda x: _sigmoid(x) * (1 - _sigmoid(x))),
    "tanh": _elementwise(np.tanh, lambda x: 1 - np.square(np.tanh(x))),
    "gelu": _elementwise(lambda x: x * (1 + _erf(x / _SQRT_2)) / 2, _gelu_slope),
    "hard swish": _elementwise(
        lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
        lambda x: np.where(x <= -3, 0, np.where(x >= 3, 1, x / 3 + 0.5)),
    ),
}
