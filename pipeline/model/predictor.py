"""The one predictor: a bundle turned into `uint8 images -> calibrated probabilities -> decisions`.

Two engines behind one interface: ONNX Runtime on CPU, PyTorch on CUDA. Evaluation, scoring and serving use it, so
the same bytes get the same probability everywhere (to 1e-5 between engines).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pipeline.base.errors import Code, ImageRejected, InputError, Stage
from pipeline.images.load import Limits, LoadedImage, load_image
from pipeline.model.bundle import GRAPH, WEIGHTS, Bundle

POSITIVE, NEGATIVE, REVIEW = "positive", "negative", "review"
Engine = Literal["auto", "onnx", "torch"]


@dataclass(frozen=True)
class Predictions:
    """What the model says of B images."""

    classes: NDArray[np.float32]  # (B, C) calibrated probability of each class
    probability: NDArray[np.float32]  # (B,) of disease; of the top class where no class means disease
    top: NDArray[np.int64]  # (B,) index of the most probable class
    decisions: tuple[str | None, ...]  # (B,) positive | negative | review; None where no class means disease


class _Runner(Protocol):
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (B, S, S, 3) -> logits float32 (B, 1 or C)."""


class Predictor:
    """`Predictor(bundle)(images)`. Not thread-safe on CUDA; ONNX Runtime sessions are."""

    def __init__(self, bundle: Bundle, *, engine: Engine = "auto", threads: int = 1) -> None:
        self.bundle = bundle
        self.info = bundle.info
        self.size = bundle.info.input_size
        self.model_sha256 = bundle.info.identity()
        self.engine = _choose(engine)
        self._run: _Runner = _OnnxRunner(bundle, threads) if self.engine == "onnx" else _torch_runner(bundle)
        names = bundle.info.classes
        self._positive = [names.index(name) for name in bundle.info.positive_classes]

    def __call__(self, images: NDArray[np.uint8]) -> Predictions:
        """Predict uint8 (B, S, S, 3), RGB.

        Raises ImageRejected (predict_failed) when the model gives a value that is not finite.
        """
        logits = self._run(images).astype(np.float64)
        if not np.isfinite(logits).all():
            raise ImageRejected(Code.PREDICT_FAILED, "the model gave a logit that is not finite", Stage.PREDICT)
        return self.from_logits(logits)

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Uncalibrated logits float32 (B, 1 or C), for fitting the temperature."""
        return self._run(images)

    def from_logits(self, logits: NDArray[np.float64]) -> Predictions:
        """Calibration and decision rule alone: logits float64 (B, 1 or C)."""
        scaled = logits / self.info.temperature
        if self.info.task == "binary":
            positive = np.exp(-np.logaddexp(0.0, -scaled[:, 0]))
            classes = np.stack([1.0 - positive, positive], axis=1)  # (B, 2)
        else:
            shifted = np.exp(scaled - scaled.max(axis=1, keepdims=True))
            classes = shifted / shifted.sum(axis=1, keepdims=True)  # (B, C)
        top = classes.argmax(axis=1)
        if self._positive:
            probability = classes[:, self._positive].sum(axis=1).clip(0.0, 1.0)
            decisions: tuple[str | None, ...] = tuple(self._decide(value) for value in probability)
        else:
            probability = classes.max(axis=1)
            decisions = (None,) * len(classes)
        return Predictions(classes.astype(np.float32), probability.astype(np.float32), top, decisions)

    def _decide(self, probability: float) -> str:
        band = self.info.review_band
        if band is not None and band[0] <= probability < band[1]:
            return REVIEW
        return POSITIVE if probability >= self.info.threshold else NEGATIVE

    def load(self, data: bytes, limits: Limits = Limits()) -> LoadedImage:
        """Decode one encoded image for this model. Raises ImageRejected."""
        return load_image(data, self.size, limits)

    def predict_bytes(self, images: Sequence[bytes], limits: Limits = Limits()) -> list[Predictions | ImageRejected]:
        """One result an encoded image, in order: `Predictions` with B = 1, or why it was rejected."""
        results: list[Predictions | ImageRejected] = []
        for data in images:
            try:
                results.append(self(self.load(data, limits).pixels[None]))
            except ImageRejected as error:
                results.append(error)
        return results


def _choose(engine: Engine) -> Literal["onnx", "torch"]:
    if engine != "auto":
        return engine
    return "torch" if _has_cuda() else "onnx"


def _has_cuda() -> bool:
    """Whether this process may use an NVIDIA GPU, without importing torch on machines that have none."""
    import os

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return False
    if not os.path.exists("/dev/nvidiactl"):
        return False
    import torch

    return bool(torch.cuda.is_available())


class _OnnxRunner:
    def __init__(self, bundle: Bundle, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                bundle.file(GRAPH), options, providers=["CPUExecutionProvider"]
            )
        except InputError:
            raise
        except Exception as error:  # ONNX Runtime raises its own unnamed kinds
            raise InputError(
                f"bundle {bundle.uri}: {GRAPH} cannot be loaded ({error}); publish the model again"
            ) from error
        self._input = self._session.get_inputs()[0].name

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(self._session.run(None, {self._input: images})[0], dtype=np.float32)


def _torch_runner(bundle: Bundle) -> _Runner:
    from pipeline.model.torch_engine import TorchRunner

    return TorchRunner(bundle.info, bundle.file(WEIGHTS))
