"""One trainer's command from start to exit, its moments, and the table of all. No trainer is imported here.

First epoch: images/s of training, with whatever decodes its images in the time, before it or within it. Later epochs:
images/s of training, without validation. To the first step: from the start of the command until an optimizer step is
done. After the last step: until the command has ended, with validation, checkpoint and (ours) the published bundle.
"""

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.inputs import ROOT
from tests.benchmarks.measure import markdown_table, ratio, spread
from tests.benchmarks.train_timeline import Timeline

RUN_LIMIT_S = 3600
Lines = Sequence[tuple[float, str]]  # moment, wall clock, and line


@dataclass(frozen=True)
class Trained:
    """The figures of one run."""

    seconds_total: float
    seconds_to_first_step: float
    seconds_after_last_step: float
    rate_first: float  # images/s
    rate_later: float  # images/s; nan for a single epoch
    auc: float
    gpu_idle: float  # share of the time between first and last step; nan without a GPU


@dataclass(frozen=True)
class Trainer:
    """One contender: its command, and how its output tells its moments."""

    title: str
    command: Sequence[str]
    timeline: Callable[[Lines], Timeline]
    prepare: Callable[[], None] = lambda: None  # before the clock starts
    environment: Mapping[str, str] | None = None


def run(trainer: Trainer, *, gpu: bool) -> Trained:
    """Raises RuntimeError with the end of its output when it fails."""
    trainer.prepare()
    lines: list[tuple[float, str]] = []
    watch = _GpuWatch() if gpu else None
    began = time.time()
    process = subprocess.Popen(
        trainer.command, cwd=ROOT, env={**os.environ, **(trainer.environment or {})},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    limit = threading.Timer(RUN_LIMIT_S, process.kill)
    limit.start()
    try:
        assert process.stdout is not None
        lines += ((time.time(), line.rstrip("\n")) for line in process.stdout)
        code = process.wait()
    finally:
        limit.cancel()
        process.kill()
    ended = time.time()
    samples = watch.stop() if watch else []
    if code:
        raise RuntimeError(f"{trainer.title} failed ({code}): " + "\n".join(line for _, line in lines[-12:]))
    return figures(trainer.timeline(lines), began, ended, samples)


def figures(line: Timeline, began: float, ended: float, busy: Sequence[tuple[float, float]] = ()) -> Trained:
    """`busy`: moments and shares of a second in which the GPU worked."""
    (first_begin, first_end), *later = line.epochs
    last_end = line.epochs[-1][1]
    training = [share for moment, share in busy if line.first_step_at <= moment <= last_end]
    return Trained(
        seconds_total=ended - began,
        seconds_to_first_step=line.first_step_at - began,
        seconds_after_last_step=ended - last_end,
        rate_first=line.images / (first_end - first_begin + line.decode_s),
        rate_later=line.images * len(later) / sum(end - begin for begin, end in later) if later else float("nan"),
        auc=line.auc,
        gpu_idle=1.0 - sum(training) / len(training) if training else float("nan"),
    )


def printed_timeline(lines: Lines) -> Timeline:
    """A rival's: the last JSON line that it prints."""
    found = [line for _, line in lines if line.startswith("{")]
    if not found:
        raise RuntimeError("no result line in: " + "\n".join(line for _, line in lines[-12:]))
    return Timeline(**json.loads(found[-1]))


def our_timeline(out: Path, lines: Lines) -> Timeline:
    """`leukoray train`'s: epochs as the bundle's history has them, the first step as long as the first epoch's mean."""
    [bundle] = out.glob("*/*/bundle.json")
    history = json.loads(bundle.read_text())["training"]["history"]
    told = (re.search(r"^decoded [\d,]+ images in ([\d.]+) s", line) for _, line in lines)
    decoded = [float(found[1]) for found in told if found]
    ends = [row["ended_at"] - (row["seconds"] - row["train_seconds"]) for row in history]
    epochs = [(end - row["train_seconds"], end) for end, row in zip(ends, history, strict=True)]
    first_step_at = epochs[0][0] + history[0]["train_seconds"] / history[0]["step"]
    images = round(history[0]["images_per_s"] * history[0]["train_seconds"])
    return Timeline(images, first_step_at, epochs, history[-1]["val_auc"], sum(decoded))


class _GpuWatch:
    """Asks `nvidia-smi` five times a second which share of the last moments the GPU worked."""

    def __init__(self) -> None:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-i", "0", "-lms", "200"]
        self._process = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
        self._samples: list[tuple[float, float]] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._samples.append((time.time(), float(line) / 100.0))

    def stop(self) -> list[tuple[float, float]]:
        self._process.terminate()
        self._thread.join(10)
        return self._samples


def table(results: Mapping[str, Sequence[Trained]], ours: str) -> str:
    """Medians with their range; in brackets what ours is of it: rates above 1 and times below 1 are in our favour."""
    shown = {
        "first epoch, images/s": "rate_first",
        "later epochs, images/s": "rate_later",
        "whole command, s": "seconds_total",
        "to the first step, s": "seconds_to_first_step",
        "after the last step, s": "seconds_after_last_step",
    }
    if any(run.gpu_idle == run.gpu_idle for runs in results.values() for run in runs):
        shown["GPU idle, %"] = "gpu_idle"
    rows = []
    for title, runs in results.items():
        cells = [title]
        for name in shown.values():
            factor = 100.0 if name == "gpu_idle" else 1.0
            values = [getattr(run, name) * factor for run in runs]
            cell = _tenths(values) if name.startswith("seconds") else str(spread(values))
            if title != ours and ours in results and name != "gpu_idle":
                cell += f" [{ratio([getattr(run, name) for run in results[ours]], values):.2f}x]"
            cells.append(cell)
        rows.append([*cells, f"{runs[-1].auc:.3f}", str(len(runs))])
    return markdown_table(["", *shown, "AUC", "rounds"], rows)


def _tenths(values: Sequence[float]) -> str:
    found = spread(values)
    return f"{found.median:.1f}" if found.rounds == 1 else f"{found.median:.1f} ({found.low:.1f}–{found.high:.1f})"
