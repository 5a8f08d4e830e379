"""Mutate sound files until time is up: `make fuzz MINUTES=10`, or `python -m tests.fuzz --minutes 10 png tar`.

An exception that is no refusal of ours, a crash, an input that takes longer than 20 s or more than 1.5 GB ends with
exit 1; the input that does it is printed, for a test.
"""

import argparse
import base64
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.seeds import ARCHIVES, IMAGES

TIMEOUT_S, MEMORY_MB, MAX_BYTES = 20, 1536, 64 * 1024
TARGETS = (*IMAGES, *ARCHIVES, "header")
SHOWN_BYTES = 600


def seeds_of(name: str) -> list[bytes]:
    if name == "header":
        return [seed for make in IMAGES.values() for seed in make()]
    return (IMAGES.get(name) or ARCHIVES[name])()


def fuzz(name: str, seconds: float, seed: int, folder: Path) -> tuple[int, str | None]:
    """Cases tried, and what was found."""
    corpus, found = folder / name, folder / f"{name}-found-"
    corpus.mkdir()
    for number, data in enumerate(seeds_of(name)):
        (corpus / str(number)).write_bytes(data)
    command = [sys.executable, "-m", "tests.fuzz.target", name, str(corpus), f"-max_total_time={seconds:.0f}",
               f"-timeout={TIMEOUT_S}", f"-rss_limit_mb={MEMORY_MB}", f"-max_len={MAX_BYTES}", f"-seed={seed}",
               f"-artifact_prefix={found}", "-print_final_stats=1"]  # fmt: skip
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        code = subprocess.run(command, stdout=output, stderr=output, timeout=seconds + 300).returncode
    text = log.read_text("utf-8", "replace")
    counted = re.findall(r"number_of_executed_units: (\d+)|#(\d+)\t", text)
    cases = max((int(one or other) for one, other in counted), default=0)
    return cases, None if code == 0 else _finding(text, sorted(folder.glob(f"{name}-found-*")))


def _finding(log: str, inputs: list[Path]) -> str:
    start = next((log.index(mark) for mark in ("Uncaught Python exception", "ERROR: libFuzzer") if mark in log), None)
    told = log[start:] if start is not None else log[-3000:]
    lines = [told.split("SUMMARY: libFuzzer")[0][:3000].strip()]
    for path in inputs:
        data = path.read_bytes()
        packed = base64.b64encode(data).decode() if len(data) <= SHOWN_BYTES else "too long to be shown"
        lines.append(f"{path} ({len(data)} bytes): {packed}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--minutes", type=float, default=10, help="for all targets together")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    targets = arguments.targets or list(TARGETS)
    folder = Path(tempfile.mkdtemp(prefix="leukoray-fuzz-"))
    failed, total, begin = 0, 0, time.monotonic()
    for name in targets:
        cases, finding = fuzz(name, arguments.minutes * 60 / len(targets), arguments.seed, folder)
        total += cases
        failed += finding is not None
        print(f"{name:9} {cases:9,} cases  {'nothing found' if finding is None else finding}", flush=True)
    minutes = (time.monotonic() - begin) / 60
    print(
        f"{total:,} cases in {minutes:.1f} minutes, {failed} of {len(targets)} targets with a finding; logs in {folder}"
    )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
