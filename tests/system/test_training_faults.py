"""Training through kills, a full disk, a store that goes out and nodes that come and go: one line, and the same model.

A run saves where it stands every few steps here. What ends it is followed by the same command, and the weights must be
those of a run that nothing disturbed, to the bit; after a change of the number of workers within a tolerance.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.model.bundle import Bundle
from pipeline.model.registry import resolve
from tests import nodes as machine
from tests.nodes import HEAD, Box, cluster
from tests.scoring_sources import ROOT
from tests.servers import CREDENTIALS, Faults, S3Server, faulty_proxy
from tests.training_data import cell_images, manifest_of

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(900)]
PATIENCE_S = 600
# As `leukoray train`, but that a checkpoint within an epoch comes every 0.2 s, and workers become more only when they
# start anew
OFTEN = """
import sys
from pipeline.training import fit, midway
midway.SAVING = midway.Rhythm(0.2, 1.0)
fit._RESIZE_EVERY_S = 1e6
from jobs.train import command
from jobs.common import start
start(command)
"""
NET = ["--architecture", "cnn", "--weights", "none", "--input-size", "32"]
SMALL = [*NET, "--batch-size", "4", "--epochs", "2", "--workers", "2", "--cpus-per-worker", "0.5"]
IMAGES = 240  # 160 to learn from: 40 steps an epoch


class Run:
    """A training command, what it says, and the processes it started."""

    def __init__(self, arguments: list[str], log: Path, env: dict[str, str] | None = None) -> None:
        self.log = log
        with log.open("w") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-uc", OFTEN, *arguments], cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self.log.read_text()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        until(lambda: condition() or self.process.poll() is not None, what)
        assert self.process.poll() is None, f"ended before {what}: {self.said}"

    def workers(self) -> list[psutil.Process]:
        tree = psutil.Process(self.process.pid).children(recursive=True)
        return [each for each in tree if "RayTrainWorker" in name_of(each)]

    def end(self) -> int:
        return self.process.wait(PATIENCE_S)


def name_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}"
        time.sleep(0.02)


def whole_checkpoints(out: Path) -> set[str]:
    return {path.parent.name for path in out.glob("leukoray/.runs/*/checkpoint_*/state.json")}


def is_within_an_epoch(out: Path) -> bool:
    """A whole checkpoint of some steps is there."""
    return bool(list(out.glob("leukoray/.runs/*/checkpoint_*/statistics.safetensors"))) and bool(whole_checkpoints(out))


def sha(out: Path | str) -> str:
    return resolve(f"{out}/leukoray").info.weights_sha256


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("cells")
    return manifest_of(cell_images(folder / "images", IMAGES), folder / "manifest").uri


@pytest.fixture(scope="module")
def undisturbed(manifest: str, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Without a checkpoint within its epochs, too."""
    out = tmp_path_factory.mktemp("undisturbed")
    command = [sys.executable, "-m", "jobs.train", manifest, "--out", str(out), *SMALL]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return resolve(f"{out}/leukoray")


