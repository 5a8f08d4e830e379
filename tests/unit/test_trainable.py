"""What a trainer asks of any network: depth, head, features, what trains."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.model.architectures import ARCHITECTURES, build
from pipeline.model.cell_classifier import CellClassifier
from pipeline.model.trainable import MOST_LAYERS, features, freeze, head_of, last_of, layers_of

# of the same blocks as resnet18, efficientnet-lite0 and dinobloom-s
DEEPER = ("resnet34", "resnet50", "efficientnet-lite1", "efficientnet-lite2", "dinobloom-b")

IMAGES = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[name for name in ARCHITECTURES if name not in DEEPER], scope="module")
def model(request: pytest.FixtureRequest) -> CellClassifier:
    torch.manual_seed(0)
    return build(str(request.param), 3)


def order_of_use(model: CellClassifier) -> list[nn.Parameter]:
    """Parameters as the forward pass comes by them."""
    used: list[nn.Parameter] = []
    handles = [
        module.register_forward_pre_hook(lambda module, _: used.extend(module.parameters(recurse=False)))
        for module in model.modules()
    ]
    with torch.no_grad():
        model.eval()(IMAGES)
    for handle in handles:
        handle.remove()
    return used


def assert_layers_follow_the_use(model: CellClassifier) -> None:
    layers = layers_of(model)
    depth = {id(parameter): number for number, layer in enumerate(layers) for parameter in layer}
    assert sum(len(layer) for layer in layers) == len(depth) == len(list(model.parameters()))
    depths = [depth[id(parameter)] for parameter in order_of_use(model)]
    assert depths == sorted(depths)
    assert depths[0] == 0 and depths[-1] == len(layers) - 1 <= MOST_LAYERS
    assert {id(parameter) for parameter in layers[-1]} == {id(parameter) for parameter in head_of(model).parameters()}


def assert_features_give_the_logits(model: CellClassifier) -> None:
    model.train()
    pooled = features(model, IMAGES)
    assert model.training and pooled.ndim == 2 and len(pooled) == len(IMAGES) and not pooled.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(head_of(model).eval()(pooled), model.eval()(IMAGES))


def test_layers_hold_every_parameter_once_in_the_order_of_use(model: CellClassifier) -> None:
    assert_layers_follow_the_use(model)


def test_what_goes_into_the_head_gives_the_logits(model: CellClassifier) -> None:
    assert_features_give_the_logits(model)


def trained(model: CellClassifier, learning_rate: float = 0.1) -> set[str]:
    """Names of what a step of training changes, weights and statistics."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    loss: Tensor = model.train()(IMAGES).square().sum()
    torch.autograd.backward(loss)
    optimizer.step()
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_a_frozen_part_keeps_its_weights_and_its_statistics() -> None:
    torch.manual_seed(0)
    model = build("resnet18", 1)
    assert freeze(model, "head") == list(head_of(model).parameters())
    assert trained(model) == {"backbone.fc.weight", "backbone.fc.bias"}
    assert freeze(model, "last") == last_of(model)
    changed = trained(model)
    assert {name.split(".")[1] for name in changed} == {"layer4", "fc"}
    assert "backbone.layer4.0.bn1.running_mean" in changed
    assert len(freeze(model, "all")) == len(list(model.parameters()))
    assert {"backbone.conv1.weight", "backbone.bn1.running_var", "backbone.fc.weight"} <= trained(model)
