"""The kill loop: score, kill -9 something at a random moment, run the same command again, compare with a whole run.

    python -m tests.system.chaos 200 [--seed 1] [--where disk s3]

Kills the driver, a scoring worker or the raylet. Every round ends with a finished run whose rows must equal those of
the unbroken run, one by one, and whose parts were not made twice.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pipeline.scoring.work.crew import ScoringActor
from tests.bundles import make_bundle
from tests.scoring_sources import (
    ROOT,
    mixed_files,
    only_run,
    outcome,
    read_run,
    run_score,
    score_command,
    write_files,
)
from tests.servers import S3Server, moto_server

VICTIMS = ("driver", "worker", "raylet")


@dataclass
class Tally:
    """What a chaos session did and found."""

    kills: Counter[str] = field(default_factory=Counter)
    too_late: int = 0  # the run was over before the kill
    rounds: int = 0
    images: int = 0
    resumed: int = 0  # images that a later try found done
    differences: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Arena:
    """One source, one model, and how a run's output gets to the disk to be compared."""

    source: str
    model: str
    out: str
    s3: S3Server | None = None

    @property
    def env(self) -> dict[str, str]:
        return self.s3.env if self.s3 else {}

    def fetch(self, scratch: Path) -> Path:
        """The run's folder on disk."""
        if self.s3 is None:
            return only_run(Path(self.out))
        target = scratch / "fetched"
        shutil.rmtree(target, ignore_errors=True)
        self.s3.download(self.out, target)
        return only_run(target)


def kill(process: subprocess.Popen[Any], victim: str) -> bool:
    """Kill -9 the driver, one scoring worker, or the raylet; False when there is none to kill."""
    targets = _targets(process, victim)
    if not targets:
        return False
    try:
        random.choice(targets).send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    return True


def _targets(process: subprocess.Popen[Any], victim: str) -> list[psutil.Process]:
    try:
        own = psutil.Process(process.pid)
        tree = own.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    if victim == "driver":
        return [own]
    if victim == "raylet":
        return [child for child in tree if _name(child).endswith("raylet")]
    return [child for child in tree if ScoringActor.__name__ in " ".join(_command(child))]  # as Ray names its process


def _strike(process: subprocess.Popen[Any], victim: str, rng: random.Random, typical_s: float) -> bool:
    """Kill at a random moment of the victim's life: any for the driver, from their start on for what Ray starts."""
    if victim == "driver":
        time.sleep(rng.uniform(0.3, 1.0) * typical_s)
        return process.poll() is None and kill(process, victim)
    pause_s = rng.uniform(0.0, 1.0 if victim == "worker" else 0.5 * typical_s)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if _targets(process, victim):
            time.sleep(pause_s)
            return process.poll() is None and kill(process, victim)
        time.sleep(0.05)
    return False


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _arguments(arena: Arena) -> list[str]:
    return [arena.source, "--model", arena.model, "--out", arena.out, "--workers", "2", "--max-error-share", "0.2"]


