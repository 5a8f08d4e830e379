"""The predictor's engine for GPUs: the bundle's safetensors in PyTorch, the same numbers as ONNX Runtime to 1e-5."""

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load

from pipeline.base.errors import InputError
from pipeline.model.architectures import build
from pipeline.model.bundle import BundleInfo
from pipeline.model.cell_classifier import CellClassifier, WithFeatures
from pipeline.model.outputs import Outputs


class TorchRunner:
    """uint8 (B, S, S, 3) -> logits and features, on CUDA where there is one."""

    def __init__(self, info: BundleInfo, weights: bytes, device: str | None = None) -> None:
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self._device.type == "cuda":  # TF32 keeps 10 bits of mantissa: too few for the parity with ONNX Runtime
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        self._model = WithFeatures(load_model(info, weights)).to(self._device).eval()

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> Outputs:
        batch = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(self._device)
        logits, features = (np.asarray(values.float().cpu().numpy()) for values in self._model(batch))
        return Outputs(logits, features)


def load_model(info: BundleInfo, weights: bytes) -> CellClassifier:
    """The network of a bundle with its weights. Raises InputError when they do not fit the architecture."""
    model = build(info.architecture, info.outputs, info.norm, info.seen_size)
    try:
        model.load_state_dict(load(weights))
    except (SafetensorError, RuntimeError) as error:
        raise InputError(
            f"bundle {info.name}/{info.version}: its weights do not fit {info.architecture}: {error}"
        ) from error
    return model
