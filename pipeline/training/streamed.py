"""Images that no cache has room for: fetched and decoded in the order in which they are asked for, ahead of the steps.

Tasks decode some steps' images each, on whatever node has a core; they come back in the order of the steps. Nothing is
shuffled here, so that no batch comes short (ray-project/ray 66085).
"""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from pipeline.base.errors import IncompleteError
from pipeline.base.resources import DECODE_CPUS
from pipeline.training.batch import Batch, batch_of, read_ahead
from pipeline.training.decoded import Decoded, Noted, decode, pixel_bytes
from pipeline.training.filling import arrived, telling
from pipeline.training.supply import Supply

_TASK_IMAGES, _TASK_BYTES = 64, 8 << 20  # a task decodes for tens of milliseconds, which hides what sending it costs
_FIRST_IMAGES = 8  # the first step waits for its own images only


class StreamedShard:
    """All images of a split in id order; which cannot be used is known when they are met.

    One that cannot is replaced in its batch by another of the batch, or where none of it can be used by the first by id
    that can, so that every worker takes every step, wherever it begins; `once` leaves it out.
    """

    def __init__(self, supply: Supply, split: str, rank: int, world: int, known: Noted = Noted(0)) -> None:
        self._supply = supply
        self._rows = supply.rows(split)
        self.image_ids, self.targets = self._rows["image_id"].to_numpy(), self._rows["target"].to_numpy()
        self._rank, self._world = rank, world
        own = set(self.image_ids.tolist())
        self._noted = Noted(len(own), {number: note for number, note in known.notes.items() if number in own})
        self._first: Batch | None = None

    def noted(self) -> Noted:
        """Of those met so far by this worker, and those that were known."""
        return self._noted

    def batches(self, steps: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        return read_ahead(self._filled_up(steps))

    def once(self, batch_size: int) -> Iterator[Batch]:
        own = np.arange(self._rank, len(self.image_ids), self._world)
        steps = [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
        return read_ahead(
            self._batch(rows[good], images, np.flatnonzero(good)) for rows, images, good in self._decoded(steps)
        )

    def _filled_up(self, steps: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        for rows, images, good in self._decoded(steps):
            if good.any():
                chosen = np.where(good, np.arange(len(rows)), np.resize(np.flatnonzero(good), len(rows)))
                yield self._batch(rows[chosen], images, chosen)
            elif not len(rows):
                yield self._batch(rows, images, rows)
            else:
                self._first = self._first or self._first_usable()
                again = np.zeros(len(rows), np.int64)
                yield Batch(self._first.images[again], self._first.targets[again], self._first.image_ids[again])

    def _first_usable(self) -> Batch:
        """The first image by id that can be used."""
        numbers = np.arange(len(self.image_ids))
        for rows, images, good in self._decoded([numbers[at : at + 1] for at in numbers]):
            if good.all():
                return self._batch(rows, images, np.zeros(1, np.int64))
        raise IncompleteError(f"{self._noted.rejected}; none is left to learn from")

    def _batch(self, rows: NDArray[np.int64], images: NDArray[np.uint8], chosen: NDArray[np.int64]) -> Batch:
        def fill(into: NDArray[np.uint8]) -> None:
            np.take(images, chosen, axis=0, out=into)

        return batch_of(self._supply.pixels.size, self.targets[rows], self.image_ids[rows], fill)

    def _decoded(
        self, steps: Sequence[NDArray[np.int64]]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.bool_]]]:
        """For each step its rows, their images uint8 (B, S, S, 3), and which of them are usable."""
        rest = _bundled(steps, max(1, min(_TASK_IMAGES, _TASK_BYTES // pixel_bytes(self._supply.pixels.size))))
        under_way: deque[tuple[list[NDArray[np.int64]], NDArray[np.int64], Any]] = deque()
        task = ray.remote(num_cpus=DECODE_CPUS)(telling(decode))
        ahead = 1 + -(-self._supply.cores // self._world)  # more would start processes that soon have nothing to do
        while True:
            for bundle in itertools.islice(rest, ahead - len(under_way)):
                wanted = np.unique(np.concatenate(bundle))  # in row order, which is id order, as they come back
                asked = self._rows.take(pa.array(wanted))
                under_way.append((bundle, wanted, task.remote(asked, self._supply.pixels, self._supply.stores)))
            if not under_way:
                return
            bundle, wanted, reference = under_way.popleft()
            got: Decoded = arrived(reference)
            del reference
            self._notice(got)
            usable = got.notes["code"].is_null().to_numpy()
            for rows in bundle:
                at = np.searchsorted(wanted, rows)
                yield rows, got.images[at], usable[at]

    def _notice(self, got: Decoded) -> None:
        met = Noted.of([got.notes])
        if met.notes:
            self._noted = Noted.union(self._noted.total, [self._noted, met])


def _bundled(steps: Sequence[NDArray[np.int64]], images: int) -> Iterator[list[NDArray[np.int64]]]:
    """Consecutive steps that together ask for about so many images, fewer at first."""
    bundle: list[NDArray[np.int64]] = []
    enough = min(_FIRST_IMAGES, images)
    for rows in steps:
        bundle.append(rows)
        if sum(map(len, bundle)) >= enough:
            yield bundle
            bundle, enough = [], min(2 * enough, images)
    if bundle:
        yield bundle
