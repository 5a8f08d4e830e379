"""One rank's images: batches for training, in a new order each epoch, and every image once for validation.

`HeldShard` keeps the decoded blocks of the object store (views, no copies) and shuffles all of them; `StreamedShard`
decodes again each epoch and shuffles within a buffer. Both give exactly as many full batches as asked: a rank that ran
out of images while others still step would make the gradient exchange wait for ever.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.training.decoded import Pixels, Rejected, rejected, usable

if TYPE_CHECKING:
    from ray.data import DataIterator

_SHUFFLE_BATCHES = 16  # Ray Data gives short batches midway when the buffer is smaller than two (ray-project/ray 66085)


@dataclass(frozen=True)
class Batch:
    images: Tensor  # uint8 (B, S, S, 3), RGB
    targets: Tensor  # int64 (B,)
    image_ids: NDArray[np.int64]  # (B,)


class Shard(Protocol):
    """What the training loop asks of its images."""

    def rejected(self) -> Rejected: ...
    def batches(self, steps: int, batch_size: int, seed: int) -> Iterator[Batch]: ...
    def once(self, batch_size: int) -> Iterator[Batch]: ...


def open_shard(iterator: "DataIterator", size: int, *, held: bool) -> Shard:
    return HeldShard.load(iterator, size) if held else StreamedShard(iterator, size)


def _blocks(iterator: "DataIterator") -> Iterator[pa.Table]:
    yield from iterator.iter_batches(batch_size=None, batch_format="pyarrow")


class HeldShard:
    """Decoded images in shared memory, in id order, so that the order of blocks never matters."""

    def __init__(self, blocks: list[Pixels], lost: Rejected) -> None:
        self._images = [block.images for block in blocks]
        self._lost = lost
        ids = np.concatenate([block.image_ids for block in blocks])
        targets = np.concatenate([block.targets for block in blocks])
        block_of = np.repeat(np.arange(len(blocks)), [len(block.image_ids) for block in blocks])
        row_of = np.concatenate([np.arange(len(block.image_ids)) for block in blocks])
        order = np.argsort(ids, kind="stable")
        self._ids, self._targets = ids[order], targets[order]
        self._block, self._row = block_of[order], row_of[order]

    @classmethod
    def load(cls, iterator: "DataIterator", size: int) -> "HeldShard":
        tables = list(_blocks(iterator))
        return cls([usable(table, size) for table in tables], rejected(tables))

    def rejected(self) -> Rejected:
        return self._lost

    def __len__(self) -> int:
        return len(self._ids)

    def batches(self, steps: int, batch_size: int, seed: int) -> Iterator[Batch]:
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self))
        while len(order) < steps * batch_size:  # fewer images than a batch, or than other ranks have
            order = np.concatenate([order, rng.permutation(len(self))])
        for step in range(steps):
            yield self._take(order[step * batch_size : (step + 1) * batch_size])

    def once(self, batch_size: int) -> Iterator[Batch]:
        for start in range(0, len(self), batch_size):
            yield self._take(np.arange(start, min(start + batch_size, len(self))))

    def _take(self, rows: NDArray[np.int64]) -> Batch:
        picked = zip(self._block[rows], self._row[rows], strict=True)
        images = np.stack([self._images[block][row] for block, row in picked])
        return Batch(torch.from_numpy(images), torch.from_numpy(self._targets[rows]), self._ids[rows])


class StreamedShard:
    """Images that do not fit the object store: fetched and decoded in each epoch while the worker trains."""

    def __init__(self, iterator: "DataIterator", size: int) -> None:
        self._iterator = iterator
        self._size = size
        self._lost = Rejected(0, {}, {})

    def rejected(self) -> Rejected:
        """Of the last pass; nothing before the first."""
        return self._lost

    def batches(self, steps: int, batch_size: int, seed: int) -> Iterator[Batch]:
        given, turn = 0, 0
        counts: list[pa.Table] = []
        while given < steps:
            before = given
            for table in self._iterator.iter_batches(
                batch_size=batch_size,
                batch_format="pyarrow",
                local_shuffle_buffer_size=_SHUFFLE_BATCHES * batch_size,
                local_shuffle_seed=seed + turn,
                drop_last=False,
            ):
                if turn == 0:
                    counts.append(table.select(["code", "message"]))
                pixels = usable(table, self._size)
                if not len(pixels.image_ids):
                    continue
                yield _full(pixels, batch_size)
                given += 1
                if given == steps:
                    break
            self._lost = rejected(counts)
            turn += 1
            if given == before:
                raise RuntimeError("a rank's stream gave no usable image")

    def once(self, batch_size: int) -> Iterator[Batch]:
        counts = []
        for table in self._iterator.iter_batches(batch_size=batch_size, batch_format="pyarrow"):
            counts.append(table.select(["code", "message"]))
            pixels = usable(table, self._size)
            if len(pixels.image_ids):
                yield Batch(
                    torch.from_numpy(pixels.images.copy()), torch.from_numpy(pixels.targets.copy()), pixels.image_ids
                )
        self._lost = rejected(counts)


def _full(pixels: Pixels, batch_size: int) -> Batch:
    """Repeat rows of a short batch, so that every rank's batches weigh the same."""
    rows = np.resize(np.arange(len(pixels.image_ids)), batch_size)
    return Batch(torch.from_numpy(pixels.images[rows]), torch.from_numpy(pixels.targets[rows]), pixels.image_ids[rows])
