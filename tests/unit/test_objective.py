"""Loss, optimizer groups and learning rate."""

import math
from typing import Any

import pytest
import torch

from pipeline.model.architectures import build
from pipeline.model.trainable import freeze
from pipeline.training.objective import learning_rate, make_loss, make_optimizer, set_learning_rate
from tests.training_settings import training_settings

CPU = torch.device("cpu")


def test_binary_loss_is_the_log_loss_of_each_image() -> None:
    losses = make_loss(training_settings(), [3, 1], CPU)(torch.tensor([[0.0], [2.0]]), torch.tensor([0, 1]))
    assert losses.tolist() == pytest.approx([0.693147, 0.126928], abs=1e-5)


def test_a_teacher_has_nine_tenths_of_the_loss() -> None:
    """By hand: at temperature 4 logits 0 and 4 say 1/2 and 0.731 of the second class."""
    loss_of = make_loss(training_settings(), [3, 1], CPU)
    logits, targets = torch.tensor([[0.0]]), torch.tensor([1])
    apart = 0.731059 * math.log(0.731059 / 0.5) + 0.268941 * math.log(0.268941 / 0.5)
    expected = 0.1 * math.log(2) + 0.9 * 16 * apart
    assert loss_of(logits, targets, torch.tensor([[4.0]])).item() == pytest.approx(expected, abs=1e-4)
    assert loss_of(logits, targets, logits).item() == pytest.approx(0.1 * math.log(2))


def test_two_classes_learn_alike_from_one_logit_and_from_two() -> None:
    logits, taught, targets = torch.tensor([[0.3], [-2.0]]), torch.tensor([[1.5], [-0.5]]), torch.tensor([1, 0])
    one = make_loss(training_settings(), [1, 1], CPU)(logits, targets, taught)
    two_logits, two_taught = (torch.cat([-each / 2, each / 2], dim=1) for each in (logits, taught))
    settings = training_settings(task="multiclass", classes=("a", "b"))
    assert torch.allclose(one, make_loss(settings, [1, 1], CPU)(two_logits, targets, two_taught))


def test_smoothed_labels_ask_for_less_than_certainty() -> None:
    loss_of = make_loss(training_settings(label_smoothing=0.1), [1, 1], CPU)
    logits = torch.linspace(-8, 8, 321)[:, None]
    losses = loss_of(logits, torch.ones(321, dtype=torch.int64))
    assert torch.sigmoid(logits[losses.argmin(), 0]).item() == pytest.approx(0.95, abs=0.01)


def test_weighed_classes_count_alike_over_the_split() -> None:
    settings = training_settings(task="multiclass", classes=("a", "b"), balance="loss")
    targets = torch.tensor([0] * 9 + [1])
    losses = make_loss(settings, [9, 1], CPU)(torch.zeros(10, 2), targets)
    assert losses[targets == 0].sum().item() == pytest.approx(losses[targets == 1].sum().item())
    assert losses.mean().item() == pytest.approx(0.693147, abs=1e-5)


@pytest.mark.parametrize("changes", [{"balance": "loss"}, {"costs": (5.0, 1.0)}, {"balance": "loss", "costs": (1, 3)}])
def test_of_two_classes_weights_move_no_probability(changes: dict[str, Any]) -> None:
    targets = torch.tensor([0] * 9 + [1])
    loss_of = make_loss(training_settings(**changes), [9, 1], CPU)
    logits = torch.linspace(-6, 2, 801)
    means = torch.stack([loss_of(logit.expand(10, 1), targets).mean() for logit in logits])
    assert torch.sigmoid(logits[means.argmin()]).item() == pytest.approx(0.1, abs=0.002)


def test_classes_that_are_drawn_alike_keep_their_frequency_in_the_answer() -> None:
    drawn = torch.tensor([0, 1])  # as the balanced order gives them
    loss_of = make_loss(training_settings(balance="sample"), [9, 1], CPU)
    logits = torch.linspace(-6, 2, 801)
    means = torch.stack([loss_of(logit.expand(2, 1), drawn).mean() for logit in logits])
    assert torch.sigmoid(logits[means.argmin()]).item() == pytest.approx(0.1, abs=0.002)


def test_what_costs_more_weighs_more() -> None:
    targets, counts = torch.tensor([0, 1, 2]), [1, 1, 2]
    settings = training_settings(task="multiclass", classes=("a", "b", "c"), costs=(5.0, 1.0), positive=(1, 2))
    losses = make_loss(settings, counts, CPU)(torch.zeros(3, 3), targets)
    assert (losses[1] / losses[0]).item() == pytest.approx(5.0)
    assert (losses * torch.tensor(counts)).mean().item() == pytest.approx(1.098612 * 4 / 3, abs=1e-5)


def test_earlier_layers_learn_slower_and_a_fresh_head_faster() -> None:
    settings = training_settings(architecture="efficientnet-lite0", pretrained=True, layer_decay=0.5)
    model = build("efficientnet-lite0", 1)
    optimizer = make_optimizer(settings, model)
    set_learning_rate(optimizer, 1.0)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rate) == len(list(model.parameters()))
    assert rate[id(model.backbone.fc.weight)] == 5.0
    last = [rate[id(p)] for p in model.backbone.conv_head.parameters()]
    stem = [rate[id(p)] for p in model.backbone.conv_stem.parameters()]
    assert last == [1.0]
    assert stem[0] == pytest.approx(0.5**12)


def test_only_matrices_are_decayed() -> None:
    optimizer = make_optimizer(training_settings(weight_decay=0.1), build("cnn", 1))
    for group in optimizer.param_groups:
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] == 0.1}


def test_a_head_alone_leaves_the_rest_untouched() -> None:
    model = build("efficientnet-lite0", 1)
    freeze(model, "head")
    optimizer = make_optimizer(training_settings(architecture="efficientnet-lite0"), model)
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {
        id(p) for p in model.backbone.fc.parameters()
    }
    assert not model.backbone.conv_stem.weight.requires_grad


def test_the_rate_rises_then_falls_to_a_hundredth() -> None:
    settings = training_settings(warmup=0.1)
    rates = [learning_rate(settings, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[9] == pytest.approx(1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(1e-5, rel=0.1)
