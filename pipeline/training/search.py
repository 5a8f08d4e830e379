"""A search on Ray Tune: trials that each train in one process, by the loop that trains every model, and poor ones that
end early by ASHA (Li et al. 2020, arXiv:1810.05934).

Ray Tune keeps nothing that lasts: its own state is pickled and leaves ASHA's out. Here a search goes on by its folder:
ASHA is told again what ended trials said, the others train on from their checkpoints.
"""

import logging
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from pipeline.base.cluster import alive_nodes, calling_ray, refuse_dead_node
from pipeline.base.environment import in_environment
from pipeline.base.errors import IncompleteError, LeukorayError, PlatformError
from pipeline.base.resources import ClusterPlan, check_after_loss
from pipeline.base.text import first_line
from pipeline.training.cache import PixelCache
from pipeline.training.checkpoint import Files
from pipeline.training.group import Trainer
from pipeline.training.loop import Assignment, train_worker
from pipeline.training.progress import Mailbox
from pipeline.training.rows import LabelledRows
from pipeline.training.run_folder import TrainingRun
from pipeline.training.search_folder import Search, keep
from pipeline.training.search_report import Trial
from pipeline.training.settings import Settings
from pipeline.training.supply import Supply, supply
from pipeline.training.teacher import Teacher
from pipeline.training.watch import DIED, RefusedError

