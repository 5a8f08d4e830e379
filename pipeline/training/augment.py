"""Random changes of a training batch that another smear could show as well: orientation, place, focus, stain, light.

Whole uint8 batches at once, on whatever device they lie, from numbers that belong to the image (`draws.py`), so that
the same image changes alike in any batch of any worker. Stain jitter works in optical density (Beer-Lambert), where
haematoxylin and eosin add up, as in Tellez et al. 2019 (arXiv:1902.06543), with a gain a colour channel instead of a
stain separation that single fields do not support well.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.model.cell_classifier import in_the_middle
from pipeline.training.draws import uniform


@dataclass(frozen=True)
class Strength:
    """Half-widths of the uniform draws; 0 switches a change off."""

    turn: bool = True  # flips and quarter turns: a smear has no up
    rotation: float = 180.0  # degrees, about the middle
    zoom: float = 0.15  # share of the side
    shift: float = 0.1  # share of the side
    blur: float = 0.15  # share of images out of focus, by up to two pixels
    density: float = 0.15  # gain of optical density, all channels together: stain strength
    hue: float = 0.08  # gain of optical density, each channel for itself: stain hue
    brightness: float = 0.08  # share of full scale added


_TURN, _ZOOM, _ACROSS, _DOWN, _IS_BLURRED, _BLUR, _DENSITY, _RED, _GREEN, _BLUE, _LIGHT, _ROTATION = range(12)
COLUMNS = 12  # of the draws


def augmented(images: Tensor, image_ids: NDArray[np.int64], seed: int, turn: int, size: int | None = None) -> Tensor:
    """uint8 (B, S, S, 3) -> uint8 (B, T, T, 3), as the images are seen the `turn`-th time under this seed.

    T is `size`: of larger images the middle, changed before what lies around it is cut off. None: all.
    """
    return augment(images, torch.from_numpy(uniform(seed, image_ids, turn, COLUMNS)), size=size)


def augment(images: Tensor, draws: Tensor, strength: Strength = Strength(), size: int | None = None) -> Tensor:
    """uint8 (B, S, S, 3) -> uint8 (B, T, T, 3); `draws` float32 (B, COLUMNS) in [0, 1)."""
    size = min(size or images.shape[1], images.shape[1])
    if not len(images):
        return images[:, :size, :size]
    changed = _turned(images, draws[:, _TURN]) if strength.turn else images
    is_moved = bool(strength.rotation or strength.zoom or strength.shift)
    pixels = (changed if is_moved else in_the_middle(changed, size)).permute(0, 3, 1, 2).float()  # (B, 3, S, S)
    if is_moved:
        pixels = _moved(pixels, draws, strength, size)
    if strength.blur:
        pixels = _blurred(pixels, draws, strength.blur)
    pixels = _stained(pixels, draws, strength)
    return pixels.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _signed(draws: Tensor) -> Tensor:
    """[0, 1) to [-1, 1), (B,) to (B, 1, 1, 1)."""
    return (draws * 2.0 - 1.0).view(-1, 1, 1, 1)


def _turned(images: Tensor, draws: Tensor) -> Tensor:
    """One of the eight symmetries of the square for each image."""
    choice = (draws * 8).long()
    turned = images.clone()
    for k in range(1, 8):
        rows = _at((choice == k).nonzero().squeeze(1), images)
        if len(rows):
            some = torch.rot90(images[rows], k % 4, dims=(1, 2))
            turned[rows] = some.flip(2) if k >= 4 else some
    return turned


def _moved(pixels: Tensor, draws: Tensor, strength: Strength, size: int) -> Tensor:
    """The middle (B, 3, size, size), rotated, nearer or farther, and aside; beyond the border is a mirror of what is
    there."""
    share = size / pixels.shape[-1]
    scale = (1.0 + strength.zoom) ** -_signed(draws[:, _ZOOM]).view(-1)
    angle = _signed(draws[:, _ROTATION]).view(-1) * math.radians(strength.rotation)
    place = torch.zeros((len(pixels), 2, 3))
    place[:, 0, 0] = place[:, 1, 1] = share * scale * angle.cos()
    place[:, 1, 0] = share * scale * angle.sin()
    place[:, 0, 1] = -place[:, 1, 0]
    for axis, column in enumerate((_ACROSS, _DOWN)):
        place[:, axis, 2] = _signed(draws[:, column]).view(-1) * 2.0 * strength.shift * share  # the side is 2 long
    grid = functional.affine_grid(_at(place, pixels), [*pixels.shape[:2], size, size], align_corners=False)
    return functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _blurred(pixels: Tensor, draws: Tensor, share: float) -> Tensor:
    """Some images mixed with their blur by two 3x3 means, which is nearly a Gaussian of 1.2 pixels."""
    rows = (draws[:, _IS_BLURRED] < share).nonzero().squeeze(1)
    if not len(rows):
        return pixels
    amount = _at(draws[rows, _BLUR].view(-1, 1, 1, 1), pixels)
    rows = _at(rows, pixels)
    sharp = pixels[rows]
    soft = sharp
    for _ in range(2):
        soft = functional.avg_pool2d(functional.pad(soft, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    blurred = pixels.clone()
    blurred[rows] = sharp.lerp(soft, amount)
    return blurred


def _stained(pixels: Tensor, draws: Tensor, strength: Strength) -> Tensor:
    common = _signed(draws[:, _DENSITY]) * strength.density
    channel = (draws[:, [_RED, _GREEN, _BLUE]] * 2.0 - 1.0).view(-1, 3, 1, 1) * strength.hue
    light = _signed(draws[:, _LIGHT]) * strength.brightness * 255.0
    transmitted = (pixels + 1.0) / 256.0  # (B, 3, S, S) in (0, 1]; density is -log of it
    return transmitted.pow(_at(1.0 + common + channel, pixels)) * 256.0 - 1.0 + _at(light, pixels)


def _at(values: Tensor, pixels: Tensor) -> Tensor:
    """Numbers of images, which are made on the CPU, where the pixels are. Nothing is asked of a GPU: that would wait
    for all it has been given to do.
    """
    return values.to(pixels.device, non_blocking=True)
