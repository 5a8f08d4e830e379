"""Several nodes, some lost, some that do not see what others see: jobs go on or end with a sentence, never hang."""

import importlib.metadata
import json
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
FILES, SHARDS_BEFORE = 100, 20
PATIENCE_S = 300


@pytest.fixture(autouse=True, scope="module")
def _able() -> None:
    reason = machine.why_not()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("model") / "bundle")


def archive(folder: Path, images: int) -> Path:
    """Many images that cost little room: names of few files."""
    source = write_files(folder, contents(FILES, bad=False, size=(640, 480)))
    for image in list(source.rglob("*.jpg")):
        for number in range(1, images // FILES):
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


def scoring(nodes: Nodes, source: Path, bundle: Bundle, out: Path, on: Box | None = None) -> subprocess.Popen[str]:
    """A run with two workers, in its middle."""
    options = ["--model", bundle.uri, "--out", str(out), "--workers", "2", "--address", HEAD]
    run = nodes.popen(*score_command(str(source), *options), on=on)
    parts = "run-*/_work/parts/part-*.parquet"
    until(lambda: len(list(out.glob(parts))) >= SHARDS_BEFORE or run.poll() is not None, "the first parts")
    return run


def assert_whole(out: Path, images: int) -> None:
    """Every image once, and counted so."""
    found = rows(only_run(out))
    assert read_run(only_run(out))["counts"]["scored"] == found.num_rows == len(set(found["uri"].to_pylist())) == images


def test_scoring_outlives_a_node(bundle: Bundle, tmp_path: Path) -> None:
    source, out = archive(tmp_path / "in", 6_000), tmp_path / "out"
    with cluster(tmp_path, [1, 1]) as nodes:
        run = scoring(nodes, source, bundle, out)
        nodes.boxes[1].kill()
        said, _ = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0 and "a worker died" in said, said
    assert_whole(out, 6_000)


def test_scoring_takes_a_new_node_and_goes_on_after_the_loss_of_its_head(bundle: Bundle, tmp_path: Path) -> None:
    source, out = archive(tmp_path / "in", 60_000), tmp_path / "out"
    with cluster(tmp_path, [0, 1, 1]) as nodes:
        nodes.environment["RAY_gcs_rpc_server_reconnect_timeout_s"] = "30"  # a minute, where nobody says so
        run = scoring(nodes, source, bundle, out, on=nodes.boxes[1])
        nodes.boxes[2].kill()
        new = nodes.start(1)
        until(lambda: new.runs("ScoringActor") or run.poll() is not None, "work on the new node")
        assert run.poll() is None, "the archive is too small"
        nodes.head.kill()
        said, _ = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 5 and said.splitlines()[-1].startswith("leukoray score: Ray's head at"), said
    again = run_score(str(source), "--model", bundle.uri, "--out", str(out), "--workers", "2", timeout_s=PATIENCE_S)
    assert again.returncode == 0 and "continuing run-" in again.stdout, again.stdout + again.stderr
    assert read_run(only_run(out))["progress"]["resumed_images"] > 0
    assert_whole(out, 60_000)


def test_training_does_not_wait_for_ever_for_a_node_that_is_gone(tmp_path: Path) -> None:
    manifest = manifest_of(cell_images(tmp_path / "cells", 48), tmp_path / "manifest").uri
    options = [
        "--architecture",
        "cnn",
        "--input-size",
        "32",
        "--patience",
        "0",
        "--epochs",
        "100000",
        "--out",
        str(tmp_path / "models"),
    ]
    log = tmp_path / "train.log"
    with cluster(tmp_path, [1, 1]) as nodes, log.open("w") as sink:
        run = nodes.popen(sys.executable, "-um", "jobs.train", manifest, *options, "--workers", "2",
                          "--cpus-per-worker", "1", "--address", HEAD, stdout=sink)  # fmt: skip
        until(lambda: "epoch   2/" in log.read_text() or run.poll() is not None, "two epochs")
        nodes.boxes[1].kill()
        assert run.wait(PATIENCE_S) == 5, log.read_text()
    last = log.read_text().splitlines()[-1]
    assert (
        "a node was lost: train needs 2 workers of 1 CPU, this Ray has room for 1 (1 node of 1 CPU); the same" in last
    )


def test_images_are_decoded_on_one_node_and_copied_to_the_others(tmp_path: Path) -> None:
    manifest = manifest_of(cell_images(tmp_path / "cells", 96), tmp_path / "manifest").uri
    cache = tmp_path / "cache"
    with cluster(tmp_path, [1, 1], unshared=[cache]) as nodes:
        run = nodes.popen(sys.executable, "-m", "tests.pixels_on_nodes", manifest, str(cache), HEAD)
        said, _ = run.communicate(timeout=PATIENCE_S)
        assert run.returncode == 0, said
    first, second = json.loads(said.splitlines()[-1])
    assert min(first["decoded"].values()) >= 1 and sum(first["decoded"].values()) == 3  # files
    assert len({*first["seen"], *second["seen"]}) == 1
    assert set(second["decoded"].values()) == {0}


def test_what_fits_on_no_node_or_is_not_on_every_node_is_refused_before_work(bundle: Bundle, tmp_path: Path) -> None:
    manifest = manifest_of(cell_images(tmp_path / "cells", 48), tmp_path / "manifest").uri
    own = tmp_path / "own"
    cells, measure = str(tmp_path / "cells"), ["--model", bundle.uri, "--split", "validation"]
    with cluster(tmp_path, [2, 2], unshared=[own]) as nodes:
        for job in (
            ["jobs.train", manifest, "--out", str(tmp_path / "models"), "--workers", "1"],
            ["jobs.evaluate", manifest, *measure, "--out", str(tmp_path / "report")],
        ):
            code, said = done(nodes, *job, "--cpus-per-worker", "3")
            assert code == 5 and "3 CPUs a worker fit on no node (2 nodes of 2 CPUs); lower" in said, said

        nodes.head.run("cp", "-r", bundle.uri, str(own / "bundle"))
        for job, unseen in (
            (["jobs.train", manifest, "--out", str(own / "models")], own / "models"),
            (["jobs.score", cells, "--model", bundle.uri, "--out", str(own / "scores")], own / "scores"),
            (["jobs.doctor", "--model", str(own / "bundle"), "--out", str(tmp_path)], own / "bundle"),
        ):
            code, said = done(nodes, *job)
            assert code == 5 and f"node-2 (10.77.0.2) does not see {unseen}" in said, said
        left = nodes.popen("find", str(own), str(tmp_path), "-name", "_probe*").communicate()[0]
        assert left == ""
        nodes.start(4, _trouble(tmp_path))
        nodes.wait_for(3)
        code, said = done(nodes, "jobs.score", cells, "--model", bundle.uri, "--out", str(tmp_path / "scores"))
        assert code == 5 and "node-3 (10.77.0.3) has another onnxruntime" in said, said
        code, said = done(nodes, "jobs.doctor", "--out", str(tmp_path), "--json")
        found = json.loads(said[said.index("{") : said.rindex("}") + 1])["findings"]
        mends = {one["name"]: one["mend"] for one in found if str(one["node"]).startswith("node-3 ") and one["mend"]}
        assert mends.pop("placement").startswith("ray start --num-cpus="), found
        version = importlib.metadata.version("onnxruntime")
        assert mends.pop("onnxruntime") == f"pip install onnxruntime=={version}"
        assert mends == {"open files": "ulimit -n 65536", "clock": "chronyc makestep"}
        wrong = {(str(one["node"])[:6], one["name"]) for one in found if one["level"] == "fail"}
        assert wrong == {("node-3", name) for name in ("open files", "onnxruntime", "clock", "temp folder")}


def _trouble(folder: Path) -> str:
    """What a shell does before it starts Ray on a machine where little is as it should be."""
    packages, full = folder / "packages", folder / "full"
    (packages / "onnxruntime-9.9.9.dist-info").mkdir(parents=True)
    (packages / "onnxruntime-9.9.9.dist-info/METADATA").write_text("Name: onnxruntime\nVersion: 9.9.9\n")
    (packages / "sitecustomize.py").write_text("import time\nnow = time.time\ntime.time = lambda: now() - 3600\n")
    full.mkdir()
    filled = f"mount -t tmpfs -o size=16m tmpfs {full}; head -c 20M /dev/zero > {full}/file 2>/dev/null"
    return f"ulimit -n 300; {filled}; export TMPDIR={full} PYTHONPATH={packages}"
