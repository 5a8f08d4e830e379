"""Dropout by image: the right share, its mean kept, and the same for an image wherever it is."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from pipeline.training.dropout import Dropouts


def _dropped(ids: list[int], epoch: int = 0, seed: int = 0, kind: nn.Module | None = None) -> Tensor:
    net = nn.Sequential(nn.Identity(), kind or nn.Dropout(0.3))
    dropouts = Dropouts(net, seed)
    dropouts.show(np.array(ids, np.int64), epoch)
    dropped: Tensor = net.train()(torch.ones(len(ids), 2000))
    return dropped


def test_the_share_is_dropped_and_the_mean_stays() -> None:
    dropped = _dropped(list(range(50)))
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    assert float((dropped == 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.01)


def test_an_image_loses_the_same_in_any_batch_and_other_things_in_another_epoch() -> None:
    dropped = _dropped([3, 7, 9])
    assert torch.equal(_dropped([9, 3])[[1, 0]], dropped[[0, 2]])
    for other in (_dropped([4, 7, 9]), _dropped([3, 7, 9], epoch=1), _dropped([3, 7, 9], seed=1)):
        assert float((other[0] != dropped[0]).float().mean()) == pytest.approx(2 * 0.3 * 0.7, abs=0.05)


def test_layers_drop_independently_and_evaluation_drops_nothing() -> None:
    net = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.5)))
    names = list(net.state_dict())
    Dropouts(net, 0).show(np.arange(40), 2)
    values = torch.ones(40, 500)
    assert float((net.train()(values) > 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert torch.equal(net.eval()(values), values)
    assert list(net.state_dict()) == names


def test_stochastic_depth_drops_whole_images() -> None:
    dropped = _dropped(list(range(400)), kind=StochasticDepth(0.2, "row"))
    assert all(len(row.unique()) == 1 for row in dropped)
    assert float((dropped[:, 0] == 0).float().mean()) == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("kind", [nn.Dropout(0.3), StochasticDepth(0.5, "row")])
def test_what_is_held_drops_as_a_pass_of_its_own_once_it_is_refreshed(kind: nn.Module) -> None:
    """A CUDA graph reads the tensors that are held; before they are refreshed all is dropped."""
    net = nn.Sequential(nn.Identity(), kind).train()
    dropouts = Dropouts(net, 0)
    values = torch.ones(6, 50)
    dropouts.show(np.arange(6), 0)
    net(values)
    with dropouts.held():
        assert not net(values).any()
        dropouts.show(np.arange(6) + 20, 3)
        dropouts.refresh()
        held = net(values)
    dropouts.show(np.arange(6) + 20, 3)
    assert held.any() and torch.equal(held, net(values))
    dropouts.show(np.arange(6), 0)
    assert not torch.equal(net(values), held)  # beside a graph passes drop by what is shown


def test_a_layer_that_no_pass_reaches_holds_nothing() -> None:
    """torchvision's EfficientNets have a StochasticDepth in every block and use it where a block adds its input."""
    net = nn.ModuleDict({"used": nn.Dropout(0.5), "unused": StochasticDepth(0.5, "row")}).train()
    dropouts = Dropouts(net, 0)
    values = torch.ones(4, 10)
    dropouts.show(np.arange(4), 0)
    expected = net["used"](values)
    with dropouts.held():
        dropouts.refresh()
        assert torch.equal(net["used"](values), expected)


def test_after_a_capture_that_fails_passes_drop_as_ever() -> None:
    net = nn.Sequential(nn.Dropout(0.5)).train()
    dropouts = Dropouts(net, 0)
    values = torch.ones(4, 10)
    dropouts.show(np.arange(4), 0)
    expected = net(values)
    with pytest.raises(RuntimeError), dropouts.held():
        raise RuntimeError
    assert torch.equal(net(values), expected)
