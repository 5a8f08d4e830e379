"""One way to measure for all contenders, and the arithmetic and tables around it. No timing happens here.

Whole job: from the start of the process to its last written row (ours: to the exit). Steady: images/s between the
moments when 20 % and 90 % of them were done, so that start-up and the last stragglers are out for everybody alike.
"""

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq

STEADY_WINDOW = (0.2, 0.9)
BATCH = 32  # of the rivals
_PACKAGES = (
    "ray",
    "torch",
    "torchvision",
    "onnxruntime",
    "simplejpeg",
    "opencv-python-headless",
    "pillow",
    "daft",
    "pyarrow",
)


@dataclass(frozen=True)
class Measured:
    """What one contender's process says of its run."""

    images: int
    seconds_total: float  # whole job
    rate_steady: float  # images/s; nan where there were too few batches to tell
    mean_probability: float

    @property
    def rate_whole(self) -> float:
        return self.images / self.seconds_total


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of a few rounds."""

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        if self.rounds == 1:
            return f"{self.median:.0f}"
        return f"{self.median:.0f} ({self.low:.0f}–{self.high:.0f})"


def steady_rate(finished: Sequence[tuple[float, int]]) -> float:
    """Images/s inside the steady window, from (time in s, images) of each finished batch; nan without two moments.

    The slope of a line through all moments of the window: batches that finish in clumps would favour, by a clump, a
    rate taken from the first and the last moment alone.
    """
    total = sum(images for _, images in finished)
    low, high = (share * total for share in STEADY_WINDOW)
    moments: list[tuple[float, int]] = []
    done = 0
    for at, images in sorted(finished):
        done += images
        if low <= done <= high:
            moments.append((at, done))
    if len({at for at, _ in moments}) < 2:
        return math.nan
    times, counts = np.array(moments).T
    return float(np.polyfit(times - times[0], counts, 1)[0])


def spread(values: Sequence[float]) -> Spread:
    return Spread(median(values), min(values), max(values), len(values))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Ratio of medians; the rounds are interleaved, so a slow minute of the machine meets both."""
    return median(ours) / median(theirs)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text left, numbers right."""
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(["---"] + ["---:"] * (len(header) - 1)) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def environment() -> str:
    """One line that says where and when it was measured."""
    parts = [f"{_cpu_model()}, {os.cpu_count()} cores", f"{_memory_gb():.0f} GB", f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            parts.append(f"{name} missing")
    return ", ".join([*parts, datetime.now(UTC).strftime("%Y-%m-%d")])


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def contender_arguments(description: str | None) -> argparse.Namespace:
    """The flags that every contender takes."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--images", required=True, help="folder of JPEGs (ours and the limit: also tars, s3://)")
    parser.add_argument("--bundle", required=True, help="bundle whose weights are used")
    parser.add_argument("--out", required=True, help="empty folder for the output")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=BATCH, help="images a forward pass")
    return parser.parse_args()


def read_rows(folder: str, time_column: str = "finished_at") -> tuple[list[tuple[float, int]], float]:
    """(time, images) of each finished batch, and the mean probability, from the Parquet that a contender wrote."""
    table = pq.read_table(folder, columns=["probability", time_column])
    times: dict[float, int] = {}
    for value in table[time_column].to_pylist():
        seconds = value.timestamp() if isinstance(value, datetime) else value
        times[seconds] = times.get(seconds, 0) + 1
    probabilities = table["probability"].to_pylist()
    return list(times.items()), sum(probabilities) / len(probabilities)


def agreement(ours: str, theirs: str) -> tuple[float, float]:
    """(correlation, mean absolute difference) of the probabilities of the same files, from two folders of Parquet.

    Rivals resize with other filters, so they agree loosely; below 0.9 they did other work.
    """
    first, second = _probabilities(ours, "uri"), _probabilities(theirs, "path")
    names = sorted(set(first) & set(second))
    if not names:
        raise ValueError(f"{ours} and {theirs} have no file in common")
    pair = np.array([[first[name] for name in names], [second[name] for name in names]])
    return float(np.corrcoef(pair)[0, 1]), float(np.abs(pair[0] - pair[1]).mean())


def _probabilities(folder: str, path_column: str) -> dict[str, float]:
    table = pq.read_table(folder, columns=[path_column, "probability"])
    names = [path.rsplit("/", 1)[-1] for path in table[path_column].to_pylist()]
    return dict(zip(names, table["probability"].to_pylist(), strict=True))


def report(finished: Sequence[tuple[float, int]], mean_probability: float) -> None:
    """Print what this process did since it was started; the last line that it prints."""
    import psutil

    seconds = time.time() - psutil.Process().create_time()
    show(Measured(sum(images for _, images in finished), seconds, steady_rate(finished), mean_probability))


def show(measured: Measured) -> None:
    print(json.dumps(asdict(measured)), flush=True)


def parse_result(output: str) -> Measured:
    """The last JSON line of a contender's output."""
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise ValueError(f"no result line in: {output[-400:]!r}")
    fields: dict[str, Any] = json.loads(lines[-1])
    return Measured(**fields)
