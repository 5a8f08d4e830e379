"""Ray: join the cluster that was named, or start a private local one, and notice when it dies."""

import contextlib
import logging
import os
import re
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.base.errors import LeukorayError, PlatformError, UsageError
from pipeline.base.guard import Guard
from pipeline.base.head import assert_answers, head_watched
from pipeline.base.lean import without_idle_processes
from pipeline.base.measures import quiet
from pipeline.base.resources import ClusterPlan, Node, waiting
from pipeline.base.text import first_line

_CALLS_END_S = 10.0  # where nothing failed: what was begun is ending by itself
_SETTLE_S = 5.0  # Ray gives back what workers held within this, on a busy machine
_calling: list[threading.Thread] = []


@contextlib.contextmanager
def connected(address: str | None, num_cpus: int | None = None, *, worker_logs: bool = True) -> Iterator[Any]:
    """`ray`, connected for the length of the block; as it is where this process has joined one already.

    That is the cluster at `address` or $RAY_ADDRESS where given, else a local Ray of this process's own. `worker_logs`:
    what workers print comes to this process's output, with their names in front. Raises UsageError, and PlatformError
    when the cluster does not answer or no local Ray can be started.

    Ray's start and end are not hidden behind other work. Begun in a thread while scoring lists, left in a thread while
    it commits, and with workers started ahead, a run of 100 images took 10.4 s against 10.2 s without all that, one of
    2,000 took 12.1 s against 12.4 s (medians of 5, in turn, on 2 cores shared with others).
    """
    target = cluster_target(address)
    if target and "://" in target:
        raise UsageError(
            f"--address {target}: jobs join a cluster on one of its nodes, with --address auto or HOST:6379; "
            "from elsewhere send them with `ray job submit --address http://HOST:8265 -- python -m jobs.JOB ...`"
        )
    if _is_joined():  # a test session or the driver
        yield sys.modules["ray"]
        return
    guard = Guard() if target is None else None
    try:
        with guard.marking() if guard is not None else contextlib.nullcontext():
            ray = _started(target, num_cpus, worker_logs)
        try:
            # A local Ray has no head to lose; its port may lie on an address that goes away with the network.
            with head_watched(ray) if target is not None else contextlib.nullcontext():
                yield ray
                for thread in _calling:
                    thread.join(_CALLS_END_S)
        finally:
            quiet()
            # Ray ends a process, with a code of its own, in which a thread calls it after its shutdown. Such a thread
            # is left only where the process is about to end, which a local Ray notices.
            if not any(thread.is_alive() for thread in _calling):
                ray.shutdown()
    finally:
        if guard is not None:
            guard.release()


@contextlib.contextmanager
def seen_on_cluster(address: str | None) -> Iterator[None]:
    """Joined to the cluster that is named, if one is, so that a job which needs no Ray is told of at its metrics ports.

    Without a cluster, or where it cannot be joined, the job goes on unseen. One that has joined ends with the
    cluster's head, as Ray ends every process that has.
    """
    with contextlib.ExitStack() as joined:
        if cluster_target(address) is not None:
            try:
                joined.enter_context(connected(address, worker_logs=False))
            except LeukorayError as error:
                print(f"the cluster is not told how far this is: {error}", flush=True)
        yield


class _Call(threading.Thread):
    """A thread that knows itself whether it runs.

    Python 3.11 takes a thread for ended when Ctrl-C comes while another one joins it.
    """

    def __init__(self, call: Callable[[], None], name: str) -> None:
        super().__init__(target=call, name=name, daemon=True)
        self._is_over = threading.Event()

    def run(self) -> None:
        try:
            super().run()
        finally:
            self._is_over.set()

    def is_alive(self) -> bool:
        return not self._is_over.is_set()

    def join(self, timeout: float | None = None) -> None:
        self._is_over.wait(timeout)


def calling_ray(call: Callable[[], None], name: str) -> threading.Thread:
    """Begin a call of Ray that the main thread does not wait for when something else fails."""
    thread = _Call(call, name)
    _calling.append(thread)
    thread.start()
    return thread


