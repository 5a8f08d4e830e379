"""Real S3 stores for tests, each in a temp folder of its own: Ceph's gateway, as hospitals run it, and rclone's server.

A mock is kinder than a store. What starts them is not there everywhere (infra/packages.sh installs Ceph, the `test`
extra brings rclone), and continuous integration starts none: then `missing` says why, and tests are skipped.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

from pipeline.storage.types import Conditions
from tests.servers import CREDENTIALS, S3Server, free_port

_KEY, _SECRET = CREDENTIALS["AWS_ACCESS_KEY_ID"], CREDENTIALS["AWS_SECRET_ACCESS_KEY"]
PROGRAMS = {
    "ceph": ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin"),
    "rclone": ("rclone",),
}
_START_S = 120.0


def missing(name: str) -> str | None:
    """Why the store cannot be started here, None where it can."""
    if os.environ.get("CI"):
        return f"{name} as a store: not in continuous integration"
    absent = [program for program in PROGRAMS[name] if found(program) is None]
    way = {"ceph": "infra/packages.sh ceph, as root with apt-get", "rclone": "pip install '.[test]'"}[name]
    return f"{name} as a store: {absent[0]} is missing ({way})" if absent else None


def found(program: str) -> str | None:
    """Where a program lies: beside this Python, as PyPI's do, or on the PATH."""
    return shutil.which(program, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


@contextlib.contextmanager
def rclone_store(etag_hash: str = "MD5") -> Iterator[S3Server]:
    """rclone's server over a folder: it heeds no conditions. Without `etag_hash` its ETags are empty."""
    with tempfile.TemporaryDirectory(prefix="rclone-") as folder, _processes() as start:
        server = S3Server(f"http://127.0.0.1:{free_port()}", conditions=Conditions.NONE)
        served = Path(folder, "served")
        (served / server.bucket).mkdir(parents=True)
        options = [
            "--addr",
            server.endpoint.removeprefix("http://"),
            "--auth-key",
            f"{_KEY},{_SECRET}",
            "--etag-hash",
            etag_hash,
        ]
        config = ["--config", f"{folder}/rclone.conf", "--cache-dir", f"{folder}/cache"]
        start("rclone", "serve", "s3", *options, *config, str(served))
        _wait_for(server.endpoint)
        yield server


@contextlib.contextmanager
def ceph_store() -> Iterator[S3Server]:
    """Ceph's gateway before one monitor and one storage daemon, which holds its objects in memory."""
    with tempfile.TemporaryDirectory(prefix="ceph-", dir="/tmp") as folder, _processes() as start:  # sockets: short
        server = S3Server(f"http://127.0.0.1:{free_port()}", conditions=Conditions.BARE)
        root, monitor = Path(folder), f"v2:127.0.0.1:{free_port()}"
        config = _ceph_config(root, monitor, server.endpoint)
        start("ceph-mon", *config, "-f", "-i", "a")
        _run("ceph", *config, "osd", "create")
        _run("ceph-osd", *config, "-i", "0", "--mkfs")
        start("ceph-osd", *config, "-f", "-i", "0")
        _run("ceph", *config, "osd", "crush", "add", "osd.0", "1.0", "root=default", "host=localhost")
        user = ["--setuser", "root", "--setgroup", "root"] if os.getuid() == 0 else []
        start("radosgw", *config, "-f", "-n", "client.rgw", *user)
        _wait_for(server.endpoint)
        keys = [f"--access-key={_KEY}", f"--secret-key={_SECRET}"]
        named = ["--uid=test", "--display-name=test"]
        _run("radosgw-admin", *config, "-n", "client.rgw", "user", "create", *named, *keys)
        server.client().create_bucket(Bucket=server.bucket)
        yield server


def _ceph_config(root: Path, monitor: str, endpoint: str) -> list[str]:
    """Keys, the monitor's first map and ceph.conf; the options that name it."""
    fsid, path, keyring = uuid.uuid4(), root / "ceph.conf", str(root / "keyring")
    for name in ("mon.a", "osd.0", "run"):
        (root / name).mkdir()
    path.write_text(
        f"""[global]
fsid = {fsid}
keyring = {keyring}
mon host = {monitor}/0
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
ms bind ipv6 = false
run dir = {root}/run
log file = {root}/run/$name.log
admin socket = {root}/run/$name.asok
pid file = {root}/run/$name.pid
[mon.a]
mon data = {root}/mon.a
[osd.0]
osd data = {root}/osd.0
osd objectstore = memstore
memstore device bytes = {4 << 30}
[client.rgw]
rgw frontends = beast endpoint={endpoint.removeprefix("http://")}
rgw thread pool size = 64
"""
    )
    _run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    all_of_it = [word for daemon in ("mon", "osd", "mgr") for word in ("--cap", daemon, "allow *")]
    for user in ("client.admin", "osd.0", "client.rgw"):
        _run("ceph-authtool", keyring, "--gen-key", "-n", user, *all_of_it)
    first_map = str(root / "monmap")
    _run("monmaptool", "--create", "--fsid", str(fsid), "--addv", "a", f"[{monitor}]", first_map)
    config = ["-c", str(path)]
    _run("ceph-mon", *config, "-i", "a", "--mkfs", "--monmap", first_map, "--keyring", keyring)
    return config


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_START_S, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


class _Started:
    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []

    def __call__(self, program: str, *arguments: str) -> None:
        command, quiet = [found(program) or program, *arguments], subprocess.DEVNULL
        self._running.append(subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet))

    def end(self) -> None:
        for process in reversed(self._running):
            process.kill()
            process.wait()


@contextlib.contextmanager
def _processes() -> Iterator[_Started]:
    """What starts programs that end with the block."""
    started = _Started()
    try:
        yield started
    finally:
        started.end()


def _wait_for(endpoint: str) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            urllib.request.urlopen(endpoint, timeout=5).close()
            return
        except urllib.error.HTTPError:  # an answer
            return
        except OSError:
            assert time.monotonic() < deadline, f"{endpoint} does not answer"
            time.sleep(0.1)
