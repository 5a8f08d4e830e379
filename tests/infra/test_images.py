"""The image score-serve, built for real by what is there, and its main job in it: nobody special, a read-only root.

Wants the package index; with buildah also root, mmdebstrap and a Debian mirror, for a base of Debian's packages alone.
"""

import functools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bundles import make_bundle
from tests.images import encoded, scene
from tests.servers import free_port

ROOT = Path(__file__).resolve().parents[2]
TAG = "localhost/leukoray-score-serve:test"
MAX_MB = 1_150  # 1,087 were measured, of blocks of 4 kB; below 900 it was not to be had with OpenCV, SciPy and Ray
pytestmark = [pytest.mark.infra, pytest.mark.timeout(1200)]

# A root that nobody can write to, but for /tmp: what `docker run --read-only --tmpfs /tmp` gives, without docker.
SANDBOX = """
set -eu
root=$1; data=$2; shift 2
mount --bind "$root" "$root"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mkdir "$root/tmp/data"
mount --bind "$data" "$root/tmp/data"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -o remount,ro,bind "$root"
exec chroot --userspec=1000:1000 "$root" env -i "$@"
"""
environment = {**os.environ, "STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}
run = functools.partial(subprocess.run, check=True, text=True, stdout=subprocess.PIPE, env=environment, cwd=ROOT)


class Built:
    """The image: what it says of itself, its files, and commands in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tool = "docker" if _runs("docker", "info") else "podman" if _runs("podman", "run", "--help") else "buildah"
        if self.tool != "buildah":
            run(["infra/images/build.sh", "score-serve", TAG])
            [self.config] = [json.loads(run([self.tool, "inspect", TAG]).stdout)[0]["Config"]]
            return
        _needs("buildah", "mmdebstrap", "unshare", "chroot")
        tar = folder / "base.tar"
        run(["mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates", "bookworm", str(tar)])
        base = run(["buildah", "from", "scratch"]).stdout.strip()
        run(["buildah", "add", "--quiet", base, str(tar), "/"])
        run(["buildah", "commit", "--quiet", "--rm", base, "localhost/leukoray-base:test"])
        tar.unlink()
        flags = ["--network", "host"]
        if certificates := os.environ.get("PIP_CERT"):
            flags += ["--volume", f"{certificates}:/run/trusted.crt:ro", "--build-arg", "PIP_CERT=/run/trusted.crt"]
        environment["BASE"] = "localhost/leukoray-base:test"
        run(["infra/images/build.sh", "score-serve", TAG, *flags])
        inspected = run(["buildah", "inspect", "--type", "image", TAG]).stdout
        self.config: dict[str, Any] = json.loads(inspected)["Docker"]["config"]
        self.container = run(["buildah", "from", TAG]).stdout.strip()
        self.root = run(["buildah", "mount", self.container]).stdout.strip()

    def remove(self) -> None:
        if self.tool == "buildah":
            run(["buildah", "rm", self.container])
            run(["buildah", "rmi", "--prune", TAG, "localhost/leukoray-base:test"])
        else:
            run([self.tool, "rmi", TAG])

    def size_mb(self) -> float:
        if self.tool == "buildah":
            return int(run(["du", "-sx", "--block-size=1000", self.root]).stdout.split()[0]) / 1000
        return int(run([self.tool, "image", "inspect", "--format", "{{.Size}}", TAG]).stdout) / 1e6

    def command(self, *words: str) -> list[str]:
        """In the image, as its user, with its environment, `folder` at /tmp/data, the network of this machine."""
        if self.tool != "buildah":
            kept = ["--rm", "--read-only", "--tmpfs", "/tmp:mode=1777", "--network", "host", "--shm-size", "1g"]
            return [self.tool, "run", *kept, "--volume", f"{self.folder}:/tmp/data", TAG, *words]
        apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", SANDBOX, "sh"]
        return [*apart, self.root, str(self.folder), *self.config["Env"], *self.config["Entrypoint"], *words]

    def end(self, started: "subprocess.Popen[bytes]") -> None:
        """SIGTERM to what runs in the image; `unshare` hands on no signals."""
        inner = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
        os.kill(int(inner[0]) if self.tool == "buildah" and inner else started.pid, signal.SIGTERM)

    def said(self, *words: str) -> str:
        done = subprocess.run(
            self.command(*words), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


def _runs(*command: str) -> bool:
    return shutil.which(command[0]) is not None and subprocess.run(command, capture_output=True).returncode == 0


def _needs(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"an image needs docker or podman, or as root {', '.join(programs)}; missing: {missing or 'root'}")


@pytest.fixture(scope="module")
def image() -> Iterator[Built]:
    with tempfile.TemporaryDirectory(prefix="leukoray-image-", dir="/var/tmp") as folder:  # /tmp is the image's own
        os.chmod(folder, 0o777)
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
