"""What a worker learns from in one step, made ahead of the step that takes it."""

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_AHEAD = 2  # batches that are made before they are asked for
_LOOK_S = 0.2
_END = object()
Item = TypeVar("Item")


@dataclass(frozen=True)
class Batch:
    """Images of one step on one worker; there may be none. In pinned memory where there is a GPU to copy them to."""

    images: Tensor  # uint8 (B, S, S, 3), RGB
    targets: Tensor  # int64 (B,)
    image_ids: NDArray[np.int64]  # (B,)


def batch_of(
    size: int,
    targets: NDArray[np.int64],
    image_ids: NDArray[np.int64],
    fill: Callable[[NDArray[np.uint8]], None],
) -> Batch:
    """`fill` writes the pixels into uint8 (B, S, S, 3)."""
    pinned = torch.cuda.is_available()
    images = torch.empty((len(image_ids), size, size, 3), dtype=torch.uint8, pin_memory=pinned)
    fill(images.numpy())
    labels = torch.from_numpy(np.ascontiguousarray(targets, np.int64))
    return Batch(images, labels.pin_memory() if pinned else labels, image_ids)


def read_ahead(items: Iterable[Item]) -> Generator[Item, None, None]:
    """The items in order, made in a thread while the caller works with earlier ones.

    What making one raises is raised here, in its turn. The thread ends with the caller's interest.
    """
    made: queue.Queue[Any] = queue.Queue(_AHEAD)
    left = threading.Event()

    def give(item: object) -> bool:
        while not left.is_set():
            with contextlib.suppress(queue.Full):
                made.put(item, timeout=_LOOK_S)
                return True
        return False

    def make() -> None:
        try:
            for item in items:
                if not give(item):
                    return
            give(_END)
        except BaseException as error:  # raised where the items are taken
            give(_Failed(error))

    thread = threading.Thread(target=make, name="read-ahead", daemon=True)
    thread.start()
    try:
        yield from _taken(made)
    finally:
        left.set()
        thread.join()


@dataclass(frozen=True)
class _Failed:
    error: BaseException


def _taken(made: "queue.Queue[Any]") -> Iterator[Any]:
    while (item := made.get()) is not _END:
        if isinstance(item, _Failed):
            raise item.error
        yield item
