"""The service as its operators meet it: the command, a killed replica, `serve deploy`, a swap while it answers."""

import contextlib
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from PIL import Image

from pipeline.model.bundle import Bundle
from serving import front
from tests.bundles import make_bundle
from tests.collector import Collector, Told, collecting
from tests.servers import free_port

ROOT = Path(__file__).parents[2]
PATIENCE_S = 150
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CLIENTS_SPAN = "00f067aa0ba902b7"
TOLD_SOON = {"OTEL_BSP_SCHEDULE_DELAY": "500"}  # milliseconds that a batch of spans waits
pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(600)]


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError, ValueError, psutil.Error):
            found = condition()
            if found:
                return found
        time.sleep(0.3)
    raise AssertionError(f"not within {PATIENCE_S} s: {what}")


def environment(**extra: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", **extra}


@contextlib.contextmanager
def started(*command: str, log: Path, **extra: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block, with every process it started."""
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(**extra), stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            head = psutil.Process(process.pid)
            for member in [head, *head.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            process.wait(30)


def replica_of(process: subprocess.Popen[bytes]) -> Any:  # psutil.Process, or None
    for child in psutil.Process(process.pid).children(recursive=True):
        if "LeukorayReplica" in " ".join(child.cmdline()):
            return child
    return None


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), (190, 120, 170)).save(buffer, "PNG")
    return buffer.getvalue()


def predict(url: str) -> httpx.Response:
    return httpx.post(f"{url}/predict", content=picture(), headers={"content-type": "image/png"}, timeout=30)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def error(self) -> Any:
        return json.loads(self.text)["error"]


def read(connection: socket.socket) -> Answer:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return Answer(
        response.status, {name.lower(): value for name, value in response.headers.items()}, response.read().decode()
    )


class Slow:
    """A request whose body is sent in two halves, so that it is in work for as long as a test wants."""

    def __init__(self, port: int) -> None:
        body = picture()
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        head = f"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
        self._socket.sendall(head.encode() + body[:50])
        self._rest = body[50:]

    def answer(self) -> Answer:
        return read(self._socket)

    def finish(self) -> Answer:
        self._socket.sendall(self._rest)
        return self.answer()


def raw(port: int, request: bytes) -> Answer:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as plain:
        plain.sendall(request)
        return read(plain)


def proxies_listen_at(process: subprocess.Popen[bytes]) -> set[str]:
    tree = psutil.Process(process.pid).children(recursive=True)
    found = [child.net_connections("tcp") for child in tree if child.name() == "haproxy"]
    return {f"{place.laddr.ip}:{place.laddr.port}" for places in found for place in places if place.status == "LISTEN"}


def served_sha(url: str) -> str:
    return str(httpx.get(f"{url}/readyz", timeout=30).raise_for_status().json()["model"]["sha256"])


def refusal(url: str) -> str:
    return httpx.get(f"{url}/readyz", timeout=30).json()["refused"] or ""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return [make_bundle(folder / str(seed), size=32, seed=seed) for seed in (1, 2)]


def comes_from_the_client(span: Told, collector: Collector) -> bool:
    """By way of others of Serve, where there are some."""
    parents = {told.id: told.parent for told in collector.spans if told.trace == TRACE}
    at = span.parent
    while at in parents:
        at = parents[at]
    return at == CLIENTS_SPAN


def assert_traced(url: str, collector: Collector) -> None:
    """A client's trace goes on through Serve into our stages, without what the client sent."""
    sent = {"traceparent": f"00-{TRACE}-{CLIENTS_SPAN}-01", "x-request-id": "secret"}
    assert httpx.post(f"{url}/predict?subject=secret", content=picture(), headers=sent, timeout=30).status_code == 200
    spans = {span.name: span for span in collector.of(TRACE, 6)}
    serve, request = spans["replica_handle_request LeukorayReplica"], spans["POST /predict"]
    assert request.parent == serve.id
    until(lambda: comes_from_the_client(serve, collector), "the spans of Serve's proxy")
    stages = {name for name, span in spans.items() if span.parent == request.id}
    assert stages == {"queue", "decode", "predict", "answer"}
    assert spans["predict"].attributes["leukoray.batch.images"] == 1
    assert not any(b"secret" in body for body in collector.bodies)


def test_command_survives_a_killed_replica_and_stops_cleanly(bundles: list[Bundle], tmp_path: Path) -> None:
    port, rpc_port, log = free_port(), free_port(), tmp_path / "serve.log"
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "jobs.serve", bundles[0].uri, "--port", str(port), "--num-cpus", "1"]
    command += ["--grpc-port", str(rpc_port)]  # which is asked before anything is announced
    with collecting() as collector, started(*command, "--traces-to", collector.url, log=log, **TOLD_SOON) as process:
        until(lambda: "Ctrl-C stops it" in log.read_text() or process.poll() is not None, "the announcement")
        assert process.poll() is None, log.read_text()
        text = log.read_text()
        assert url in text and "not a medical device" in text and bundles[0].info.version in text
        before = predict(url).json()["probability"]
        assert proxies_listen_at(process) == {f"127.0.0.1:{port}", f"127.0.0.1:{rpc_port}"}
        assert raw(port, b"GET / HTTP/1.1\r\nHost: here\r\nX: " + 50_000 * b"a").status == 400
        upgrade = b"GET /healthz HTTP/1.1\r\nHost: here\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        upgrade += b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\n\r\n"
        assert raw(port, upgrade).status == 200
        refused = raw(port, b"GET /healthz HTTP/1.1\r\nHost: here\r\nX-Request-ID: a\xe9\r\n\r\n")
        assert (refused.status, refused.error["code"]) == (400, "invalid_request_id")
        assert refused.error["request_id"] == refused.headers["x-request-id"]
        assert_traced(url, collector)

        in_hand = Slow(port)
        replica = until(lambda: replica_of(process), "the replica's process")
        time.sleep(1)  # it has the headers by now
        replica.kill()
        lost = in_hand.answer()
        assert (lost.status, lost.headers["retry-after"], lost.error["code"]) == (503, "1", "replica_lost")
        recovered = until(lambda: (answer := predict(url)).status_code == 200 and answer, "an answer after the kill")
        assert recovered.json()["probability"] == before
        assert until(lambda: replica_of(process), "another replica").pid != replica.pid

        children = psutil.Process(process.pid).children(recursive=True)
        in_work = [Slow(port) for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        until(lambda: "stopping" in log.read_text(), "the word that it stops")
        time.sleep(1)
        assert [request.finish().status for request in in_work] == [200, 200, 200]
        assert process.wait(PATIENCE_S) == 0, log.read_text()
        until(lambda: not any(child.is_running() for child in children), "every process gone")
        with pytest.raises(httpx.ConnectError):
            predict(url)


def test_command_ends_with_5_when_its_ray_dies(bundles: list[Bundle], tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "serve.log"
    command = [sys.executable, "-m", "jobs.serve", bundles[0].uri, "--port", str(port), "--num-cpus", "1"]
    with started(*command, log=log) as process:
        until(lambda: "Ctrl-C stops it" in log.read_text(), "the announcement")
        tree = psutil.Process(process.pid).children(recursive=True)
        next(child for child in tree if child.name() == "raylet").kill()
        assert process.wait(PATIENCE_S) == 5, log.read_text()
        assert "Ray's node under this process died" in log.read_text()


@dataclass(frozen=True)
class Cluster:
    """A Ray head with HAProxy before its replicas, and the configuration that is deployed to it."""

    head: subprocess.Popen[bytes]
    gcs: int
    dashboard: int
    port: int
    file: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def configuration(self, model: str) -> dict[str, Any]:
        """Ours, for this port; at most one replica."""
        config = yaml.safe_load((ROOT / "infra" / "serve_config.yaml").read_text())
        config["http_options"] |= {"host": "127.0.0.1", "port": self.port}
        config["applications"][0]["args"] |= {"model": model, "max_replicas": 1}
        return dict(config)

    def deploy(self, config: dict[str, Any]) -> None:
        self.file.write_text(yaml.safe_dump(config))
        address = f"http://127.0.0.1:{self.dashboard}"
        serve = [sys.executable, "-m", "ray.serve.scripts", "deploy", str(self.file), "-a", address]
        done = subprocess.run(
            serve, cwd=ROOT, env=environment(RAY_AUTH_MODE="disabled"), capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def status(self) -> dict[str, Any]:
        """Of the one application, as `serve status` asks for it."""
        answer = httpx.get(f"http://127.0.0.1:{self.dashboard}/api/serve/applications/", timeout=30)
        (application,) = answer.json()["applications"].values()
        return dict(application)

    def running(self) -> int:
        """Replicas that answer."""
        (deployment,) = self.status()["deployments"].values()
        return sum(replica["state"] == "RUNNING" for replica in deployment["replicas"])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    gcs, dashboard, port = free_port(), free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="lk", dir="/tmp") as short:  # Unix sockets allow 107 bytes
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=1"]
        places = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--temp-dir={short}"]
        ours = Path(short, "serve")  # Ray opens its own folder to everybody
        ours.mkdir(mode=0o700)
        extra = front.settings({}, str(ours), (free_port(), free_port()), 1 << 27)
        extra |= {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
        with started(*ray, *places, log=folder / "ray.log", **extra) as head:
            until(lambda: httpx.get(f"http://127.0.0.1:{dashboard}/api/version").status_code == 200, "the dashboard")
            yield Cluster(head, gcs, dashboard, port, folder / "serve.yaml")


def test_replicas_come_with_load_and_go_after_it_without_a_failed_request(
    cluster: Cluster, bundles: list[Bundle]
) -> None:
    config = cluster.configuration(bundles[0].uri)
    scaling = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 1}
    scaling |= {"upscale_delay_s": 1, "downscale_delay_s": 1, "look_back_period_s": 11}
    config["applications"][0]["deployments"] = [{"name": "LeukorayReplica", "autoscaling_config": scaling}]
    cluster.deploy(config)
    until(lambda: served_sha(cluster.url), "the model")
    answers: Counter[tuple[int, str]] = Counter()
    crowd, stop = threading.Event(), threading.Event()
    crowd.set()

    def client(is_of_crowd: bool) -> None:
        with httpx.Client(base_url=cluster.url, timeout=60) as http:
            while not stop.wait(0.02) and (crowd.is_set() or not is_of_crowd):
                answer = http.post("/predict", content=picture())
                said = answer.json()
                answers[answer.status_code, said["model"]["sha256"] if answer.is_success else answer.text] += 1

    clients = [threading.Thread(target=client, args=(number > 0,)) for number in range(6)]
    for thread in clients:
        thread.start()
    try:
        until(lambda: cluster.running() == 2, "a second replica")
        both = f'leukoray_replicas{{sha256="{bundles[0].info.identity()}"}} 2.0'
        until(lambda: both in httpx.get(f"{cluster.url}/metrics", timeout=30).text, "both with the same model")
        crowd.clear()  # one client stays
        until(lambda: cluster.running() == 1, "one replica again")
        time.sleep(1)
    finally:
        crowd.clear()
        stop.set()
        for thread in clients:
            thread.join()
    assert set(answers) == {(200, bundles[0].info.identity())}, answers
    cluster.deploy(config | {"applications": []})
    until(lambda: replica_of(cluster.head) is None, "nothing is served")


def test_serve_deploy_takes_our_config_and_swaps_models_in_place(
    cluster: Cluster, bundles: list[Bundle], tmp_path: Path
) -> None:
    old, new = bundles
    config = cluster.configuration(old.uri)
    (application,) = config["applications"]
    head, port, url = cluster.head, cluster.port, cluster.url

    def deploy() -> None:
        cluster.deploy(config)

    deploy()
    until(lambda: served_sha(url) == old.info.identity(), "the first model")
    replica = until(lambda: replica_of(head), "the replica's process").pid

    application["deployments"] = [{"name": "LeukorayReplica", "user_config": {"model": new.uri}}]
    deploy()
    statuses = set()

    def swapped() -> bool:
        answer = predict(url)
        statuses.add(answer.status_code)
        return bool(answer.json()["model"]["sha256"] == new.info.identity())

    until(swapped, "the second model")
    assert statuses == {200}, "requests are answered all the while"

    application["deployments"][0]["user_config"] = {"model": str(tmp_path / "nothing")}
    deploy()
    state = until(lambda: (found := httpx.get(f"{url}/readyz", timeout=30).json())["refused"] and found, "the refusal")
    assert state["model"]["sha256"] == new.info.identity() and "neither a bundle" in state["refused"]
    application["deployments"][0]["user_config"] = {"model": new.uri, "threshold": 1.5}
    deploy()
    until(lambda: "threshold" in (httpx.get(f"{url}/readyz", timeout=30).json()["refused"] or ""), "the refusal")
    assert until(lambda: replica_of(head), "the replica").pid == replica, "the same process all along"

    shutil.rmtree(new.uri)
    os.kill(replica, signal.SIGKILL)
    fresh = until(lambda: (now := replica_of(head)) and now.pid != replica and now, "another replica")
    assert until(lambda: served_sha(url), "an answer") == new.info.identity(), "neither args nor store needed"
    assert replica_of(head).pid == fresh.pid

    application["args"]["model"] = str(tmp_path / "nothing")
    deploy()
    state = until(lambda: (now := cluster.status())["status"] == "DEPLOY_FAILED" and now, "the failure")
    assert "neither a bundle" in state["message"], "`serve status` says why"
    os.kill(fresh.pid, signal.SIGKILL)
    until(lambda: (now := replica_of(head)) and now.pid != fresh.pid, "another replica all the same")
    assert until(lambda: served_sha(url), "an answer") == new.info.identity(), "the service goes on"

    command = [
        sys.executable,
        "-m",
        "jobs.serve",
        old.uri,
        "--address",
        f"127.0.0.1:{cluster.gcs}",
        "--port",
        str(port),
    ]
    intruder = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(RAY_AUTH_MODE="disabled"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert intruder.returncode == 5 and "already serves" in intruder.stderr, intruder.stderr
    assert "--replace" in intruder.stderr and served_sha(url) == new.info.identity()

    def announced(process: subprocess.Popen[bytes], log: Path) -> bool:
        assert process.poll() is None, log.read_text()
        return "Ctrl-C stops it" in log.read_text()

    log, command = tmp_path / "usurper.log", [*command, "--replace"]
    with started(*command, log=log, RAY_AUTH_MODE="disabled") as usurper:
        until(lambda: announced(usurper, log), "the announcement")
        assert served_sha(url) == old.info.identity()
        usurper.kill()
    assert served_sha(url) == old.info.identity(), "it is left behind"
    elsewhere = free_port()
    heir_log = tmp_path / "heir.log"
    command[command.index(str(port))] = str(elsewhere)
    with started(*command, log=heir_log, RAY_AUTH_MODE="disabled") as heir:
        until(lambda: announced(heir, heir_log), "the announcement")
        assert served_sha(f"http://127.0.0.1:{elsewhere}") == old.info.identity()
        heir.send_signal(signal.SIGTERM)
        assert heir.wait(PATIENCE_S) == 0, heir_log.read_text()
