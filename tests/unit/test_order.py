"""Which images come when, and the random numbers that belong to them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training.draws import uniform
from pipeline.training.order import share, steps_of_epoch, steps_per_epoch


@given(st.integers(1, 200), st.integers(1, 64), st.integers(0, 5))
def test_every_image_is_seen_equally_often_over_epochs(images: int, batch: int, seed: int) -> None:
    targets = np.zeros(images, np.int64)
    epochs = 4
    seen = np.concatenate(
        [np.concatenate(steps_of_epoch(targets, batch, seed, e, balanced=False)) for e in range(epochs)]
    )
    assert len(seen) == epochs * steps_per_epoch(images, batch) * batch
    counts = np.bincount(seen, minlength=images)
    assert counts.max() - counts.min() <= 1


@given(st.integers(1, 9), st.integers(1, 40))
def test_workers_share_each_global_batch_without_loss_or_repeat(world: int, batch: int) -> None:
    for rows in steps_of_epoch(np.zeros(97, np.int64), batch, 3, 1, balanced=False):
        shares = [share(rows, rank, world) for rank in range(world)]
        assert sorted(np.concatenate(shares)) == sorted(rows)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_epochs_and_seeds_differ_and_repeat() -> None:
    targets = np.zeros(64, np.int64)
    first = np.concatenate(steps_of_epoch(targets, 16, 0, 0, balanced=False))
    assert (first == np.concatenate(steps_of_epoch(targets, 16, 0, 0, balanced=False))).all()
    assert (first != np.concatenate(steps_of_epoch(targets, 16, 0, 1, balanced=False))).any()
    assert (first != np.concatenate(steps_of_epoch(targets, 16, 1, 0, balanced=False))).any()


def test_balanced_batches_draw_every_class_equally_often() -> None:
    targets = np.array([0] * 90 + [1] * 10)
    seen = np.concatenate(steps_of_epoch(targets, 20, 0, 0, balanced=True))
    assert np.bincount(targets[seen]).tolist() == [50, 50]
    rare = np.bincount(seen, minlength=100)[90:]
    assert rare.min() == rare.max() == 5


def test_draws_belong_to_the_image_whatever_its_batch() -> None:
    ids = np.array([7, -3, 2**62], np.int64)
    whole = uniform(5, ids, 2, 6)
    assert whole.shape == (3, 6)
    assert np.array_equal(uniform(5, ids[1:2], 2, 6)[0], whole[1])
    assert not np.array_equal(uniform(5, ids, 3, 6), whole)
    assert not np.array_equal(uniform(6, ids, 2, 6), whole)


def test_draws_are_uniform_and_columns_independent() -> None:
    found = uniform(0, np.arange(20_000, dtype=np.int64), 0, 4)
    assert found.min() >= 0
    assert found.max() < 1
    assert found.mean(axis=0) == pytest.approx([0.5] * 4, abs=0.01)
    assert np.abs(np.corrcoef(found.T) - np.eye(4)).max() < 0.03
