"""Hands shards to Ray actors until all parts are there, whatever dies on the way.

Plain actors rather than a Ray Data pipeline: a shard is done exactly when its part file exists, a lost actor costs
its open shards only, and the first batch starts about 6 s earlier.
"""

import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipeline.base.cluster import own_errors, refuse_dead_node
from pipeline.base.errors import PlatformError
from pipeline.base.resources import ClusterPlan, check
from pipeline.base.text import first_line
from pipeline.images.load import Limits
from pipeline.model.bundle import Bundle
from pipeline.scoring.plan.plan import Plan
from pipeline.scoring.request import Request
from pipeline.scoring.run_folder import RunFolder, part_number
from pipeline.scoring.work.parts import read_summary
from pipeline.scoring.work.progress import Progress
from pipeline.scoring.work.stream import StreamRules
from pipeline.scoring.work.worker import Account, ShardScorer, ids_of, probe
from pipeline.storage.stores import Stores
from pipeline.storage.uris import is_s3

_CRASHES_BEFORE_PROBING = 2
_MAX_DEATHS_WITHOUT_PROGRESS = 12
_NODE_CHECK_S = 5.0


@dataclass(frozen=True)
class Resources:
    """What scoring takes of the cluster."""

    workers: int
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    stall_s: float = 60.0  # nothing finished for so long: say why


@dataclass
class _Worker:
    actor: Any
    open: dict[Any, int] = field(default_factory=dict)  # result reference -> shard number
    news: Any = None  # reference to what it has finished of open archives


class _RemoteScorer:
    """The actor: a ShardScorer with Ray's metrics."""

    def __init__(self, bundle: Bundle, stores: Stores, limits: Limits, threads: int, rules: StreamRules) -> None:
        from ray.util.metrics import Counter

        self._scorer = ShardScorer(bundle, stores, limits, threads, rules)
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._scored = Counter("leukoray_images_scored", "Images with a probability")
        self._rejected = Counter("leukoray_images_quarantined", "Images without", tag_keys=("code",))
        self._bytes = Counter("leukoray_bytes_read", "Encoded bytes of finished images")

    def score(self, number: int, folder: RunFolder, crashed: frozenset[int]) -> Account:
        return self._told(self._scorer.score(number, folder, crashed))

    def take_finished(self) -> list[Account]:
        return [self._told(account) for account in self._scorer.take_finished()]

    def _told(self, account: Account) -> Account:
        account.worker = self._name
        self._scored.inc(account.scored) if account.scored else None
        self._bytes.inc(account.bytes) if account.bytes else None
        for code, count in account.codes.items():
            self._rejected.inc(count, {"code": code})
        return account

    def doing(self) -> list[tuple[str, str, float]]:
        return self._scorer.doing()


