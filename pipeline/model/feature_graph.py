"""ONNX graphs of a network whose head alone is new: what goes into the head, and that with a head put on it.

Exporting takes seconds and a head is one matrix, so the graph of the features serves every head.
"""

import hashlib

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pipeline.model.cell_classifier import CellClassifier, without_head
from pipeline.model.export import check_parity, exported
from pipeline.model.outputs import FEATURES, LOGITS


def features_digest(model: CellClassifier) -> str:
    """SHA-256, hex, of every weight and buffer but those of the head, and of what the network sees."""
    digest = hashlib.sha256(b"" if model.seen is None else f"sees {model.seen}\0".encode())
    for name, value in sorted(model.state_dict().items()):
        if not name.startswith(f"backbone.{model.head}."):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
            digest.update(np.ascontiguousarray(value.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()


def features_graph(model: CellClassifier, input_size: int) -> bytes:
    """ONNX: uint8 NHWC `images` -> `features` float32 (B, D). Raises PlatformError when the two engines disagree."""
    return exported(without_head(model), input_size, (FEATURES,))


def check_features(model: CellClassifier, graph: bytes, input_size: int) -> None:
    """Raise PlatformError where a graph of features is not, or no longer, that of this network."""
    check_parity(without_head(model), graph, input_size, counts=(1,))


def with_head(graph: bytes, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> bytes:
    """A graph of features with a linear head, (K, D) and (K,): uint8 NHWC `images` -> `logits` float32 (B, K) and the
    features (B, D)."""
    proto = onnx.load_from_string(graph)
    (features,) = proto.graph.output
    batch = features.type.tensor_type.shape.dim[0].dim_param
    names = ["head.weight", "head.bias"]
    for name, values in zip(names, (weight, bias), strict=True):
        proto.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
    proto.graph.node.append(helper.make_node("Gemm", [features.name, *names], [LOGITS], name="head", transB=1))
    logits = helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, [batch, len(bias)])
    proto.graph.output.insert(0, logits)
    made: bytes = proto.SerializeToString()
    return made
