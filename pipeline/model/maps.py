"""Class-activation maps on ONNX Runtime: which places of an image speak for a class, from one forward pass.

Where a network pools over positions it is Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391): ReLU(sum_k w_k A_k), of
its last activations A (h, w, D), w being the mean over positions of the logit's derivative by A. That derivative is
that of the head by what was pooled, a closed form (`model.tail`), so nothing is differentiated through the network.

A transformer's class token gathers the others by the attention of its last block: a sum over tokens t of c_t, softmax
weight times value in every attention head. Its map is ReLU(g . c_t), g being the logit's derivative by that sum.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pipeline.model.map_graph import Gathered, MapGraph, NoMapError, Pooled, map_graph
from pipeline.model.seen import middle_of
from pipeline.model.tail import Array, Tail

_AGREES = 1e-3  # of the largest logit: the tail is then what the graph computes


class Maps(NamedTuple):
    """Of B images, as they are (unturned), each for the logit that was asked for."""

    maps: Array  # float32 (B, S, S), 0..1 of an image's own peak; all 0 where no place speaks for the class
    peaks: Array  # float32 (B,): the largest value of the small map, in logits


class Inner(NamedTuple):
    """What one forward pass gives that maps are made of."""

    logits: Array  # (B, K)
    first: Array  # activations (B, positions..., D); or what each token gives (B, T, D), the class token's first
    sources: dict[str, Array]  # of the tail


class Mapper:
    """A session of its own, so that scoring pays nothing. Raises NoMapError where the graph has no map.

    `graph`: of a bundle. `tail`: another end than the graph's own, for a check against drawn weights.
    """

    def __init__(self, graph: bytes, threads: int = 1) -> None:
        self._parted: MapGraph = map_graph(graph)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(self._parted.graph, options, providers=["CPUExecutionProvider"])
        given = self._session.get_inputs()[0]
        self._input, self._size = given.name, given.shape[1]
        self._logits = self._parted.tail.logits
        self._check()

    @property
    def tail(self) -> Tail:
        return self._parted.tail

    def inner(self, images: NDArray[np.uint8]) -> Inner:
        """One forward pass of uint8 (B, S, S, 3)."""
        names = [self._logits, *self._parted.inner]
        found = dict(zip(names, self._session.run(names, {self._input: images}), strict=True))
        source = self._parted.source
        _refuse_ranks(source, found)
        if isinstance(source, Pooled):
            first = found[source.activations].transpose(source.order)
            over = tuple(range(1, first.ndim - 1))
            pooling = {"mean": first.mean, "maximum": first.max}
            sources = {name: pooling[kind](axis=over) for name, kind in source.kinds.items()}
        else:
            first = _given_by_tokens(found[source.weights], found[source.values])
            sources = {source.gives: first.sum(axis=1)}
            sources |= {name: found[name][:, 0] for name in self._parted.rows}
        return Inner(found[self._logits], first, sources)

    def small(self, inner: Inner, logit: Sequence[int], tail: Tail | None = None) -> Array:
        """Maps as small as the network's last grid, float32 (B, h, w), 0 and more, in logits.

        `logit`: of each image, which of its K. `tail`: other steps than the graph's own, for a check against drawn
        weights.
        """
        return np.maximum(self.signed(inner, logit, tail), 0)

    def signed(self, inner: Inner, logit: Sequence[int], tail: Tail | None = None) -> Array:
        """As `small`, with what speaks against the class below 0."""
        tail, source = tail or self.tail, self._parted.source
        direction = np.zeros_like(inner.logits)
        direction[np.arange(len(direction)), list(logit)] = 1
        gradient = tail.gradient(tail.values(inner.sources), direction)
        if isinstance(source, Gathered):
            return _on_grid(np.einsum("btd,bd->bt", inner.first, gradient[source.gives]))
        by_pooled = sum(gradient[name] for name in source.kinds if name in gradient)
        values = np.einsum("b...d,bd->b...", inner.first, by_pooled)
        return _on_grid(values / np.prod(values.shape[1:]))

    def _check(self) -> None:
        """That the steps are what the graph computes. Raises NoMapError."""
        rng = np.random.default_rng(0)
        inner = self.inner(rng.integers(0, 256, (2, self._size, self._size, 3), dtype=np.uint8))
        again = self.tail.values(inner.sources)[self._logits]
        if again.shape != inner.logits.shape or not np.allclose(
            again, inner.logits, atol=_AGREES * max(1.0, float(np.abs(inner.logits).max()))
        ):
            raise NoMapError("what follows its pooling is not understood")


def _refuse_ranks(source: Pooled | Gathered, found: Mapping[str, Array]) -> None:
    """Raise NoMapError where the inner tensors are not what they were taken for."""
    if isinstance(source, Pooled):
        wanted = {source.activations: len(source.order)}
    else:
        wanted = {source.weights: 4, source.values: 4}
    for name, rank in wanted.items():
        if found[name].ndim != rank:
            raise NoMapError(f"it pools {name} of {found[name].ndim} axes, which are no positions")


def _given_by_tokens(weights: Array, values: Array) -> Array:
    """(B, H, T, T) and (B, H, T, D / H) -> what the first token gets of each, (B, T, D)."""
    given = weights[:, :, 0, :, None] * values  # (B, H, T, D / H)
    return given.transpose(0, 2, 1, 3).reshape(len(given), given.shape[2], -1)


def _on_grid(values: Array) -> Array:
    """(B, h, w); of tokens (B, T) the last that make a square, for those before are no patches."""
    if values.ndim == 2:
        side = math.isqrt(values.shape[1])
        values = values[:, values.shape[1] - side * side :].reshape(-1, side, side)
    return np.asarray(values, np.float32)


def placed(small: Array, size: int, seen: int) -> Maps:
    """Small maps (B, h, w) over whole images of `size` pixels a side, of which the middle `seen` are seen.

    Bilinear; what the network does not see is 0.
    """
    peaks = small.max(axis=(1, 2))
    shares = small / np.where(peaks > 0, peaks, 1)[:, None, None]
    maps = np.zeros((len(small), size, size), np.float32)
    middle = middle_of(size, seen)
    for share, whole in zip(shares, maps, strict=True):
        whole[middle, middle] = np.clip(cv2.resize(share, (seen, seen), interpolation=cv2.INTER_LINEAR), 0, 1)
    return Maps(maps, peaks)
