"""Small real bundles without training: a linear model on pixels, as an ONNX graph with a trained one's contract."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import safetensors.numpy
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pipeline.evaluation.ood import Seen, fit
from pipeline.images.appearance import NAMES, appearances
from pipeline.images.load import Preprocessing
from pipeline.model.bundle import CARD, GRAPH, WEIGHTS, Bundle, BundleInfo, write_bundle
from pipeline.model.drift import LEVELS, ReferenceStatistics, Statistic
from pipeline.model.outputs import FEATURES
from pipeline.model.prediction import Prediction
from pipeline.model.predictor import Predictor
from pipeline.model.reference import REFERENCE, colours_seen

BINARY_CLASSES = ("negative", "positive")
STAGE_CLASSES = ("Benign", "Early", "Pre", "Pro")


def make_bundle(
    path: Path | str,
    size: int = 64,
    task: Literal["binary", "multiclass"] = "binary",
    *,
    classes: tuple[str, ...] | None = None,
    positive_classes: tuple[str, ...] | None = None,
    seed: int = 0,
    bias: float = 0.0,
    **info: Any,
) -> Bundle:
    """Write a bundle at `path` and return it.

    Every pixel counts, so another orientation, order or resize gives another logit; red images lean to the last
    class. Another `seed` is another model; `bias` is added to the last logit (nan makes a model that always fails).
    Other keywords are fields of `BundleInfo`, e.g. threshold, temperature, review_band, synthetic, name, version.
    """
    names = classes or (BINARY_CLASSES if task == "binary" else STAGE_CLASSES)
    if positive_classes is None:
        positive_classes = names[1:]
    outputs = 1 if task == "binary" else len(names)
    weight, offset = _parameters(size, outputs, seed, bias)
    fields: dict[str, Any] = {
        "name": "tiny-linear",
        "version": f"20260101-000000-{seed:08x}",
        "architecture": "linear",
        "created_at": "2026-01-01T00:00:00+00:00",
        **info,
    }
    record = BundleInfo(
        task=task,
        classes=names,
        positive_classes=positive_classes,
        input_size=size,
        preprocessing_digest=Preprocessing(size, bit_depth=info.get("bit_depth")).digest(),
        weights_sha256="",
        graph_sha256="",
        **fields,
    )
    files = {
        WEIGHTS: safetensors.numpy.save({"weight": weight, "bias": offset}),
        GRAPH: linear_graph(weight, offset, size),
        CARD: b"# tiny-linear\n\nA linear model for tests. Not a medical device.\n",
    }
    return write_bundle(str(path), record, files)


def make_familiar_bundle(path: Path | str, own: Sequence[bytes], size: int = 32, **info: Any) -> Bundle:
    """A linear bundle that knows what its images look like: encoded ones, half to fit to, half for the limit.

    Its features are small gray copies of an image.
    """
    plain = make_bundle(path, size, **info)
    graph = _with_features(plain.file(GRAPH), size)
    images = np.stack([Predictor(plain).load(data).pixels for data in own])
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (features,) = session.run([FEATURES], {"images": images})
    colours = colours_seen(images, size)
    training, validation = (Seen(features[half::2], colours[half::2]) for half in (0, 1))
    fitted = fit(training, validation, [None] * len(validation.features), "subjects")
    assert fitted is not None, "40 images at least are needed to fit to"
    files = {WEIGHTS: plain.file(WEIGHTS), GRAPH: graph, CARD: plain.file(CARD), REFERENCE: fitted.reference}
    return write_bundle(str(path), plain.info.model_copy(update={"ood": fitted.rule}), files)


def make_mapped_bundle(
    path: Path | str,
    size: int = 64,
    task: Literal["binary", "multiclass"] = "binary",
    *,
    bias: float = 0.0,
    **info: Any,
) -> Bundle:
    """A bundle whose network pools over positions, 4 x 4 pixels each: red ones speak for the last class, blue ones
    against it; of `multiclass` they speak for the last and for the first. `bias` is added to the last logit."""
    plain = make_bundle(path, size, task, **info)
    seen = plain.info.seen_size
    start = (size - seen) // 2
    colours = np.zeros((2, 3, 4, 4), np.float32)  # red, blue
    colours[0, 0], colours[0, 2], colours[1, 2], colours[1, 0] = 1, -1, 1, -1
    head = np.zeros((2, plain.info.outputs), np.float32)
    head[0, -1] = 20
    head[1, 0] += -20 if plain.info.outputs == 1 else 20
    offset = np.full(plain.info.outputs, -0.1, np.float32)
    offset[-1] += bias
    nodes = [
        helper.make_node("Slice", ["images", "start", "end", "axes"], ["seen"]),
        helper.make_node("Cast", ["seen"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["levels", "scale"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "colours"], ["found"], strides=[4, 4]),
        helper.make_node("Relu", ["found"], ["activations"]),
        helper.make_node("ReduceMean", ["activations", "positions"], [FEATURES], keepdims=0),
        helper.make_node("Gemm", [FEATURES, "head", "bias"], ["logits"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([start, start]), "start"),
        numpy_helper.from_array(np.array([start + seen, start + seen]), "end"),
        numpy_helper.from_array(np.array([1, 2]), "axes"),
        numpy_helper.from_array(np.array([2, 3]), "positions"),
        numpy_helper.from_array(np.array(1 / (255 * 16), np.float32), "scale"),
        numpy_helper.from_array(colours, "colours"),
        numpy_helper.from_array(head, "head"),
        numpy_helper.from_array(offset, "bias"),
    ]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", plain.info.outputs]),
        helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["batch", 2]),
    ]
    given = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", size, size, 3])
    graph = helper.make_graph(nodes, "colours", [given], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    files = {WEIGHTS: plain.file(WEIGHTS), GRAPH: bytes(model.SerializeToString()), CARD: plain.file(CARD)}
    return write_bundle(str(path), plain.info, files)


def _with_features(graph: bytes, size: int) -> bytes:
    """The linear graph with an output `features`, float32 (B, 16): means over a grid of 4 x 4."""
    model = onnx.load_from_string(graph)
    model.graph.node.extend(
        [
            helper.make_node("Transpose", ["unit"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node(
                "AveragePool", ["planes"], ["small"], kernel_shape=[size // 4] * 2, strides=[size // 4] * 2
            ),
            helper.make_node("ReduceMean", ["small"], ["gray"], axes=[1], keepdims=0),
            helper.make_node("Flatten", ["gray"], [FEATURES]),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["batch", 16]))
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def said_of(bundle: Bundle, *images: bytes) -> list[Prediction]:
    """What the predictor says of sound encoded images, each decoded and predicted for itself."""
    predictor = Predictor(bundle)
    found = [predictor.predict_each([predictor.load(data).pixels])[0] for data in images]
    return [item for item in found if isinstance(item, Prediction)]


def _parameters(size: int, outputs: int, seed: int, bias: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(S*S*3, K) weights and (K,) offsets."""
    rng = np.random.default_rng(seed)
    count = size * size
    color = np.linspace(0.0, 6.0, outputs) if outputs > 1 else np.array([6.0])
    base = np.stack([color, -color / 2, -color / 2])  # (3, K): the last class likes red
    weight = np.tile(base, (count, 1)) / count + rng.normal(0, 1.0, (count * 3, outputs)) / np.sqrt(count * 3)
    offset = np.zeros(outputs)
    offset[-1] = bias
    return weight.astype(np.float32), offset.astype(np.float32)


