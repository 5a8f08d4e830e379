"""Dropout that belongs to an image: what a network drops of it is the same on any worker, in any part of a batch.

PyTorch draws from a stream of the process, so that another number of workers, or a node that is lost, changes every
later step. Here each mask is a hash of the image and the epoch (`draws.py`), as the changes of its pixels are.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.training.draws import uniform

_ImageIds = NDArray[np.int64]


class Dropouts:
    """The layers of a network that drop at random. `show` names the images of the next pass."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        """Put a layer that drops by image in the place of each Dropout and StochasticDepth below `model`."""
        self._layers: list[_ByImage] = []
        self._replace(model, seed)

    def show(self, image_ids: _ImageIds, epoch: int) -> None:
        for layer in self._layers:
            layer.images = (image_ids, epoch)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """What passes within drop lies in tensors that stay, for a CUDA graph; after one pass, which tells shapes.

        Passes outside drop by the images that are shown, as ever. A layer that no pass has reached is left alone:
        torchvision's blocks have one and use it only where they add their input.
        """
        try:
            for layer in self._layers:
                if layer.was_used:
                    layer.kept, layer.is_held = torch.zeros_like(layer.factors()), True  # nothing, until `refresh`
            yield
        finally:
            for layer in self._layers:
                layer.is_held = False

    def refresh(self) -> None:
        """Write into those tensors what the images that are shown drop."""
        for layer in self._layers:
            if layer.kept is not None:
                layer.kept.copy_(layer.factors(), non_blocking=True)

    def _replace(self, module: nn.Module, seed: int) -> None:
        for name, child in module.named_children():
            drops: Any = child
            if not isinstance(child, nn.Dropout) and not _drops_images(child):
                self._replace(child, seed)
            elif drops.p > 0:
                own = np.random.SeedSequence([seed, 1 + len(self._layers)]).generate_state(1, np.uint64)[0]
                layer = _ByImage(drops.p, int(own), whole=_drops_images(child)).train(child.training)
                setattr(module, name, layer)
                self._layers.append(layer)


def _drops_images(module: nn.Module) -> bool:
    """Whether it is a StochasticDepth. torchvision is not imported to be asked: only its own networks have one."""
    ops = sys.modules.get("torchvision.ops")
    return ops is not None and isinstance(module, ops.StochasticDepth)


class _ByImage(nn.Module):
    """float (B, ...) -> (B, ...): in training a share `p` of an image's numbers, or of whole images, becomes 0."""

    def __init__(self, p: float, seed: int, *, whole: bool) -> None:
        super().__init__()
        self.p, self.seed, self.whole = p, seed, whole
        self.images: tuple[_ImageIds, int] | None = None  # (B,), and the epoch
        self.kept: Tensor | None = None  # (B, ...), what a graph reads
        self.is_held = False
        self._seen: Tensor | None = None  # (0, ...), shaped as what came last

    def forward(self, values: Tensor) -> Tensor:
        if not self.training:
            return values
        self._seen = values.new_empty((0, *values.shape[1:]))
        return values * (self.kept if self.is_held and self.kept is not None else self.factors())

    @property
    def was_used(self) -> bool:
        return self._seen is not None

    def factors(self) -> Tensor:
        """(B, ...): 0 for what is dropped of the images that are shown, else 1 / (1 - p)."""
        assert self.images is not None and self._seen is not None, "a training pass without its images"
        ids, epoch = self.images
        of_image = self._seen.shape[1:]
        columns = 1 if self.whole else of_image.numel()
        stays = torch.from_numpy(uniform(self.seed, ids, epoch, columns) >= self.p)
        shape = [len(ids), *(1 for _ in of_image)] if self.whole else [len(ids), *of_image]
        return stays.view(shape).to(self._seen, non_blocking=True) / (1.0 - self.p)
