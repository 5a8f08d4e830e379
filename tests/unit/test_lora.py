"""Low-rank adaptation trains few numbers and leaves a plain network."""

import pytest
import torch
from torch import Tensor

from pipeline.base.errors import UsageError
from pipeline.model.cell_classifier import CellClassifier
from pipeline.model.lora import merged
from pipeline.model.starting_weights import check_start
from pipeline.model.trainable import freeze, head_of
from pipeline.model.vision_transformer import VisionTransformer
from tests.unit.test_trainable import IMAGES, assert_layers_follow_the_use


def transformer() -> CellClassifier:
    return CellClassifier(VisionTransformer(1, width=128, depth=3), "head")


def logits_of(model: CellClassifier) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(IMAGES)
    return logits


def test_what_was_adapted_is_a_plain_network_again() -> None:
    torch.manual_seed(0)
    model, plain = transformer(), transformer()
    plain.load_state_dict(merged(model.state_dict()))
    before = logits_of(model)
    chosen = freeze(model, "lora")
    assert torch.equal(logits_of(model), before)  # nothing yet
    assert {id(value) for value in chosen} == {id(value) for value in model.parameters() if value.requires_grad}
    assert {id(value) for value in head_of(model).parameters()} < {id(value) for value in chosen}
    assert sum(value.numel() for value in chosen) < 0.05 * sum(value.numel() for value in model.parameters())
    loss: Tensor = model.train()(IMAGES).square().sum()
    torch.autograd.backward(loss)
    torch.optim.SGD(chosen, lr=0.1).step()
    after = logits_of(model)
    assert not torch.allclose(after, before, atol=1e-3)
    state = merged(model.state_dict())
    moved = {name for name, value in plain.state_dict().items() if not torch.equal(value, state[name])}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in moved} == {"qkv", "proj", "head"}
    plain.load_state_dict(state)
    torch.testing.assert_close(logits_of(plain), after, atol=1e-5, rtol=1e-5)


def test_asked_twice_it_is_adapted_once_and_its_state_can_be_restored() -> None:
    torch.manual_seed(0)
    model, other = transformer(), transformer()
    assert [id(value) for value in freeze(model, "lora")] == [id(value) for value in freeze(model, "lora")]
    assert_layers_follow_the_use(model)
    freeze(other, "lora")
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits_of(other), logits_of(model))


def test_a_network_without_attention_is_refused() -> None:
    with pytest.raises(UsageError, match="resnet18 has no attention to adapt; use --unfreeze last"):
        check_start("resnet18", "imagenet", "batch", "lora")
    check_start("dinobloom-s", "file.pth", "batch", "lora")
