"""A Prometheus and jobs on Ray, for the test that asks all that the boards and the alerts ask.

`python -m tests.watched FOLDER` runs the jobs and stays, with their figures, until its stdin is closed.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.servers import free_port

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "infra" / "monitoring"
PATIENCE_S = 240  # of a busy machine
# Every second would be too often: a gauge would be gone before it is told again
_SOON = {"RAY_metrics_report_interval_ms": "2500", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}


@dataclass(frozen=True)
class Prometheus:
    url: str

    def asked(self, path: str, **query: str) -> Any:
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {error.read().decode()}") from error

    def now(self, expression: str) -> list[dict[str, Any]]:
        """The series that it has now, each with its labels (`metric`) and its `value` as a number."""
        found = self.asked("query", query=expression)["result"]
        return [one | {"value": float(one["value"][1])} for one in found]


@contextlib.contextmanager
def prometheus(folder: Path, endpoint: str) -> Iterator[Prometheus]:
    """With the shipped configuration and rules: other addresses, other seconds, nothing else."""
    text = (SHIPPED / "prometheus.yml").read_text()
    (folder / "ray").mkdir()  # which it watches from its start
    others = {"127.0.0.1:8000": endpoint, "/tmp/ray/": f"{folder / 'ray'}/", " 15s": " 3s"}
    for shipped, here in others.items():
        assert shipped in text
        text = text.replace(shipped, here)
    (folder / "prometheus.yml").write_text(text)
    shutil.copy(SHIPPED / "alerts.yml", folder)
    assert yaml.safe_load(text)["rule_files"] == ["alerts.yml"]
    port, log = free_port(), folder / "prometheus.log"
    command = [
        "prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with log.open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        _wait_for_port(port, process, log)
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def jobs(folder: Path) -> Iterator[None]:
    """Ingest, scoring and evaluation of `folder`/images by `folder`/bundle, done; their process and its Ray live on.
    The list that Prometheus reads is in `folder`/ray.
    """
    log = folder / "jobs.log"
    with log.open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.watched", str(folder)], cwd=ROOT, env=_environment(),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True,
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if line == "done\n":
                    break
            assert lines[-1:] == ["done\n"], f"{''.join(lines)[-3000:]}\n{log.read_text()[-2000:]}"
            yield
        finally:
            process.stdin.close()
            try:
                process.wait(PATIENCE_S)
            finally:
                process.kill()  # a local Ray ends with who started it


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "LEUKORAY_"))}
    return kept | _SOON | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def _wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.2)


def main(folder: Path) -> None:
    from ray._private.metrics_agent import PrometheusServiceDiscoveryWriter

    from jobs import evaluate, ingest, score
    from pipeline.base.cluster import connected
    from pipeline.base.measures import Measures
    from pipeline.training.measured import Measured

    kept, make = list[Measures](), Measures.__init__

    def make_and_keep(self: Measures, *arguments: Any, **labels: str) -> None:
        """What a job shows is told as long as it goes on: here until all has been asked for."""
        make(self, *arguments, **labels)
        kept.append(self)

    Measures.__init__ = make_and_keep  # type: ignore[method-assign]
    images, model, manifest = f"{folder / 'images'}", f"{folder / 'bundle'}", f"{folder / 'manifest'}"
    small = ["--audit", "8", "--map-images", "0", "--bootstrap", "100", "--colour-images", "0", "--workers", "1"]
    with connected(None, 2) as ray:
        # As the dashboard of a cluster does
        PrometheusServiceDiscoveryWriter(ray.get_runtime_context().gcs_address, f"{folder / 'ray'}").write()
        assert ingest.command([images, "--out", manifest, "--use", "test", "--layout", "class-folders"]) == 0
        assert score.command(
            [images, "--model", model, "--out", f"{folder / 'scores'}", "--max-error-share", "0.2", "--workers", "1"]
        ) == 0  # fmt: skip
        assert evaluate.command(
            [manifest, "--model", model, "--out", f"{folder / 'report'}", "--max-error-share", "0.2", *small]
        ) == 0  # fmt: skip
        # A training takes a minute: told here is what its workers tell of a step and of an epoch.
        speed = {"images_per_s": 100.0, "waiting_share": 0.1}
        row = {"epoch": 1, "train_loss": 0.7, "val_loss": 0.6, "val_auc": 0.8, "val_balanced_accuracy": 0.7} | speed
        trained = Measured("blood", epochs=3)
        trained.show([{"kind": "step", "epoch": 1, "step": 5, "loss": 0.7} | speed, {"kind": "epoch", "row": row}])
        print("done", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
