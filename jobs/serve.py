"""Answer HTTP requests with the best model, on a laptop or on a running Ray cluster.

Only starts and stops: the application is `serving.app:build`, as in a Serve config.
"""

import contextlib
import importlib
import io
import ipaddress
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic import Field, field_validator, model_validator

from jobs.common import Clock, job, job_stores, start
from jobs.config import JobConfig, positional
from jobs.ending import end_in_order, interrupt, raise_if_terminated
from jobs.served import Served, announce, applications, trust
from pipeline.base.cluster import alive_nodes, cluster_target, connected, refuse_dead_node, tell_waiting
from pipeline.base.errors import PlatformError, UsageError
from pipeline.base.resources import ClusterPlan, check
from pipeline.images.load import Limits
from pipeline.model.bundle import INFO, Bundle
from pipeline.model.predictor import Predictor
from pipeline.model.registry import resolve
from pipeline.model.signature import public_key
from pipeline.storage.shared import refuse_unshared
from pipeline.storage.uris import join
from serving import front, tls, tracing
from serving.audit.log import check_folder
from serving.desk import check_guards
from serving.keys.ring import open_to_others
from serving.settings import API_KEYS_VARIABLE, ServingSettings, proxy_timeout_s, read_settings

_DEFAULT = {name: field.default for name, field in ServingSettings.model_fields.items()}
_LOOK_EVERY_S = 5.0  # whether Ray is still there
EPILOG = """examples:
  leukoray serve out/demo/models                       the best model, on http://127.0.0.1:8000
  leukoray serve s3://lab/models/blast --host 0.0.0.0 --port 80 --max-replicas 4
  leukoray key lab-a >> keys; leukoray serve models --keys keys    asks every client for a key
  leukoray serve models/blast models/lineage --grpc-port 9000      two models, also over gRPC

On a cluster, `serve deploy infra/serve_config.yaml` keeps it running. Research software, not a medical device."""


class ServeConfig(JobConfig):
    """Answer HTTP requests with the best model: POST /predict, a page at /, the interface at /docs."""

    model: list[str] = positional(
        min_length=1, description="bundle folder, model folder or registry, local or s3://; several: by their names"
    )
    verify: str | None = Field(
        None, description="PEM file of a public key: only models signed with its private half answer, now and later"
    )
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all of them")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    grpc_port: int | None = Field(
        None, ge=1, le=65535, description="port for the Open Inference Protocol over gRPC (default: none)"
    )
    replicas: int = Field(1, ge=1, description="processes that answer, at least, of each model")
    max_replicas: int | None = Field(None, ge=1, description="processes at most, under load (default: --replicas)")
    max_bytes: int = Field(Limits.max_bytes, ge=1, description="largest image, in bytes")
    max_pixels: int = Field(_DEFAULT["max_pixels"], ge=1, description="largest image, in pixels, from its header")
    max_in_flight: int = Field(
        _DEFAULT["max_in_flight"], ge=1, description="requests a replica works on before it answers 503"
    )
    max_batch_size: int = Field(_DEFAULT["max_batch_size"], ge=1, description="images in one forward pass")
    request_timeout_s: float = Field(
        _DEFAULT["request_timeout_s"], gt=0, description="seconds until a request is given up"
    )
    cors_origins: list[str] = Field(
        [], description="origins whose pages may ask from a browser, as https://lab.example; '*': all (default: none)"
    )
    keys: str | None = Field(
        None, description="file of keys with names and limits, as `leukoray key` makes them; read again when it changes"
    )
    tls_cert: str | None = Field(
        None, description="PEM file of a certificate, for https:// instead of http://; read again when it changes"
    )
    tls_key: str | None = Field(None, description="PEM file of its private key, without a password")
    audit_log: str | None = Field(
        None, description="folder for a line an image that was answered; what cannot be recorded gets no answer"
    )
    traces_to: str | None = Field(
        None, description="send OpenTelemetry traces to this collector, as http://127.0.0.1:4318 (default: none)"
    )
    access_log: bool = Field(
        False, description="log every request, not only failed ones, in logs/serve of Ray's session"
    )
    replace: bool = Field(
        False, description="end the service of this name on the cluster first, such as one left by a killed command"
    )

    @field_validator("model", mode="before")
    @classmethod
    def _is_one_or_more(cls, model: Any) -> Any:
        return [model] if isinstance(model, str) else model

    @model_validator(mode="after")
    def _fits_together(self) -> "ServeConfig":
        if self.grpc_port == self.port:
            raise ValueError(f"--grpc-port {self.grpc_port} is that of HTTP; give another")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"--max-replicas {self.max_replicas} is below --replicas {self.replicas}")
        if self.traces_to is not None and not self.traces_to.startswith(("http://", "https://")):
            raise ValueError(f"--traces-to {self.traces_to}: expected the address of a collector, http://HOST:4318")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key belong together; give both, or none")
        return self


