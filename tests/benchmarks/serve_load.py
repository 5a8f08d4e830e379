"""Load from `wrk` (https://github.com/wg/wrk, Debian: wrk) on a service that was started for it, and what it cost.

wrk is closed-loop: each connection sends its next request after the answer to the last. So latency at many connections
is mostly waiting in line; it is told for 1 connection, and requests/s for more.
"""

import contextlib
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.benchmarks.inputs import ROOT

_START_S = 180
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3}
_FORM = ('--cell\r\nContent-Disposition: form-data; name="request"; filename="cell.jpg"\r\n\r\n', "\r\n--cell--\r\n")
_SCRIPT = """
local bodies = {}
for path in io.lines("%s") do
  local file = io.open(path, "rb"); table.insert(bodies, file:read("*a")); file:close()
end
local turn = 0
request = function()
  turn = turn %% #bodies + 1
  return wrk.format("POST", nil, {["Content-Type"] = "%s"}, bodies[turn])
end
"""


@dataclass(frozen=True)
class Posts:
    """What is posted: images as bodies, or each as the one file of a form, as LitServe takes them."""

    images: Sequence[Path]
    as_form: bool = False

    @property
    def content_type(self) -> str:
        return "multipart/form-data; boundary=cell" if self.as_form else "image/jpeg"

    def body(self, image: Path) -> bytes:
        data = image.read_bytes()
        return _FORM[0].encode() + data + _FORM[1].encode() if self.as_form else data

    def write(self, folder: Path) -> Path:
        """A script for wrk that posts them in turn. Raises SystemExit where wrk is missing."""
        if shutil.which("wrk") is None:
            raise SystemExit("wrk is missing: apt-get install wrk")
        bodies = folder / ("forms" if self.as_form else "images")
        bodies.mkdir(parents=True, exist_ok=True)
        listing = bodies.with_suffix(".txt")
        paths = [bodies / f"{number}.body" for number in range(len(self.images))]
        for path, image in zip(paths, self.images, strict=True):
            path.write_bytes(self.body(image))
        listing.write_text("".join(f"{path}\n" for path in paths))
        script = bodies.with_suffix(".lua")
        script.write_text(_SCRIPT % (listing, self.content_type))
        return script


@dataclass(frozen=True)
class Load:
    """One stretch of load. `cpu_ms`: of all processes of the service, a request."""

    rate: float  # answers/s with status 2xx or 3xx
    p50_ms: float
    p99_ms: float
    failed: int
    cpu_ms: float


@contextlib.contextmanager
def running(
    command: Sequence[str], port: int, posts: Posts, log: Path, extra: dict[str, str]
) -> Iterator[psutil.Process]:
    """The service, once it answers the first image; ended with the block, and every process of it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"} | extra
    with log.open("wb") as sink:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=sink, stderr=subprocess.STDOUT)
    service = psutil.Process(process.pid)
    try:
        _until_it_answers(process, port, posts, log)
        yield service
    finally:
        tree = service.children(recursive=True) if process.poll() is None else []
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        process.wait()
        for member in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()


def _until_it_answers(process: subprocess.Popen[bytes], port: int, posts: Posts, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    headers = {"Content-Type": posts.content_type}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", posts.body(posts.images[0]), headers)
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"ended with {process.returncode}: {log.read_text(errors='replace')[-1500:]}")
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError),
            urllib.request.urlopen(request, timeout=10) as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"no answer within {_START_S} s: {log.read_text(errors='replace')[-1500:]}")


def _cpu_s(service: psutil.Process) -> float:
    total = 0.0
    for process in [service, *service.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def load(service: psutil.Process, url: str, script: Path, connections: int, seconds: int) -> Load:
    """Raises RuntimeError when wrk fails."""
    before = _cpu_s(service)
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--timeout",
        "30s",
        "--latency",
        "-s",
        str(script),
        url,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
    if done.returncode:
        raise RuntimeError(f"wrk: {done.stderr[-500:]}")
    return parse(done.stdout, seconds, _cpu_s(service) - before)


def parse(text: str, seconds: float, cpu_s: float) -> Load:
    """What wrk prints. Raises ValueError where it is something else."""
    requests = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m),", text)
    if requests is None:
        raise ValueError(f"not the output of wrk: {text[:300]}")
    sent = int(requests[1])
    lasted = float(requests[2]) * _UNITS[requests[3]] / 1e3
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    socket = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    failed = int(refused[1]) if refused else 0
    lost = sum(map(int, socket.groups())) if socket else 0
    percentiles = {share: _percentile(text, share) for share in (50, 99)}
    return Load((sent - failed) / lasted, percentiles[50], percentiles[99], failed + lost, 1e3 * cpu_s / max(sent, 1))


def _percentile(text: str, share: int) -> float:
    found = re.search(rf"^\s+{share}%\s+([\d.]+)(us|ms|s|m)$", text, re.MULTILINE)
    return float(found[1]) * _UNITS[found[2]] if found else float("nan")
