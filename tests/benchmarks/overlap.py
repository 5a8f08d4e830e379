"""What a slow store costs: scoring by one, two and three nodes from a store that answers at once, and after a while.

    python -m tests.benchmarks.overlap --images 6000 --seconds 0.05 --rounds 3      # root, for the namespaces

The nodes are raylets of one core each in namespaces of this machine (tests/nodes.py), the store is a process beside
them (tests/benchmarks/slow_store.py). Workers that wait for one image at a time would do 1 / SECONDS images/s each.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from tests.benchmarks.inputs import DEFAULT_WORK, bundle_of, pool_of_images
from tests.benchmarks.measure import environment, markdown_table
from tests.benchmarks.ours import result_of, score_command
from tests.benchmarks.slow_store import BUCKET, PREFIX
from tests.nodes import HEAD, Nodes, cluster
from tests.servers import CREDENTIALS

_STORE = "10.77.0.254"
_PORTS = (9000, 9001)  # of the store that answers at once, and of the slow one
_DISTINCT = 256


def rates(count: int, options: argparse.Namespace, bundle: Path, images: Path) -> Iterator[tuple[bool, float]]:
    """Whether the store was slow, and images/s in steady state, of each round by `count` nodes."""
    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder), [1] * count) as nodes:
        for port, seconds in zip(_PORTS, (0.0, options.seconds), strict=True):
            server = ["-m", "tests.benchmarks.slow_store", f"{_STORE}:{port}", str(seconds), str(options.images)]
            nodes.background(nodes.switch, sys.executable, *server, str(images))
        for _ in range(options.rounds):
            for is_slow, port in enumerate(_PORTS):
                yield bool(is_slow), _rate(nodes, port, bundle, Path(folder, "out"), count)


def _rate(nodes: Nodes, port: int, bundle: Path, out: Path, workers: int) -> float:
    command = score_command(f"s3://{BUCKET}/{PREFIX}", str(bundle), str(out), workers)
    begin = time.time()
    run = nodes.popen(*command, "--address", HEAD, "--s3-endpoint", f"http://{_STORE}:{port}")
    said, _ = run.communicate()
    if run.returncode:
        raise SystemExit(f"scoring ended with {run.returncode}:\n{said[-3000:]}")
    rate = result_of(str(out), time.time() - begin).rate_steady
    shutil.rmtree(out)
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--seconds", type=float, default=0.05, help="of each answer of the slow store")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--architecture", default="mobilenet_v3_small")
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    options = parser.parse_args()
    os.environ |= CREDENTIALS  # workers have those of the nodes
    bundle, images = bundle_of(options.work, options.architecture), pool_of_images(options.work, _DISTINCT)
    rows = []
    for count in options.nodes:
        found: dict[bool, list[float]] = defaultdict(list)
        for is_slow, rate in rates(count, options, bundle, images):
            found[is_slow].append(rate)
            print(f"{count} nodes, {'slow' if is_slow else 'quick'} store: {rate:.0f} images/s", flush=True)
        quick, slow = median(found[False]), median(found[True])
        rows.append([str(count), f"{quick:.0f}", f"{slow:.0f}", f"{slow / quick:.2f}"])
    header = ["nodes of a core", "images/s, at once", f"after {1000 * options.seconds:.0f} ms", "ratio"]
    print(environment(), markdown_table(header, rows), sep="\n\n")


if __name__ == "__main__":
    main()
