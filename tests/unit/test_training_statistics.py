"""Normalization statistics before validation are those of the network that was trained."""

import torch
from torch import nn

from pipeline.model.architectures import build
from pipeline.training.statistics import MOST_IMAGES, measure_statistics, measuring


def images(count: int, size: int = 32) -> torch.Tensor:
    """uint8 (count, size, size, 3) of very different brightness."""
    generator = torch.Generator().manual_seed(count)
    light = torch.randint(0, 200, (count, 1, 1, 3), generator=generator)
    return (light + torch.randint(0, 56, (count, size, size, 3), generator=generator)).to(torch.uint8)


def test_mobilenet_of_few_steps_validates_as_it_trains() -> None:
    """Its running statistics keep 1 % of a batch: after three steps evaluation sees another network than training."""
    torch.manual_seed(0)
    model = build("mobilenet_v3_small", 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pixels = images(32, size=64)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        model(pixels).square().mean().backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        assert model(pixels).std() < 1e-6
    layers = measuring(model, steps=3, images=32)
    seen = [int(layer.num_batches_tracked or 0) for layer in layers]
    measure_statistics(model, layers, [pixels])
    assert len(layers) > 30 and not model.training
    assert [int(layer.num_batches_tracked or 0) for layer in layers] == seen == [3] * len(layers)
    assert {layer.momentum for layer in layers} == {0.01}
    for layer in layers:
        layer.train()
    with torch.no_grad():
        by_batch = model(pixels)
        model.eval()
        by_statistics = model(pixels)
    assert by_statistics.std() > 1e-2
    assert (by_statistics - by_batch).abs().max() < 0.25 * by_batch.std()


def test_statistics_are_those_of_all_images_however_they_are_cut() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    pixels = images(96).permute(0, 3, 1, 2).float()
    measure_statistics(model, measuring(model, 0, 96), pixels.split(40))
    layer = model[0]
    assert torch.allclose(layer.running_mean, pixels.mean(dim=(0, 2, 3)), rtol=1e-4)
    assert torch.allclose(layer.running_var, pixels.var(dim=(0, 2, 3)), rtol=1e-3)


def test_measuring_is_due_while_statistics_are_fresh_or_where_it_is_cheap() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.1), nn.BatchNorm2d(3, momentum=0.01), nn.BatchNorm2d(3))
    model[2].requires_grad_(False)
    model[2].train = lambda mode=True: model[2]  # frozen: stays as it is
    model[2].training = False
    assert measuring(model, 10, images=500) == [model[0], model[1]]
    assert measuring(model, 100, images=500) == [model[1]]
    assert measuring(model, 1000, images=500) == []
    assert measuring(model, 1000, images=10 * MOST_IMAGES) == [model[0], model[1]]
