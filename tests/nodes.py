"""A cluster of several machines on this one: a raylet each in namespaces of their own, joined by a bridge.

Each node has its own address, host name, processes and temp folder; `unshared` folders are its own too. All ends with
the process that made it, whatever ends that. Wants root. By hand:

    python -m tests.nodes --cpus 1 1 1 -- leukoray doctor --address auto       # a command on the head
    python -m tests.nodes --cpus 2 2 -- bash
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
HEAD, JOBS = "10.77.0.1:6379", "http://10.77.0.1:8265"
_PATIENCE_S = 120
# How soon a dead node is noticed: after half a minute, where nobody says so
_SOON = {"RAY_health_check_failure_threshold": "3", "RAY_health_check_timeout_ms": "3000"}
_OWN = ("--net", "--mount", "--uts", "--pid")


def why_not() -> str | None:
    """Why this machine cannot hold several nodes, None where it can."""
    probe = ["unshare", *_OWN, "--fork", "--mount-proc", "ip", "link", "add", "probe", "type", "bridge"]
    try:
        done = subprocess.run(probe, capture_output=True, text=True, check=False, timeout=30)
    except OSError as error:
        return f"several nodes: {error.filename} is missing; install util-linux and iproute2"
    return None if done.returncode == 0 else f"several nodes: {done.stderr.strip()[:100]}; run as root"


class Box:
    """Namespaces that live as long as their first process: a `cat` that ends with the pipe from this process."""

    def __init__(self, name: str) -> None:
        self.name = name
        command = ["unshare", *_OWN, "--fork", "--kill-child", "--mount-proc", "cat"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._unshare = subprocess.Popen(command, stdin=subprocess.PIPE, **quiet)
        deadline = time.monotonic() + _PATIENCE_S
        while not (found := psutil.Process(self._unshare.pid).children()) or found[0].name() != "cat":
            assert time.monotonic() < deadline, f"{name}: no namespaces"
            time.sleep(0.01)
        self.pid = found[0].pid
        self.run("hostname", name)
        self.run("ip", "link", "set", "lo", "up")

    def inside(self, *command: str) -> list[str]:
        """The command line that runs `command` in here."""
        return ["nsenter", f"--target={self.pid}", *_OWN, f"--wd={ROOT}", "--", *command]

    def run(self, *command: str) -> None:
        subprocess.run(self.inside(*command), check=True, timeout=_PATIENCE_S)

    def runs(self, name: str) -> bool:
        """Whether a process in here is called so."""
        own = os.readlink(f"/proc/{self.pid}/ns/pid")
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if name in " ".join(process.cmdline()) and os.readlink(f"/proc/{process.pid}/ns/pid") == own:
                    return True
        return False

    def kill(self) -> None:
        """All processes at once, as a power cut does: they are those of the namespace whose first one ends."""
        if self._unshare.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self._unshare.wait(_PATIENCE_S)


@dataclass
class Nodes:
    """A head and other nodes. `log` holds what all of them say."""

    environment: dict[str, str]
    log: Path
    unshared: Sequence[Path] = ()
    switch: Box = field(default_factory=lambda: Box("switch"))
    boxes: list[Box] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.hosts = self.log.with_name("hosts")
        names = [f"10.77.0.{number} node-{number}\n" for number in range(1, 10)]
        self.hosts.write_text("127.0.0.1 localhost\n" + "".join(names))

    @property
    def head(self) -> Box:
        return self.boxes[0]

    def bare(self) -> Box:
        """Another node, without Ray."""
        number = len(self.boxes) + 1
        box = Box(f"node-{number}")
        self._connect(box, number)
        for folder in (Path("/tmp/ray"), *self.unshared):
            folder.mkdir(parents=True, exist_ok=True)
            box.run("mount", "-t", "tmpfs", "tmpfs", str(folder))
        box.run("mount", "--bind", str(self.hosts), "/etc/hosts")  # gloo finds its own address by name
        self.boxes.append(box)
        return box

    def start(self, cpus: int, before: str = "") -> Box:
        """Another node; the first is the head. `before`: what its shell does first, as `ulimit -n 300`."""
        box = self.bare()
        shell = ["bash", "-c", f'{before}; exec "$@"', "bash"] if before else []
        self.background(box, *shell, *self.ray_start(cpus))
        return box

    def ray_start(self, cpus: int, dashboard: bool = False) -> list[str]:
        """The command that makes the newest node one of the cluster; with `dashboard` a head takes jobs, at JOBS."""
        number = len(self.boxes)
        web = "--dashboard-host=0.0.0.0" if dashboard else "--include-dashboard=false"
        place = ["--head", "--port=6379", web] if number == 1 else [f"--address={HEAD}"]
        common = ["--block", "--disable-usage-stats", "--object-store-memory=200000000", f"--num-cpus={cpus}"]
        return ["ray", "start", *place, *common, f"--node-ip-address=10.77.0.{number}"]

    def _connect(self, box: Box, number: int) -> None:
        if number == 1:
            self.switch.run("ip", "link", "add", "bridge", "type", "bridge")
            self.switch.run("ip", "addr", "add", "10.77.0.254/24", "dev", "bridge")
            self.switch.run("ip", "link", "set", "bridge", "up")
        cable = f"node-{number}"
        # Both ends are made in the switch; to name the other namespace takes its process as this one sees it
        subprocess.run(
            ["nsenter", f"--target={self.switch.pid}", "--net", "ip", "link", "add", cable, "type", "veth", "peer",
             "name", "eth0", "netns", str(box.pid)], check=True, timeout=_PATIENCE_S,
        )  # fmt: skip
        self.switch.run("ip", "link", "set", cable, "master", "bridge", "up")
        box.run("ip", "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
        box.run("ip", "link", "set", "eth0", "up")
        box.run("ip", "route", "add", "default", "via", "10.77.0.254")

    def background(self, box: Box, *command: str) -> None:
        with self.log.open("a") as log:
            subprocess.Popen(box.inside(*command), env=self.environment, stdout=log, stderr=log)

    def popen(self, *command: str, on: Box | None = None, **options: Any) -> subprocess.Popen[str]:
        """A command on a node, the head unless named."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | options
        return subprocess.Popen((on or self.head).inside(*command), env=self.environment, text=True, **options)

    def wait_for_head(self, address: str = HEAD, patience_s: float = _PATIENCE_S) -> None:
        """Until it, or another server, listens: what joins it gives up after a while."""
        host, port = address.split(":")
        listens = self.head.inside("bash", "-c", f"exec 3<>/dev/tcp/{host}/{port}")
        deadline = time.monotonic() + patience_s
        while subprocess.run(listens, capture_output=True).returncode:
            assert time.monotonic() < deadline, self.log.read_text()[-2000:]
            time.sleep(0.2)

    def wait_for(self, count: int, python: Sequence[str] = (sys.executable,), patience_s: float = _PATIENCE_S) -> None:
        """Until the cluster has so many nodes alive, as a Python on the head sees it."""
        program = f"""
import ray, sys, time
ray.init(address="{HEAD}", log_to_driver=False)
deadline = time.monotonic() + {patience_s}
while sum(node["Alive"] for node in ray.nodes()) != {count}:
    time.sleep(0.2)
    if time.monotonic() > deadline:
        sys.exit(f"{{ray.nodes()}}")
"""
        done = self.popen(*python, "-c", program)
        said, _ = done.communicate(timeout=2 * patience_s)
        assert done.returncode == 0, said[-2000:] + self.log.read_text()[-2000:]

    def end(self) -> None:
        for box in (*self.boxes, self.switch):
            box.kill()


@contextlib.contextmanager
def cluster(folder: Path, cpus: Sequence[int], unshared: Sequence[Path] = ()) -> Iterator[Nodes]:
    """One node an entry of `cpus`, all joined. `folder` for their log and home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "LEUKORAY_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ours = {"HOME": str(folder), "PATH": path, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    nodes = Nodes(kept | ours | _SOON, folder / "nodes.log", unshared)
    try:
        for number, count in enumerate(cpus, start=1):
            nodes.start(count)
            if number == 1:
                nodes.wait_for_head()
        nodes.wait_for(len(cpus))
        yield nodes
    finally:
        nodes.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpus", type=int, nargs="+", default=[1, 1, 1])
    parser.add_argument("--unshared", type=Path, nargs="*", default=[])
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder), options.cpus, options.unshared) as nodes:
        print("nodes, and a process in each to end it with:", {box.name: box.pid for box in nodes.boxes}, flush=True)
        return subprocess.run(nodes.head.inside(*options.command), env=nodes.environment).returncode


if __name__ == "__main__":
    sys.exit(main())
