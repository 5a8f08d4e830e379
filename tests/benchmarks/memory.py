"""Memory and cost against the number of images: RSS of `leukoray score`'s driver and workers, sampled while it runs."""

import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pipeline.scoring.work.crew import ScoringActor
from tests.benchmarks.inputs import ROOT
from tests.benchmarks.measure import Measured, markdown_table
from tests.benchmarks.ours import result_of, score_command

_EVERY_S = 0.25
_WORKER = ScoringActor.__name__  # Ray names a worker's process after its actor


@dataclass
class Trace:
    """RSS in MB over seconds, of one run. `ray` is what Ray's own processes hold, idle workers included."""

    images: int
    measured: Measured | None = None
    seconds: list[float] = field(default_factory=list)
    driver: list[float] = field(default_factory=list)
    worker: list[float] = field(default_factory=list)  # the largest one
    ray: list[float] = field(default_factory=list)


def traced_run(source: str, bundle: str, out: str, workers: int, images: int) -> Trace:
    """Score `source` while a thread looks at the processes."""
    trace, begin = Trace(images), time.time()
    process = subprocess.Popen(score_command(source, bundle, out, workers), cwd=ROOT, stdout=subprocess.DEVNULL)
    watcher = threading.Thread(target=_watch, args=(process.pid, trace, begin))
    watcher.start()
    code = process.wait()
    seconds = time.time() - begin
    watcher.join()
    if code:
        raise RuntimeError(f"leukoray score of {source} ended with exit code {code}")
    trace.measured = result_of(out, seconds)
    return trace


def _watch(pid: int, trace: Trace, begin: float) -> None:
    while True:
        try:
            driver = psutil.Process(pid)
            if driver.status() == psutil.STATUS_ZOMBIE:
                return
            rss = driver.memory_info().rss
            children = driver.children(recursive=True)
        except psutil.NoSuchProcess:
            return
        workers, others = [0], 0
        for child in children:
            try:
                size, name = child.memory_info().rss, " ".join(child.cmdline())
            except psutil.Error:  # it ended between the two looks
                continue
            if _WORKER in name:
                workers.append(size)
            else:
                others += size
        trace.seconds.append(time.time() - begin)
        trace.driver.append(rss / 1e6)
        trace.worker.append(max(workers) / 1e6)
        trace.ray.append(others / 1e6)
        time.sleep(_EVERY_S)


def growth(traces: Sequence[Trace]) -> tuple[float, float]:
    """Peak RSS of (driver, largest worker) of the largest run, as a ratio to the smallest run's."""
    first, last = min(traces, key=lambda t: t.images), max(traces, key=lambda t: t.images)
    return max(last.driver) / max(first.driver), max(last.worker) / max(first.worker)


def memory_table(traces: Sequence[Trace]) -> str:
    header = [
        "images",
        "driver peak, MB",
        "largest worker peak, MB",
        "Ray's own peak, MB",
        "whole job, s",
        "ms an image, steady",
    ]
    rows = []
    for trace in traces:
        assert trace.measured is not None
        peaks = [f"{max(values):.0f}" for values in (trace.driver, trace.worker, trace.ray)]
        steady = f"{1000 / trace.measured.rate_steady:.2f}"
        rows.append([f"{trace.images:,}", *peaks, f"{trace.measured.seconds_total:.1f}", steady])
    return markdown_table(header, rows)


def plot(traces: Sequence[Trace], path: Path) -> None:
    """One panel a process kind, one line a run, time as share of the run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, kind) in zip(
        figure.subplots(1, 2, sharey=True), (("driver", "driver"), ("worker", "largest worker")), strict=True
    ):
        for trace in traces:
            share = [100 * second / trace.seconds[-1] for second in trace.seconds]
            axes.plot(share, getattr(trace, name), label=f"{trace.images:,} images", linewidth=1.6)
        axes.set(title=kind, xlabel="% of the run")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("RSS, MB")
    figure.axes[0].set_ylim(bottom=0)  # both panels, once all lines are drawn
    figure.axes[0].legend(frameon=False)
    figure.suptitle("leukoray score: memory over the run (synthetic images)")
    figure.savefig(path, dpi=150)