def one_round(arena: Arena, scratch: Path, kills: int, rng: random.Random, typical_s: float, tally: Tally) -> None:
    """Kill the same run up to `kills` times, then let it finish. Victims come in turn, so that each kind does."""
    for _ in range(kills):
        victim = VICTIMS[(sum(tally.kills.values()) + tally.too_late) % len(VICTIMS)]
        process = subprocess.Popen(
            score_command(*_arguments(arena)), cwd=ROOT, env={**os.environ, **arena.env},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        killed = _strike(process, victim, rng, typical_s)
        tally.kills[victim] += killed
        tally.too_late += not killed
        try:
            process.wait(timeout=180)
        except subprocess.TimeoutExpired:
            process.kill()
            tally.differences.append(f"hung after the kill of {victim}")
        if process.returncode == 0 or _is_finished(arena, scratch):  # the same command would begin the next night's run
            return


def finish_and_compare(arena: Arena, reference: dict[str, Any], scratch: Path, tally: Tally) -> None:
    """Let the same command end what was killed, unless the run survived it, and compare row by row."""
    if not _is_finished(arena, scratch):
        finished = run_score(*_arguments(arena), env=arena.env)
        if finished.returncode != 0:
            tally.differences.append(f"exit {finished.returncode}: {finished.stderr[-500:]}")
            return
    run_dir = arena.fetch(scratch)
    found = outcome(run_dir)
    for kind in ("predictions", "quarantine"):
        if found[kind] != reference[kind]:
            tally.differences.append(f"{kind}: {len(found[kind])} rows, {len(reference[kind])} in the unbroken run")
    run = read_run(run_dir)
    tally.images += run["counts"]["listed"]
    tally.resumed += run["progress"]["resumed_images"]


def chaos(kills: int, seed: int, where: tuple[str, ...], images: int = 900, kills_a_run: int = 3) -> Tally:
    """Kill `kills` times in all, in turn on the given stores, each run up to `kills_a_run` times.

    Nothing is asserted here; see `Tally.differences`.
    """
    rng = random.Random(seed)
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="leukoray-chaos-") as name, moto_server() as server:
        scratch = Path(name)
        files = mixed_files(images, (640, 480))
        model = make_bundle(scratch / "bundle").uri
        local = str(write_files(scratch / "source", files))
        sources: dict[str, tuple[str, S3Server | None]] = {"disk": (local, None)}
        if "s3" in where:
            sources["s3"] = (server.upload("night", files), server)
        references, typical = {}, {}
        for store in where:
            arena = _arena(store, sources, model, scratch, 0)
            begin = time.monotonic()
            whole = run_score(*_arguments(arena), env=arena.env)
            assert whole.returncode == 0, whole.stderr[-2000:]
            typical[store] = time.monotonic() - begin
            references[store] = outcome(arena.fetch(scratch))
        while sum(tally.kills.values()) + tally.too_late < kills:
            tally.rounds += 1
            store = where[tally.rounds % len(where)]
            arena = _arena(store, sources, model, scratch, tally.rounds)
            left = kills - sum(tally.kills.values()) - tally.too_late
            one_round(arena, scratch, min(left, rng.randint(1, kills_a_run)), rng, typical[store], tally)
            before = len(tally.differences)
            finish_and_compare(arena, references[store], scratch, tally)
            print(
                f"round {tally.rounds} on {store}: kills {dict(tally.kills)}, "
                + ("ok" if len(tally.differences) == before else tally.differences[-1]),
                flush=True,
            )
            if arena.s3 is None:
                shutil.rmtree(arena.out, ignore_errors=True)
    return tally


def _is_finished(arena: Arena, scratch: Path) -> bool:
    """The run is whole: the last kill came too late, or it lost a worker and went on."""
    try:
        return (arena.fetch(scratch) / "_SUCCESS").exists()
    except (ValueError, OSError):
        return False


def _arena(
    store: str, sources: dict[str, tuple[str, S3Server | None]], model: str, scratch: Path, number: int
) -> Arena:
    source, s3 = sources[store]
    out = f"s3://{s3.bucket}/scores-{number}" if s3 else str(scratch / f"scores-{number}")
    return Arena(source, model, out, s3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int, nargs="?", default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--where", nargs="+", choices=["disk", "s3"], default=["disk", "s3"])
    options = parser.parse_args()
    begin = time.monotonic()
    tally = chaos(options.kills, options.seed, tuple(options.where))
    killed = ", ".join(f"{count} {victim}" for victim, count in sorted(tally.kills.items()))
    print(
        f"{sum(tally.kills.values())} kills ({killed}), {tally.too_late} came too late, {tally.rounds} runs, "
        f"{tally.images} images accounted for, {tally.resumed} not done again; {len(tally.differences)} differences "
        f"from the unbroken run; {(time.monotonic() - begin) / 60:.1f} min"
    )
    for line in tally.differences:
        print(f"  {line}")
    return 1 if tally.differences else 0


if __name__ == "__main__":
    sys.exit(main())
