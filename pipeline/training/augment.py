"""Random changes of a training batch that a smear could show as well: orientation, stain, light.

Whole uint8 batches at once, on whatever device they lie, from one seeded generator; only training uses it.
Stain jitter works in optical density (Beer-Lambert), where haematoxylin and eosin add up, as in Tellez et al. 2019
(arXiv:1902.06543), with a gain a colour channel instead of a stain separation that single fields do not support well.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Strength:
    """Half-widths of the uniform draws; 0 switches a change off."""

    density: float = 0.15  # gain of optical density, all channels together: stain strength
    hue: float = 0.08  # gain of optical density, each channel for itself: stain hue
    brightness: float = 0.08  # share of full scale added
    turn: bool = True  # flips and quarter turns: a smear has no up


def augment(images: Tensor, generator: torch.Generator, strength: Strength = Strength()) -> Tensor:
    """uint8 (B, S, S, 3) -> uint8 (B, S, S, 3), changed image by image."""
    changed = _turned(images, generator) if strength.turn else images
    return _stained(changed, generator, strength)


def _turned(images: Tensor, generator: torch.Generator) -> Tensor:
    """One of the eight symmetries of the square, drawn for each image."""
    choice = torch.randint(8, (len(images),), generator=generator)  # drawn on the CPU: the same on every device
    turned = images.clone()
    for k in range(1, 8):
        rows = (choice == k).nonzero().squeeze(1).to(images.device)
        if len(rows):
            some = torch.rot90(images[rows], k % 4, dims=(1, 2))
            turned[rows] = some.flip(2) if k >= 4 else some
    return turned


def _stained(images: Tensor, generator: torch.Generator, strength: Strength) -> Tensor:
    count = len(images)
    common = _uniform((count, 1, 1, 1), strength.density, generator)
    channel = _uniform((count, 1, 1, 3), strength.hue, generator)
    light = _uniform((count, 1, 1, 1), strength.brightness, generator) * 255.0
    gain = (1.0 + common + channel).to(images.device)  # (B, 1, 1, 3)
    transmitted = (images.float() + 1.0) / 256.0  # (B, S, S, 3) in (0, 1]; density is -log of it
    pixels = transmitted.pow(gain) * 256.0 - 1.0 + light.to(images.device)
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def _uniform(shape: tuple[int, ...], half_width: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(shape, generator=generator) * 2.0 - 1.0) * half_width
