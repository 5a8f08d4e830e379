"""The driver's side of training: begin to decode, place the workers, show progress, come back with the best weights.

Ray Train (V2) continues from the last checkpoint in the run's folder.
"""

from collections.abc import Callable
from typing import Any

import ray
import ray.train
from ray.train.v2.api.config import LoggingConfig

from pipeline.base.cluster import calling_ray
from pipeline.base.errors import LeukorayError
from pipeline.base.resources import ClusterPlan
from pipeline.storage.arrow import arrow_filesystem
from pipeline.storage.shared import refuse_unshared, spaced
from pipeline.training import checkpoint, midway
from pipeline.training.cache import PixelCache
from pipeline.training.checkpoint import Trained
from pipeline.training.display import Display, EpochLog
from pipeline.training.group import ProcessGroup, Trainer, train_environment
from pipeline.training.loop import Assignment, train_worker
from pipeline.training.measured import Measured
from pipeline.training.progress import Announcer, Mailbox, checkpoint_name
from pipeline.training.rows import LabelledRows
from pipeline.training.run_folder import TrainingRun, checkpoint_files
from pipeline.training.settings import Settings
from pipeline.training.supply import supply
from pipeline.training.teacher import Teacher
from pipeline.training.watch import WORKER_RESTARTS, RefusedError, Watch, explained, is_watched, watching

_CONTROLLER_RESTARTS = 2
_RESIZE_EVERY_S = 120.0  # workers that become more begin anew, which takes them half a minute
_POLL_S = 0.3


def fit(
    settings: Settings,
    rows: LabelledRows,
    plan: ClusterPlan,
    run: TrainingRun,
    *,
    initial: bytes | None,
    teacher: Teacher | None = None,
    max_error_share: float,
    cache: PixelCache | None,
    log: EpochLog,
    meanwhile: Callable[[], None] = lambda: None,
) -> Trained:
    """Train, or continue, a run.

    `initial`: weights to start from, as safetensors; None: random. `teacher`: whose answers are learnt too.
    `max_error_share` of the images may be damaged. `cache`: where decoded ones are kept, on each node; None: nowhere.
    `log` is told of every epoch. `meanwhile` is called once, when workers train, for what is needed when they end.
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
        None if teacher is None else ray.put(teacher),
        mailbox,
        max_error_share,
        run.uri,
        run.mend(),
        run.stores,
        plan if is_watched(plan) else None,
        midway.SAVING,
    )
    trainer = _trainer(assignment, plan, run)
    display = Display(settings.epochs, settings.monitor, log, chooses=settings.choose == "best")
    name = _fit_and_show(trainer, plan, assignment, display, meanwhile, run.model_name)
    with checkpoint_files(run.uri, name, run.stores) as folder:
        state, best = checkpoint.read_state(folder), checkpoint.read_best(folder)
    assert best is not None, "a run ends with an epoch"
    return Trained(state, best, display.rejected or pixels.noted().rejected)


def _trainer(assignment: Assignment, plan: ClusterPlan, run: TrainingRun) -> Trainer:
    filesystem, path = arrow_filesystem(run.uri, run.stores)
    folder, name = path.rsplit("/", 1)
    per_worker = {"CPU": plan.cpus_per_worker} | ({"GPU": 1.0} if plan.gpus else {})

    def loop() -> dict[str, str] | None:
        return None if assignment.mailbox.has_ended() else train_worker(assignment)

    return Trainer(
        loop,
        backend_config=ProcessGroup("nccl" if plan.gpus else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(plan.fewest, plan.workers) if plan.fewest else plan.workers,
            elastic_resize_monitor_interval_s=_RESIZE_EVERY_S,
            use_gpu=plan.gpus > 0,
            resources_per_worker=per_worker,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=folder,
            storage_filesystem=filesystem,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(
                max_failures=-1 if plan.fewest else WORKER_RESTARTS,  # where nodes come and go, nobody counts
                controller_failure_limit=-1 if plan.fewest else _CONTROLLER_RESTARTS,
            ),
            callbacks=[Announcer(assignment.mailbox)],
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _fit_and_show(
    trainer: Trainer, plan: ClusterPlan, assignment: Assignment, display: Display, meanwhile: Callable[[], None],
    model: str,
) -> str:  # fmt: skip
    """The name of the last checkpoint, as soon as it is whole: Ray Train ends its workers while others go on.

    `trainer.fit` runs in a thread, so that the main thread shows events and Ctrl-C stops at once.
    """
    outcome: dict[str, Any] = {}
    is_prepared = False

    def run() -> None:
        try:
            outcome["result"] = trainer.fit()
        except Exception as error:  # handed to the main thread, which raises it
            outcome["error"] = error

    watch = Watch(assignment.mailbox, display, plan, Measured(model, assignment.settings.epochs))
    with train_environment(**watching(plan)):
        thread = calling_ray(run, "fit")
        try:
            while thread.is_alive():
                thread.join(_POLL_S)
                watch.refuse_too_few_nodes()
                last = watch.look()
                if display.has_started and not is_prepared:  # until then the start of workers has the cores
                    is_prepared = True
                    meanwhile()
                if last is not None:
                    return last
        except LeukorayError:  # in a Ray that others share, what Ray Train starts again would hold its places for ever
            assignment.mailbox.end()
            raise
    if (last := watch.look()) is not None:
        return last
    if "error" in outcome:
        raise explained(outcome["error"], assignment.run_uri)
    return _last_of(outcome["result"], assignment)


def _last_of(result: Any, assignment: Assignment) -> str:
    """The checkpoint that a run ended with. Raises RefusedError where it came to none.

    Ray Train knows of none where a run that was whole already had lost Ray's notes: nothing was left to report.
    """
    if result.return_value:
        raise RefusedError(result.return_value["refused"])
    if result.checkpoint is None:
        assert assignment.resume is not None, "a run that begins reports an epoch"
        return assignment.resume
    return checkpoint_name(result.checkpoint.path)
