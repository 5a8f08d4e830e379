"""What a job holds of a cluster at the same time, and whether its nodes can ever hold that.

Ray itself waits for ever for a worker that no node has room for; we say so before. A worker lies on one node, so the
sum over nodes says nothing.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.base.errors import PlatformError

Node = Mapping[str, float]  # all that one node has, by Ray's names (`CPU`, `GPU`), whether in use or not

DECODE_CPUS = 0.5  # of a task that decodes for training: it never waits for a whole core that workers hold
_SHARES = (1.0, 0.5, 0.25, 0.1, 0.05)  # of a core, for a training worker
_ROUNDING = 1e-9
_WORKERS_PER_GPU = 4  # that score: a process of Python feeds a GPU with fewer images than it takes (docs/score.md)


@dataclass(frozen=True)
class ClusterPlan:
    """What a job will hold at the same time: `workers`, or as many of them as there is room for, from `fewest` on."""

    job: str
    workers: int
    cpus_per_worker: float
    gpus_per_worker: float = 0.0
    beside_cpus: float = 0.0  # of one task that must find room beside the workers
    remedy: str = "lower --workers or --cpus-per-worker"
    fewest: int | None = None  # None: all of them, always

    @property
    def needed(self) -> int:
        return self.fewest or self.workers

    @property
    def cpus(self) -> float:
        return self.workers * self.cpus_per_worker

    @property
    def gpus(self) -> float:
        return self.workers * self.gpus_per_worker


def in_all(nodes: Sequence[Node], name: str) -> float:
    return sum(node.get(name, 0.0) for node in nodes)


def places(plan: ClusterPlan, nodes: Sequence[Node]) -> int:
    """How many of the plan's workers the nodes can hold at once, with the task beside them."""
    each = [_places(plan, node) for node in nodes]
    if not plan.beside_cpus:
        return sum(each)
    with_task = [
        _places(plan, {**node, "CPU": node["CPU"] - plan.beside_cpus}) - count
        for node, count in zip(nodes, each, strict=True)
        if node.get("CPU", 0.0) + _ROUNDING >= plan.beside_cpus
    ]
    return sum(each) + max(with_task) if with_task else 0


def _places(plan: ClusterPlan, node: Node) -> int:
    counts = [
        int((node.get(name, 0.0) + _ROUNDING) / share)
        for name, share in (("CPU", plan.cpus_per_worker), ("GPU", plan.gpus_per_worker))
        if share
    ]
    return min(counts)


def training_plan(
    nodes: Sequence[Node],
    workers: int | None = None,
    cpus_per_worker: float | None = None,
    use_gpu: bool | None = None,
    fewest: int | None = None,
) -> ClusterPlan:
    """What training holds on these nodes; None: chosen to fit. `fewest` of the workers are enough."""
    cpus, gpus = in_all(nodes, "CPU"), sum(int(node.get("GPU", 0.0)) for node in nodes)
    on_gpu = gpus > 0 if use_gpu is None else use_gpu
    count = workers or (max(1, gpus) if on_gpu else 2 if cpus >= 2 else 1)
    gpus_each = 1.0 if on_gpu else 0.0
    plan = ClusterPlan("train", count, cpus_per_worker or _SHARES[-1], gpus_per_worker=gpus_each, fewest=fewest)
    if cpus_per_worker is not None:
        return plan
    for share in _SHARES:  # a whole core each only where one is left over for Ray Data
        wish = replace(plan, cpus_per_worker=share)
        if places(replace(wish, beside_cpus=max(share, DECODE_CPUS)), nodes) >= plan.needed:
            return wish
    return plan


