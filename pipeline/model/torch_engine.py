"""The predictor's engine for GPUs: the bundle's safetensors in PyTorch, the same numbers as ONNX Runtime to 1e-5."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from pipeline.base.errors import InputError
from pipeline.model.architectures import build
from pipeline.model.bundle import BundleInfo
from pipeline.model.cell_classifier import CellClassifier, WithFeatures
from pipeline.model.outputs import Outputs

# images of a pass on CUDA, the last one filled up: cuDNN spends seconds on each batch size that it has not met, and
# only a pass of known size can be captured
_SIZES = (16, 32, 128)
_Pass = Callable[[Tensor], tuple[Tensor, Tensor]]
_WARM_UP = 3  # passes before a capture, after PyTorch's own guide to CUDA graphs


class TorchRunner:
    """uint8 (B, S, S, 3) -> logits and features, on CUDA where there is one. Not thread-safe there."""

    def __init__(self, info: BundleInfo, weights: bytes, device: str | None = None) -> None:
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model: nn.Module = WithFeatures(load_model(info, weights)).to(self._device).eval()
        self._passes: dict[int, _Pass] = {}
        if self._device.type == "cuda":
            # TF32 keeps 10 bits of mantissa: too few for the parity with ONNX Runtime
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
            self._model = self._model.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> Outputs:
        batch = torch.from_numpy(np.require(images, requirements=["C", "W"]))
        if self._device.type == "cuda":
            parts = [self._on_gpu(part) for part in torch.split(batch, _SIZES[-1])]
        else:
            parts = [self._model(batch)]
        logits, features = (np.asarray(torch.cat(each).float().cpu().numpy()) for each in zip(*parts, strict=True))
        return Outputs(logits, features)

    def _on_gpu(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size = next(size for size in _SIZES if size >= len(images))
        if size not in self._passes:
            example = images.new_zeros((size, *images.shape[1:])).to(self._device)
            self._passes[size] = _captured(self._model, example) or self._kernel_by_kernel
        logits, features = self._passes[size](images)
        return logits[: len(images)].clone(), features[: len(images)].clone()  # the next pass writes into them

    def _kernel_by_kernel(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = self._model(images.to(self._device))
        return logits, features


def _captured(model: nn.Module, images: Tensor) -> _Pass | None:
    """A pass of `model` over as many images, (B, S, S, 3), as one CUDA graph: small networks cost more to launch, a
    kernel at a time, than to compute. None where the network does what no graph can hold, or memory is short of it.

    What comes back takes up to B images from anywhere and gives outputs of B rows, of which those beyond are of
    whatever was there before.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(stream)
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UP):
                model(images)
        stream.wait_stream(beside)
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the GPU meanwhile
            logits, features = model(images)
    except RuntimeError:  # torch's own, of a capture and of memory
        torch.cuda.set_stream(stream)
        return None

    def run(some: Tensor) -> tuple[Tensor, Tensor]:
        images[: len(some)].copy_(some)
        graph.replay()
        return logits, features

    return run


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