class ScoreDriver:
    """Runs one plan to its end. `run` returns once every shard has its part."""

    def __init__(
        self,
        ray: Any,
        folder: RunFolder,
        request: Request,
        plan: Plan,
        bundle: Bundle,
        resources: Resources,
        stores: Stores,
        check_lock: Callable[[], None],
    ) -> None:
        self._ray, self._folder, self._plan, self._bundle = ray, folder, plan, bundle
        self._resources, self._stores, self._check_lock = resources, stores, check_lock
        self._limits, self._rules = request.limits, StreamRules.of(request)
        self._archives = dict(plan.archives)  # shard -> bytes
        self._deaths: dict[int, int] = {}  # shard -> workers that died with it open
        self._crashed: dict[int, frozenset[int]] = {}  # shard -> images that kill the decoder
        self._deaths_in_a_row = 0
        self._workers: list[_Worker] = []
        self._pieces: dict[int, list[Account]] = {}  # told of archives whose end is not reached

    def run(self) -> Progress:
        """Score what has no part yet.

        Raises PlatformError when the plan does not fit the cluster or workers keep dying, and what a worker raised
        for a failure that is not one image's.
        """
        done = self._finished_parts()
        todo = [number for number in range(self._plan.shards) if number not in done]
        count = min(self._resources.workers, len(todo))
        resumed = sum(self._rows_of(number) for number in done)
        weight = sum(self._plan.shard_bytes[number] for number in done)
        progress = Progress(self._plan, resumed, count, resumed_weight=weight)
        if not todo:
            return progress
        wanted = ClusterPlan("score", count, self._resources.cpus_per_worker, self._resources.gpus_per_worker)
        check(wanted, self._ray.cluster_resources())
        self._open_at_once = 4 if is_s3(self._plan_uri()) else 2
        self._workers = [self._start() for _ in range(count)]
        try:
            self._loop(self._in_order(todo), progress)
        finally:
            for worker in self._workers:
                self._ray.kill(worker.actor)
        progress.show(force=True)
        return progress

    def _rows_of(self, number: int) -> int:
        """Images of a finished shard."""
        if number not in self._archives:
            return int(self._plan.shard_rows[number])
        return read_summary(self._folder, number, self._stores).listed

    def _in_order(self, todo: list[int]) -> deque[int]:
        """The first as they come, which are small and show progress soon; then the longest first, to end together.

        Archives are each one worker's, the longest of all: they begin at once.
        """
        archives = sorted((number for number in todo if number in self._archives), key=lambda n: -self._archives[n])
        plain = [number for number in todo if number not in self._archives]
        first = len(self._workers) * self._open_at_once
        longest = sorted(plain[first:], key=lambda number: -self._plan.shard_rows[number])
        return deque(archives + plain[:first] + longest)

    def _plan_uri(self) -> str:
        """Where most images lie: the first shard's first object."""
        import pyarrow.parquet as pq

        with self._stores.of(self._folder.uri).open(self._folder.shard(0)) as file:
            return str(pq.ParquetFile(file).read(columns=["uri"])["uri"][0].as_py())

    def _finished_parts(self) -> set[int]:
        found = (part_number(info.uri) for info in self._stores.of(self._folder.uri).walk(self._folder.parts))
        return {part[0] for part in found if part is not None and part[1]}

    def _start(self) -> _Worker:
        resources = self._resources
        threads = max(1, int(resources.cpus_per_worker))
        actor_class = self._ray.remote(
            num_cpus=resources.cpus_per_worker,
            num_gpus=resources.gpus_per_worker,
            max_concurrency=self._open_at_once + 2,
            max_restarts=0,
        )(_RemoteScorer)
        return _Worker(actor_class.remote(self._bundle, self._stores, self._limits, threads, self._rules))

    def _loop(self, todo: deque[int], progress: Progress) -> None:
        looked = time.monotonic()
        while todo or any(worker.open for worker in self._workers):
            if time.monotonic() - max(looked, progress.last_change) > _NODE_CHECK_S:
                looked = time.monotonic()
                refuse_dead_node(self._ray)
            self._hand_out(todo)
            self._hear(progress)
            references = [reference for worker in self._workers for reference in worker.open]
            ready, _ = self._ray.wait(references, num_returns=1, timeout=1.0)
            for reference in ready:
                worker = next((w for w in self._workers if reference in w.open), None)
                if worker is not None:
                    self._collect(worker, reference, todo, progress)
            self._check_lock()
            progress.show()
            if time.monotonic() - progress.last_change > self._resources.stall_s:
                progress.last_change = time.monotonic()
                print(f"score  nothing finished for {self._resources.stall_s:.0f} s: {self._why()}", flush=True)

    def _hand_out(self, todo: deque[int]) -> None:
        """Breadth first: every worker gets a shard before any gets a second."""
        for depth in range(1, self._open_at_once + 1):
            for worker in self._workers:
                if todo and len(worker.open) < depth:
                    number = todo.popleft()
                    crashed = self._crashed.get(number, frozenset())
                    worker.open[worker.actor.score.remote(number, self._folder, crashed)] = number

    def _hear(self, progress: Progress) -> None:
        """What workers have finished of archives that are not at their end; asked at leisure, never waited for."""
        for worker in self._workers:
            if worker.news is not None and self._ray.wait([worker.news], timeout=0)[0]:
                self._take(worker, progress)
            if worker.news is None and any(number in self._archives for number in worker.open.values()):
                worker.news = worker.actor.take_finished.remote()

    def _hear_all(self, worker: _Worker, progress: Progress) -> None:
        if worker.news is not None:
            self._take(worker, progress)
        worker.news = worker.actor.take_finished.remote()
        self._take(worker, progress)

    def _take(self, worker: _Worker, progress: Progress) -> None:
        news, worker.news = worker.news, None
        with contextlib.suppress(self._ray.exceptions.RayError):  # its death is noticed by what it had open
            for account in self._ray.get(news):
                self._pieces.setdefault(account.shard, []).append(account)
                progress.add(account)

    def _collect(self, worker: _Worker, reference: Any, todo: deque[int], progress: Progress) -> None:
        errors = self._ray.exceptions
        try:
            with own_errors(self._ray):
                account = self._ray.get(reference)
        except (errors.ActorDiedError, errors.ActorUnavailableError, errors.WorkerCrashedError) as error:
            self._bury(worker, todo, progress, error)
            return
        worker.open.pop(reference)
        if account.shard in self._archives:
            self._hear_all(worker, progress)
        self._pieces.pop(account.shard, None)
        self._deaths_in_a_row = 0
        progress.add(account)

    def _bury(self, worker: _Worker, todo: deque[int], progress: Progress, error: Exception) -> None:
        """Replace a dead worker; its shards go back, those that killed twice after a search for the culprit."""
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row > _MAX_DEATHS_WITHOUT_PROGRESS:
            raise PlatformError(
                f"scoring workers died {self._deaths_in_a_row} times without finishing a shard ({first_line(error)}); "
                "check memory (leukoray doctor), then run the same command again"
            ) from error
        shards = sorted(worker.open.values())
        print(f"score  a worker died ({first_line(error)}); shards {shards} go to another", flush=True)
        self._workers[self._workers.index(worker)] = self._start()
        self._ray.kill(worker.actor)
        for number in shards:
            for account in self._pieces.pop(number, []):
                progress.take_back(account)
            self._deaths[number] = self._deaths.get(number, 0) + 1
            if self._deaths[number] >= _CRASHES_BEFORE_PROBING and number not in self._crashed:
                self._crashed[number] = self._find_crashing(number)
            todo.appendleft(number)

    def _find_crashing(self, number: int) -> frozenset[int]:
        """Ids of a shard whose decoding ends the process, each seen to do so twice. Halves until one is left."""
        print(f"score  shard {number} lost several workers; looking for the image that does it", flush=True)
        with own_errors(self._ray):
            listing = self._task(ids_of).remote(self._folder, number, self._rules, self._stores, self._limits)
            groups: list[list[int]] = [self._ray.get(listing)]
        found: list[int] = []
        while groups:
            group = groups.pop()
            if self._survives(number, group):
                continue
            if len(group) > 1:
                middle = len(group) // 2
                groups += [group[middle:], group[:middle]]
            elif not self._survives(number, group):
                found += group
        print(f"score  shard {number}: {len(found)} images end the decoder's process", flush=True)
        return frozenset(found)

    def _task(self, function: Callable[..., Any]) -> Any:
        return self._ray.remote(num_cpus=0, max_retries=0)(function)

    def _survives(self, number: int, ids: list[int]) -> bool:
        size, rules = self._bundle.info.input_size, self._rules
        task = self._task(probe).remote(self._folder, number, frozenset(ids), size, rules, self._stores, self._limits)
        try:
            with own_errors(self._ray):
                self._ray.get(task)
        except (self._ray.exceptions.WorkerCrashedError, self._ray.exceptions.NodeDiedError):
            return False
        return True

    def _why(self) -> str:
        """What each worker is at, for a person who sees no progress."""
        asked = {worker.actor.doing.remote(): index for index, worker in enumerate(self._workers)}
        ready, silent = self._ray.wait(list(asked), num_returns=len(asked), timeout=5.0)
        reasons = []
        for reference in ready:
            try:
                doing = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                reasons.append(f"worker {asked[reference]} is gone ({first_line(error)})")
                continue
            reasons += [f"worker {asked[reference]}: {stage} {uri} for {s:.0f} s" for stage, uri, s in doing]
        if silent:
            free = self._ray.available_resources().get("CPU", 0.0)
            nodes = sum(node["Alive"] for node in self._ray.nodes())
            reasons.append(
                f"{len(silent)} workers do not answer: not placed yet or their node is gone "
                f"(each needs {self._resources.cpus_per_worker:g} CPU, {free:g} free on {nodes} nodes)"
            )
        return "; ".join(reasons) or "workers are idle"
