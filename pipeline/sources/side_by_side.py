"""Streams that are read by a few threads at once, a bounded number of items waiting for the consumer.

The consumer alone keeps count: it starts the subtrees that streams name, and knows when the last stream has ended.
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline.sources.archives import Found
from pipeline.sources.objects import Stream, Subtree

_THREADS, _BATCH, _QUEUED_BATCHES = 12, 256, 32


def side_by_side(streams: Sequence[Stream]) -> Iterator[Found]:
    """All items of all streams and of the subtrees they name, in no promised order."""
    ready = _Ready()
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="listing")
    unfinished = len(streams)
    try:
        for stream in streams:
            pool.submit(_produce, stream, ready)
        while unfinished:
            item = ready.get()
            if item is None:
                unfinished -= 1
            elif isinstance(item, Subtree):
                pool.submit(_produce, item.stream, ready)
                unfinished += 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield from item
    finally:
        ready.stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)


class _Ready:
    """What streams have given and the consumer has not taken: batches, subtrees, an error, None for a stream's end."""

    def __init__(self) -> None:
        self._items: queue.Queue[list[Found] | Subtree | BaseException | None] = queue.Queue(_QUEUED_BATCHES)
        self.stopped = threading.Event()
        self.get = self._items.get

    def put(self, item: list[Found] | Subtree | BaseException | None) -> None:
        """Waits for room, as long as anybody may make some."""
        while not self.stopped.is_set():
            try:
                self._items.put(item, timeout=0.2)
                return
            except queue.Full:
                continue


def _produce(stream: Stream, ready: _Ready) -> None:
    batch: list[Found] = []
    try:
        for found in stream():
            if isinstance(found, Subtree):
                ready.put(found)
                continue
            batch.append(found)
            if len(batch) >= _BATCH:
                ready.put(batch)
                batch = []
                if ready.stopped.is_set():
                    return
        if batch:
            ready.put(batch)
    except BaseException as error:  # re-raised by the consumer
        ready.put(error)
    ready.put(None)
