"""Ray: join the cluster that was named, or start a private local one, and refuse a plan that cannot fit.

A plan is the sum of the CPUs and GPUs its actors will hold at the same time. Ray itself waits for
ever for an actor that cannot be placed; we say so before.
"""

import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.base.errors import LeukorayError, PlatformError, UsageError
from pipeline.base.text import first_line

_ANSWER_S = 10.0


class Connection:
    """Ray, joined or started when it is first needed, and left at the end of the `with` block.

    That is the cluster at `address` or $RAY_ADDRESS where given, else a local Ray of this process's own.
    `worker_logs`: what workers print comes to this process's output, with their names in front. `prestart`: a local Ray
    starts a worker a core at once, for a job that will take them all.
    """

    def __init__(
        self,
        address: str | None,
        num_cpus: int | None = None,
        *,
        quiet: bool = True,
        worker_logs: bool = True,
        prestart: bool = False,
    ) -> None:
        self._target = cluster_target(address)
        if self._target and "://" in self._target:
            raise UsageError(
                f"--address {self._target}: jobs join a cluster on one of its nodes, with --address auto or HOST:6379; "
                "from elsewhere send them with `ray job submit --address http://HOST:8265 -- python -m jobs.JOB ...`"
            )
        self._options: dict[str, Any] = {
            "log_to_driver": worker_logs,
            "logging_level": logging.ERROR if quiet else logging.INFO,
        }
        if self._target is None:
            self._options |= {"num_cpus": num_cpus, "include_dashboard": False, "address": "local"}
        else:
            self._options["address"] = self._target
        self._prestart = prestart
        self._is_ours = False
        self._leaving: threading.Thread | None = None
        self._early: threading.Thread | None = None
        self._started, self._ended = threading.Event(), threading.Event()
        self._error: Exception | None = None

    def begin(self) -> None:
        """Start a local Ray in the background, for a caller with other work to do before it needs Ray."""
        if self._target is None and self._early is None and not self._is_ours and not _is_joined():
            self._prepare()
            self._early = threading.Thread(target=self._start_early, name="ray-start", daemon=True)
            self._early.start()

    def ray(self) -> Any:
        """`ray`, connected. Raises PlatformError when the cluster does not answer or no local Ray can be started."""
        if self._early is not None:
            self._started.wait()
        elif not self._is_ours and not _is_joined():  # a test session or the driver may have joined before us
            self._prepare()
            on_sigterm = signal.getsignal(signal.SIGTERM)
            self._start()
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own would end the process without our message
        if self._error is not None:
            raise PlatformError(
                f"Ray {'at ' + self._target if self._target else 'on this machine'} cannot be used: "
                f"{first_line(self._error)}; check --address/RAY_ADDRESS, and RAY_AUTH_MODE=token where the cluster "
                "asks for a token"
            ) from self._error
        import ray

        return ray

    def release(self) -> None:
        """Leave Ray in the background, for a caller with other work to do after it needed Ray."""
        if self._is_ours and self._leaving is None:
            import ray

            self._leaving = threading.Thread(target=ray.shutdown, name="ray-leave")
            self._leaving.start()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *failure: object) -> None:
        if self._early is not None:
            self._started.wait()
        self.release()
        if self._leaving is not None:
            self._leaving.join()
        self._ended.set()

    def _prepare(self) -> None:
        if self._target is None:
            _private_token()
            # Ray would start a worker a core ahead of time, whether or not the job asks for so many.
            os.environ.setdefault("RAY_prestart_worker_first_driver", "1" if self._prestart else "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")

    def _start(self) -> None:
        try:
            import ray

            _assert_answers(self._target)
            _init(ray, self._options, attempts=4 if self._target is None else 1)
            self._is_ours = True
        except Exception as error:  # ConnectionError, AuthenticationError, ValueError, RuntimeError by Ray's mood
            self._error = error

    def _start_early(self) -> None:
        self._start()
        self._started.set()
        self._ended.wait()  # Ray's processes are bound by PR_SET_PDEATHSIG to the thread that started them


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
def connected(
    address: str | None, num_cpus: int | None = None, *, quiet: bool = True, worker_logs: bool = True
) -> Iterator[Any]:
    """`ray` connected, for the length of the block: see Connection. Raises PlatformError."""
    with Connection(address, num_cpus, quiet=quiet, worker_logs=worker_logs) as connection:
        yield connection.ray()


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


def _assert_answers(target: str | None) -> None:
    """Ray itself tries for minutes to reach an address where nothing listens. Raises OSError."""
    host, _, port = (target or "").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()


def _private_token() -> None:
    """Give a local Ray a token of its own, in the environment; Ray would write one into the home folder.

    The mode is left to ray.init, which switches it on for a local cluster: Ray reads RAY_AUTH_MODE when it is
    imported, so setting it here would be too late for this process and in time for its children.
    """
    if "RAY_AUTH_MODE" not in os.environ and "RAY_AUTH_TOKEN" not in os.environ:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def refuse_dead_node(ray: Any) -> None:
    """Raise PlatformError when the Ray node this process belongs to has died: Ray would wait for ever."""
    own = ray.get_runtime_context().get_node_id()
    if not any(node["NodeID"] == own and node["Alive"] for node in ray.nodes()):
        raise PlatformError(
            "Ray's node under this process died (raylet killed, or out of memory); what is done is kept: run the same "
            "command again"
        )
