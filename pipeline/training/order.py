"""Which images make each step: the same global batches for any number of workers, from the seed alone.

Rows are numbers of the usable training images in id order. An epoch is a whole number of steps; what permutations of
all rows leave over begins the next epoch, so that no image is passed over for good.
"""

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Steps of `batch_size` images, over all workers, that see about every image once; at least one."""
    return max(1, round(images / batch_size))


def steps_of_epoch(targets: NDArray[np.int64], batch_size: int, seed: int, epoch: int, *, balanced: bool) -> list[Rows]:
    """The global batches of epoch `epoch` (from 0): int64 (batch_size,) each, rows of `targets` (N,).

    `balanced`: every class is drawn equally often, rare images with repeats, instead of every image once.
    """
    steps = steps_per_epoch(len(targets), batch_size)
    first = epoch * steps * batch_size
    drawn = _stream(targets, seed, first, steps * batch_size, balanced=balanced)
    return list(drawn.reshape(steps, batch_size))


def share(batch: Rows, rank: int, world: int) -> Rows:
    """What one worker takes of a global batch; sizes differ by one at most, and may be 0."""
    return batch[rank::world]


def parts_of_share(batch_size: int, world: int, accumulate: int) -> int:
    """In how many parts a worker's share of a global batch goes through the network."""
    return min(accumulate, -(-batch_size // world))


def smallest_part(batch_size: int, world: int, accumulate: int) -> int:
    """Images of the smallest part of any worker's share; a part may be empty."""
    return batch_size // world // parts_of_share(batch_size, world, accumulate)


def _stream(targets: NDArray[np.int64], seed: int, first: int, count: int, *, balanced: bool) -> Rows:
    """Elements `first` .. `first + count` of the endless sequence of permutations."""
    length = len(targets)
    turns = range(first // length, (first + count - 1) // length + 1)
    whole = np.concatenate([_permutation(targets, seed, turn, balanced=balanced) for turn in turns])
    start = first - turns[0] * length
    return whole[start : start + count]


def _permutation(targets: NDArray[np.int64], seed: int, turn: int, *, balanced: bool) -> Rows:
    rng = np.random.default_rng([seed, turn])
    if not balanced:
        return rng.permutation(len(targets))
    classes = np.unique(targets)
    wanted = np.full(len(classes), len(targets) // len(classes))
    wanted[rng.permutation(len(classes))[: len(targets) % len(classes)]] += 1
    drawn = [_of_class(np.flatnonzero(targets == name), n, rng) for name, n in zip(classes, wanted, strict=True)]
    return rng.permutation(np.concatenate(drawn))


def _of_class(rows: Rows, count: int, rng: np.random.Generator) -> Rows:
    """`count` of `rows`, each as often as any other, or once more."""
    repeats = -(-count // len(rows))
    return np.concatenate([rng.permutation(rows) for _ in range(repeats)])[:count]
