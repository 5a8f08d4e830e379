"""`leukoray score` as its users run it: a process from start to exit, default settings."""

import json
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.inputs import ROOT
from tests.benchmarks.measure import Measured, contender_arguments, read_rows, show, steady_rate


def score_command(images: str, bundle: str, out: str, workers: int) -> list[str]:
    names = ["--model", bundle, "--out", out, "--workers", str(workers)]
    return [sys.executable, "-m", "jobs.score", images, *names]


def result_of(out: str, seconds_total: float) -> Measured:
    """From the finished run below `out`: a batch is finished when its rows say that they were scored."""
    folder = _run_folder(out)
    counts = json.loads((folder / "run.json").read_text())["counts"]
    if counts["scored"] != counts["listed"]:
        raise ValueError(f"{folder}: {counts['scored']} of {counts['listed']} images scored")
    finished, mean = read_rows(predictions_of(out), "scored_at")
    return Measured(counts["scored"], seconds_total, steady_rate(finished), mean)


def predictions_of(out: str) -> str:
    return str(_run_folder(out) / "predictions")


def _run_folder(out: str) -> Path:
    """The only finished run below `out`."""
    [folder] = [path.parent for path in Path(out).glob("*/_SUCCESS")]
    return folder


def main() -> None:
    options = contender_arguments(__doc__)
    begin = time.time()
    subprocess.run(score_command(options.images, options.bundle, options.out, options.workers), cwd=ROOT, check=True)
    show(result_of(options.out, time.time() - begin))


if __name__ == "__main__":
    main()
