"""Random changes of training images: what they keep, and that they belong to the image."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.training.augment import COLUMNS, Strength, augment, augmented

STILL = Strength(turn=False, rotation=0, zoom=0, shift=0, blur=0, density=0, hue=0, brightness=0)


def _images(count: int, size: int = 20) -> torch.Tensor:
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _draws(count: int) -> torch.Tensor:
    return torch.rand((count, COLUMNS), generator=torch.Generator().manual_seed(1))


def test_an_image_changes_alike_whatever_batch_it_is_in() -> None:
    images, ids = _images(8), np.arange(100, 108)
    whole = augmented(images, ids, seed=3, turn=2)
    assert whole.dtype == torch.uint8 and whole.shape == images.shape
    for part in (slice(0, 3), slice(3, 8)):
        assert torch.equal(augmented(images[part], ids[part], seed=3, turn=2), whole[part])
    assert not torch.equal(augmented(images, ids, seed=3, turn=3), whole)
    assert not torch.equal(augmented(images, ids, seed=4, turn=2), whole)


def test_turning_moves_pixels_but_changes_none() -> None:
    images = _images(16, 6)
    turned = augment(images, _draws(16), Strength(rotation=0, zoom=0, shift=0, blur=0, density=0, hue=0, brightness=0))
    assert torch.equal(turned.flatten(1).sort().values, images.flatten(1).sort().values)
    assert not torch.equal(turned, images)


def test_all_eight_turns_come_up() -> None:
    image = torch.arange(48, dtype=torch.uint8).reshape(1, 4, 4, 3).repeat(8, 1, 1, 1)
    draws = torch.zeros(8, COLUMNS)
    draws[:, 0] = (torch.arange(8) + 0.5) / 8
    turned = augment(image, draws, Strength(rotation=0, zoom=0, shift=0, blur=0, density=0, hue=0, brightness=0))
    assert len({tuple(one.flatten().tolist()) for one in turned}) == 8


def test_without_any_strength_nothing_changes() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(1, 1, 1, 3)
    assert torch.equal(augment(images, _draws(1), STILL), images)


def test_a_shift_brings_the_object_where_it_was_asked_to() -> None:
    image = torch.full((1, 40, 40, 3), 200, dtype=torch.uint8)
    image[:, 18:22, 18:22] = 0
    draws = torch.full((1, COLUMNS), 0.5)
    draws[0, 2] = 1.0  # across, by the whole of `shift`
    moved = augment(
        image, draws, Strength(turn=False, rotation=0, zoom=0, shift=0.1, blur=0, density=0, hue=0, brightness=0)
    )
    dark = (moved[0, :, :, 0] < 100).nonzero().float().mean(dim=0)
    assert dark.tolist() == [19.5, 15.5]  # rows stay, columns move by a tenth of the side


def test_a_rotation_takes_the_object_around_the_middle() -> None:
    image = torch.full((1, 40, 40, 3), 200, dtype=torch.uint8)
    image[:, 18:22, 28:32] = 0  # right of the middle, by a quarter of the side
    draws = torch.full((1, COLUMNS), 0.5)
    draws[0, -1] = 0.75  # half of what is drawn at most
    strength = Strength(turn=False, zoom=0, shift=0, blur=0, density=0, hue=0, brightness=0)
    middles = []
    for degrees in (180.0, 90.0):
        rotated = augment(image, draws, replace(strength, rotation=degrees))
        middles.append((rotated[0, :, :, 0] < 100).nonzero().float().mean(dim=0) - 19.5)
    assert middles[0].abs().tolist() == pytest.approx([10, 0], abs=0.1)  # 90 degrees: above or below
    assert middles[1].abs().tolist() == pytest.approx([10 / 2**0.5] * 2, abs=0.3)  # 45


def test_an_empty_share_of_a_batch_stays_empty() -> None:
    assert augmented(_images(8)[:0], np.empty(0, np.int64), 0, 0).shape == (0, 20, 20, 3)


def test_stain_and_light_stay_in_range_and_near() -> None:
    images = torch.full((64, 8, 8, 3), 128, dtype=torch.uint8)
    changed = augment(
        images, torch.rand(64, COLUMNS), Strength(turn=False, rotation=0, zoom=0, shift=0, blur=0)
    ).float()
    assert 80 < changed.mean() < 180
    assert changed.flatten(1).std(dim=1).max() < 40  # channels part, pixels of one channel do not
    assert changed[:, 0, 0].std(dim=0).min() > 3
