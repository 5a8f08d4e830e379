"""Several nodes, some lost, some that do not see what others see: jobs go on or end with a sentence, never hang."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.model.bundle import Bundle
from tests import nodes as machine
from tests.bundles import make_bundle
from tests.nodes import HEAD, Box, Nodes, cluster
from tests.scoring_sources import contents, only_run, read_run, rows, run_score, score_command, write_files
from tests.training_data import cell_images, manifest_of

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(900)]
COPIES, IMAGES, SHARDS_BEFORE = 100, 20_000, 30
PATIENCE_S = 300


@pytest.fixture(autouse=True, scope="module")
def _able() -> None:
    reason = machine.why_not()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many images that cost no room: names of few files."""
    source = write_files(tmp_path_factory.mktemp("in"), contents(IMAGES // COPIES, bad=False, size=(640, 480)))
    for image in list(source.rglob("*.jpg")):
        for number in range(1, COPIES):
            os.link(image, image.with_name(f"{image.stem}-{number}.jpg"))
    return source


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}"
        time.sleep(0.05)


def done(nodes: Nodes, *command: str) -> tuple[int, str]:
    """Exit code and all that a command on the head says, joined to the cluster."""
    run = nodes.popen(sys.executable, "-m", *command, "--address", HEAD)
    said, _ = run.communicate(timeout=PATIENCE_S)
    return run.returncode, said


def scoring(nodes: Nodes, archive: Path, bundle: Bundle, out: Path, on: Box | None = None) -> subprocess.Popen[str]:
    """A run on the whole archive, in its middle."""
    command = score_command(str(archive), "--model", bundle.uri, "--out", str(out), "--workers", "3", "--address", HEAD)
    run = nodes.popen(*command, on=on)
    parts = "run-*/_work/parts/part-*.parquet"
    until(lambda: len(list(out.glob(parts))) >= SHARDS_BEFORE or run.poll() is not None, "the first parts")
    return run


def assert_whole(run: subprocess.Popen[str], out: Path) -> None:
    said, _ = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0, said
    assert "a worker died" in said, said
    assert read_run(only_run(out))["counts"]["scored"] == rows(only_run(out)).num_rows == IMAGES


def test_scoring_outlives_nodes_takes_new_ones_and_goes_on_after_the_loss_of_its_head(
    archive: Path, bundle: Bundle, tmp_path: Path
) -> None:
    with cluster(tmp_path, [1, 1, 1]) as nodes:
        run = scoring(nodes, archive, bundle, tmp_path / "lost")
        nodes.boxes[2].kill()
        assert_whole(run, tmp_path / "lost")

        nodes.start(1)
        nodes.wait_for(3)
        run = scoring(nodes, archive, bundle, tmp_path / "replaced")
        nodes.boxes[3].kill()
        last = nodes.start(1)
        assert_whole(run, tmp_path / "replaced")
        nodes.wait_for(3)

        out = tmp_path / "headless"
        nodes.environment["RAY_gcs_rpc_server_reconnect_timeout_s"] = "30"  # a minute, where nobody says so
        run = scoring(nodes, archive, bundle, out, on=last)
        nodes.head.kill()
        said, _ = run.communicate(timeout=PATIENCE_S)
        assert run.returncode == 5 and said.splitlines()[-1].startswith("leukoray score: Ray's head at"), said
    again = run_score(str(archive), "--model", bundle.uri, "--out", str(out), "--workers", "2", timeout_s=PATIENCE_S)
    assert again.returncode == 0 and "continuing run-" in again.stdout, again.stdout + again.stderr
    assert read_run(only_run(out))["progress"]["resumed_images"] > 0
    assert rows(only_run(out)).num_rows == IMAGES


def test_training_goes_on_where_there_is_room_and_never_waits_for_a_node_that_is_gone(tmp_path: Path) -> None:
    manifest = manifest_of(cell_images(tmp_path / "cells", 48), tmp_path / "manifest").uri
    options = ["--input-size", "32", "--patience", "0", "--epochs", "100000", "--out", str(tmp_path / "models")]
    log = tmp_path / "train.log"

    def says(text: str) -> bool:
        return text in log.read_text()

    with cluster(tmp_path, [1, 1, 1]) as nodes, log.open("w") as sink:
        run = nodes.popen(sys.executable, "-um", "jobs.train", manifest, *options, "--address", HEAD, stdout=sink)
        until(lambda: says("epoch   3/") or run.poll() is not None, "three epochs")
        working, other = sorted(nodes.boxes[1:], key=lambda box: not box.runs("RayTrainWorker"))
        working.kill()
        until(lambda: says("continuing after epoch") or run.poll() is not None, "epochs without it")
        assert run.poll() is None, log.read_text()
        other.kill()
        assert run.wait(PATIENCE_S) == 5, log.read_text()
        last = log.read_text().splitlines()[-1]
        assert "a node was lost: train needs 2 workers of 1 CPU, this Ray has room for 1 (1 node of 1 CPU); the" in last


def test_what_fits_on_no_node_or_is_not_on_every_node_is_refused_before_work(bundle: Bundle, tmp_path: Path) -> None:
    manifest = manifest_of(cell_images(tmp_path / "cells", 48), tmp_path / "manifest").uri
    own = tmp_path / "own"
    cells, measure = str(tmp_path / "cells"), ["--model", bundle.uri, "--split", "validation"]
    with cluster(tmp_path, [2, 2], unshared=[own]) as nodes:
        for job in (
            ["jobs.train", manifest, "--out", str(tmp_path / "models"), "--workers", "1"],
            ["jobs.evaluate", manifest, *measure, "--out", str(tmp_path / "report")],
            ["jobs.score", cells, "--model", bundle.uri, "--out", str(tmp_path / "scores")],
        ):
            code, said = done(nodes, *job, "--cpus-per-worker", "3")
            assert code == 5 and "3 CPUs a worker fit on no node (2 nodes of 2 CPUs); lower" in said, said

        nodes.head.run("cp", "-r", bundle.uri, str(own / "bundle"))
        for job, unseen in (
            (["jobs.train", manifest, "--out", str(own / "models")], own / "models"),
            (["jobs.evaluate", manifest, "--model", str(own / "bundle"), *measure[2:]], own / "bundle"),
            (["jobs.score", cells, "--model", bundle.uri, "--out", str(own / "scores")], own / "scores"),
            (["jobs.doctor", "--model", str(own / "bundle"), "--out", str(tmp_path)], own / "bundle"),
        ):
            code, said = done(nodes, *job)
            assert code == 5 and f"node-2 (10.77.0.2) does not see {unseen}" in said, said
        left = nodes.popen("find", str(own), str(tmp_path), "-name", "_probe*").communicate()[0]
        assert left == ""
