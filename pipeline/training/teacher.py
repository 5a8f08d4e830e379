"""A published network whose answers another one learns: distillation (Hinton et al. 2015, arXiv:1503.02531)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.base.errors import InputError, UsageError
from pipeline.images.unit import refuse_mismatch
from pipeline.model.bundle import WEIGHTS, Bundle, BundleInfo
from pipeline.model.registry import resolve
from pipeline.model.torch_engine import load_model
from pipeline.sources.manifest import Manifest
from pipeline.storage.stores import Stores
from pipeline.training.rows import LabelledRows

Answers = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Teacher:
    """A bundle's network on its way to the workers."""

    uri: str
    info: BundleInfo
    weights: bytes

    def on(self, device: torch.device) -> Answers:
        """Its logits float32 (B, 1 or C), of one view, for uint8 images (B, S, S, 3) of any size, without gradients.

        They show what it sees: all, or the middle that its bundle says.
        """
        model = load_model(self.info, self.weights).to(device).eval().requires_grad_(False)

        @torch.no_grad()
        def answers(images: Tensor) -> Tensor:
            logits: Tensor = model(_resized(images, self.info.seen_size))
            return logits.float()

        return answers

    @property
    def identity(self) -> str:
        return self.info.identity()

    def account(self) -> dict[str, Any]:
        """Who it was, for the bundle it teaches; `manifests`: what it, and those that taught it, learnt from."""
        before = (self.info.training.get("teacher") or {}).get("manifests", [])
        return {
            "bundle": self.uri,
            "name": self.info.name,
            "version": self.info.version,
            "identity": self.identity,
            "manifests": sorted({self.info.manifest_digest, *before}),
        }


def _resized(images: Tensor, size: int) -> Tensor:
    """uint8 (B, S, S, 3) as they are, or float (B, size, size, 3) in 0 to 255, antialiased."""
    if images.shape[1] == size:
        return images
    pixels = images.permute(0, 3, 1, 2).float()
    return functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True).permute(0, 2, 3, 1)


def open_teacher(uri: str, rows: LabelledRows, manifest: Manifest, bit_depth: int | None, stores: Stores) -> Teacher:
    """The bundle at `uri`, whole, as a teacher for these rows.

    Raises InputError when it is missing, damaged or answers another question, UsageError where its pixels are others.
    """
    bundle = resolve(uri, stores)
    _refuse_other_question(bundle, rows, manifest)
    info = bundle.info
    if info.bit_depth != bit_depth:
        told = "none" if info.bit_depth is None else f"--bit-depth {info.bit_depth}"
        raise UsageError(f"--teacher {bundle.uri}: it reads 16-bit samples with {told}; give the same here")
    teacher = Teacher(bundle.uri, info, bundle.file(WEIGHTS))
    load_model(info, teacher.weights)  # raises here, not in each worker
    return teacher


def _refuse_other_question(bundle: Bundle, rows: LabelledRows, manifest: Manifest) -> None:
    info = bundle.info
    if (info.task, info.classes, info.positive_classes) != (rows.task, rows.classes, rows.positive_classes):
        raise InputError(
            f"--teacher {bundle.uri}: it tells {', '.join(info.classes)} apart, this manifest "
            f"{', '.join(rows.classes)}; a teacher must have learnt the same classes, with the same meaning of disease"
        )
    refuse_mismatch(info.unit, manifest.info.unit, f"--teacher {bundle.uri}")
    if info.synthetic and not manifest.info.synthetic:
        raise InputError(
            f"--teacher {bundle.uri}: it has learnt from synthetic images only, and knows nothing of real ones"
        )
