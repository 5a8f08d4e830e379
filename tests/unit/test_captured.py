"""How far gradients of a CUDA graph lie from those of the pass itself; the graph is in tests/system/test_gpu.py."""

import math

import pytest
import torch

from pipeline.training.captured import distance


def test_the_distance_is_of_all_gradients_together_as_a_share_of_their_length() -> None:
    expected = [torch.tensor([3.0, 0.0]), None, torch.tensor([[4.0]])]
    assert distance(expected, expected) == 0.0
    assert distance(expected, [torch.tensor([3.0, 0.3]), None, torch.tensor([[4.4]])]) == pytest.approx(0.1)
    assert distance([torch.zeros(2)], [torch.zeros(2)]) == 0.0


def test_gradients_that_are_missing_or_no_number_are_no_match() -> None:
    one = torch.ones(2)
    for found in ([None], [one * math.nan]):
        assert not distance([one], found) <= 0.01
    assert not distance([torch.zeros(2)], [one]) <= 0.01
