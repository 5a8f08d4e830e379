"""What workers tell of archives before their end, so that progress moves; and how it is taken back when one dies."""

import contextlib
from collections.abc import Collection, Iterable
from typing import Any

from pipeline.scoring.work.crew import Worker
from pipeline.scoring.work.progress import Progress
from pipeline.scoring.work.worker import Account


class ArchiveNews:
    """Accounts of finished pieces. `archives`: the shards that are told in pieces."""

    def __init__(self, ray: Any, archives: Collection[int], progress: Progress) -> None:
        self._ray, self._archives, self._progress = ray, archives, progress
        self._pieces: dict[int, list[Account]] = {}  # of archives whose end is not reached

    def hear(self, workers: Iterable[Worker]) -> None:
        """Take what has come and ask anew, at leisure: nothing is waited for."""
        for worker in workers:
            if worker.news is not None and self._ray.wait([worker.news], timeout=0)[0]:
                self._take(worker)
            if worker.news is None and any(number in self._archives for number in worker.open.values()):
                worker.news = worker.actor.take_finished.remote()

    def end(self, worker: Worker, number: int) -> None:
        """All that the worker has to tell of a shard that it has finished."""
        if number not in self._archives:
            return
        if worker.news is not None:
            self._take(worker)
        worker.news = worker.actor.take_finished.remote()
        self._take(worker)
        self._pieces.pop(number, None)

    def take_back(self, number: int) -> None:
        """Another worker begins the shard anew."""
        for account in self._pieces.pop(number, []):
            self._progress.take_back(account)

    def _take(self, worker: Worker) -> None:
        news, worker.news = worker.news, None
        with contextlib.suppress(self._ray.exceptions.RayError):  # its death is noticed by what it had open
            for account in self._ray.get(news):
                self._pieces.setdefault(account.shard, []).append(account)
                self._progress.add(account)