def linear_graph(weight: NDArray[np.float32], offset: NDArray[np.float32], size: int) -> bytes:
    """ONNX: uint8 `images` (B, S, S, 3) -> float32 `logits` (B, K)."""
    outputs = weight.shape[1]
    nodes = [
        helper.make_node("Cast", ["images"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["levels", "scale"], ["unit"]),
        helper.make_node("Reshape", ["unit", "flat_shape"], ["flat"]),  # (B, S*S*3)
        helper.make_node("Gemm", ["flat", "weight", "offset"], ["logits"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(1 / 255, np.float32), "scale"),
        numpy_helper.from_array(np.array([-1, size * size * 3], np.int64), "flat_shape"),
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(offset, "offset"),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", size, size, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", outputs])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def reference_of_noise() -> dict[str, Any]:
    """What a bundle knows of scores and looks of its images, by which drift is told; of 200 random ones."""
    rng = np.random.default_rng(0)
    home = appearances(rng.integers(0, 256, (200, 32, 32, 3), np.uint8))
    statistics = {
        name: Statistic(quantiles=tuple(np.quantile(values, LEVELS).tolist()), spread=1.0, limits={1: 0.8})
        for name, values in zip(NAMES, home.T, strict=True)
        if np.isfinite(values).all()
    }
    return {
        "reference_scores": {"count": 200, "quantiles": {f"{k / 10:g}": k / 10 for k in range(11)}},
        "reference_statistics": ReferenceStatistics(images=200, subjects=20, statistics=statistics),
    }
