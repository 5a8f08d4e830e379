"""Slurm on this machine: a controller, and a slurmd each on several nodes (tests/nodes.py), with a munge of its own.

Wants Debian's slurmctld, slurmd, munge and slurm-client, and root. Nothing of the machine's own Slurm is touched:
configuration, state and socket lie in a folder, and ports in the namespaces. By hand, on two nodes of two CPUs:

    python -m tests.slurm -- sinfo
    python -m tests.slurm -- bash
"""

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import nodes as machine
from tests.nodes import ROOT, Box, Nodes

_PROGRAMS = {"slurmctld": "slurmctld", "slurmd": "slurmd", "munged": "munge", "sbatch": "slurm-client"}
_PATIENCE_S = 120
# A job that is put back into the queue waits until its old credentials have expired: cred_expire, else two minutes
_CONFIGURATION = """
ClusterName=leukoray-tests
SlurmctldHost=node-1
SlurmUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Why Slurm cannot run here, None where it can."""
    for program, package in _PROGRAMS.items():
        if _found(program) is None:
            return f"Slurm: {program} is missing (Debian's {package}); infra/packages.sh slurm"
    return machine.why_not()


def _found(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")


@dataclass
class Slurm:
    """A cluster of `nodes`; commands are given on the first. `own` is a folder with a content of its own on each."""

    nodes: Nodes
    own: Path

    def run(self, *command: str, check: bool = True, on: Box | None = None) -> str:
        """What a command says."""
        done = subprocess.run(
            (on or self.nodes.head).inside(*command), env=self.nodes.environment, capture_output=True, text=True,
            timeout=_PATIENCE_S,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def sbatch(self, *arguments: str) -> str:
        """The number of the job that was submitted."""
        return self.run("sbatch", "--parsable", *arguments).strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of it: JobState, ExitCode, Restarts ..."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "show", "job", number)))

    def is_up(self) -> bool:
        states = self.run("sinfo", "--noheader", "--Node", "--format=%T", check=False).split()
        return bool(states) and states == ["idle"] * len(self.nodes.boxes)


@contextlib.contextmanager
def slurm(cpus: tuple[int, ...] = (2, 2)) -> Iterator[Slurm]:
    """One node an entry of `cpus`, which jobs may ask for; all of a node run on one core."""
    # Sockets of munge and of Ray lie below; their names have 107 characters at most
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder, own = Path(name), Path(name) / "own"
        for part in ("state", "own"):
            (folder / part).mkdir()
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (folder / "munge.key").chmod(0o400)
        nodes = [f"NodeName=node-{number} CPUs={count} RealMemory=1000" for number, count in enumerate(cpus, start=1)]
        configuration, cores = folder / "slurm.conf", sorted(os.sched_getaffinity(0))
        configuration.write_text(_CONFIGURATION.format(folder=folder, nodes="\n".join(nodes)))
        with _munge(folder), contextlib.ExitStack() as ended:
            cluster = Slurm(Nodes(_environment(folder), folder / "nodes.log", unshared=[own]), own)
            ended.callback(cluster.nodes.end)
            for number in range(1, len(cpus) + 1):
                box = cluster.nodes.bare()
                if number == 1:
                    cluster.nodes.background(box, "slurmctld", "-D", "-f", str(configuration))
                # On each node jobs see one core, as by Slurm's cgroups: sums depend on how many threads train
                core = str(cores[number % len(cores)])
                cluster.nodes.background(box, "taskset", "-c", core, "slurmd", "-D", "-f", str(configuration))
            deadline = time.monotonic() + _PATIENCE_S
            while not cluster.is_up():
                logs = [path.read_text()[-2000:] for path in folder.glob("*.log")]
                assert time.monotonic() < deadline, "\n".join(logs)
                time.sleep(0.2)
            yield cluster


def _environment(folder: Path) -> dict[str, str]:
    """Of daemons and of whoever submits: ours without a Ray, its Python's programs first."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "LEUKORAY_", "SLURM"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}{os.pathsep}/usr/sbin"
    ours = {
        "HOME": str(folder),
        "PATH": path,
        "TMPDIR": str(folder / "own"),
        "SLURM_CONF": str(folder / "slurm.conf"),
    }
    # Ray's workers are as urgent as all else of the test: on a busy machine they would come last
    return kept | ours | {"PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0"}


@contextlib.contextmanager
def _munge(folder: Path) -> Iterator[None]:
    """The service by which Slurm's parts know each other."""
    names = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid", "log-file": "munge.log"}
    places = [f"--{flag}={folder / name}" for flag, name in (names | {"seed-file": "munge.seed"}).items()]
    with (folder / "munge.out").open("w") as sink:
        munged = [str(_found("munged")), "--foreground", "--force", *places]
        process = subprocess.Popen(munged, stdout=sink, stderr=sink)
    try:
        yield
    finally:
        process.terminate()
        process.wait(_PATIENCE_S)


def main() -> int:
    command = sys.argv[2:] if sys.argv[1:2] == ["--"] else sys.argv[1:]
    reason = why_not()
    if reason:
        sys.exit(reason)
    with slurm() as cluster:
        inside = cluster.nodes.head.inside(*(command or ["bash"]))
        return subprocess.run(inside, env=cluster.nodes.environment).returncode


if __name__ == "__main__":
    sys.exit(main())
