"""Runs contenders one after another, round by round (A B C A B C), each in its own process, within a time limit."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.inputs import ROOT
from tests.benchmarks.measure import Measured, markdown_table, parse_result, ratio, spread

_RUN_LIMIT_S = 1200
Say = Callable[[str], None]


@dataclass(frozen=True)
class Contender:
    """One script of this folder, with its input."""

    title: str
    module: str
    source: str
    bundle: str
    batch: int = 32
    workers: int = os.cpu_count() or 1
    environment: Mapping[str, str] | None = None


@dataclass
class Budget:
    """The time that all benchmarks together may take. What does not fit is left out and named."""

    limit_s: float
    begin: float = field(default_factory=time.monotonic)
    left_out: list[str] = field(default_factory=list)

    def allows(self, what: str, expected_s: float) -> bool:
        fits = time.monotonic() - self.begin + expected_s <= self.limit_s
        if not fits:
            self.left_out.append(what)
        return fits


def run(contender: Contender, out: Path) -> Measured:
    """One run into an emptied folder. Raises RuntimeError with the end of its output when it fails."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", f"tests.benchmarks.{contender.module}", "--images", contender.source]
    command += ["--bundle", contender.bundle, "--out", str(out)]
    command += ["--workers", str(contender.workers), "--batch", str(contender.batch)]
    done = subprocess.run(
        command, cwd=ROOT, env=contender.environment, capture_output=True, text=True, timeout=_RUN_LIMIT_S
    )
    if done.returncode:
        raise RuntimeError(f"{contender.title} failed ({done.returncode}): {done.stderr[-1500:]}")
    return parse_result(done.stdout)


def interleaved(
    contenders: Sequence[Contender], rounds: int, out: Path, budget: Budget, say: Say
) -> dict[str, list[Measured]]:
    """Results by title, in the order of the contenders. The output of the last round stays below `out`."""
    results: dict[str, list[Measured]] = {contender.title: [] for contender in contenders}
    lasted: dict[str, float] = {}
    for number in range(1, rounds + 1):
        for contender in contenders:
            if not budget.allows(f"{contender.title}, round {number}", lasted.get(contender.title, 0.0)):
                continue
            begin = time.monotonic()
            try:
                measured = run(contender, out / contender.module)
            except (RuntimeError, subprocess.TimeoutExpired) as error:  # the other rows are still worth having
                budget.left_out.append(f"{contender.title}, round {number} (failed)")
                say(f"  round {number}  {error}")
                continue
            lasted[contender.title] = time.monotonic() - begin
            results[contender.title].append(measured)
            say(
                f"  round {number}  {contender.title}: {measured.images} images, steady {measured.rate_steady:.0f} "
                f"img/s, whole job {measured.seconds_total:.1f} s"
            )
    return {title: values for title, values in results.items() if values}


def result_table(results: Mapping[str, Sequence[Measured]], ours: str) -> str:
    """Medians (and spread) with our ratio to each, steady and whole job.

    Whole jobs of different numbers of images do not compare: start-up weighs more in the smaller one.
    """
    header = ["", "images", "steady, img/s", "ours is", "whole job, img/s", "ours is", "rounds"]
    mine = results[ours]
    rows = []
    for title, runs in results.items():
        steady, whole = [r.rate_steady for r in runs], [r.rate_whole for r in runs]
        same_size = runs[0].images == mine[0].images
        cells = ["", ""]
        if title != ours:
            cells = [f"{ratio([r.rate_steady for r in mine], steady):.2f}x", "–"]
            if same_size:
                cells[1] = f"{ratio([r.rate_whole for r in mine], whole):.2f}x"
        rows.append(
            [title, f"{runs[0].images:,}", str(spread(steady)), cells[0], str(spread(whole)), cells[1], str(len(runs))]
        )
    return markdown_table(header, rows)
