"""What a job holds of a cluster at the same time, and whether that can ever fit.

Ray itself waits for ever for an actor that cannot be placed; we say so before.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.base.errors import PlatformError


@dataclass(frozen=True)
class ClusterPlan:
    """What a job will hold at the same time."""

    job: str
    workers: int
    cpus_per_worker: float
    gpus_per_worker: float = 0.0
    remedy: str = "lower --workers or --cpus-per-worker"

    @property
    def cpus(self) -> float:
        return self.workers * self.cpus_per_worker

    @property
    def gpus(self) -> float:
        return self.workers * self.gpus_per_worker


def training_plan(
    resources: Mapping[str, float],
    workers: int | None = None,
    cpus_per_worker: float | None = None,
    use_gpu: bool | None = None,
) -> ClusterPlan:
    """What training holds on a cluster with these resources (as ray.cluster_resources()); None: chosen to fit."""
    cpus, gpus = resources.get("CPU", 0.0), int(resources.get("GPU", 0.0))
    on_gpu = gpus > 0 if use_gpu is None else use_gpu
    count = workers or (max(1, gpus) if on_gpu else 2 if cpus >= 2 else 1)
    if cpus_per_worker is None:  # a whole core each only where one is left over for Ray Data
        cpus_per_worker = 1.0 if cpus >= count + 1 else max(0.05, math.floor(50 * cpus / count) / 100)
    return ClusterPlan("train", count, cpus_per_worker, gpus_per_worker=1.0 if on_gpu else 0.0)


def check(plan: ClusterPlan, resources: dict[str, float]) -> None:
    """Refuse a plan that the cluster's total `resources` (as ray.cluster_resources()) can never hold.

    Raises PlatformError with the sum and what to change.
    """
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    if plan.cpus > cpus + 1e-9:
        raise PlatformError(
            f"{plan.job} needs {plan.cpus:g} CPUs ({plan.workers} workers x {plan.cpus_per_worker:g}), "
            f"this Ray has {cpus:g}; {plan.remedy}, or use a larger cluster"
        )
    if plan.gpus > gpus + 1e-9:
        raise PlatformError(
            f"{plan.job} needs {plan.gpus:g} GPUs ({plan.workers} workers x {plan.gpus_per_worker:g}), "
            f"this Ray has {gpus:g}; lower --workers, or leave GPUs off"
        )