_RESTARTS = 2  # of a trial whose process dies
_REDUCTION = 3  # one of so many trials that come to a rung goes on
_FAILURE, _EXIT_CODE = "failure", "exit_code"  # of a trial that ended without a result
_POLL_S = 0.3
_NODE_CHECK_S = 5.0
_WAY_ON = "the same command continues once there is room again"
_ENVIRONMENT = {  # Ray Tune reads these in the driver
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # files for each trial that nothing here reads
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "3600",  # a plan that does not fit is refused before
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails has none
    "RAY_AIR_NEW_OUTPUT": "0",  # a table for each row, whatever `verbose` says
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
Say = Callable[[str], None]


def first_rung(epochs: int) -> int:
    """Epochs that every trial gets: a ninth of all, so that there are two rungs where trials can end."""
    return max(1, round(epochs / _REDUCTION**2))


@dataclass(frozen=True)
class Candidate:
    """What a trial trains: settings of one worker, first weights (None: from the seed), where pixels are kept."""

    settings: Settings
    initial: bytes | None
    cache: PixelCache | None


def search(
    work: Search,
    candidates: Mapping[int, Candidate],
    rows: LabelledRows,
    plan: ClusterPlan,
    *,
    teacher: Teacher | None,
    threads: int,
    max_error_share: float,
    say: Say,
) -> list[Trial]:
    """Try what has not ended yet; all trials.

    `candidates` by trial number, all with one `teacher` or none. `plan.workers` trials run at the same time, each on
    `threads` cores. Raises PlatformError where a node is lost that the plan needs, and what a trial raised where none
    came to anything.
    """
    numbers = [number for number in work.proposals if work.trial(number).ending == "unfinished"]
    if numbers:
        chosen = {number: candidates[number] for number in numbers}
        assignments = _assignments(work, chosen, rows, plan, teacher, threads, max_error_share)
        ledger = _Ledger(work, say)
        with tempfile.TemporaryDirectory() as scratch, in_environment(_ENVIRONMENT):
            _run(_tuner(assignments, plan, _scheduler(work), ledger, scratch), plan)
        if ledger.failures and not _has_result(work.trials()):
            raise ledger.failures[0]
    trials = work.trials()
    if not _has_result(trials):
        raise RefusedError(
            f"{work.uri}: no trial came to a model; trial {trials[0].number}: {trials[0].ending}. Change --space or "
            "the settings that all trials have; to try the same again, remove the folder"
        )
    return trials


def _has_result(trials: Sequence[Trial]) -> bool:
    return any(trial.history and not trial.failed for trial in trials)


def _assignments(
    work: Search,
    candidates: Mapping[int, Candidate],
    rows: LabelledRows,
    plan: ClusterPlan,
    teacher: Teacher | None,
    threads: int,
    max_error_share: float,
) -> dict[int, Assignment]:
    """All pixels that the trials need are decoded when this returns, once for all of them."""
    supplies: dict[str, Supply] = {}
    kept: dict[bytes | None, Any] = {None: None}
    taught_by = None if teacher is None else ray.put(teacher)
    made = {}
    for number, candidate in candidates.items():
        pixels = candidate.settings.pixels
        if pixels.digest() not in supplies:
            supplies[pixels.digest()] = supply(rows.splits, pixels, work.stores, plan, candidate.cache)
        if candidate.initial not in kept:
            kept[candidate.initial] = ray.put(candidate.initial)
        made[number] = Assignment(
            settings=candidate.settings,
            train_rows=rows.train.num_rows,
            validation_rows=rows.validation.num_rows,
            class_counts=tuple(rows.counts("train")),
            supply=supplies[pixels.digest()],
            initial=kept[candidate.initial],
            teacher=taught_by,
            mailbox=Mailbox(),
            max_error_share=max_error_share,
            run_uri=work.run(number).uri,
            resume=None,
            stores=work.stores,
            threads=threads,
        )
    for each in supplies.values():
        each.noted().rejected.refuse_too_many(max_error_share)
    return made


def _scheduler(work: Search) -> ASHAScheduler:
    """ASHA, told of what ended trials have said."""
    scheduler = ASHAScheduler(
        time_attr="epoch",
        metric=work.metric,
        mode="max",
        max_t=work.epochs,
        grace_period=first_rung(work.epochs),
        reduction_factor=_REDUCTION,
    )
    for trial in work.trials():
        if trial.ending != "unfinished" and trial.history:
            known: Any = SimpleNamespace(trial_id=f"ended-{trial.number}")
            scheduler.on_trial_add(None, known)
            for row in trial.history:
                scheduler.on_trial_result(None, known, dict(row))
    return scheduler


def _tuner(
    assignments: Mapping[int, Assignment],
    plan: ClusterPlan,
    scheduler: ASHAScheduler,
    ledger: "_Ledger",
    scratch: str,
) -> tune.Tuner:
    resources = {"cpu": plan.cpus_per_worker} | ({"gpu": plan.gpus_per_worker} if plan.gpus else {})
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what a trial failed with is told by the ledger
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(_Training, assignments=dict(assignments)), resources),
        param_space={"trial": tune.grid_search(list(assignments))},
        tune_config=tune.TuneConfig(scheduler=scheduler, max_concurrent_trials=plan.workers),
        run_config=tune.RunConfig(
            name="search",
            storage_path=scratch,
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # trials keep their own
            failure_config=tune.FailureConfig(max_failures=_RESTARTS),
            callbacks=[ledger],
        ),
    )


class _Ledger(tune.Callback):
    """Keeps and tells what trials come to. Runs in the driver."""

    def __init__(self, work: Search, say: Say) -> None:
        self._work, self._say = work, say
        self._best = max((trial.best(work.metric) for trial in work.trials() if trial.history), default=float("-inf"))
        self.failures: list[Exception] = []

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
        if self._work.metric not in result:
            return
        value, name = result[self._work.metric], self._work.metric.replace("_", " ")
        mark = "  best so far" if value > self._best else ""
        self._best = max(self._best, value)
        epoch = f"{int(result['epoch']):>3}/{self._work.epochs}"
        self._say(f"trial {trial.config['trial']:>3}  epoch {epoch}  {name} {value:.4f}{mark}")

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        result = trial.last_result or {}
        failure = result.get(_FAILURE)
        if failure:
            code = result.get(_EXIT_CODE, IncompleteError.exit_code)
            self.failures.append(RefusedError(failure, code))
            if code == PlatformError.exit_code:
                self._leave(trial, failure)
                return
        self._end(trial, failure)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self.failures.append(_explained(trial.get_pickled_error() or RuntimeError("its process died")))
        if isinstance(self.failures[-1], PlatformError):
            self._leave(trial, first_line(self.failures[-1]))
        else:
            self._end(trial, first_line(self.failures[-1]))

    def _leave(self, trial: Any, failure: str) -> None:
        """Its checkpoint stays: a machine says nothing of settings, and the same command tries it again."""
        self._say(f"trial {trial.config['trial']:>3}  left unfinished: {failure}")

    def _end(self, trial: Any, failure: str | None) -> None:
        ended = self._work.end(trial.config["trial"], failure=failure and f"failed: {failure}")
        epochs = f"{len(ended.history)} epoch{'' if len(ended.history) == 1 else 's'}"
        self._say(f"trial {ended.number:>3}  {ended.ending} after {epochs}")


