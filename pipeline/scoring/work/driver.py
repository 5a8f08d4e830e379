"""Hands shards to Ray actors until all parts are there, whatever dies on the way.

Plain actors rather than a Ray Data pipeline: a shard is done exactly when its part file exists, a lost actor costs
its open shards only, and the first batch starts about 6 s earlier.
"""

import itertools
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from pipeline.base.cluster import own_errors, refuse_dead_node
from pipeline.model.bundle import INFO
from pipeline.scoring.plan.shards import first_uri
from pipeline.scoring.request import Workforce
from pipeline.scoring.run_folder import WORK
from pipeline.scoring.task import ScoringTask
from pipeline.scoring.work.crashes import Crashes
from pipeline.scoring.work.crew import Crew, Worker
from pipeline.scoring.work.news import ArchiveNews
from pipeline.scoring.work.parts import part_sizes, read_summary
from pipeline.scoring.work.progress import Progress
from pipeline.storage.shared import refuse_unshared, spaced
from pipeline.storage.uris import join

_NODE_CHECK_S = 5.0


Shown = Callable[[Progress, int], None]


def score_shards(
    ray: Any, task: ScoringTask, workforce: Workforce, check_lock: Callable[[], None], shown: Shown = lambda *_: None
) -> Progress:
    """Score what has no part yet; returns once every shard has its part. `shown` gets the progress, and shards left.

    Raises PlatformError when the plan does not fit the nodes, one does not see the files, or workers keep dying; what
    `check_lock` raises, and what a worker raised for a failure that is not one image's.
    """
    plan = task.plan
    _, done = part_sizes(task.folder)
    todo = [number for number in range(plan.shards) if number not in done]
    count = min(workforce.workers, len(todo))
    archives = dict(plan.archives)
    resumed = sum(read_summary(task.folder, n).listed if n in archives else plan.shard_rows[n] for n in done)
    progress = Progress(plan, resumed, count, resumed_weight=sum(plan.shard_bytes[number] for number in done))
    if not todo:
        return progress
    images = (first_uri(task.folder, todo[index]) for index in spaced(len(todo)))
    read = itertools.chain([join(task.bundle.uri, INFO)], images)
    refuse_unshared(ray, task.stores, read, task.folder.file(WORK))
    crew = Crew(ray, task, workforce, count)
    try:
        _Driver(ray, task, crew, progress, check_lock, shown).run(todo, workforce.stall_s)
    finally:
        crew.dismiss()
    shown(progress, 0)
    progress.show(force=True)
    return progress


class _Driver:
    """Keeps every worker of the crew supplied, and takes in what they give."""

    def __init__(
        self, ray: Any, task: ScoringTask, crew: Crew, progress: Progress, check_lock: Callable[[], None], shown: Shown
    ) -> None:
        self._ray, self._task, self._crew, self._progress = ray, task, crew, progress
        self._check_lock, self._shown = check_lock, shown
        self._todo: deque[int] = deque()
        self._crashes = Crashes(ray, task, check_lock)
        self._news = ArchiveNews(ray, dict(task.plan.archives), progress)

    def run(self, todo: list[int], stall_s: float) -> None:
        self._todo, progress, workers = self._in_order(todo), self._progress, self._crew.workers
        looked = time.monotonic()
        while self._todo or any(worker.open for worker in workers):
            if time.monotonic() - max(looked, progress.last_change) > _NODE_CHECK_S:
                looked = time.monotonic()
                refuse_dead_node(self._ray)
                self._crew.refuse_no_room()
            self._hand_out()
            self._news.hear(workers)
            ready, _ = self._ray.wait(self._crew.waiting_for(), num_returns=1, timeout=1.0)
            for reference in ready:
                worker = next((w for w in workers if reference in w.open), None)
                if worker is not None:
                    self._collect(worker, reference)
            self._check_lock()
            progress.show()
            self._shown(progress, len(self._todo) + sum(len(worker.open) for worker in workers))
            if time.monotonic() - progress.last_change > stall_s:
                progress.last_change = time.monotonic()
                print(f"score  nothing finished for {stall_s:.0f} s: {self._crew.doing()}", flush=True)

    def _in_order(self, todo: list[int]) -> deque[int]:
        """The first as they come, which are small and show progress soon; then the longest first, to end together.

        Archives are each one worker's, the longest of all: they begin at once.
        """
        plan = self._task.plan
        sizes = dict(plan.archives)  # bytes
        archives = sorted((number for number in todo if number in sizes), key=lambda number: -sizes[number])
        plain = [number for number in todo if number not in sizes]
        first = len(self._crew.workers) * self._crew.open_at_once
        longest = sorted(plain[first:], key=lambda number: -plan.shard_rows[number])
        return deque(archives + plain[:first] + longest)

    def _hand_out(self) -> None:
        """Breadth first: every worker gets a shard before any gets a second. None to one that may never be placed."""
        workers = self._crew.at_work()
        for depth in range(1, self._crew.open_at_once + 1):
            for worker in workers:
                if self._todo and len(worker.open) < depth:
                    number = self._todo.popleft()
                    crashed = self._crashes.images_of(number)
                    worker.open[worker.actor.score.remote(number, self._task.folder, crashed)] = number

    def _collect(self, worker: Worker, reference: Any) -> None:
        errors = self._ray.exceptions
        died = (errors.ActorDiedError, errors.ActorUnavailableError, errors.WorkerCrashedError, errors.OutOfMemoryError)
        try:
            with own_errors(self._ray):
                account = self._ray.get(reference)
        except died as error:
            self._bury(worker, error)
            return
        worker.open.pop(reference)
        self._news.end(worker, account.shard)
        self._crashes.note_progress()
        self._progress.add(account)

    def _bury(self, worker: Worker, error: Exception) -> None:
        """Replace a dead worker; its shards go back, those that killed several after a search for the culprit."""
        shards = sorted(worker.open.values())
        self._crashes.note_death(shards, error)
        self._crew.replace(worker)
        for number in shards:
            self._news.take_back(number)
            self._crashes.search(number)
            self._todo.appendleft(number)
