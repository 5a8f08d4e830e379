"""A cluster of two raylets on this machine, one of which is lost: the run goes on with what is left, and adds up."""

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from pipeline.model.bundle import Bundle
from tests.bundles import make_bundle
from tests.scoring_sources import ROOT, contents, only_run, read_run, rows, score_command, write_files
from tests.servers import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
_MARK = "LEUKORAY_TEST_NODE"
COPIES, IMAGES, SHARDS_BEFORE = 100, 20_000, 45


@dataclass(frozen=True)
class Node:
    """All processes of a node carry its mark in their environment: Ray's daemons are nobody's children."""

    process: subprocess.Popen[bytes]
    mark: str

    def kill(self) -> None:
        """As a power cut ends it: what started it, its raylet and its workers, all at once."""
        for part in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if part.environ().get(_MARK) == self.mark:
                    part.kill()
        self.process.wait()


@dataclass
class Nodes:
    """A head and a second node, each with one CPU."""

    folder: Path
    environment: dict[str, str]
    port: int
    second: Node | None = None

    def start(self, *arguments: str) -> Node:
        command = ["ray", "start", "--block", "--disable-usage-stats", "--num-cpus=1", *arguments]
        with (self.folder / "nodes.log").open("a") as log:
            mark = uuid.uuid4().hex
            environment = self.environment | {_MARK: mark}
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        return Node(process, mark)

    def join(self) -> None:
        """Start the second node, and wait until the cluster has two."""
        self.second = self.start(
            f"--address=127.0.0.1:{self.port}", f"--dashboard-agent-listen-port={free_port()}",
            f"--dashboard-agent-grpc-port={free_port()}", f"--metrics-export-port={free_port()}",
            "--min-worker-port=21000", "--max-worker-port=21999",
        )  # fmt: skip
        self.wait_for(2)

    def wait_for(self, nodes: int) -> None:
        program = f"""
import ray, sys, time
ray.init(address="127.0.0.1:{self.port}", log_to_driver=False)
deadline = time.monotonic() + 90
while sum(node["Alive"] for node in ray.nodes()) != {nodes}:
    time.sleep(0.2)
    if time.monotonic() > deadline:
        sys.exit(f"{{ray.nodes()}}")
"""
        done = subprocess.run(
            [sys.executable, "-c", program], env=self.environment, capture_output=True, text=True, timeout=150
        )
        assert done.returncode == 0, done.stderr[-2000:] + (self.folder / "nodes.log").read_text()[-2000:]


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = Path(f"/tmp/ray-nodes-{os.getpid()}")  # short: sockets lie in it
    folder.mkdir()
    home = tmp_path_factory.mktemp("home")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "LEUKORAY_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = kept | {"HOME": str(home), "PATH": path, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    made = Nodes(folder, environment, free_port())
    head = made.start(
        "--head", f"--port={made.port}", f"--temp-dir={folder}", "--include-dashboard=false",
        f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}",
        f"--dashboard-agent-grpc-port={free_port()}", f"--metrics-export-port={free_port()}",
        "--min-worker-port=20000", "--max-worker-port=20999",
    )  # fmt: skip
    try:
        made.wait_for(1)
        made.join()
        yield made
    finally:
        for node in filter(None, (made.second, head)):
            node.kill()
        subprocess.run(["rm", "-rf", str(folder)], check=False)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("model") / "bundle")


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_node_lost_during_scoring_costs_its_open_shards_only(
    nodes: Nodes, bundle: Bundle, tmp_path: Path, comes_back: bool
) -> None:
    source = write_files(tmp_path / "in", contents(IMAGES // COPIES, bad=False, size=(640, 480)))
    for image in list(source.rglob("*.jpg")):
        for number in range(1, COPIES):
            os.link(image, image.with_name(f"{image.stem}-{number}.jpg"))
    out = tmp_path / "out"
    command = score_command(
        str(source), "--model", bundle.uri, "--out", str(out), "--workers", "2", "--address", f"127.0.0.1:{nodes.port}"
    )
    run = subprocess.Popen(
        command, cwd=ROOT, env=nodes.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while len(list(out.glob("run-*/_work/parts/part-*.parquet"))) < SHARDS_BEFORE and time.monotonic() < deadline:
        time.sleep(0.02)
    assert nodes.second is not None
    nodes.second.kill()
    if comes_back:
        nodes.join()
    said, _ = run.communicate(timeout=240)
    assert run.returncode == 0, said
    record = read_run(only_run(out))
    assert record["counts"]["scored"] == rows(only_run(out)).num_rows == IMAGES
    assert "a worker died" in said, said