class _Training(tune.Trainable):
    """One trial, in a process of Ray Tune's: the loop of every worker, alone, in Ray Train's local mode.

    It runs in a thread of its own and stands still after each epoch until Ray Tune asks for the next.
    """

    def setup(self, config: dict[str, int], assignments: Mapping[int, Assignment]) -> None:
        assignment = assignments[config["trial"]]
        run = TrainingRun(assignment.run_uri, assignment.stores, lambda: None)
        self._said: queue.SimpleQueue[dict[str, Any] | Exception] = queue.SimpleQueue()
        self._asked = threading.Semaphore(0)
        local = replace(assignment, resume=run.mend(), reports=lambda *_: _TrialReports(run, self._said, self._asked))
        threading.Thread(target=self._train, args=(local,), daemon=True).start()

    def step(self) -> dict[str, Any]:
        self._asked.release()
        said = self._said.get()
        if isinstance(said, Exception):
            raise said
        return said

    def _train(self, assignment: Assignment) -> None:
        self._asked.acquire()
        try:
            workers = ray.train.ScalingConfig(num_workers=0)
            outcome = Trainer(lambda: train_worker(assignment), scaling_config=workers).fit().return_value or {}
            self._said.put({tune.result.DONE: True, _FAILURE: outcome.get("refused")})
        except LeukorayError as error:  # no second try would do better
            self._said.put({tune.result.DONE: True, _FAILURE: str(error), _EXIT_CODE: error.exit_code})
        except Exception as error:  # Ray Tune starts it again
            self._said.put(error)
        finally:
            assignment.mailbox.close()  # nobody reads it: what is shown comes by Ray Tune


class _TrialReports:
    """Takes the place of `reports.Reports`: a row goes to Ray Tune when its checkpoint is stored."""

    def __init__(
        self, run: TrainingRun, said: "queue.SimpleQueue[dict[str, Any] | Exception]", asked: threading.Semaphore
    ) -> None:
        self._run, self._said, self._asked = run, said, asked

    def send(self, metrics: dict[str, Any], files: Callable[[], Files], *, wait: bool = False) -> None:
        keep(self._run, int(metrics["epoch"]), files())
        self._said.put(metrics)
        self._asked.acquire()


def _run(tuner: tune.Tuner, plan: ClusterPlan) -> None:
    """In a thread, so that Ctrl-C and a lost node end it at once."""
    outcome: dict[str, Exception] = {}

    def fit() -> None:
        try:
            tuner.fit()
        except Exception as error:  # handed to the main thread, which raises it
            outcome["error"] = error

    thread = calling_ray(fit, "tune")
    looked = time.monotonic()
    while thread.is_alive():
        thread.join(_POLL_S)
        if time.monotonic() - looked > _NODE_CHECK_S:
            looked = time.monotonic()
            refuse_dead_node(ray)
            check_after_loss(plan, alive_nodes(ray), _WAY_ON)
    if "error" in outcome:
        raise _explained(outcome["error"])


def _explained(error: Exception) -> Exception:
    """A platform's failure in a sentence; a bug as it is."""
    if not isinstance(error, DIED):
        return error
    return PlatformError(
        f"a trial's process keeps dying: {first_line(error)}; free memory, or lower --workers or --batch-size; the "
        "same command continues"
    )
