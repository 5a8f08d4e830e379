"""The actors that score, as the driver holds them: started, replaced, asked what they are at, dismissed."""

import os
import socket
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.base.cluster import alive_nodes, tell_waiting
from pipeline.base.resources import ClusterPlan, check, check_after_loss
from pipeline.base.text import first_line
from pipeline.model.bundle import Bundle
from pipeline.scoring.plan.shards import first_uri
from pipeline.scoring.request import Workforce
from pipeline.scoring.run_folder import RunFolder
from pipeline.scoring.task import ScoringTask
from pipeline.scoring.work.stream import ReadRules
from pipeline.scoring.work.worker import Account, ShardScorer
from pipeline.storage.stores import Stores


class ScoringActor:
    """A ShardScorer with Ray's metrics."""

    def __init__(self, bundle: Bundle, stores: Stores, rules: ReadRules, threads: int, on_gpu: bool) -> None:
        from ray.util.metrics import Counter

        self._scorer = ShardScorer(bundle, stores, rules, threads, on_gpu=on_gpu)
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


@dataclass
class Worker:
    """An actor, and what it was asked for that has not come back."""

    actor: Any
    placed: Any  # reference to its first answer: until it is there, the cluster may have no place for the actor
    is_placed: bool = False
    open: dict[Any, int] = field(default_factory=dict)  # result reference -> shard number
    news: Any = None  # reference to what it has finished of open archives


class Crew:
    """The workers, each with up to `open_at_once` shards. Raises PlatformError where the cluster cannot hold them."""

    def __init__(self, ray: Any, task: ScoringTask, workforce: Workforce, count: int) -> None:
        self._ray, self._task, self._workforce = ray, task, workforce
        self._plan = ClusterPlan("score", count, workforce.cpus_per_worker, workforce.gpus_per_worker)
        check(self._plan, alive_nodes(ray))
        tell_waiting(ray, replace(self._plan, workers=1))
        is_remote = task.stores.of(first_uri(task.folder, 0)).is_remote  # where most images lie
        self.open_at_once = 4 if is_remote else 2
        self._bundle = ray.put(task.bundle)  # once for all, with the files of a verified one
        self.workers = [self._start() for _ in range(count)]

    def _start(self) -> Worker:
        task, workforce = self._task, self._workforce
        actor_class = self._ray.remote(
            num_cpus=workforce.cpus_per_worker,
            num_gpus=workforce.gpus_per_worker,
            max_concurrency=self.open_at_once + 2,
            max_restarts=0,
        )(ScoringActor)
        threads = max(1, int(workforce.cpus_per_worker))
        rules, on_gpu = ReadRules.of(task.request, task.stores), workforce.gpus_per_worker > 0
        actor = actor_class.remote(self._bundle, task.stores, rules, threads, on_gpu)
        return Worker(actor, placed=actor.doing.remote())

    def at_work(self) -> list[Worker]:
        """Workers that have answered. One that replaces another on a lost node may wait for a place for ever."""
        waiting = {worker.placed: worker for worker in self.workers if not worker.is_placed}
        if waiting:
            answered, _ = self._ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
            for reference in answered:  # a failure to start as well: what is then asked of it says so
                waiting[reference].is_placed = True
        return [worker for worker in self.workers if worker.is_placed]

    def refuse_no_room(self) -> None:
        """Raise PlatformError where no node that is left can hold even one worker: those that live go on."""
        way_on = "the same command continues once there is room again"
        check_after_loss(replace(self._plan, workers=1), alive_nodes(self._ray), way_on)

    def waiting_for(self) -> list[Any]:
        """References of which one must come before anything else can happen."""
        results = [reference for worker in self.workers for reference in worker.open]
        return results + [worker.placed for worker in self.workers if not worker.is_placed]

    def replace(self, worker: Worker) -> None:
        self.workers[self.workers.index(worker)] = self._start()
        self._ray.kill(worker.actor)

    def dismiss(self) -> None:
        for worker in self.workers:
            self._ray.kill(worker.actor)

    def doing(self) -> str:
        """What each worker is at, for a person who sees no progress."""
        asked = {worker.actor.doing.remote(): index for index, worker in enumerate(self.workers)}
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
            left, gpus = self._ray.available_resources(), self._workforce.gpus_per_worker
            free = f"{left.get('CPU', 0.0):g}" + (f" and {left.get('GPU', 0.0):g} GPU" if gpus else "")
            needs = f"{self._workforce.cpus_per_worker:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
            nodes = sum(node["Alive"] for node in self._ray.nodes())
            reasons.append(
                f"{len(silent)} workers do not answer: not placed yet or their node is gone "
                f"(each needs {needs}, {free} free on {nodes} nodes)"
            )
        return "; ".join(reasons) or "workers are idle"
