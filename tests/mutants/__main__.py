"""Break the code of a room, one change at a time, in a copy of the tree, and count which changes its tests notice.

    python -m tests.mutants lock endpoint --limit 60 --seed 1

Each mutant is met by the tests that ran its line (coverage contexts), quickest first, in a process forked from one that
has the large libraries loaded. A mutant that runs for five times as long as its tests do is killed, as a test would.
"""

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import coverage
import pytest

from tests.mutants.operators import Mutant, mutants
from tests.mutants.rooms import ROOMS, ROOT, Room

# Loaded once, before the forks. Nothing of ours: a mutant must be read anew.
LIBRARIES = (
    "numpy", "pyarrow.parquet", "pyarrow.dataset", "PIL.Image", "simplejpeg", "cv2", "onnxruntime", "onnx", "boto3",
    "moto", "aiohttp.web", "hypothesis", "fastapi", "httpx", "pydantic", "sklearn.metrics", "scipy.stats",
    "safetensors.numpy", "jinja2",
)  # fmt: skip
PYTEST = ("-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=1")
SLACK_S, SLACK_FACTOR = 20.0, 5.0


@dataclass
class Coverage:
    """Which tests ran which line, and how long each took alone."""

    tests: dict[str, dict[int, set[str]]] = field(default_factory=dict)  # module -> line -> tests
    imported: dict[str, set[int]] = field(default_factory=dict)  # module -> lines that run on import only
    seconds: dict[str, float] = field(default_factory=dict)

    def of(self, mutant: Mutant) -> list[str]:
        """Tests that may notice the mutant, quickest first; all of the room for what runs on import."""
        found = self.tests.get(mutant.path, {}).get(mutant.line, set())
        if not found and mutant.line in self.imported.get(mutant.path, set()):
            found = set(self.seconds)
        return sorted(found & self.seconds.keys(), key=lambda name: (self.seconds[name], name))


class _Times:
    """A pytest plugin that keeps how long each passed test took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.when == "call" and report.passed:
            self.seconds[report.nodeid] = report.duration


def in_fork(work: Callable[[], int], limit_s: float, log: Path) -> int | None:
    """Exit code of `work` in a process group of its own; None when it had to be ended."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.setsid()
            sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
                del sys.modules[name]  # this program's own tree; pytest reads the copy's
            code = work()
        finally:
            os._exit(code)
    deadline = time.monotonic() + limit_s
    status: int | None = None
    while status is None and time.monotonic() < deadline:
        done, raw = os.waitpid(child, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(raw)
        else:
            time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # with what it started
    if status is None:
        os.waitpid(child, 0)
    return status


def measure(tree: Path, room: Room) -> Coverage:
    """Run the room's tests on the whole code once. Raises RuntimeError when one of them fails."""
    data, times, log = tree.parent / "coverage", tree.parent / "times.json", tree.parent / "measure.log"

    def work() -> int:
        plugin = _Times()
        os.environ["COVERAGE_FILE"] = str(data)
        measured = [f"--cov={name}" for name in ("pipeline", "serving", "jobs")]
        options = [*PYTEST[1:], *measured, "--cov-context=test", "--cov-report=", "--cov-fail-under=0"]
        code = pytest.main([*options, *room.test_paths()], plugins=[plugin])
        times.write_text(json.dumps({"seconds": plugin.seconds, "failed": plugin.failed}))
        return int(code)

    if in_fork(work, 3600, log) != 0:
        raise RuntimeError(f"the tests fail on the unbroken code:\n{log.read_text()[-3000:]}")
    found = Coverage(seconds=json.loads(times.read_text())["seconds"])
    recorded = coverage.CoverageData(str(data))
    recorded.read()
    for path in room.module_paths():
        lines = recorded.contexts_by_lineno(str(tree / path))
        found.tests[path] = {line: _tests(contexts, found.seconds) for line, contexts in lines.items()}
        found.imported[path] = {line for line, contexts in lines.items() if set(contexts) == {""}}
    return found


def _tests(contexts: list[str], known: dict[str, float]) -> set[str]:
    """What a fixture ran may be noticed by any test of its file, not only by the one that asked for it first."""
    names: set[str] = set()
    for context in contexts:
        name, _, phase = context.partition("|")
        file = name.partition("::")[0]
        names |= {name} if phase == "run" else {test for test in known if name and test.startswith(file + "::")}
    return names


def meets(tree: Path, mutant: Mutant, tests: list[str], limit_s: float) -> bool:
    """Whether a test notices the mutant."""
    path = tree / mutant.path
    whole = path.read_text()
    path.write_text(mutant.source)
    try:
        code = in_fork(lambda: int(pytest.main([*PYTEST, *tests])), limit_s, tree.parent / "mutant.log")
    finally:
        path.write_text(whole)
    if code in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(f"{mutant}: pytest did not run:\n{(tree.parent / 'mutant.log').read_text()[-3000:]}")
    return code != 0


def judge(name: str, room: Room, limit: int, seed: int, only: str) -> dict[str, Any]:
    """Meet the room's mutants, at most `limit` of them, drawn by the seed."""
    with tempfile.TemporaryDirectory(prefix="leukoray-mutants-") as folder:
        tree = Path(folder).resolve() / "tree"
        ignored = shutil.ignore_patterns(".git", ".venv*", "out", "__pycache__", ".*_cache", ".hypothesis")
        shutil.copytree(ROOT, tree, ignore=ignored)
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        known = measure(tree, room)
        possible = [m for path in room.module_paths() if only in path for m in mutants(path, (tree / path).read_text())]
        drawn = sorted(random.Random(seed).sample(range(len(possible)), min(limit, len(possible))))
        print(f"{name}: {len(known.seconds)} tests, {len(drawn)} of {len(possible)} mutants", flush=True)
        survivors: list[str] = []
        for count, mutant in enumerate((possible[index] for index in drawn), 1):
            tests = known.of(mutant)
            limit_s = SLACK_S + SLACK_FACTOR * sum(known.seconds[test] for test in tests)
            if tests and meets(tree, mutant, tests, limit_s):
                continue
            survivors.append(f"{mutant}{'' if tests else ' (no test runs this line)'}")
            print(f"  [{count}/{len(drawn)}] survived: {survivors[-1]}", flush=True)
        os.chdir(ROOT)
        sys.path.remove(str(tree))
    return {"room": name, "mutants": len(drawn), "of": len(possible), "survivors": survivors}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help=f"of {', '.join(ROOMS)}; all when none is named")
    parser.add_argument("--limit", type=int, default=100, help="mutants a room, drawn from all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="modules whose path has this")
    options = parser.parse_args()
    if unknown := set(options.rooms) - ROOMS.keys():
        parser.error(f"no room {', '.join(sorted(unknown))}; rooms: {', '.join(ROOMS)}")
    for name in LIBRARIES:
        importlib.import_module(name)
    tally: Counter[str] = Counter()
    for name in options.rooms or ROOMS:
        begin = time.monotonic()
        found = judge(name, ROOMS[name], options.limit, options.seed, options.only)
        survived = len(found["survivors"])
        tally.update(mutants=found["mutants"], survived=survived)
        print(
            f"{name}: {found['mutants']} of {found['of']} mutants, {found['mutants'] - survived} killed, "
            f"{survived} survived, {(time.monotonic() - begin) / 60:.0f} min",
            flush=True,
        )
    print(
        f"all: {tally['mutants']} mutants, {tally['mutants'] - tally['survived']} killed, {tally['survived']} survived"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
