"""The image score-serve, built for real by what is there; commands in it, also on nodes of a cluster (tests/nodes.py).

Wants the package index; with buildah also root, mmdebstrap and a Debian mirror, for a base of Debian's packages alone.
"""

import functools
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.nodes import Box

ROOT = Path(__file__).resolve().parents[1]
TAG = "localhost/leukoray-score-serve:test"
# As in slim images: no manuals, no translations, of documents the licenses alone
_LEAN = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "info", "locale", "doc")]
_LEAN += ["--dpkgopt=path-include=/usr/share/doc/*/copyright"]
# and no Perl, by which a /usr would be merged that is merged from the beginning
_LEAN += ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", "--include=ca-certificates"]

# A root that nobody can write to, but for /tmp: what `docker run --read-only --tmpfs /tmp` gives, without docker.
_MOUNTS = """
set -eu
root=$1; data=$2; shift 2
mount --bind "$root" "$root"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mkdir "$root/tmp/data"
mount --bind "$data" "$root/tmp/data"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
touch "$root/etc/hosts"
mount --bind /etc/hosts "$root/etc/hosts"
mount -o remount,ro,bind "$root"
"""
_USER = "--userspec=1000:1000"
_STORAGE = """[storage]
driver = "vfs"
graphroot = "{folder}/images"
runroot = "{folder}/running"
"""
environment = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
run = functools.partial(subprocess.run, check=True, text=True, stdout=subprocess.PIPE, env=environment, cwd=ROOT)


class Built:
    """The image: what it says of itself, its files, and commands in it. `folder` is seen there as /tmp/data."""

    def __init__(self, storage: Path) -> None:
        """In `storage` lies all that buildah makes: with the folder it is gone."""
        self.folder = storage / "data"
        self.folder.mkdir()
        self.folder.chmod(0o777)
        self.tool = "docker" if _runs("docker", "info") else "podman" if _runs("podman", "run", "--help") else "buildah"
        if self.tool != "buildah":
            run(["infra/images/build.sh", "score-serve", TAG])
            [self.config] = [json.loads(run([self.tool, "inspect", TAG]).stdout)[0]["Config"]]
            return
        _needs("buildah", "mmdebstrap", "unshare", "chroot")
        (storage / "storage.conf").write_text(_STORAGE.format(folder=storage))
        environment["CONTAINERS_STORAGE_CONF"] = str(storage / "storage.conf")
        tar = storage / "base.tar"
        run(
            [
                "mmdebstrap",
                "--quiet",
                "--variant=minbase",
                *_LEAN,
                "--include=ca-certificates,usr-is-merged",
                "bookworm",
                str(tar),
            ]
        )
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
        self.root = run(["buildah", "mount", run(["buildah", "from", TAG]).stdout.strip()]).stdout.strip()

    def remove(self) -> None:
        if self.tool != "buildah":
            run([self.tool, "rmi", TAG])

    def size_mb(self) -> float:
        """Of its files, without what folders take, as docker counts."""
        if self.tool == "buildah":
            listed = run(["find", self.root, "-xdev", "!", "-type", "d", "-printf", "%s\\n"]).stdout
            return sum(map(int, listed.split())) / 1e6
        return int(run([self.tool, "image", "inspect", "--format", "{{.Size}}", TAG]).stdout) / 1e6

    def command(self, *words: str) -> list[str]:
        """In the image, as its user, with its environment, the network of this machine."""
        if self.tool != "buildah":
            kept = ["--rm", "--read-only", "--tmpfs", "/tmp:mode=1777", "--network", "host", "--shm-size", "1g"]
            return [self.tool, "run", *kept, "--volume", f"{self.folder}:/tmp/data", TAG, *words]
        entered = f'{_MOUNTS}exec chroot {_USER} "$root" env -i "$@"'
        apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", entered, "sh"]
        return [*apart, self.root, str(self.folder), *self.config["Env"], *self.config["Entrypoint"], *words]

    def mount(self, box: Box) -> None:
        """Make a node one that runs the image, for `inside`."""
        box.run("sh", "-c", _MOUNTS, "sh", self.root, str(self.folder))

    def inside(self, *words: str, **variables: str) -> list[str]:
        """On a node of `mount`: a command in what runs there, as `docker exec` does."""
        more = [f"{name}={value}" for name, value in variables.items()]
        return ["chroot", _USER, self.root, "env", "-i", *self.config["Env"], *more, *words]

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
