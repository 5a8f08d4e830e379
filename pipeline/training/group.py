"""Ray Train as this trainer uses it: the process group of the workers, and none of the processes nothing depends on.

A process of Ray costs about a second of a core to start, a further one to import torch. So the controller, which only
watches, never imports torch, and what a private or a short-lived cluster does not need is left out.
"""

import contextlib
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.execution.callback import RayTrainCallback
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from pipeline.base.environment import in_environment
from pipeline.base.resources import ClusterPlan, places
from pipeline.training.midway import Notice

_JOIN_TIMEOUT_S = 1800  # of the slowest worker, and of any exchange later: torch's own default
# Left out: a process that frees the workers' places when the controller alone dies (its death ends the job here, and
# with it the places), and one that deals out data sets where none are given.
_CLEANER, _DATASETS = "PlacementGroupCleanerCallback", "DatasetsCallback"
_ENVIRONMENT = {
    # Ray Train looks at its workers every 2 s, which is also how long a finished one waits to be seen
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # importing torch can take minutes on a busy machine; the default of 60 s would start over each time. A plan that
    # can never be placed is refused before
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    # a folder of its own for each worker, which nothing here writes to
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


@dataclass
class ProcessGroup(BackendConfig):
    """torch.distributed over all workers: what `ray.train.torch.TorchConfig` sets up, without torch in the controller.

    `backend` is 'gloo' or 'nccl'.
    """

    backend: str = "gloo"

    @property
    def backend_cls(self) -> type[Backend]:
        return _Setup

    @property
    def train_func_context(self) -> type[contextlib.AbstractContextManager[None]]:
        return _OnDevice

    def to_dict(self) -> dict[str, Any]:
        return {"backend": self.backend}


class _OnDevice(contextlib.AbstractContextManager[None]):
    """The training thread's GPU is the worker's: CUDA keeps that for each thread."""

    def __enter__(self) -> None:
        import torch
        from ray.train.torch import get_device

        device = get_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)

    def __exit__(self, *_: object) -> None:
        return None


class _Setup(Backend):
    """Runs in the controller."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, ProcessGroup)
        host, port = worker_group.execute_single(0, _address)
        joining = worker_group.execute_async(_join, backend_config.backend, host, port)
        ray.get(joining)


def _address() -> tuple[str, int]:
    from ray.train._internal.utils import get_address_and_port

    found: tuple[str, int] = get_address_and_port()
    return found


def _join(backend: str, host: str, port: int) -> None:
    """One worker's part. Torch's variables are set, since other libraries look at them."""
    import torch.distributed

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    os.environ |= {
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
        # a variable of the process, not of its runtime environment: one of those has Ray start a process of its own
        "CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8"),
    }
    torch.distributed.init_process_group(
        backend, init_method="env://", rank=rank, world_size=world, timeout=timedelta(seconds=_JOIN_TIMEOUT_S)
    )


class LiveNodesPolicy(ElasticScalingPolicy):
    """As many workers as have room on nodes that are alive and not about to go away.

    Ray looks at the nodes every 20 s, and counts those that are being drained.
    """

    def _get_reserved_resources(self) -> Any:
        found = super()._get_reserved_resources()
        if not found:
            return found
        leaving = _leaving_nodes()
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        return {node: held for node, held in found.items() if node in alive and node not in leaving}


def _leaving_nodes() -> set[str]:
    """Nodes that are drained, as Ray Train's own watcher of preemptions sees them."""
    return set(ray._private.state.state.get_draining_nodes())


def notice(plan: ClusterPlan) -> Notice | None:
    """What all workers know of a node of theirs that is about to go away. A meeting of all of them."""
    if ray.train.get_preemption_info() is None:
        return None
    leaving = _leaving_nodes()
    staying = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
    from pipeline.training.validation import gather  # with torch, which the controller does without

    has_room = places(plan, staying) >= plan.needed
    return Notice.LEAVE if all(gather(has_room)) else Notice.STAY


class LeavingError(ray.exceptions.RayActorError):
    """A worker ends because a node is about to go away: Ray Train starts the group anew, as after a preemption."""

    def __init__(self) -> None:
        super().__init__(error_msg="a node is about to go away", preempted=True)


class Trainer(DataParallelTrainer):
    """Without the callbacks that would start processes for nothing; elastic over the nodes that there are."""

    def _initialize_and_run_controller(self, **controller: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            controller["scaling_policy"] = LiveNodesPolicy(self.scaling_config)
        return super()._initialize_and_run_controller(**controller)

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        needless = {_CLEANER} if self.datasets else {_CLEANER, _DATASETS}
        made: list[RayTrainCallback] = super()._create_default_callbacks()
        return [callback for callback in made if type(callback).__name__ not in needless]


def train_environment(**more: str) -> contextlib.AbstractContextManager[None]:
    """What Ray Train reads from the driver's environment."""
    return in_environment(_ENVIRONMENT | more)
