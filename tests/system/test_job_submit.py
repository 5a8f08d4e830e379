"""`ray job submit` against a cluster made by `ray start --head`, with and without token authentication."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from jobs.ingest import command as ingest
from pipeline.model.registry import resolve
from pipeline.samples import generate
from tests.bundles import make_bundle
from tests.servers import free_port

ROOT = Path(__file__).resolve().parents[2]
MAX_UPLOAD_BYTES = 5_000_000
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Cluster:
    folder: Path
    environment: dict[str, str]

    def submit(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Submit as the README says, and wait for the job's end."""
        return subprocess.run(
            ["ray", "job", "submit", "--working-dir", ".", "--", "python", "-m", *command],
            cwd=ROOT, env=self.environment | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=600,
        )  # fmt: skip

    def uploads(self) -> list[Path]:
        """The working folders as the cluster unpacked them."""
        return list(self.folder.glob("session_*/runtime_resources/working_dir_files/_ray_pkg_*/"))


def environment_for(folder: Path, auth: str, dashboard: int) -> dict[str, str]:
    """What a person's shell holds: a home of its own, and the way of authentication."""
    home = folder / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "LEUKORAY_"))}
    token = home / "token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    return kept | {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_AUTH_MODE": auth,
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    } | ({"RAY_AUTH_TOKEN_PATH": str(token)} if auth == "token" else {})  # fmt: skip


@pytest.fixture(scope="module", params=["disabled", "token"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # short: sockets lie in it
    dashboard = free_port()
    environment = environment_for(folder, request.param, dashboard)
    started = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    command = [
        "ray", "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2", "--include-dashboard=true",
        f"--temp-dir={folder}", f"--port={free_port()}", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={free_port()}", f"--dashboard-agent-grpc-port={free_port()}",
        f"--ray-client-server-port={free_port()}", f"--metrics-export-port={free_port()}",
    ]  # fmt: skip
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=started, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for_jobs(environment, head, folder / "head.log")
        yield Cluster(folder, environment)
    finally:
        stop(head, folder)


def wait_for_jobs(environment: dict[str, str], head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and head.poll() is None:
        asked = subprocess.run(["ray", "job", "list"], env=environment, capture_output=True, timeout=120)
        if asked.returncode == 0:
            return
        time.sleep(1)
    pytest.fail(f"ray start --head took no jobs: {log.read_text()[-2000:]}")


def stop(head: subprocess.Popen[bytes], folder: Path) -> None:
    """End this cluster's processes and no others: they name its folder, or descend from its head."""
    own = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)] if head.poll() is None else []
    for process in psutil.process_iter(["cmdline"]):
        if str(folder) in " ".join(process.info["cmdline"] or ()):
            own.append(process)
    head.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        head.wait(20)
    for process in own:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    head.wait()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("submitted")
    generate(folder / "samples", images=48, subjects=12, seed=5, width=160, height=120, workers=1)
    assert ingest([str(folder / "samples"), "--out", str(folder / "manifest")]) == 0
    return folder / "manifest"


def test_a_submitted_job_trains_from_its_file_and_flags(cluster: Cluster, manifest: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    trained = cluster.submit(
        "jobs.train", str(manifest), "--config", "infra/jobs/train.yaml", "--out", str(models),
        "--architecture", "cnn", "--input-size", "32", "--epochs", "1",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stdout
    assert "succeeded" in trained.stdout
    bundle = resolve(str(models))
    assert bundle.info.name == "all-resnet18"  # from the file; architecture from the flag behind it
    assert bundle.info.architecture == "cnn"


def test_a_submitted_job_scores_and_uploads_only_the_sources(cluster: Cluster, manifest: Path, tmp_path: Path) -> None:
    bundle, scores = make_bundle(tmp_path / "bundle"), tmp_path / "scores"
    scored = cluster.submit(
        "jobs.score", str(manifest.parent / "samples"), "--config", "infra/jobs/score.yaml", "--model", bundle.uri,
        "--out", str(scores), "--run-id", "night", "--workers", "1",
    )  # fmt: skip
    assert scored.returncode == 0, scored.stdout
    run = json.loads((scores / "night" / "run.json").read_text())
    assert run["max_error_share"] == 0.02  # from the file; sources, model and output from the flags behind it
    counts = run["counts"]
    assert (counts["listed"], counts["scored"], counts["quarantined"]) == (48, 48, 0)
    assert (scores / "night" / "_SUCCESS").exists()

    uploads = cluster.uploads()
    assert uploads
    for upload in uploads:
        assert sum(file.stat().st_size for file in upload.rglob("*") if file.is_file()) < MAX_UPLOAD_BYTES
        assert {".git", ".venv", "out", "tests", "docs"}.isdisjoint(item.name for item in upload.iterdir())


def test_failing_job_is_failed_with_its_exit_code_and_one_line(cluster: Cluster, tmp_path: Path) -> None:
    missing = tmp_path / "no-manifest-here"
    failed = cluster.submit("jobs.train", str(missing), "--out", str(tmp_path / "models"))
    assert failed.returncode != 0
    assert "failed with exit code 3" in failed.stdout
    (line,) = {line for line in failed.stdout.splitlines() if line.startswith("leukoray train:")}
    assert str(missing) in line
    assert "Traceback" not in failed.stdout


def test_a_job_without_a_token_is_refused_where_the_cluster_asks_for_one(cluster: Cluster) -> None:
    submitted = cluster.submit("jobs.cli", "--version", RAY_AUTH_MODE="disabled")
    is_open = cluster.environment["RAY_AUTH_MODE"] == "disabled"
    assert (submitted.returncode == 0, "leukoray 0" in submitted.stdout) == (is_open, is_open), submitted.stdout
