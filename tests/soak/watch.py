"""Memory, open files and threads of every process of a service, sampled, and whether they grow.

What is compared is the floor, the tenth percentile, of two spans: what is in work comes and goes, a leak raises it.
Memory is what a process has of its own: its RSS counts pages of Ray's object store as well, which are the store's.
"""

import contextlib
import re
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

EVERY_S = 2.0
GROWTH_SHARE, GROWTH_MB, GROWTH_COUNT = 0.05, 20.0, 10  # the larger one of share and number counts
_SPANS = (0.4, 0.6), (0.8, 1.0)  # of the run
_IDLE = "ray::IDLE"


@dataclass
class Trace:
    """Of one process."""

    role: str
    at: list[float] = field(default_factory=list)  # share of the run
    mb: list[float] = field(default_factory=list)
    files: list[float] = field(default_factory=list)
    threads: list[float] = field(default_factory=list)

    def floors(self, values: Sequence[float]) -> tuple[float, float] | None:
        """In both spans; None where it did not live through them."""
        found = []
        for begin, end in _SPANS:
            inside = [value for at, value in zip(self.at, values, strict=True) if begin <= at <= end]
            if not inside or self.at[-1] < end - 0.05 or self.at[0] > begin:
                return None
            found.append(statistics.quantiles(inside, n=10, method="inclusive")[0] if len(inside) > 1 else inside[0])
        return found[0], found[1]

    def growth(self) -> list[str]:
        """What grew too much."""
        found = []
        for what, values, least in (("MB", self.mb, GROWTH_MB), ("open files", self.files, GROWTH_COUNT),
                                    ("threads", self.threads, GROWTH_COUNT)):  # fmt: skip
            floors = self.floors(values)
            if floors is not None and floors[1] - floors[0] > max(least, GROWTH_SHARE * floors[0]):
                found.append(f"{self.role}: {floors[0]:.0f} to {floors[1]:.0f} {what}")
        return found


class Watch:
    """Samples the tree below a process until it is stopped."""

    def __init__(self, pid: int, seconds: float) -> None:
        self._head, self._seconds = psutil.Process(pid), seconds
        self.traces: dict[int, Trace] = {}
        self.counts: list[tuple[float, int]] = []  # processes, over the share of the run
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> "Watch":
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            share = min(1.0, (time.monotonic() - self._began) / self._seconds)
            with contextlib.suppress(psutil.NoSuchProcess):
                tree = [self._head, *self._head.children(recursive=True)]
                self.counts.append((share, len(tree)))
                for process in tree:
                    with contextlib.suppress(psutil.Error):
                        self._look(process, share)

    def _look(self, process: psutil.Process, share: float) -> None:
        with process.oneshot():
            if process.status() == psutil.STATUS_ZOMBIE:
                return
            role = role_of(process.cmdline(), process.name())
            mb, files, threads = own_mb(process.pid), process.num_fds(), process.num_threads()
        trace = self.traces.setdefault(process.pid, Trace(role))
        if trace.role == _IDLE:  # until it is known what it does
            trace.role = role
        for values, value in ((trace.at, share), (trace.mb, mb), (trace.files, files), (trace.threads, threads)):
            values.append(value)

    def write(self, path: Path) -> None:
        """Every sample, as CSV."""
        rows = [
            f"{pid},{trace.role},{at:.4f},{mb:.1f},{files:.0f},{threads:.0f}"
            for pid, trace in self.traces.items()
            for at, mb, files, threads in zip(trace.at, trace.mb, trace.files, trace.threads, strict=True)
        ]
        path.write_text("\n".join(["pid,role,share,mb,files,threads", *rows, ""]))

    def growth(self) -> list[str]:
        """Of each process that lived through both spans, and of their number."""
        found = [what for trace in self.traces.values() for what in trace.growth()]
        before, after = ([count for at, count in self.counts if begin <= at <= end] for begin, end in _SPANS)
        if before and after and min(after) > min(before) + 2:
            found.append(f"processes: {min(before)} to {min(after)}")
        return found

    def table(self) -> list[str]:
        """Largest first, and how many of each kind came and went."""
        lines = [f"  {'process':<28}{'MB at half':>12}{'at the end':>12}{'peak':>8}{'files':>14}{'threads':>12}"]
        lasting = [trace for trace in self.traces.values() if trace.floors(trace.mb) is not None]
        for trace in sorted(lasting, key=lambda trace: -trace.mb[-1]):
            mb, files, threads = (trace.floors(values) for values in (trace.mb, trace.files, trace.threads))
            assert mb and files and threads
            lines.append(
                f"  {trace.role:<28}{mb[0]:>12.0f}{mb[1]:>12.0f}{max(trace.mb):>8.0f}"
                f"{files[0]:>8.0f} {files[1]:>5.0f}{threads[0]:>7.0f} {threads[1]:>4.0f}"
            )
        passing = [trace for trace in self.traces.values() if trace.floors(trace.mb) is None]
        for role in sorted({trace.role for trace in passing}):
            peaks = [max(trace.mb) for trace in passing if trace.role == role]
            lines.append(f"  {role:<28}{len(peaks)} that came and went, at most {max(peaks):.0f} MB")
        return lines


def own_mb(pid: int) -> float:
    """Resident memory without what is shared by mapping (proc_pid_status(5)); 0 for one that has just ended."""
    try:
        said = dict(re.findall(r"(VmRSS|RssShmem):\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()))
    except OSError:
        return 0.0
    return (int(said.get("VmRSS", 0)) - int(said.get("RssShmem", 0))) * 1024 / 1e6


def role_of(command: Sequence[str], name: str) -> str:
    """Ray names its workers after their actor and, meanwhile, its method: `ray::KeeperActor.news`."""
    line = " ".join(command)
    worker = re.match(r"ray::(ServeReplica:[^:]+:\w+|\w+)", line)
    if worker:
        return f"ray::{worker[1]}"
    module = re.search(r" -m (\S+)", line)
    script = re.search(r"(\w+)\.py\b", line)
    return module[1] if module else script[1] if script and name.startswith("python") else name
