"""One optimizer step: the same gradients however a global batch is shared among workers or cut into parts."""

import contextlib
from collections.abc import Iterable

import numpy as np
import pytest
import torch

from pipeline.base.errors import UsageError
from pipeline.model.architectures import build
from pipeline.model.bundle import BundleInfo
from pipeline.model.export import to_safetensors
from pipeline.training.batch import Batch
from pipeline.training.epoch import Learner, _parts
from pipeline.training.objective import make_loss, make_optimizer
from pipeline.training.order import parts_of_share, smallest_part
from pipeline.training.single_images import refuse_single_images
from pipeline.training.speed import Speed, speed_of
from pipeline.training.teacher import Teacher
from tests.training_settings import training_settings

IMAGES, BATCH = 24, 8


def learner_of(rank: int = 0, world: int = 1, *, taught: bool = False, **changes: object) -> Learner:
    plain: dict[str, object] = {"augment": True, "batch_size": BATCH, "norm": "group", "epochs": 3}
    settings = training_settings(**(plain | changes))
    torch.manual_seed(0)
    model = build(settings.architecture, settings.outputs, settings.norm)
    cpu = torch.device("cpu")
    loss_of = make_loss(settings, [16, 8], cpu)
    optimizer = make_optimizer(settings, model)
    teacher = _teacher().on(cpu) if taught else None
    return Learner(settings, rank, world, cpu, model, model, optimizer, loss_of, IMAGES, teacher)


def _teacher() -> Teacher:
    torch.manual_seed(1)
    model = build("cnn", 1)
    info = BundleInfo(
        name="large", version="1", architecture="cnn", task="binary", classes=("negative", "positive"),
        input_size=40, preprocessing_digest="", weights_sha256="", graph_sha256="",
    )  # fmt: skip
    return Teacher("large", info, to_safetensors(model))


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
@pytest.mark.parametrize("taught", [False, True])
def test_the_mean_over_workers_is_the_step_of_one(world: int, taught: bool) -> None:
    loss, gradients = _one_step(learner_of(taught=taught))
    parts = [_one_step(learner_of(rank, world, taught=taught)) for rank in range(world)]
    assert sum(part for part, _ in parts) == pytest.approx(loss, rel=1e-5)
    mean = torch.stack([each for _, each in parts]).mean(dim=0)  # what DDP makes of them
    assert torch.allclose(mean, gradients, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("parts", [2, 3, 20])
@pytest.mark.parametrize("taught", [False, True])
def test_parts_of_a_batch_add_up_to_the_whole(parts: int, taught: bool) -> None:
    loss, gradients = _one_step(learner_of(taught=taught))
    cut_loss, cut_gradients = _one_step(learner_of(accumulate=parts, taught=taught))
    assert cut_loss == pytest.approx(loss, rel=1e-5)
    assert torch.allclose(cut_gradients, gradients, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("parts", [3, 5, 7, 20])
@pytest.mark.parametrize("world", [1, 3])
def test_the_network_sees_the_images_of_a_batch_and_nothing_else(parts: int, world: int) -> None:
    """Normalization statistics rest on what goes through: a black image among it would move them."""
    learner = learner_of(0, world, accumulate=parts, norm="batch")
    seen: list[int] = []
    learner.model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    _one_step(learner)
    assert sum(seen) == -(-BATCH // world)
    assert max(seen) - min(seen) <= 1


def test_a_worker_without_an_image_keeps_its_statistics() -> None:
    learner = learner_of(rank=9, world=11, norm="batch")
    before = [buffer.clone() for buffer in learner.model.buffers()]
    loss, gradients = _one_step(learner)
    assert loss == 0.0 and not gradients.any()
    assert all(torch.equal(a, b) for a, b in zip(before, learner.model.buffers(), strict=True))


def test_a_step_moves_weights_by_the_planned_rate() -> None:
    learner = learner_of(warmup=0.5)
    learner.model.train()
    before = [p.detach().clone() for p in learner.model.parameters()]
    learner.step(_batch(range(BATCH)), epoch=0, step=0)
    assert [group["lr"] for group in learner.optimizer.param_groups] == pytest.approx([1e-3 / 4, 1e-3 / 4] * 5)
    assert any(not torch.equal(a, b) for a, b in zip(before, learner.model.parameters(), strict=True))


def test_a_teacher_moves_the_step_and_stays_as_it_is() -> None:
    learner = learner_of(taught=True)
    assert learner.teacher is not None
    images = _batch(range(3)).images
    before = learner.teacher(images)
    loss, gradients = _one_step(learner)
    alone, without = _one_step(learner_of())
    assert abs(loss - alone) > 1e-3
    assert not torch.allclose(gradients, without, rtol=1e-2)
    assert torch.equal(learner.teacher(images), before)
    assert not before.requires_grad


def test_measuring_the_speed_leaves_no_trace() -> None:
    """Statistics of batches, the optimizer's state and the weights after the next step are as without it."""

    def after_a_step(learner: Learner) -> dict[str, torch.Tensor]:
        learner.ddp.train()
        learner.step(_batch(range(BATCH)), epoch=0, step=0)
        return learner.model.state_dict()

    measured = learner_of(architecture="resnet18", norm="batch")
    speed = speed_of(measured)
    assert speed.step_s > speed.predict_s > 0
    assert not measured.optimizer.state
    expected = after_a_step(learner_of(architecture="resnet18", norm="batch"))
    for name, value in after_a_step(measured).items():
        assert torch.equal(value, expected[name]), name


def test_an_epoch_takes_its_steps_and_each_workers_share_of_validation() -> None:
    speed = Speed.mean([Speed(1.0, 0.1), Speed(3.0, 0.3)])
    assert speed.epoch_s(steps=10, validation=100, workers=4) == pytest.approx(10 * 2.0 + 0.2 * 25)


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("accumulate", [1, 2, 7])
def test_the_smallest_part_of_a_batch_is_known_before(workers: int, accumulate: int) -> None:
    for batch in range(workers, 20):
        parts = [
            len(part.image_ids)
            for rank in range(workers)
            for part in _parts(_batch(range(rank, batch, workers)), parts_of_share(batch, workers, accumulate))
        ]
        assert smallest_part(batch, workers, accumulate) == min(parts)


@pytest.mark.parametrize(
    ("network", "size", "is_refused"),
    [("resnet18", 32, True), ("efficientnet-lite0", 32, True), ("resnet18", 48, False), ("cnn", 16, False)],
)
def test_a_part_of_one_image_is_refused_where_a_step_with_it_would_fail(
    network: str, size: int, is_refused: bool
) -> None:
    plain: dict[str, object] = {"architecture": network, "input_size": size, "batch_size": 3}
    settings = training_settings(**plain)
    learner = learner_of(0, 2, norm="batch", **plain)
    learner.model.train()
    pixels = torch.zeros((1, size, size, 3), dtype=torch.uint8)
    one = Batch(pixels, torch.zeros(1, dtype=torch.int64), np.zeros(1, np.int64))
    fails = pytest.raises(ValueError, match="more than 1 value") if is_refused else contextlib.nullcontext()
    with fails:
        learner.step(one, epoch=0, step=0)
    refused = pytest.raises(UsageError, match=f"2 workers a part .* {network} at {size} pixels .* --norm group")
    with refused if is_refused else contextlib.nullcontext():
        refuse_single_images(settings, 2)
    refuse_single_images(settings, 1)
    refuse_single_images(training_settings(**plain | {"norm": "group"}), 2)
    refuse_single_images(settings, 2, on_gpu=True)
