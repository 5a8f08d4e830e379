"""The driver's side of training: begin to decode, place the workers, show progress, come back with the best weights.

Ray Train (V2) continues from the last checkpoint in the run's folder.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.train.v2.api.config import LoggingConfig

from pipeline.base.cluster import alive_nodes, calling_ray, refuse_dead_node
from pipeline.base.errors import IncompleteError, LeukorayError, PlatformError
from pipeline.base.resources import ClusterPlan, check_after_loss
from pipeline.base.text import first_line
from pipeline.storage.arrow import arrow_filesystem
from pipeline.storage.local import translated
from pipeline.storage.shared import refuse_unshared, spaced
from pipeline.training import checkpoint
from pipeline.training.cache import PixelCache
from pipeline.training.checkpoint import Best, State
from pipeline.training.display import Display, EpochLog
from pipeline.training.group import ProcessGroup, Trainer, train_environment
from pipeline.training.loop import Assignment, train_worker
from pipeline.training.progress import REFUSAL, Announcer, Mailbox, checkpoint_name
from pipeline.training.rejected import Rejected
from pipeline.training.rows import LabelledRows
from pipeline.training.run_folder import TrainingRun, checkpoint_files
from pipeline.training.settings import Settings
from pipeline.training.supply import supply

_WORKER_RESTARTS = 3
_CONTROLLER_RESTARTS = 2
_POLL_S = 0.3
_NODE_CHECK_S = 5.0
_WAY_ON = "the same command continues from the last epoch once there is room again"


@dataclass(frozen=True)
class Trained:
    """The result of `fit`."""

    state: State
    best: Best
    rejected: Rejected


def fit(
    settings: Settings,
    rows: LabelledRows,
    plan: ClusterPlan,
    run: TrainingRun,
    *,
    initial: bytes | None,
    max_error_share: float,
    cache: PixelCache | None,
    log: EpochLog,
    meanwhile: Callable[[], None] = lambda: None,
) -> Trained:
    """Train, or continue, a run.

    `initial`: weights to start from, as safetensors; None: random. `max_error_share` of the images may be damaged.
    `cache`: where decoded images are kept, on each node; None: nowhere. `log` is told of every epoch.
    `meanwhile` is called once while workers start, for what takes seconds and is needed when they end.
    Raises IncompleteError when too many images are damaged, PlatformError when workers keep dying, a node does not see
    the files, or one is lost without which the plan does not fit.
    """
    images = (split["uri"][index].as_py() for split in rows.splits.values() for index in spaced(split.num_rows))
    refuse_unshared(ray, run.stores, images, run.uri)
    pixels = supply(rows.splits, settings.pixels, run.stores, plan, cache)
    if not pixels.filling:
        pixels.noted().rejected.refuse_too_many(max_error_share)
    mailbox = Mailbox()
    assignment = Assignment(
        settings,
        rows.train.num_rows,
        rows.validation.num_rows,
        tuple(rows.counts("train")),
        pixels,
        None if initial is None else ray.put(initial),
        mailbox,
        max_error_share,
        run.uri,
        run.mend(),
        run.stores,
    )
    trainer = _trainer(assignment, plan, run)
    display = Display(settings.epochs, settings.monitor, log)
    name = _fit_and_show(trainer, plan, assignment, display, meanwhile)
    with checkpoint_files(run.uri, name, run.stores) as folder:
        state, best = checkpoint.read_state(folder), checkpoint.read_best(folder)
    return Trained(state, best, display.rejected or pixels.noted().rejected)


class RefusedError(LeukorayError):
    """Training cannot give a model from these data or settings, or on this machine; a restart would not help."""

    def __init__(self, message: str, exit_code: int = IncompleteError.exit_code) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def _trainer(assignment: Assignment, plan: ClusterPlan, run: TrainingRun) -> Trainer:
    filesystem, path = arrow_filesystem(run.uri, run.stores)
    folder, name = path.rsplit("/", 1)
    per_worker = {"CPU": plan.cpus_per_worker} | ({"GPU": 1.0} if plan.gpus else {})

    def loop() -> dict[str, str] | None:
        return train_worker(assignment)

    return Trainer(
        loop,
        backend_config=ProcessGroup("nccl" if plan.gpus else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=plan.workers, use_gpu=plan.gpus > 0, resources_per_worker=per_worker
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=folder,
            storage_filesystem=filesystem,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(
                max_failures=_WORKER_RESTARTS, controller_failure_limit=_CONTROLLER_RESTARTS
            ),
            callbacks=[Announcer(assignment.mailbox)],
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _fit_and_show(
    trainer: Trainer, plan: ClusterPlan, assignment: Assignment, display: Display, meanwhile: Callable[[], None]
) -> str:
    """The name of the last checkpoint, as soon as it is whole: Ray Train ends its workers while others go on.

    `trainer.fit` runs in a thread, so that the main thread shows events and Ctrl-C stops at once.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = trainer.fit()
        except Exception as error:  # handed to the main thread, which raises it
            outcome["error"] = error

    with train_environment(RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="0"):
        thread = calling_ray(run, "fit")
        meanwhile()
        looked = time.monotonic()
        while thread.is_alive():
            thread.join(_POLL_S)
            if time.monotonic() - looked > _NODE_CHECK_S:
                looked = time.monotonic()
                refuse_dead_node(ray)
                check_after_loss(plan, alive_nodes(ray), _WAY_ON)
            if (last := _shown(assignment.mailbox, display)) is not None:
                return last
    if (last := _shown(assignment.mailbox, display)) is not None:
        return last
    if "error" in outcome:
        raise _explained(outcome["error"], assignment.run_uri)
    result = outcome["result"]
    if result.return_value:
        raise RefusedError(result.return_value["refused"])
    return checkpoint_name(result.checkpoint.path)


def _shown(mailbox: Mailbox, display: Display) -> str | None:
    """Show what came; the name of the checkpoint that ends the run, once there is one.

    Raises what a worker failed with where starting it again would not help, as of a disk that is full.
    """
    events = mailbox.take()
    display.show([event for event in events if event["kind"] != REFUSAL])
    for event in events:
        if event["kind"] == REFUSAL:
            raise RefusedError(event["text"], event["exit_code"])
    return next((event["checkpoint"] for event in events if event["kind"] == "epoch" and event["finished"]), None)


def _explained(error: Exception, run_uri: str) -> Exception:
    """A platform's failure in a sentence; a bug of ours as it is."""
    controller: Exception | None = getattr(error, "controller_failure", None)
    if isinstance(controller, OSError) and not isinstance(controller, LeukorayError):  # it writes Ray's notes
        return translated(controller, run_uri)
    failures: list[Exception] = list(getattr(error, "worker_failures", {}).values())
    ours = next((failure for failure in (*failures, controller) if isinstance(failure, LeukorayError)), None)
    if ours is not None:
        ours.__cause__ = error
        return ours
    if isinstance(
        error, ray.exceptions.RayActorError
    ):  # Ray's controller, which begins with a note in the run's folder
        *_, last = str(error).strip().splitlines() or [type(error).__name__]
        return PlatformError(f"training could not start: {last}; the same command tries again")
    died = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError, ray.exceptions.RaySystemError)
    if controller is None and not any(isinstance(failure, died) for failure in failures):
        return error
    first = first_line(failures[0] if failures else controller or error)
    explained = PlatformError(
        f"training stopped after {_WORKER_RESTARTS} restarts: {first}; free memory or cores, or lower --batch-size or "
        "--workers; the same command continues from the last checkpoint"
    )
    explained.__cause__ = error
    return explained
