"""The driver's look at a run: what it tells, whether its nodes suffice, and when there is no sense in going on."""

import time

import ray

from pipeline.base.cluster import alive_nodes, refuse_dead_node
from pipeline.base.errors import IncompleteError, LeukorayError, PlatformError
from pipeline.base.resources import ClusterPlan, check_after_loss
from pipeline.base.text import first_line
from pipeline.storage.local import translated
from pipeline.training.display import Display
from pipeline.training.measured import Measured
from pipeline.training.progress import FAILURE, REFUSAL, SAVED, Mailbox

WORKER_RESTARTS = 3  # where nodes come and go, in a row without a checkpoint between them
_NODE_CHECK_S = 5.0
# How Ray tells that a process went away
DIED = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError, ray.exceptions.RaySystemError)
_WAY_ON = "the same command continues from the last checkpoint once there is room again"
_ADVICE = (
    "free memory or cores, or lower --batch-size or --workers; the same command continues from the last checkpoint"
)


class RefusedError(LeukorayError):
    """Training cannot give a model from these data or settings, or on this machine; a restart would not help."""

    def __init__(self, message: str, exit_code: int = IncompleteError.exit_code) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Watch:
    """Shows what a run tells, and raises what ends it before Ray Train would."""

    def __init__(self, mailbox: Mailbox, display: Display, plan: ClusterPlan, measured: Measured) -> None:
        self._mailbox, self._display, self._plan, self._measured = mailbox, display, plan, measured
        self._failures = 0
        self._looked_at_nodes = time.monotonic()

    def look(self) -> str | None:
        """Show what came; the name of the checkpoint that ends the run, once there is one.

        Raises RefusedError for what a worker failed with where starting it again would not help, as a full disk, and
        PlatformError when workers keep failing.
        """
        events = self._mailbox.take()
        self._measured.show(events)
        self._display.show([event for event in events if event["kind"] not in (REFUSAL, FAILURE, SAVED)])
        for event in events:
            if event["kind"] == REFUSAL:
                raise RefusedError(event["text"], event["exit_code"])
            if event["kind"] in ("epoch", SAVED):
                self._failures = 0
            if event["kind"] == "epoch" and event["finished"]:
                return str(event["checkpoint"])
            if event["kind"] == FAILURE:
                self._failures += 1
                if self._plan.fewest and self._failures > WORKER_RESTARTS:
                    raise PlatformError(_stopped(event["text"]))
        return None

    def refuse_too_few_nodes(self) -> None:
        """Raise PlatformError where Ray would wait for ever for room that went away with a node."""
        if time.monotonic() - self._looked_at_nodes > _NODE_CHECK_S:
            self._looked_at_nodes = time.monotonic()
            refuse_dead_node(ray)
            check_after_loss(self._plan, alive_nodes(ray), _WAY_ON)


def is_watched(plan: ClusterPlan) -> bool:
    """Whether Ray Train watches for nodes that are about to go away: not one alone, with which all would end."""
    return len(alive_nodes(ray)) > 1 or plan.fewest is not None


def watching(plan: ClusterPlan) -> dict[str, str]:
    """What Ray Train is told of the nodes by environment."""
    # Ray Train asks NCCL which of its workers makes no progress, and logs where it stands
    hangs = {"RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR": "1"} if plan.gpus > 1 else {}
    if not is_watched(plan):  # a process less
        return hangs | {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
    often = hangs | {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}
    # How long Ray Train waits for places that it took for free, before it looks how many there are
    return often | ({"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"} if plan.fewest else {})


def _stopped(why: str) -> str:
    return f"training stopped after {WORKER_RESTARTS} restarts: {why}; {_ADVICE}"


def explained(error: Exception, run_uri: str) -> Exception:
    """A platform's failure in a sentence; a bug of ours as it is."""
    controller: Exception | None = getattr(error, "controller_failure", None)
    if isinstance(controller, OSError) and not isinstance(controller, LeukorayError):  # it writes Ray's notes
        return translated(controller, run_uri)
    failures: list[Exception] = list(getattr(error, "worker_failures", {}).values())
    ours = next((failure for failure in (*failures, controller) if isinstance(failure, LeukorayError)), None)
    if ours is not None:
        ours.__cause__ = error
        return ours
    if isinstance(error, ray.exceptions.OutOfMemoryError):  # Ray ended its own controller for want of memory
        return PlatformError(f"training stopped: {first_line(error)}; {_ADVICE}")
    if isinstance(
        error, ray.exceptions.RayActorError
    ):  # Ray's controller, which begins with a note in the run's folder
        *_, last = str(error).strip().splitlines() or [type(error).__name__]
        return PlatformError(f"training could not start: {last}; the same command tries again")
    if controller is None and not any(isinstance(failure, DIED) for failure in failures):
        return error
    first = first_line(failures[0] if failures else controller or error)
    in_words = PlatformError(_stopped(first))
    in_words.__cause__ = error
    return in_words
