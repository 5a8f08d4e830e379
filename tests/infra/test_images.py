"""The image score-serve, built for real by what is there, and its main job in it: nobody special, a read-only root."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import nodes as machine
from tests.bundles import make_bundle
from tests.container import Built, environment
from tests.images import encoded, scene
from tests.nodes import HEAD, JOBS, ROOT, Box, Nodes
from tests.scoring_sources import contents, only_run, read_run, rows, write_files
from tests.servers import CREDENTIALS, free_port
from tests.stores import found
from tests.training_data import cell_images, manifest_of

MAX_MB = 900
pytestmark = [pytest.mark.infra, pytest.mark.timeout(3000)]
PATIENCE_S = 1200
STORE = "10.77.0.254:9000"  # on the switch of the nodes
COPIES = 40  # of each file, under names of its own
KINDS = ("predictions", "quarantine")


class Cluster:
    """Nodes that run nothing but the image, and rclone's S3 on their switch, with its bucket in a folder of ours."""

    def __init__(self, image: Built, folder: Path) -> None:
        self.image, self.bucket = image, folder / "served" / "cells"
        self.bucket.mkdir(parents=True)
        self.nodes = Nodes(dict(os.environ), folder / "nodes.log")
        self.variables = {**CREDENTIALS, "AWS_ENDPOINT_URL_S3": f"http://{STORE}", "RAY_AUTH_MODE": "disabled"}

    def serve_bucket(self) -> None:
        """What was put into it before is seen by others from now on."""
        home = self.bucket.parents[1]
        keys = f"{CREDENTIALS['AWS_ACCESS_KEY_ID']},{CREDENTIALS['AWS_SECRET_ACCESS_KEY']}"
        options = ["--addr", STORE, "--auth-key", keys, "--etag-hash", "MD5", "--config", str(home / "rclone.conf")]
        served = ["--cache-dir", str(home / "cache"), str(self.bucket.parent)]
        self.nodes.background(self.nodes.switch, str(found("rclone")), "serve", "s3", *options, *served)
        self.nodes.wait_for_head(STORE)

    def start(self) -> Box:
        """Another node, of one CPU. On a busy machine Ray gives up waiting for its own parts: then again."""
        box = self.nodes.bare()
        self.image.mount(box)
        until_it_runs = ["sh", "-c", 'until "$@"; do sleep 1; done', "sh"]
        command = self.image.inside(*until_it_runs, *self.nodes.ray_start(1, dashboard=True), **self.variables)
        self.nodes.background(box, *command)
        self.nodes.wait_for_head(patience_s=PATIENCE_S)
        return box

    def wait_for(self, count: int) -> None:
        self.nodes.wait_for(count, self.image.inside("python", **self.variables), PATIENCE_S)

    def leukoray(self, job: str, *words: str) -> subprocess.Popen[str]:
        """A job, started on the head."""
        command = ["leukoray", job, *words, "--address", HEAD]
        return self.nodes.popen(*self.image.inside(*command, **self.variables))

    def submit(self, job: str, *words: str) -> subprocess.Popen[str]:
        """A job, sent to the cluster, which has no more than the image."""
        until(lambda: bool(self.said(self.nodes.head, "ray", "job", "list", "--address", JOBS)), "jobs are taken")
        command = ["ray", "job", "submit", "--address", JOBS, "--", "leukoray", job, *words]
        return self.nodes.popen(*self.image.inside(*command, **self.variables))

    def said(self, box: Box, *words: str) -> str:
        """What a command in the image says on a node; nothing where it fails."""
        run = self.nodes.popen(*self.image.inside(*words), on=box)
        said, _ = run.communicate(timeout=PATIENCE_S)
        return said if run.returncode == 0 else ""


