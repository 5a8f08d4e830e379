"""One worker's images: any batch that the order of the run asks for, and its share of a split once.

Every worker of a run sees the same rows: the usable images of a split in id order. That is what the steps of
`pipeline/training/order.py` number, of which each worker takes its share.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.training.batch import Batch
from pipeline.training.decoded import Noted
from pipeline.training.held import HeldShard, OwnFiles
from pipeline.training.streamed import StreamedShard
from pipeline.training.supply import SPLITS, Supply


class Shard(Protocol):
    """What training asks of a split's images."""

    image_ids: NDArray[np.int64]  # (N,) of the usable images, ascending
    targets: NDArray[np.int64]  # (N,)

    def noted(self) -> Noted:
        """Of the split, as far as it is known to this worker; workers may know of the same images."""

    def batches(self, steps: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        """One batch an array, of the rows that it numbers, in this order; as many images as rows."""

    def once(self, batch_size: int) -> Iterator[Batch]:
        """This worker's share of the usable images, each once over all workers."""


def open_shards(supply: Supply, rank: int, world: int, known: Noted = Noted(0)) -> tuple[Shard, Shard]:
    """The train and the validation split. Waits for what is still being decoded. Raises PlatformError.

    `known`: what an interrupted run had met of both, which streamed ones cannot know before they meet it again.
    """
    if supply.cache is None:
        train, validation = (StreamedShard(supply, split, rank, world, known) for split in SPLITS)
        return train, validation
    here = OwnFiles.gather(supply)
    held_train, held_validation = (HeldShard(supply, split, here, rank, world) for split in SPLITS)
    return held_train, held_validation
