"""Where a bundle's graph pools, and what follows: all that a class-activation map needs, read from model.onnx itself.

The graph that scores stays as it is. A second one, the same with inner tensors named as outputs, gives what the network
pools, and `Tail` the steps from there to the logits. Two kinds are known: a mean or maximum over positions, as of a
CNN, and the attention by which a transformer's class token gathers the others.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from pipeline.model.outputs import LOGITS
from pipeline.model.tail import Step, Tail

# axes that are pooled -> how to bring what is pooled to (B, positions..., D)
_OVER_POSITIONS = {(2, 3): (0, 2, 3, 1), (1, 2): (0, 1, 2, 3), (1,): (0, 1, 2)}
_SHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Transpose", "Gather", "Slice")
_SIMPLE = {"Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "HardSwish": "hard swish"}

_DRAWN = 1 / 3

Kind = Literal["mean", "maximum"]


class NoMapError(Exception):
    """The graph ends in a way that no map is known of; says how."""


@dataclass(frozen=True)
class Pooled:
    """Mean and maximum over positions."""

    activations: str
    order: tuple[int, ...]  # of its axes as (B, positions..., D)
    kinds: dict[str, Kind]  # of the tensors that are pooled of it


@dataclass(frozen=True)
class Gathered:
    """What a class token gathers: softmax weights (B, H, T, T) times values (B, H, T, D / H)."""

    weights: str
    values: str
    gives: str


@dataclass(frozen=True)
class MapGraph:
    graph: bytes  # gives `LOGITS`, and the tensors `inner`
    inner: tuple[str, ...]
    source: Pooled | Gathered
    rows: tuple[str, ...]  # tensors beside it that the tail takes, (B, T, D): of the class token
    tail: Tail


def map_graph(graph: bytes) -> MapGraph:
    """Of the ONNX graph of a bundle. Raises NoMapError."""
    return _Reader(onnx.load_from_string(graph)).read()


def drawn_last(graph: bytes, seed: int) -> bytes:
    """The same graph, the weights of whose last third of layers, the head among them, are shuffled within each layer.

    So a layer keeps the size of what it gives, and nothing of what it has learnt.
    """
    proto = onnx.load_from_string(graph)
    matrices = {item.name: item for item in proto.graph.initializer if len(item.dims) > 1 and item.data_type == 1}
    layers = [name for node in proto.graph.node for name in node.input if name in matrices]
    layers = list(dict.fromkeys(layers))
    rng = np.random.default_rng(seed)
    for name in layers[-max(1, round(len(layers) * _DRAWN)) :]:
        values = numpy_helper.to_array(matrices[name])
        matrices[name].CopyFrom(
            numpy_helper.from_array(rng.permutation(values.reshape(-1)).reshape(values.shape), name)
        )
    drawn: bytes = proto.SerializeToString()
    return drawn


class _Reader:
    def __init__(self, proto: Any) -> None:
        self._proto = proto
        self._nodes = list(proto.graph.node)
        self._made_by = {name: node for node in self._nodes for name in node.output}
        self._constants = {item.name: item for item in proto.graph.initializer}
        self._inputs = {item.name for item in proto.graph.input}

    def read(self) -> MapGraph:
        logits = LOGITS if LOGITS in self._made_by else self._proto.graph.output[0].name
        source = self._source(logits)
        starts = set(source.kinds) if isinstance(source, Pooled) else {source.gives}
        follows = self._following(starts)
        steps: dict[str, Step] = {}
        rows: list[str] = []
        self._walk(logits, starts, follows, steps, rows)
        if rows and isinstance(source, Pooled):
            raise NoMapError(f"what is pooled is not all that its head sees ({rows[0]})")
        first = (source.activations,) if isinstance(source, Pooled) else (source.weights, source.values)
        inner = (*first, *rows)
        self._give(inner)
        tail = Tail(tuple(steps.values()), logits)
        return MapGraph(self._proto.SerializeToString(), inner, source, tuple(rows), tail)

    def _source(self, logits: str) -> Pooled | Gathered:
        """The last that pools before the logits."""
        leads_to = {logits}
        for node in reversed(self._nodes):
            if not leads_to & set(node.output):
                continue
            leads_to |= set(node.input)
            if (order := self._pools(node)) is not None:
                kinds = {
                    other.output[0]: self._kind(other)
                    for other in self._nodes
                    if other.input and other.input[0] == node.input[0] and self._pools(other) is not None
                }
                return Pooled(node.input[0], order, kinds)
            if node.op_type == "MatMul" and self._type_of(node.input[0]) == "Softmax":
                return Gathered(node.input[0], node.input[1], node.output[0])
        raise NoMapError("it neither pools over positions nor gathers tokens by attention")

    @staticmethod
    def _kind(node: Any) -> Kind:
        return "maximum" if "Max" in node.op_type else "mean"

    def _pools(self, node: Any) -> tuple[int, ...] | None:
        """The order of axes of what a node pools over positions; None where it does not."""
        if node.op_type in ("GlobalAveragePool", "GlobalMaxPool"):
            return _OVER_POSITIONS[2, 3]
        if node.op_type not in ("ReduceMean", "ReduceMax"):
            return None
        given = self._constant(node.input[1]) if len(node.input) > 1 else _attribute(node, "axes", None)
        if given is None:
            return None
        axes = tuple(sorted(int(axis) + 4 if axis < 0 and np.size(given) == 2 else int(axis) for axis in given))
        return _OVER_POSITIONS.get(axes)

    def _following(self, starts: set[str]) -> set[str]:
        """Tensors that depend on `starts`."""
        found = set(starts)
        for node in self._nodes:
            if found & set(node.input):
                found |= set(node.output)
        return found

    def _walk(self, name: str, starts: set[str], follows: set[str], steps: dict[str, Step], rows: list[str]) -> None:
        """Put the steps that make a tensor into `steps`, after those that they need; `rows`: where it ends besides."""
        if name in starts or name in steps:
            return
        if name not in follows:
            if name not in rows:
                rows.append(name)
            return
        step = self._step(self._made_by[name])
        for taken in step.takes:
            self._walk(taken, starts, follows, steps, rows)
        steps[name] = step

    def _step(self, node: Any) -> Step:
        takes, gives = tuple(node.input), node.output[0]
        if node.op_type in _SHAPES:  # the rows stay: `Mapper` compares the logits
            return Step("same", takes[:1], gives)
        if node.op_type in _SIMPLE:
            return Step(_SIMPLE[node.op_type], takes, gives)
        if node.op_type == "Gelu" and _attribute(node, "approximate", b"none") == b"none":
            return Step("gelu", takes, gives)
        if node.op_type == "Concat":
            return Step("join", takes, gives)
        if node.op_type == "Clip":
            limits = [self._constant(name) for name in takes[1:3]]
            if len(limits) == 2 and limits[0] is not None and limits[1] is not None:
                return Step("clip", takes[:1], gives, (limits[0], limits[1]))
        made = self._arithmetic(node) or self._with_weights(node)
        if made is None:
            raise NoMapError(f"{node.op_type} between its pooling and its logits has no known derivative")
        return made

    def _arithmetic(self, node: Any) -> Step | None:
        """Sums and products, of two tensors or with a constant."""
        of_two = {"Add": ("sum", "shift"), "Mul": ("product", "scale")}.get(node.op_type)
        if of_two is None:
            return None
        constants = {name: found for name in node.input if (found := self._constant(name)) is not None}
        taken = tuple(name for name in node.input if name not in constants)
        if len(taken) == 2:
            return Step(of_two[0], taken, node.output[0])
        (constant,) = constants.values()
        return Step(of_two[1], taken, node.output[0], (constant.reshape(-1).astype(np.float32),))

    def _with_weights(self, node: Any) -> Step | None:
        """What has learnt matrices or scales: on rows a matrix and a shift, or a normalization."""
        weights = [self._constant(name) for name in node.input[1:]]
        if not weights or any(values is None for values in weights):
            return None
        first, *more = [np.asarray(values, np.float32) for values in weights]
        if node.op_type == "LayerNormalization":
            shift = more[0] if more else np.zeros_like(first)
            epsilon = np.float32(_attribute(node, "epsilon", 1e-5))
            return Step("layer norm", tuple(node.input[:1]), node.output[0], (first, shift, np.asarray(epsilon)))
        if node.op_type == "Gemm" and not _attribute(node, "transA", 0):
            matrix = first.T if _attribute(node, "transB", 0) else first
            matrix = matrix * np.float32(_attribute(node, "alpha", 1.0))
            more = [values * np.float32(_attribute(node, "beta", 1.0)) for values in more]
        elif node.op_type == "MatMul" and first.ndim == 2:
            matrix = first
        elif node.op_type == "Conv" and first.shape[2:] == (1, 1) and _attribute(node, "group", 1) == 1:
            matrix = first[:, :, 0, 0].T
        else:
            return None
        return Step("affine", tuple(node.input[:1]), node.output[0], (matrix, *more))

    def _constant(self, name: str) -> NDArray[Any] | None:
        """Values that depend on no image; None where they do."""
        if name in self._constants:
            return np.asarray(numpy_helper.to_array(self._constants[name]))
        node = self._made_by.get(name)
        if node is not None and node.op_type == "Constant" and node.attribute[0].HasField("t"):
            return np.asarray(numpy_helper.to_array(node.attribute[0].t))
        return None

    def _type_of(self, name: str) -> str:
        node = self._made_by.get(name)
        return "" if node is None else str(node.op_type)

    def _give(self, inner: tuple[str, ...]) -> None:
        given = {item.name for item in self._proto.graph.output}
        for name in inner:
            if name not in given:
                self._proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))


def _attribute(node: Any, name: str, default: Any) -> Any:
    found = next((item for item in node.attribute if item.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)
