"""What both rival trainers share: network, images with their random changes, optimizer, flags.

After torchvision's guides (transforms v2 on uint8 tensors, `decode_image`, antialiased resize), which are faster than
Pillow. The random changes are those of `pipeline/training/augment.py`, of the same strength and in the same order, by
transforms of an image in the loader, as these guides have it.
"""

import argparse
import csv
import os
import time

import torch
import torchvision
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms import v2

from pipeline.model.cell_classifier import IMAGENET_MEAN, IMAGENET_STD
from pipeline.training.augment import Strength

STRENGTH = Strength()


class Stain(torch.nn.Module):
    """Gain of optical density and light, uint8 (3, S, S) to uint8 (3, S, S)."""

    def forward(self, image: Tensor) -> Tensor:
        common = (torch.rand(1, 1, 1) * 2 - 1) * STRENGTH.density
        gain = 1.0 + common + (torch.rand(3, 1, 1) * 2 - 1) * STRENGTH.hue
        light = (torch.rand(1, 1, 1) * 2 - 1) * STRENGTH.brightness * 255.0
        pixels = ((image.float() + 1.0) / 256.0).pow(gain) * 256.0 - 1.0 + light
        return pixels.round_().clamp_(0, 255).to(torch.uint8)


class QuarterTurn(torch.nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return torch.rot90(image, int(torch.randint(4, ())), dims=(1, 2))


def random_changes() -> list[torch.nn.Module]:
    zoom, shift, mode = 1.0 + STRENGTH.zoom, STRENGTH.shift, v2.InterpolationMode.BILINEAR
    return [
        v2.RandomHorizontalFlip(),
        QuarterTurn(),
        v2.RandomAffine(STRENGTH.rotation, translate=(shift, shift), scale=(1 / zoom, zoom), interpolation=mode),
        v2.RandomApply([v2.GaussianBlur(5, sigma=(0.1, 1.2))], p=STRENGTH.blur),
        Stain(),
    ]


class Listed(Dataset[tuple[Tensor, int]]):
    """Images of one split of a CSV."""

    def __init__(self, listing: str, split: str, size: int) -> None:
        with open(listing, newline="") as file:
            self.rows = [(row["path"], int(row["label"])) for row in csv.DictReader(file) if row["split"] == split]
        changes = random_changes() if split == "train" else []
        self.transform = v2.Compose(
            [
                v2.Resize((size, size), antialias=True),
                *changes,
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(IMAGENET_MEAN), list(IMAGENET_STD)),
            ]
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.rows[index]
        return self.transform(decode_image(read_file(path), ImageReadMode.RGB)), label


def network(architecture: str) -> torch.nn.Module:
    """torchvision's network from random weights, with one logit."""
    return torchvision.models.get_model(architecture, weights=None, num_classes=1)


def optimizer_and_schedule(
    model: torch.nn.Module, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps)


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0].float(), targets.float())


def loader_workers(trainers: int) -> int:
    """Loader processes of each trainer: the cores in all, as DataLoader's own warning about more advises."""
    return max(1, min(8, (os.cpu_count() or 1) // trainers))


def rival_arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--listing", required=True, help="CSV: path, label, split")
    parser.add_argument("--out", required=True, help="folder for the checkpoint")
    parser.add_argument("--architecture", required=True)
    parser.add_argument("--size", type=int, required=True, help="pixels, square")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="images of a step, over all trainers")
    parser.add_argument("--trainers", type=int, required=True)
    parser.add_argument("--gpu", action="store_true")
    return parser.parse_args()


def now() -> float:
    """Wall clock, after what a GPU has been given is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.time()