def test_workers_and_drivers_that_are_killed_and_ctrl_c_cost_some_steps_and_change_nothing(
    manifest: str, undisturbed: Bundle, tmp_path: Path
) -> None:
    arguments = [manifest, "--out", str(tmp_path), *SMALL]
    run = Run(arguments, tmp_path / "1.log")
    run.until(lambda: is_within_an_epoch(tmp_path), "a checkpoint within an epoch")
    for _ in range(3):  # an impatient hand
        run.process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert run.end() == 130
    assert (
        run.said.splitlines()[-1]
        == "leukoray train: interrupted; what was finished is kept, the same command continues"
    )
    assert "Traceback" not in run.said

    run, before = Run(arguments, tmp_path / "2.log"), whole_checkpoints(tmp_path)
    run.until(lambda: bool(whole_checkpoints(tmp_path) - before), "the first checkpoint after it")
    run.process.kill()
    run.end()

    run, before = Run(arguments, tmp_path / "3.log"), whole_checkpoints(tmp_path)
    run.until(lambda: bool(whole_checkpoints(tmp_path) - before), "the first checkpoint after that")
    run.workers()[0].kill()
    assert run.end() == 0, run.said
    assert re.search(r"worker \d failed .*; continuing from the last checkpoint", run.said)
    assert sha(tmp_path) == undisturbed.info.weights_sha256


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Room for two checkpoints, not for three."""
    reason = machine.why_not()
    if reason:
        pytest.skip(reason.replace("several nodes", "a full disk"))
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=7m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_is_full_at_a_checkpoint_ends_it_in_a_line_and_with_room_it_goes_on(
    manifest: str, undisturbed: Bundle, small_disk: Path, tmp_path: Path
) -> None:
    arguments = [manifest, "--out", str(small_disk), *SMALL]
    run = Run(arguments, tmp_path / "1.log")
    assert run.end() == 5, run.said
    last = run.said.splitlines()[-1]
    assert last.startswith("leukoray train: ") and "the disk is full; free space and run the same command again" in last
    assert "failed" not in run.said  # nothing was tried again in vain
    assert whole_checkpoints(small_disk)
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    snapshot = next(small_disk.glob("leukoray/.runs/*/checkpoint_manager_snapshot.json"))
    snapshot.write_bytes(snapshot.read_bytes()[:40])  # what a disk leaves that is full while Ray writes its notes
    run = Run(arguments, tmp_path / "2.log")
    assert run.end() == 0, run.said
    assert "damaged by an interruption; the checkpoints beside it are used" in run.said
    assert sha(small_disk) == undisturbed.info.weights_sha256


@pytest.mark.parametrize("cache", ["held", "none"])
def test_a_store_that_goes_out_ends_it_in_a_line_and_when_it_is_back_it_goes_on(
    cache: str, s3: S3Server, tmp_path: Path
) -> None:
    """Images and models on S3: held images leave the checkpoints to fail, streamed ones fail themselves."""
    rows = cell_images(tmp_path / "images", IMAGES)
    source = s3.upload(f"faults-{cache}/cells", {Path(row["uri"]).name: Path(row["uri"]).read_bytes() for row in rows})
    listed = {item["Key"].rsplit("/", 1)[-1]: item for item in s3.client().list_objects_v2(
        Bucket=s3.bucket, Prefix=f"faults-{cache}/cells/", MaxKeys=1000)["Contents"]}  # fmt: skip
    for row in rows:
        name = Path(row["uri"]).name
        row |= {
            "uri": f"{source}/{name}",
            "etag": listed[name]["ETag"].strip('"'),
            "mtime": listed[name]["LastModified"],
        }
    manifest = manifest_of(rows, tmp_path / "manifest").uri
    faults, outs = Faults(), [f"s3://{s3.bucket}/faults-{cache}/models-{number}" for number in (1, 2)]
    place = ["--cache", "none" if cache == "none" else str(tmp_path / "cache")]
    with faulty_proxy(s3.endpoint, faults) as endpoint:
        env = {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}
        whole = Run([manifest, "--out", outs[0], *SMALL, *place], tmp_path / "whole.log", env)
        assert whole.end() == 0, whole.said
        arguments = [manifest, "--out", outs[1], *SMALL, *place]
        run = Run(arguments, tmp_path / "1.log", env)
        stored = f"faults-{cache}/models-2/leukoray/.runs/"
        run.until(lambda: has_object(s3, stored, "state.json"), "a checkpoint")
        faults.is_down = True
        assert run.end() == 5, run.said
        last = run.said.splitlines()[-1]
        assert last.startswith("leukoray train: the store does not answer"), run.said
        faults.is_down = False
        run = Run(arguments, tmp_path / "2.log", env)
        assert run.end() == 0, run.said
    found = [resolve(f"{out}/leukoray", s3.stores).info.weights_sha256 for out in outs]
    assert found[0] == found[1]


def has_object(s3: S3Server, prefix: str, end: str) -> bool:
    pages = s3.client().get_paginator("list_objects_v2").paginate(Bucket=s3.bucket, Prefix=prefix)
    return any(item["Key"].endswith(end) for page in pages for item in page.get("Contents", []))


def test_nodes_that_go_and_come_leave_the_same_curve(manifest: str, tmp_path: Path) -> None:
    """A node is lost, one comes, and that of rank 0 says that it will go: none of it ends the run or loses an epoch."""
    reason = machine.why_not()
    if reason:
        pytest.skip(reason)
    out, log = tmp_path / "models", tmp_path / "train.log"
    flags = [*NET, "--batch-size", "12", "--norm", "group", "--no-augment", "--epochs", "60",
             "--patience", "0", "--out", str(out), "--cache", str(tmp_path / "cache")]  # fmt: skip
    with cluster(tmp_path, [0, 1, 1]) as nodes, log.open("w") as sink:
        run = nodes.popen(sys.executable, "-uc", OFTEN, manifest, *flags, "--workers", "1:3", "--cpus-per-worker", "1",
                          "--address", HEAD, stdout=sink)  # fmt: skip

        def reached(*what: str) -> None:
            until(lambda: has_lines(log.read_text(), *what) or run.poll() is not None, str(what))
            assert run.poll() is None, log.read_text()

        lost, left = "training on cpu, 1 worker,", "a node is about to go away: continuing on the others"
        reached("training on cpu, 2 workers,", "epoch   1/60  loss")
        nodes.boxes[2].kill()
        reached(lost, "continuing after", "loss")
        new = nodes.start(1)
        nodes.wait_for(3)  # the head, the one that is left, which holds rank 0 now, and the new one
        drain(nodes.boxes[1], nodes.environment)
        reached(lost, left, "training on cpu, 1 worker,", "continuing after", "loss")
        assert new.runs("RayTrainWorker") and not nodes.boxes[1].runs("RayTrainWorker")
        nodes.boxes[1].kill()
        assert run.wait(PATIENCE_S) == 0, log.read_text()
    alone = tmp_path / "alone"
    command = [sys.executable, "-m", "jobs.train", manifest, *flags, "--out", str(alone), "--workers", "1"]
    assert subprocess.run(command, cwd=ROOT, timeout=PATIENCE_S, capture_output=True).returncode == 0
    disturbed, whole = (resolve(f"{place}/leukoray").info.training["history"] for place in (out, alone))
    assert [row["step"] for row in disturbed] == [row["step"] for row in whole]
    losses = ([row["train_loss"] for row in history] for history in (disturbed, whole))
    np.testing.assert_allclose(*losses, atol=0.003)  # sums of other parts round otherwise; they fall from 0.65 to 0.12


def test_the_loss_of_the_head_ends_it_in_a_line_and_the_same_command_goes_on_elsewhere(
    manifest: str, undisturbed: Bundle, tmp_path: Path
) -> None:
    """Workers, the command and the files are left, on a node that no longer belongs to anything."""
    reason = machine.why_not()
    if reason:
        pytest.skip(reason)
    out, log = tmp_path / "models", tmp_path / "1.log"
    arguments = [manifest, "--out", str(out), *SMALL]
    with cluster(tmp_path, [0, 2]) as nodes, log.open("w") as sink:
        nodes.environment["RAY_gcs_rpc_server_reconnect_timeout_s"] = "15"  # a minute, where nobody says so
        run = nodes.popen(
            sys.executable, "-uc", OFTEN, *arguments, "--address", HEAD, on=nodes.boxes[1], stdout=sink
        )  # fmt: skip
        until(lambda: is_within_an_epoch(out) or run.poll() is not None, "a checkpoint within an epoch")
        assert run.poll() is None, log.read_text()
        nodes.head.kill()
        assert run.wait(PATIENCE_S) == 5, log.read_text()
    said = log.read_text()
    assert said.splitlines()[-1].startswith("leukoray train: Ray's head at"), said
    assert "Traceback" not in said, said
    again = Run(arguments, tmp_path / "2.log")
    assert again.end() == 0, again.said
    assert "continuing after" in again.said
    assert sha(out) == undisturbed.info.weights_sha256


def has_lines(said: str, *parts: str) -> bool:
    """Whether the parts come one after the other."""
    at = 0
    for part in parts:
        at = said.find(part, at) + len(part)
        if at < len(part):
            return False
    return True


def drain(box: Box, environment: dict[str, str]) -> None:
    """As a cloud announces that it takes a node back in a minute."""
    command = box.inside(
        "ray", "drain-node", f"--address={HEAD}", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot",
        "--deadline-remaining-seconds=60",
    )  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