def main(config: ServeConfig) -> None:
    """Check what can be checked, start, announce, wait for Ctrl-C or SIGTERM, stop."""
    clock = Clock()
    served = applications(config.model, [checked_bundle(config, model) for model in config.model])
    is_local = cluster_target(config.address) is None
    if config.traces_to is not None:
        check_traces(is_local)
    if is_local:
        for port in filter(None, (config.port, config.grpc_port)):
            check_port(config.host, port)
    settings = [read_settings(_arguments(config, one.model)) for one in served]  # what does not fit is refused first
    for its in settings:
        check_guards(its)
        if is_local and its.audit_log is not None:
            check_folder(its.audit_log)
    files = front.tls_files(config.tls_cert, config.tls_key, is_local)
    warn_of_open_door(config)
    if files is not None and (reason := files.open_to_others()) is not None:
        _say(f"warning: {reason}")
    with (
        contextlib.ExitStack() as quiet,
        _stop_signals() as stop,
        _environment_of_serve(config, settings[0], is_local, files) as renewal,
        connected(config.address, config.num_cpus, worker_logs=config.debug) as ray,
    ):
        replicas = config.replicas * len(served)
        plan = ClusterPlan("serve", replicas, _DEFAULT["cpus_per_replica"], remedy="lower --replicas")
        check(plan, alive_nodes(ray))
        refuse_unshared(ray, job_stores(config), [join(one.bundle.uri, INFO) for one in served])
        if not is_local:
            make_room(served, config.replace)
        tell_waiting(ray, plan)
        with _running(config, served, settings, is_local):
            stop.arm()
            raise_if_terminated()
            end_in_order()  # requests that are in work are answered
            trusted = trust(files, is_local, config.host, config.port)
            announce(served, config.host, config.port, config.grpc_port, trusted, clock)
            stop.wait([lambda: refuse_dead_node(ray), renewal])
            print("stopping ...", flush=True)
            quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))  # Ray calls it a failure


def checked_bundle(config: ServeConfig, model: str) -> Bundle:
    """The bundle that `model` means, after it has answered the probe. Raises InputError before anything is started."""
    key = None if config.verify is None else public_key(config.verify)
    bundle = resolve(model, job_stores(config), key).verify()
    Predictor(bundle, engine="onnx").prove()
    return bundle


def check_port(host: str, port: int) -> None:
    """Raises PlatformError when nothing can listen there; Serve would only say so in a log."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise PlatformError(
                f"cannot listen on {host} port {port} ({reason}); stop what listens there, or give another port"
            ) from error


def check_traces(is_local: bool) -> None:
    """Raises UsageError and PlatformError where --traces-to cannot be done."""
    if not is_local:
        raise UsageError(
            "--traces-to is for a Ray that starts here; a cluster traces by tracing_config (docs/serve.md)"
        )
    try:
        importlib.import_module(tracing.EXPORTER.partition(":")[0])
    except ImportError as error:
        raise PlatformError(f"--traces-to needs more packages ({error}): pip install 'leukoray[tracing]'") from error


def warn_of_open_door(config: ServeConfig) -> None:
    """Where more people may come in than who started it may think."""
    if config.keys is not None and (reason := open_to_others(config.keys)) is not None:
        _say(f"warning: {reason}")
    if config.keys or os.environ.get(API_KEYS_VARIABLE, "").strip(", ") or _is_loopback(config.host):
        return
    print(
        f"warning: {config.host} is reached from other machines, and no key is asked for: whoever comes to port "
        f"{config.port} may send images; give --keys, or leave --host out",
        file=sys.stderr,
        flush=True,
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def make_room(wanted: Sequence[Served], replace: bool) -> None:
    """End what an earlier command left behind where `replace` says so: a cluster's own service is not to be ended by
    mistake, and nothing tells one from the other. Serve itself ends with its last application, so that --host and
    --port count. Raises PlatformError.
    """
    from ray import serve

    from serving.lifecycle.line import forget
    from serving.monitoring import sharing

    known = serve.status().applications
    names = [one.application for one in wanted if one.application in known]
    if not names:
        return
    if not replace:
        raise PlatformError(
            f"this cluster already serves an application {names[0]!r}, perhaps left by a command that was killed; "
            "--replace ends it and takes its place. To give a service another model without a gap, use `serve deploy` "
            "and user_config (docs/serve.md)"
        )
    if len(known) == len(names):
        serve.shutdown()
    for name in names:
        if len(known) > len(names):
            serve.delete(name)
        forget(name)
        sharing.forget(name)


class _Stop:
    """SIGINT and SIGTERM as one event; the second one ends the process at once."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def arm(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._event.is_set():
            interrupt(number, frame)
        self._event.set()

    def wait(self, looks: Sequence[Callable[[], None]]) -> None:
        """Until a signal comes. `looks` are called now and then, and may raise."""
        looked = time.monotonic()
        while not self._event.wait(1.0):  # in slices, so that Python gets to run the handler
            if time.monotonic() - looked > _LOOK_EVERY_S:
                for look in looks:
                    look()
                looked = time.monotonic()


