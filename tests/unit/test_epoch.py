"""One optimizer step: the same gradients however a global batch is shared among workers or cut into parts."""

from collections.abc import Iterable

import numpy as np
import pytest
import torch

from pipeline.model.architectures import build
from pipeline.training.batch import Batch
from pipeline.training.epoch import Learner
from pipeline.training.objective import make_loss, make_optimizer
from tests.training_settings import training_settings

IMAGES, BATCH = 24, 8


def _learner(rank: int = 0, world: int = 1, **changes: object) -> Learner:
    settings = training_settings(augment=True, batch_size=BATCH, norm="group", epochs=3, **changes)
    torch.manual_seed(0)
    model = build(settings.architecture, settings.outputs, "group")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    cpu = torch.device("cpu")
    loss_of = make_loss(settings, [16, 8], cpu)
    return Learner(settings, rank, world, cpu, model, model, make_optimizer(settings, model), loss_of, IMAGES)


def _batch(rows: Iterable[int]) -> Batch:
    rows = np.array(list(rows), np.int64)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return Batch(pixels[rows], torch.from_numpy(rows % 3 == 0).long(), rows + 1000)


def _gradients(learner: Learner) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in learner.model.parameters() if p.grad is not None])


def _one_step(learner: Learner) -> tuple[float, torch.Tensor]:
    rows = learner.order(np.arange(IMAGES) % 2, epoch=1)[0]
    learner.model.train()
    loss = learner.step(_batch(rows), epoch=1, step=0)
    return float(loss), _gradients(learner)


@pytest.mark.parametrize("world", [2, 3, 11])  # of eleven, three have no image
def test_the_mean_over_workers_is_the_step_of_one(world: int) -> None:
    loss, gradients = _one_step(_learner())
    parts = [_one_step(_learner(rank, world)) for rank in range(world)]
    assert sum(part for part, _ in parts) == pytest.approx(loss, rel=1e-5)
    mean = torch.stack([each for _, each in parts]).mean(dim=0)  # what DDP makes of them
    assert torch.allclose(mean, gradients, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("parts", [2, 3, 20])
def test_parts_of_a_batch_add_up_to_the_whole(parts: int) -> None:
    loss, gradients = _one_step(_learner())
    cut_loss, cut_gradients = _one_step(_learner(accumulate=parts))
    assert cut_loss == pytest.approx(loss, rel=1e-5)
    assert torch.allclose(cut_gradients, gradients, rtol=1e-3, atol=1e-6)


def test_a_step_moves_weights_by_the_planned_rate() -> None:
    learner = _learner(warmup=0.5)
    learner.model.train()
    before = [p.detach().clone() for p in learner.model.parameters()]
    learner.step(_batch(range(BATCH)), epoch=0, step=0)
    assert [group["lr"] for group in learner.optimizer.param_groups] == pytest.approx([1e-3 / 4, 1e-3 / 4] * 5)
    assert any(not torch.equal(a, b) for a, b in zip(before, learner.model.parameters(), strict=True))
