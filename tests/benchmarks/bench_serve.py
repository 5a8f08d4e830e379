"""`make bench-serve`: `leukoray serve` beside the usual ways to answer HTTP with the same graph and images, in turn.

Each round starts a service, warms it up, and loads it with `wrk` over 1, 8, 64 and 256 connections. Written as Markdown
to <work>/serve.md. The limit is the same decoding and forward pass without HTTP, a process a core.
"""

import argparse
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.bench_score import Report
from tests.benchmarks.inputs import DEFAULT_WORK, INPUT_SIZE, bundle_of, folder_of
from tests.benchmarks.measure import environment, markdown_table, ratio, spread
from tests.benchmarks.rounds import Budget, Contender
from tests.benchmarks.rounds import run as run_contender
from tests.benchmarks.serve_load import Load, Posts, load, running
from tests.servers import free_port

_WARM_UP_S = 3
OURS = "leukoray serve"
_PATIENT = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30"}  # Serve's default ends it on a busy machine


@dataclass(frozen=True)
class Service:
    """One way to answer; `query` is added to /predict."""

    title: str
    command: Sequence[str]  # without --port
    query: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)
    as_form: bool = False


def main() -> None:
    options = _options()
    work = options.work.resolve()
    bundle, folder = bundle_of(work, options.model), folder_of(work, options.images)
    images = sorted(folder.glob("*.jpg"))
    report, budget = Report(work / "serve.md"), Budget(60 * options.minutes_limit)
    report.add(
        f"{options.model} at {INPUT_SIZE} pixels, {len(images)} JPEGs of 640x480 in turn, {options.seconds} s of load "
        f"for each number. {environment()}\n\nMedians (smallest–largest); in brackets what `{OURS}` is of it. CPU is "
        "that of all processes of the service, at the second of the loads."
    )
    limit = Contender("the limit", "limit", str(folder), str(bundle))
    rates: list[float] = []
    results: dict[str, dict[int, list[Load]]] = {}
    for number in range(1, options.rounds + 1):
        rates.append(run_contender(limit, work / "serve" / "limit").rate_steady)
        for service in _services(options.only, str(bundle)):
            if budget.allows(f"{service.title}, round {number}", 60.0):
                _measure(service, Posts(images, service.as_form), work / "serve", options, results, budget)
    report.add(_table(results, options.connections, rates))
    report.end(budget)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--model", default="mobilenet_v3_small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=8, help="of load, for each number of connections")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--only", nargs="*", default=[], help="titles to measure, beginnings of them; default: all")
    parser.add_argument("--minutes-limit", type=float, default=60.0)
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    return parser.parse_args()


def _services(only: Sequence[str], bundle: str) -> list[Service]:
    ours = [sys.executable, "-m", "jobs.serve", bundle]

    def rival(name: str) -> list[str]:
        return [sys.executable, "-m", "tests.benchmarks.serve_rivals", name, "--bundle", bundle]

    found = [
        Service(OURS, ours),
        Service(f"{OURS}, two replicas", [*ours, "--replicas", "2"]),
        Service(f"{OURS}, with explanation", ours, "?explain=1"),
        Service(f"{OURS}, Serve's own proxy", ours, extra={"RAY_SERVE_ENABLE_HA_PROXY": "0", **_PATIENT}),
        Service("our application on bare uvicorn", rival("bare")),
        Service("FastAPI and uvicorn", rival("fastapi")),
        Service("an empty Serve application", rival("empty"), extra=_PATIENT),
        Service("the usual Serve template", rival("template"), extra=_PATIENT),
    ]
    if importlib.util.find_spec("litserve") is not None:
        command = [sys.executable, "-m", "tests.benchmarks.serve_rival_litserve", "--bundle", bundle]
        found.insert(-2, Service("LitServe", command, as_form=True))
    return [service for service in found if not only or service.title.startswith(tuple(only))]


def _measure(
    service: Service,
    posts: Posts,
    folder: Path,
    options: argparse.Namespace,
    results: dict[str, dict[int, list[Load]]],
    budget: Budget,
) -> None:
    """One service over all numbers of connections, into `results`; one that fails is named and left out."""
    port = free_port()
    script, log = posts.write(folder), folder / "service.log"
    url = f"http://127.0.0.1:{port}/predict{service.query}"
    try:
        with running([*service.command, "--port", str(port)], port, posts, log, dict(service.extra)) as process:
            load(process, url, script, 8, _WARM_UP_S)
            for connections in options.connections:
                measured = load(process, url, script, connections, options.seconds)
                results.setdefault(service.title, {}).setdefault(connections, []).append(measured)
                failed = f", {measured.failed} failed" if measured.failed else ""
                print(f"  {service.title}, {connections}: {measured.rate:.0f} a second{failed}", flush=True)
    except RuntimeError as error:  # the other rows are still worth having
        budget.left_out.append(service.title)
        print(f"  {service.title}: {error}", flush=True)


def _table(results: Mapping[str, Mapping[int, Sequence[Load]]], connections: Sequence[int], limit: list[float]) -> str:
    columns = [f"{number} connection{'s' if number > 1 else ''}, answers/s" for number in connections]
    header = ["", "p50 at 1, ms", "p99", *columns, "CPU a request, ms", "failed"]
    mine = results.get(OURS, {})
    rows = []
    for title, loads in results.items():
        cells = []
        for number in connections:
            rates = [each.rate for each in loads.get(number, [])]
            own = [each.rate for each in mine.get(number, [])]
            compared = "" if title == OURS or not rates or not own else f" [{ratio(own, rates):.2f}x]"
            cells.append(f"{spread(rates)}{compared}" if rates else "–")
        first, second = loads[connections[0]], loads[connections[min(1, len(connections) - 1)]]
        latencies = [str(spread([each.p50_ms for each in first])), str(spread([each.p99_ms for each in first]))]
        failed = sum(each.failed for of_number in loads.values() for each in of_number)
        rows.append([title, *latencies, *cells, str(spread([each.cpu_ms for each in second])), str(failed)])
    rows.append(["the limit, without HTTP", "", "", *[str(spread(limit)) for _ in connections], "", ""])
    return markdown_table(header, rows)


if __name__ == "__main__":
    main()
