"""Streams that are read by a few threads at once, a bounded number of items waiting for the consumer."""

import queue
import threading
from collections.abc import Iterable, Iterator

from pipeline.sources.archives import Found
from pipeline.sources.objects import Stream, Subtree

_THREADS = 12


_BATCH = 256


_QUEUED_BATCHES = 32


class _Work:
    """Streams that wait and streams that run; it ends when there are neither, or when it is stopped."""

    def __init__(self, streams: Iterable[Stream]) -> None:
        self._waiting: queue.SimpleQueue[Stream | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._unfinished = 0
        self.ready: queue.Queue[list[Found] | BaseException | None] = queue.Queue(_QUEUED_BATCHES)
        self.stopped = threading.Event()
        for stream in streams:
            self.add(stream)

    def add(self, stream: Stream) -> None:
        with self._lock:
            self._unfinished += 1
        self._waiting.put(stream)

    def take(self) -> Stream | None:
        """The next stream, None when there will be none; waits while those that run may still name some."""
        return self._waiting.get() if not self.stopped.is_set() else None

    def finish(self) -> None:
        """Say that a stream has ended. The last one lets all threads go, and tells the consumer."""
        with self._lock:
            self._unfinished -= 1
            is_last = not self._unfinished
        if is_last:
            self.release()
            self.hand_over(None)

    def release(self) -> None:
        for _ in range(_THREADS):
            self._waiting.put(None)

    def hand_over(self, item: list[Found] | BaseException | None) -> None:
        while not self.stopped.is_set():
            try:
                self.ready.put(item, timeout=0.2)
                return
            except queue.Full:
                continue


def side_by_side(streams: list[Stream]) -> Iterator[Found]:
    """All items of all streams and of the branches they name, produced by a few threads, a bounded number waiting."""
    if not streams:
        return
    work = _Work(streams)
    threads = [threading.Thread(target=_produce, args=(work,), daemon=True) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    try:
        while (batch := work.ready.get()) is not None:
            if isinstance(batch, BaseException):
                raise batch
            yield from batch
    finally:
        work.stopped.set()
        work.release()


def _produce(work: _Work) -> None:
    while (stream := work.take()) is not None:
        try:
            batch: list[Found] = []
            for found in stream():
                if isinstance(found, Subtree):
                    work.add(found.stream)
                    continue
                batch.append(found)
                if len(batch) >= _BATCH:
                    work.hand_over(batch)
                    batch = []
                    if work.stopped.is_set():
                        return
            if batch:
                work.hand_over(batch)
        except BaseException as error:  # re-raised by the consumer
            work.hand_over(error)
        finally:
            work.finish()