def _started(target: str | None, num_cpus: int | None, worker_logs: bool) -> Any:
    options: dict[str, Any] = {"log_to_driver": worker_logs, "logging_level": logging.ERROR, "address": target}
    if target is None:
        options |= {"num_cpus": num_cpus, "include_dashboard": False, "address": "local"}
        _private_token()
        # Ray would start a worker a core ahead of time, whether or not the job asks for so many.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")  # it answers SIGTERM with a dump of the stack
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        import ray

        assert_answers(target)
        with without_idle_processes(worker_logs) if target is None else contextlib.nullcontext():
            _init(ray, options, attempts=4 if target is None else 1)
    except Exception as error:  # ConnectionError, AuthenticationError, ValueError, RuntimeError by Ray's mood
        other = other_versions(str(error))
        if other is not None:
            raise PlatformError(f"Ray at {target}: {other}") from error
        raise PlatformError(
            f"Ray {'at ' + target if target else 'on this machine'} cannot be used: {first_line(error)}; "
            "check --address/RAY_ADDRESS, and RAY_AUTH_MODE=token where the cluster asks for a token"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own would end the process without our message
    return ray


def other_versions(said: str) -> str | None:
    """One sentence for Ray's five lines about a driver of other versions than its cluster's; None for other errors."""
    found = re.findall(r"Ray: (\S+)\s+Python: (\S+)", said) if said.startswith("Version mismatch") else []
    if len(found) != 2:
        return None
    (cluster_ray, cluster_python), (ray, python) = found
    return (
        f"the cluster runs Ray {cluster_ray} on Python {cluster_python}, this process Ray {ray} on Python {python}; "
        "start the job with the cluster's own, by `ray job submit` or in its image"
    )


def _is_joined() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def cluster_target(address: str | None) -> str | None:
    """The cluster that is meant: --address, else $RAY_ADDRESS; None for a local Ray."""
    return address or os.environ.get("RAY_ADDRESS") or None


def token_file() -> Path:
    """Where Ray 2.60 looks for the cluster's token."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").expanduser()


def has_cluster_token() -> bool:
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or token_file().is_file()


@contextlib.contextmanager
def own_errors(ray: Any) -> Iterator[None]:
    """What failed in a task or an actor with one of our errors is raised here as that error, without Ray's wrapping."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, LeukorayError):
            raise error.cause from error
        raise


def _init(ray: Any, options: dict[str, Any], attempts: int) -> None:
    """A local Ray gives up starting after 30 s, which a busy machine can take; then it gets another chance."""
    for attempt in range(1, attempts + 1):
        try:
            ray.init(**options)
            return
        except Exception as error:
            ray.shutdown()
            if attempt == attempts or "timed out" not in str(error):
                raise


def _private_token() -> None:
    """Give a local Ray a token of its own, in the environment; Ray would write one into the home folder.

    The mode is left to ray.init, which switches it on for a local cluster: Ray reads RAY_AUTH_MODE when it is
    imported, so setting it here would be too late for this process and in time for its children.
    """
    if "RAY_AUTH_MODE" not in os.environ and "RAY_AUTH_TOKEN" not in os.environ:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def alive_nodes(ray: Any) -> list[Node]:
    """What each node that is alive has in all."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def tell_waiting(ray: Any, plan: ClusterPlan) -> None:
    """Say it where others hold what the plan needs: Ray waits for them without a word.

    What has just ended, as workers of a step before, is still counted for a moment.
    """
    patient_until = time.monotonic() + _SETTLE_S
    while (said := waiting(plan, ray.available_resources())) is not None:
        if time.monotonic() > patient_until:
            print(said, flush=True)
            return
        time.sleep(0.1)


def on_node(node_id: str) -> Any:
    """Scheduling on this node or nowhere."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def refuse_dead_node(ray: Any) -> None:
    """Raise PlatformError when the Ray node this process belongs to has died: Ray would wait for ever."""
    own = ray.get_runtime_context().get_node_id()
    if not any(node["NodeID"] == own and node["Alive"] for node in ray.nodes()):
        raise PlatformError(
            "Ray's node under this process died (raylet killed, or out of memory); what is done is kept: run the same "
            "command again"
        )