def scoring_plan(
    nodes: Sequence[Node], workers: int | None = None, cpus_per_worker: float | None = None, *, use_gpu: bool = False
) -> ClusterPlan:
    """What scoring holds of these nodes; None: chosen to fill them. Workers share a GPU and the cores beside it.

    A core of each node with GPUs is left to others, such as a replica of the endpoint. Where nodes differ, the one
    with the fewest cores for a GPU decides.
    """
    if not use_gpu:
        plan = ClusterPlan("score", 1, cpus_per_worker or 1.0)
        return replace(plan, workers=workers or max(1, places(plan, nodes)))
    with_gpu = [node for node in nodes if node.get("GPU", 0.0) >= 1] or [{"CPU": 1.0, "GPU": 1.0}]
    gpus = sum(int(node["GPU"]) for node in with_gpu)
    beside = min(
        max(node.get("CPU", 0.0) - 1.0, min(node.get("CPU", 0.0), 1.0)) / int(node["GPU"]) for node in with_gpu
    )
    each = -(-workers // gpus) if workers else max(1, min(_WORKERS_PER_GPU, int(beside / (cpus_per_worker or 1.0))))
    plan = ClusterPlan("score", 1, cpus_per_worker or _share(beside, each), _share(1.0, each))
    return replace(plan, workers=workers or max(1, places(plan, with_gpu)))


def _share(whole: float, count: int) -> float:
    """Of cores or a GPU, for each of `count`: in whole ones where there are enough, else in Ray's steps of 1e-4."""
    share = whole / count
    return float(math.floor(share)) if share >= 1 else max(1e-4, math.floor(share * 1e4 + _ROUNDING) / 1e4)


def check(plan: ClusterPlan, nodes: Sequence[Node]) -> None:
    """Refuse a plan that these nodes can never hold. Raises PlatformError with the numbers and what to change."""
    shortage = _shortage(plan, nodes)
    if shortage:
        raise PlatformError(f"{shortage}; {plan.remedy}, or use a larger cluster")


def check_after_loss(plan: ClusterPlan, nodes: Sequence[Node], way_on: str) -> None:
    """Refuse to wait for room that went away with a node. Raises PlatformError; `way_on` says how the job goes on."""
    shortage = _shortage(plan, nodes)
    if shortage:
        raise PlatformError(f"a node was lost: {shortage}; {way_on}")


def waiting(plan: ClusterPlan, free: Node) -> str | None:
    """What a plan that fits waits for until others end, in a sentence; None where there is room now."""
    least = replace(plan, workers=plan.needed)
    kinds = (("CPU", least.cpus), ("GPU", least.gpus))
    if not free or all(free.get(name, 0.0) + _ROUNDING >= need for name, need in kinds):  # none: not known yet
        return None
    left = _amount(free.get("CPU", 0.0), free.get("GPU", 0.0) if plan.gpus else 0.0)
    return f"{plan.job} waits for room: it needs {_amount(least.cpus, least.gpus)}, others leave {left} at the moment"


def _shortage(plan: ClusterPlan, nodes: Sequence[Node]) -> str | None:
    room = places(plan, nodes)
    if room >= plan.needed:
        return None
    size = _amount(plan.cpus_per_worker, plan.gpus_per_worker)
    if not places(replace(plan, beside_cpus=0.0), nodes):
        return f"{plan.job}'s {size} a worker fit on no node ({sizes(nodes)})"
    workers = f"{plan.needed} worker{'s' if plan.needed > 1 else ''} of {size}"
    beside = f" beside a task of {plan.beside_cpus:g} CPUs that decodes" if plan.beside_cpus else ""
    return f"{plan.job} needs {workers}{beside}, this Ray has room for {room} ({sizes(nodes)})"


def sizes(nodes: Sequence[Node]) -> str:
    """The nodes in words, those alike together: '2 nodes of 4 CPUs'."""
    alike = Counter(_amount(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes)
    return ", ".join(f"{count} node{'s' if count > 1 else ''} of {size}" for size, count in alike.items()) or "no nodes"


def _amount(cpus: float, gpus: float) -> str:
    amounts = [(cpus, "CPU"), (gpus, "GPU")] if gpus else [(cpus, "CPU")]
    return " and ".join(f"{count:g} {name}{'' if count == 1 else 's'}" for count, name in amounts)
