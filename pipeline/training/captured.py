"""A pass forward and back as one CUDA graph.

Of small networks and batches launching kernels one at a time is most of a step on a GPU: 21 ms of which the card works
5, for EfficientNet-Lite0 and 32 images of 144 px on an H200 (docs/train.md). A graph launches them all at once.
Method: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pipeline.training.buffers import kept_buffers
from pipeline.training.dropout import Dropouts

_WARM_UP = 3  # passes before the capture: cuDNN and cuBLAS choose and reserve then
# of the length of the gradient, all weights together: what other orders of sums in bfloat16 make of it, no more
_APART = 0.01

Pass = Callable[[Tensor, Tensor], Tensor]  # images (B, S, S, 3) and targets (B,) to the loss (), gradients in weights


class CapturedPass:
    """`captured(images, targets)` puts the gradients of the pass into the weights, anew, and gives its loss.

    Images and targets of the shapes that it was made with; `dropouts` have been shown whose images they are.
    """

    def __init__(self, run: Pass, model: nn.Module, dropouts: Dropouts, images: Tensor, targets: Tensor) -> None:
        """Raises RuntimeError where the network does what no graph can hold, such as asking the GPU for a number, and
        where the graph makes something else of these images than the pass itself.
        """
        self._dropouts = dropouts
        self._images, self._targets = torch.zeros_like(images), torch.zeros_like(targets)  # others than those to prove
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        with torch.random.fork_rng(devices=[images.device]), kept_buffers(model):
            self._warm_up(run)
        expected = self._outcome(model, lambda: run(images, targets))
        self._forget()  # so that the graph writes gradients, rather than adds to them
        self._capture(run)
        found = self._outcome(model, lambda: self(images, targets))
        self._forget()
        apart = distance(expected, found)
        if not apart <= _APART:
            raise RuntimeError(
                f"it gives loss and gradients that lie {apart:.2g} of their length from its kernels' own"
            )

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        self._images.copy_(images)
        self._targets.copy_(targets)
        self._dropouts.refresh()
        self._graph.replay()
        for weight, gradient in zip(self._weights, self._gradients, strict=True):
            weight.grad = gradient
        return self._loss.clone()

    def _warm_up(self, run: Pass) -> None:
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UP):
                self._forget()
                run(self._images, self._targets)
        torch.cuda.current_stream().wait_stream(beside)
        self._forget()

    def _capture(self, run: Pass) -> None:
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        try:
            # other threads, as the one that pins memory for the next images, may use the GPU meanwhile
            with self._dropouts.held(), torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._loss = run(self._images, self._targets)
        finally:
            torch.cuda.set_stream(stream)  # a capture that fails leaves its own behind in some versions of PyTorch
        self._gradients = [weight.grad for weight in self._weights]

    def _outcome(self, model: nn.Module, run: Callable[[], Tensor]) -> list[Tensor | None]:
        """The loss, gradients and statistics of a pass that leaves no trace but gradients."""
        with torch.random.fork_rng(devices=[self._images.device]), kept_buffers(model):
            self._forget()
            loss = run()
            made = [None if weight.grad is None else weight.grad.clone() for weight in self._weights]
            return [loss, *made, *(buffer.clone() for buffer in model.buffers())]

    def _forget(self) -> None:
        for weight in self._weights:
            weight.grad = None


def distance(expected: Sequence[Tensor | None], found: Sequence[Tensor | None]) -> float:
    """How far tensors lie from those expected, together, as a share of the expected length; not a number if one side
    lacks one, or it is none."""
    zipped = list(zip(expected, found, strict=True))
    if any((one is None) != (other is None) for one, other in zipped):
        return math.nan
    pairs = [(one.double(), other.double()) for one, other in zipped if one is not None and other is not None]
    length = math.sqrt(sum(float(one.square().sum()) for one, _ in pairs))
    apart = math.sqrt(sum(float((one - other).square().sum()) for one, other in pairs))
    return apart / length if length else math.nan if apart else 0.0
