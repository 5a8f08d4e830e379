"""infra/slurm on a real Slurm of two nodes: a requeue changes no weights, exit codes arrive, nothing is left."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.model.registry import resolve
from tests import slurm as machine
from tests.bundles import make_bundle
from tests.nodes import ROOT
from tests.scoring_sources import contents, only_run, read_run, rows, write_files
from tests.slurm import Slurm, slurm
from tests.training_data import cell_images, manifest_of

pytestmark = [pytest.mark.infra, pytest.mark.slow, pytest.mark.timeout(2400)]
SCRIPTS = ROOT / "infra" / "slurm"
EPOCHS = "30"  # so many that a signal after the first ones comes long before the last
# One on each node: a job has one CPU there
TRAINING = ["--architecture", "cnn", "--weights", "none", "--input-size", "32", "--batch-size", "4", "--patience", "0",
            "--epochs", EPOCHS, "--workers", "2", "--cpus-per-worker", "1"]  # fmt: skip
PATIENCE_S = 1200
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    reason = machine.why_not()
    if reason:
        pytest.skip(reason)
    with slurm((2, 2)) as started:
        yield started


class Job:
    """A submitted script and its log."""

    def __init__(self, cluster: Slurm, script: str, log: Path, *arguments: str) -> None:
        self.cluster, self.log = cluster, log
        options = ["--nodes=2", "--cpus-per-task=1", f"--output={log}"]
        self.number = cluster.sbatch(*options, str(SCRIPTS / script), *arguments)

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}\n{self.said}"
            time.sleep(0.3)

    def state(self, name: str) -> str:
        return self.cluster.job(self.number)[name]

    def end(self) -> str:
        """Its exit code, as Slurm writes it: code:signal."""
        self.until(lambda: self.state("JobState") in ENDED, "the end")
        return self.state("ExitCode")


def left(cluster: Slurm) -> list[str]:
    """Processes of Ray or leukoray that live, and what lies in the folders for temporary files, of all nodes."""
    found = []
    for box in cluster.nodes.boxes:
        processes = cluster.run("ps", "-eo", "stat=,args=", on=box).splitlines()
        found += [line for line in processes if ("ray" in line) and not line.startswith("Z")]
        found += [name for name in cluster.run("ls", "-A", str(cluster.own), on=box).split() if name != ".ses"]  # munge
    return found


def test_training_that_nears_its_time_limit_goes_on_from_the_queue(cluster: Slurm, tmp_path: Path) -> None:
    manifest = manifest_of(cell_images(tmp_path / "cells", 48), tmp_path / "manifest").uri
    options = [*TRAINING, "--cache", str(tmp_path / "cache")]
    out = tmp_path / "models"
    job = Job(cluster, "train.sbatch", tmp_path / "log", manifest, "--out", str(out), *options)
    job.until(lambda: "epoch   2/" in job.said or job.state("JobState") in ENDED, "two epochs")
    assert job.state("JobState") == "RUNNING", job.said
    cluster.run("scancel", "--batch", "--signal=USR1", job.number)  # as Slurm does, --signal seconds before the limit
    assert job.end() == "0:0", job.said
    assert job.state("JobState") == "COMPLETED" and job.state("Restarts") == "1", job.said
    assert "back into the queue" in job.said and "continuing after epoch" in job.said, job.said
    assert job.said.count("epoch   1/") == 1 and f"continuing after epoch {EPOCHS}," not in job.said, job.said
    assert left(cluster) == []

    undisturbed = tmp_path / "undisturbed"
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:2]))  # one for each worker, as on the nodes
    train = [sys.executable, "-m", "jobs.train", manifest, "--out", str(undisturbed), *options, "--num-cpus", "2"]
    done = subprocess.run(["taskset", "-c", cores, *train], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    weights = [resolve(f"{folder}/leukoray").info.weights_sha256 for folder in (out, undisturbed)]
    assert weights[0] == weights[1]


def test_scoring_counts_every_image_and_its_exit_code_is_that_of_the_job(cluster: Slurm, tmp_path: Path) -> None:
    files = contents(200)  # five of them damaged
    archive, bundle = write_files(tmp_path / "archive", files), make_bundle(tmp_path / "bundle")
    arguments = [str(archive), "--model", bundle.uri, "--out", str(tmp_path / "scores"), "--max-error-share", "0.01"]
    job = Job(cluster, "score.sbatch", tmp_path / "log", *arguments)
    assert job.end() == "4:0", job.said
    run = only_run(tmp_path / "scores")
    scored, refused = rows(run)["uri"].to_pylist(), rows(run, "quarantine")["uri"].to_pylist()
    assert len(scored) == 195 and len(refused) == 5
    assert {Path(uri).name for uri in scored + refused} == set(files)
    assert read_run(run)["counts"]["scored"] == 195 and read_run(run)["counts"]["quarantined"] == 5
    assert left(cluster) == []


def test_a_job_that_is_cancelled_leaves_nothing(cluster: Slurm, tmp_path: Path) -> None:
    manifest = manifest_of(cell_images(tmp_path / "cells", 24), tmp_path / "manifest").uri
    job = Job(cluster, "train.sbatch", tmp_path / "log", manifest, "--out", str(tmp_path / "models"), *TRAINING)
    job.until(lambda: "configuration:" in job.said or job.state("JobState") in ENDED, "the job's first line")
    assert job.state("JobState") == "RUNNING", job.said
    cluster.run("scancel", job.number)
    job.until(lambda: job.state("JobState") == "CANCELLED" and cluster.is_up(), "idle nodes")
    assert "the same command continues" in job.said, job.said
    assert left(cluster) == []