@contextlib.contextmanager
def cluster_of(image: Built, folder: Path) -> Iterator[Cluster]:
    reason = machine.why_not() or (
        None if image.tool == "buildah" else "the image on two nodes: wants buildah, as root"
    )
    if reason:
        pytest.skip(reason)
    cluster = Cluster(image, folder)
    try:
        yield cluster
    finally:
        cluster.nodes.end()


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def image() -> Iterator[Built]:
    with tempfile.TemporaryDirectory(prefix="leukoray-image-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)
        built = Built(Path(folder))
        yield built
        built.remove()


def test_it_says_what_it_is_and_runs_as_nobody_special(image: Built) -> None:
    assert image.config["User"] == "1000:1000"
    labels = image.config["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "MIT"
    assert image.said("leukoray", "--version").split() == ["leukoray", labels["org.opencontainers.image.version"]]
    assert "/readyz" in " ".join(image.config["Env"]) and "wget" in " ".join(image.config["Healthcheck"]["Test"])
    assert image.said("id", "-u").strip() == "1000"


def test_it_is_small_and_holds_no_torch(image: Built) -> None:
    assert image.size_mb() < MAX_MB
    lacking = "import importlib.util as u; print([n for n in ('torch', 'sklearn', 'pip') if u.find_spec(n)])"
    assert image.said("python", "-c", lacking).strip() == "[]"


def test_it_scores_and_serves_on_a_read_only_root(image: Built) -> None:
    assert "ok" not in image.said("sh", "-c", "touch /opt/leukoray/new 2>/dev/null && echo ok || true")
    picture = encoded(scene(), "JPEG")
    archive = image.folder / "archive"
    archive.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (archive / name).write_bytes(picture)
    (archive / "broken.jpg").write_bytes(picture[:200])
    make_bundle(image.folder / "model", size=32)
    (image.folder / "out").mkdir()
    (image.folder / "out").chmod(0o777)
    command = ("leukoray", "score", "/tmp/data/archive", "--model", "/tmp/data/model", "--out", "/tmp/data/out")
    assert "listed 3 = scored 2 + quarantined 1" in image.said(*command, "--max-error-share", "1")
    assert "page: " in image.said("leukoray", "summary", "/tmp/data/out")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    service = subprocess.Popen(
        image.command("leukoray", "serve", "/tmp/data/model", "--port", str(port), "--replicas", "1"), env=environment
    )
    try:
        until = time.monotonic() + 300
        while not _answers(f"{address}/readyz"):
            assert service.poll() is None and time.monotonic() < until
            time.sleep(1)
        request = urllib.request.Request(f"{address}/predict", data=picture)
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert 0 <= json.load(answer)["probability"] <= 1
        image.said("env", f"HEALTH_URL={address}/readyz", *image.config["Healthcheck"]["Test"][1:])
    finally:
        image.end(service)
        service.wait(120)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def train(out: Path, folder: Path) -> None:
    """A model of two kinds of blobs, by this checkout's own environment, which has torch."""
    manifest = manifest_of(cell_images(folder / "cells", 48), folder / "manifest").uri
    small = ["--architecture", "cnn", "--weights", "none", "--input-size", "32", "--batch-size", "4", "--epochs", "8"]
    command = [sys.executable, "-m", "jobs.train", manifest, "--out", str(out), *small, "--workers", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr


def many(folder: Path) -> list[str]:
    """An archive of `COPIES` times a hundred images, three of each hundred damaged; its names."""
    files = contents(100, size=(640, 480))
    write_files(folder, files)
    for name in files:
        for number in range(1, COPIES):
            os.link(folder / name, folder / f"{number}-{name}")
    return sorted(path.name for path in folder.iterdir())


def test_on_two_nodes_it_scores_from_s3_although_one_dies_and_serves_on_a_new_one(image: Built, tmp_path: Path) -> None:
    with cluster_of(image, tmp_path) as cluster:
        train(cluster.bucket / "models", tmp_path)
        names = many(cluster.bucket / "night")
        _, worker = cluster.start(), cluster.start()
        cluster.serve_bucket()
        cluster.wait_for(2)

        options = ["--model", "s3://cells/models", "--out", "s3://cells/scores", "--workers", "2", "--single-writer"]
        job = cluster.submit("score", "s3://cells/night/", *options, "--max-error-share", "1")
        parts = "scores/run-*/_work/parts/part-*.parquet"
        until(
            lambda: (
                job.poll() is not None or (len(list(cluster.bucket.glob(parts))) >= 4 and worker.runs("ScoringActor"))
            ),
            "the middle of scoring, on both nodes",
        )
        worker.kill()
        said, _ = job.communicate(timeout=PATIENCE_S)
        assert job.returncode == 0 and "a worker died" in said and "succeeded" in said, said
        run = only_run(cluster.bucket / "scores")
        scored, refused = ([Path(uri).name for uri in rows(run, kind)["uri"].to_pylist()] for kind in KINDS)
        assert sorted(scored + refused) == names and len(refused) == 3 * COPIES
        counts = read_run(run)["counts"]
        assert counts["scored"] == len(scored) and counts["quarantined"] == len(refused), counts

        new = cluster.start()
        cluster.wait_for(2)
        service = cluster.leukoray("serve", "s3://cells/models", "--host", "0.0.0.0", "--replicas", "2")
        wget = ["wget", "-q", "-T", "60", "-O", "-"]
        ready = [*wget, "http://node-1:8000/readyz"]
        until(lambda: bool(cluster.said(new, *ready)) or service.poll() is not None, "the endpoint")
        assert service.poll() is None, service.communicate()[0]
        (image.folder / "picture.jpg").write_bytes(encoded(scene(), "JPEG"))
        answer = cluster.said(new, *wget, "--post-file=/tmp/data/picture.jpg", "http://node-1:8000/predict")
        assert 0 <= json.loads(answer)["probability"] <= 1
