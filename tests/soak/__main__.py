"""Minutes of mixed load on `leukoray serve` with two replicas: `make soak MINUTES=10`.

Good images of many formats, forms, maps, /v2, FHIR and HL7; bad input, half-sent bodies, clients that drip, leave or
never read, 2,000 idle connections, bombs; and the model is changed, 20 times by default. Exit 1 where a request failed
other than by a refusal that says when to come back, where an answer came from a model that could not answer then, where
memory, open files or threads grew, or where the service's log holds a traceback.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pipeline.model.bundle import Bundle, read_bundle
from pipeline.model.registry import ModelFolder
from tests.bundles import make_mapped_bundle
from tests.servers import free_port
from tests.soak import hostile, traffic
from tests.soak.tally import Tally, out_of_turn
from tests.soak.traffic import Crowd, Place, Truth
from tests.soak.watch import Watch

ROOT = Path(__file__).resolve().parents[2]
_START_S, _STOP_S, _SWAP_S = 600, 120, 90
_JUDGED_FROM = 4.0  # minutes; a shorter run warms up all the while
_SILENCE_S = 10.0  # eight clients are not all without an answer for longer, on any machine
_KEY = "soak"


@dataclass
class Swaps:
    """Changes of the model, in turn by an order, by best.json that moves, and back by an order."""

    place: Place
    folder: ModelFolder
    bundles: Sequence[Bundle]
    orders: list[tuple[float, str]] = field(default_factory=list)  # when each was ordered, and its SHA-256

    def __post_init__(self) -> None:
        self.orders.append((time.monotonic(), self.bundles[0].info.identity()))

    def next(self) -> None:
        number = len(self.orders)
        target = self.bundles[number % 2]
        way = {2: "rollback", 4: "follow"}.get(number % 5, "reload")
        self.orders.append((time.monotonic(), target.info.identity()))
        if way != "rollback":
            self.folder.point_to(target)
        deadline = time.monotonic() + _SWAP_S
        while not self._is_done(way, target):
            if time.monotonic() > deadline:
                self.place.tally.fault(f"swap {number} by {way} did not come within {_SWAP_S} s")
                return
            time.sleep(0.5)

    def _is_done(self, way: str, target: Bundle) -> bool:
        if way == "follow":
            reply = self.place.ask("GET", "/readyz")
            return reply.status == 200 and json.loads(reply.body)["model"]["sha256"] == target.info.identity()
        reply = self.place.ask("POST", f"/admin/{way}", None, {"X-API-Key": _KEY})
        self.place.tally.note("swap", reply, {200})
        return reply.status == 200 and json.loads(reply.body)["sha256"] == target.info.identity()


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        bundles, folder = _registry(Path(scratch), options.bundles)
        with _service(Path(scratch), folder.uri) as (process, port):
            return _soaked(options, process, port, bundles, folder)


def _soaked(
    options: argparse.Namespace, process: subprocess.Popen, port: int, bundles: Sequence[Bundle], folder: ModelFolder
) -> int:
    images, tally, idle = traffic.sound_images(), Tally(), hostile.Idle()
    truth = Truth.of(list(bundles), images)
    crowd = Crowd(lambda seeded: Place("127.0.0.1", port, tally, images, truth, seeded))
    for work, pause_s, clients in (
        (traffic.image, 0.15, 8), (traffic.form, 0.5, 2), (traffic.explain, 0.5, 2), (traffic.infer, 0.3, 2),
        (traffic.report, 1.0, 1), (traffic.page, 0.3, 1), (traffic.refused, 0.2, 1), (traffic.Large(), 4.0, 1),
        (traffic.Bombs(), 2.0, 1), (hostile.half, 1.0, 4), (hostile.drip, 1.0, 4), (hostile.gone, 0.2, 2),
        (hostile.deaf, 3.0, 1), (idle, 20.0, 1),
    ):  # fmt: skip
        crowd.add(work, pause_s, clients)
    seconds, began = 60 * options.minutes, time.monotonic()
    swaps = Swaps(Place("127.0.0.1", port, tally, images, truth, random.Random(0)), folder, bundles)
    with Watch(process.pid, seconds) as watch, crowd:
        for number in range(1, options.swaps + 1):
            time.sleep(max(0.0, began + seconds * number / (options.swaps + 1) - time.monotonic()))
            swaps.next()
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        ended = time.monotonic()
        session = _session_of(process)
    broken = [*tally.shown_faults(), *(f"  {what}" for what in _of_models(swaps, tally))]
    if tally.longest_silence_s(began, ended) > _SILENCE_S:
        broken.append(f"  plain clients had no answer for {tally.longest_silence_s(began, ended):.0f} s")
    broken += [f"  grew: {what}" for what in watch.growth()] if options.minutes >= _JUDGED_FROM else []
    if options.samples:
        watch.write(options.samples)
    code = _stopped(process)
    broken += [] if code == 0 else [f"  the service ended with {code}"]
    broken += [f"  in its log: {line}" for line in _tracebacks(session)]
    _tell(options, tally, watch, swaps, idle, broken, ended - began)
    return 1 if broken else 0


def _tell(
    options: argparse.Namespace, tally: Tally, watch: Watch, swaps: Swaps, idle: hostile.Idle, broken: list[str],
    seconds: float,
) -> None:  # fmt: skip
    beside = sum(begin <= at <= end for at in tally.good_at for begin, end in idle.open_spans)
    print(f"\n{seconds / 60:.1f} minutes; answers by status, with codes of errors:")
    print("\n".join(tally.table()))
    print(f"{len(swaps.orders) - 1} changes of the model, {len(tally.said)} answers checked for their model")
    print(f"{beside} of {len(tally.good_at)} plain answers while {hostile.IDLE} connections were idle")
    print("memory, files, threads (floors of two spans of the run):")
    print("\n".join(watch.table()))
    if options.minutes < _JUDGED_FROM:
        print(f"whether it grows is not judged below {_JUDGED_FROM:g} minutes")
    print("\n".join(["broken:", *broken]) if broken else "every promise was kept")


def _of_models(swaps: Swaps, tally: Tally) -> list[str]:
    late = out_of_turn(swaps.orders, tally.said)
    return [f"{len(late)} answers out of turn, the first: {late[0]}"] if late else []


def _registry(scratch: Path, given: Sequence[Path]) -> tuple[list[Bundle], ModelFolder]:
    folder = ModelFolder(str(scratch / "models" / "leukoray"))
    if given:
        copies = [shutil.copytree(path, Path(folder.uri, path.name)) for path in given]
        bundles = [read_bundle(str(copy)) for copy in copies]
    else:
        bundles = [
            make_mapped_bundle(f"{folder.uri}/v{seed}", seed=seed, bias=seed, name="leukoray", version=f"v{seed}")
            for seed in (1, 2)
        ]
    folder.point_to(bundles[0])
    return bundles, folder


@contextlib.contextmanager
def _service(scratch: Path, model: str) -> Iterator[tuple[subprocess.Popen, int]]:
    """`leukoray serve` with two replicas, once it says that it is ready; every process of it ends with the block."""
    port, log = free_port(), scratch / "serve.log"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    extra = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "LEUKORAY_ADMIN_KEYS": _KEY}
    command = [sys.executable, "-m", "jobs.serve", str(Path(model).parent), "--port", str(port), "--replicas", "2"]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*command, "--num-cpus", "2"], cwd=ROOT, env=kept | extra, stdout=sink, stderr=sink, start_new_session=True
        )
    deadline = time.monotonic() + _START_S
    try:
        while "Ctrl-C stops it" not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the service did not start: {log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield process, port
    finally:
        tree = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for member in [*tree, *([process] if process.poll() is None else [])]:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                member.kill()
        process.wait()


def _stopped(process: subprocess.Popen) -> int:
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        return -1


def _session_of(process: subprocess.Popen) -> Path | None:
    """The folder of its Ray's logs."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found = re.search(r"session_dir=(\S+)", " ".join(child.cmdline()).replace("--session-dir", "session_dir"))
            if found:
                return Path(found[1])
    return None


def _tracebacks(session: Path | None) -> list[str]:
    """Of replicas, actors and Serve's own: how often each ends with which line."""
    if session is None or not session.exists():
        return ["no logs were found"]
    found: Counter[str] = Counter()
    logs = session / "logs"
    for path in [*logs.glob("serve/*.log"), *logs.glob("worker-*.err")]:
        for part in path.read_text("utf-8", "replace").split("Traceback (most recent call last):")[1:]:
            last = next((line for line in part.splitlines()[1:] if line and not line[0].isspace()), "?")
            found[f"{path.name.split('_')[0]}: {last[:200]}"] += 1
    return [f"{count} times {line}" for line, count in found.items()]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--swaps", type=int, default=20, help="changes of the model in that time")
    parser.add_argument(
        "--bundles", type=Path, nargs=2, default=[], help="folders of two versions; default: small linear ones"
    )
    parser.add_argument("--samples", type=Path, help="a CSV of what was seen of each process, every two seconds")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