@contextlib.contextmanager
def _stop_signals() -> Iterator[_Stop]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield _Stop()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _environment_of_serve(
    config: ServeConfig, settings: ServingSettings, is_local: bool, files: tls.Files | None
) -> Iterator[Callable[[], None]]:
    """Of a Ray that starts with the block: HAProxy before the replicas, and traces; a cluster has its nodes' own.

    Gives what is to be called now and then: it looks whether the certificate was renewed.
    """
    if not is_local:
        yield lambda: None
        return
    folder = tempfile.mkdtemp(prefix="leukoray-", dir="/tmp")  # not $TMPDIR: paths of sockets are short
    wanted: dict[str, str] = {}
    try:
        wanted = front.settings(os.environ, folder, (_free_port(), _free_port()), settings.max_request_bytes)
        wanted |= {front.GRPC_HOST: config.host, front.HTTP_HOST: config.host, front.HAS_FIRST: "1"}
        if config.traces_to is not None:
            wanted |= tracing.settings(os.environ, config.traces_to)
        wanted |= files.environment() if files is not None else {}
        os.environ.update(wanted)
        yield tls.Renewal(files, lambda: front.folders(folder), _say).look if files is not None else lambda: None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for name in wanted:
            del os.environ[name]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _running(
    config: ServeConfig, served: Sequence[Served], settings: Sequence[ServingSettings], is_local: bool
) -> Iterator[None]:
    """The application on Serve. What was started here is ended with the block; a cluster's Serve stays."""
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.config import HTTPOptions, ProxyLocation, gRPCOptions
    from ray.serve.exceptions import RayServeException

    from serving.app import application
    from serving.keys import till
    from serving.lifecycle import line
    from serving.monitoring import sharing

    logging.getLogger("ray.serve").setLevel(logging.DEBUG if config.debug else logging.ERROR)
    timeout_s = proxy_timeout_s(config.request_timeout_s)
    options = HTTPOptions(host=config.host, port=config.port, request_timeout_s=timeout_s)
    methods = [front.GRPC_METHODS] if config.grpc_port else []  # without one Serve starts no server for gRPC
    rpc = gRPCOptions(port=config.grpc_port or 0, grpc_servicer_functions=methods, request_timeout_s=timeout_s)
    # Serve's own access log would hold paths; that of serving/access.py holds routes
    level = "INFO" if config.access_log else "WARNING"
    quiet = {"log_level": level, "enable_access_log": False, "encoding": config.log_format.upper()}
    try:
        try:
            for one in served if is_local else ():  # else the first replica starts them, as long as it takes itself
                line.start(one.application)
                sharing.start(one.application)
            if is_local and settings[0].keys_file is not None:
                till.start(settings[0].keys_file)
            with contextlib.suppress(TimeoutError):  # proxies that are late on a busy machine: `run_many` waits again
                serve.start(ProxyLocation.HeadOnly, options, rpc, logging_config=quiet)
            targets = [
                serve.RunTarget(application(its), one.application, one.prefix, quiet)
                for one, its in zip(served, settings, strict=True)
            ]
            serve.run_many(targets)
        except (RuntimeError, ValueError, TimeoutError, RayError, RayServeException) as error:
            raise PlatformError(f"Ray Serve could not start the service: {error}") from error
        yield
        if is_local:
            for one in served:
                serve.delete(one.application)  # answers what is in work, which shutdown alone would cut
    finally:
        if is_local:
            serve.shutdown()
        else:
            for one in served:
                serve.delete(one.application)
                line.forget(one.application)
                sharing.forget(one.application)


def _arguments(config: ServeConfig, model: str) -> dict[str, Any]:
    shared = (
        "s3_endpoint s3_region s3_anonymous s3_requester_pays "
        "verify max_bytes max_pixels max_in_flight max_batch_size request_timeout_s cors_origins audit_log"
    )
    return {name: getattr(config, name) for name in shared.split()} | {
        "model": model,
        "keys_file": config.keys,
        "min_replicas": config.replicas,
        "max_replicas": config.max_replicas or config.replicas,
        "max_request_bytes": max(config.max_bytes, _DEFAULT["max_request_bytes"]),
        "max_in_flight_bytes": max(4 * config.max_bytes, _DEFAULT["max_in_flight_bytes"]),
    }


command = job("serve", ServeConfig, main, EPILOG)


if __name__ == "__main__":
    start(command)
