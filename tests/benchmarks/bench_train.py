"""`make bench-train`: `leukoray train` beside torchrun's DDP and Lightning, whole commands, round by round.

The same images, network, global batch, random changes and number of epochs for all. Written as Markdown to
<work>/train.md. With --gpu all train on GPUs, and the share of the time in which the GPU had nothing to do is told.
"""

import argparse
import functools
import importlib.util
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.bench_score import Report
from tests.benchmarks.inputs import DEFAULT_WORK
from tests.benchmarks.measure import environment
from tests.benchmarks.rounds import Budget
from tests.benchmarks.train_inputs import TrainingSet, training_set
from tests.benchmarks.train_measure import Trained, Trainer, our_timeline, printed_timeline, run, table

OURS, AGAIN, DDP, LIGHTNING = "leukoray train", "leukoray train, a second run", "torchrun DDP", "Lightning"
SIZES = ("640x480", "224x224")


def main() -> None:
    options = _options()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    report, budget = Report(work / "train.md"), Budget(60 * options.minutes_limit)
    report.add(
        f"{options.images} synthetic JPEGs, networks at {options.input_size} pixels from random weights, global batch "
        f"{options.batch}, {options.epochs} epochs{', on a GPU' if options.gpu else ''}. {environment()}\n\n"
        "Medians (smallest–largest) of whole commands in turn; in brackets what `leukoray train` is of it."
    )
    for size in options.sizes:
        width, height = map(int, size.split("x"))
        images = training_set(work, options.images, width, height)
        for architecture in options.models:
            for workers in options.workers:
                trainers = _trainers(options, images, work / "runs", architecture, workers)
                results = _interleaved(trainers, options.rounds, budget, gpu=options.gpu)
                plural = "s" if workers > 1 else ""
                if results:
                    report.add(f"### {architecture}, JPEG {size}, {workers} worker{plural}\n\n{table(results, OURS)}")
    report.end(budget)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1700, help="to train on; a fifth as many are for validation")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32, help="images of a step, over all workers")
    parser.add_argument("--input-size", type=int, default=128)
    parser.add_argument("--models", nargs="+", default=["mobilenet_v3_small", "resnet18"])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), help="of the JPEGs, WIDTHxHEIGHT")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rivals", nargs="*", default=[DDP, LIGHTNING], choices=[DDP, LIGHTNING])
    parser.add_argument("--gpu", action="store_true", help="train on GPUs, as many as there are workers")
    parser.add_argument("--minutes-limit", type=float, default=240.0)
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    return parser.parse_args()


def _trainers(
    options: argparse.Namespace, images: TrainingSet, out: Path, architecture: str, workers: int
) -> list[Trainer]:
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(workers), "-m"]
    rivals = {
        DDP: [*torchrun, "tests.benchmarks.train_rival_ddp"],
        LIGHTNING: ["tests.benchmarks.train_rival_lightning"],
    }
    trainers = _ours(options, images, out, architecture, workers)
    for number, title in enumerate(options.rivals):
        if title == LIGHTNING and importlib.util.find_spec("lightning") is None:
            raise SystemExit("lightning is missing; `make bench-train` installs the extra bench")
        folder = out / f"rival-{number}"
        command = [sys.executable, "-m", *rivals[title], "--listing", str(images.listing), "--out", str(folder)]
        command += ["--architecture", architecture, "--size", str(options.input_size), "--epochs", str(options.epochs)]
        command += ["--batch", str(options.batch), "--trainers", str(workers), *(["--gpu"] if options.gpu else [])]
        trainers.append(Trainer(title, command, printed_timeline, functools.partial(_empty, folder)))
    return trainers


def _ours(
    options: argparse.Namespace, images: TrainingSet, out: Path, architecture: str, workers: int
) -> list[Trainer]:
    """A run on an empty cache, and one that finds it filled."""
    shared = [sys.executable, "-m", "jobs.train", str(images.manifest), "--architecture", architecture]
    shared += ["--weights", "none", "--input-size", str(options.input_size), "--patience", "0"]
    shared += ["--epochs", str(options.epochs)]
    shared += ["--batch-size", str(options.batch), "--workers", str(workers)]
    shared += ["--use-gpu" if options.gpu else "--no-use-gpu", "--cache", str(out / "cache")]
    trainers = []
    for title, cleared in ((OURS, (out / "ours", out / "cache")), (AGAIN, (out / "ours",))):
        prepare = functools.partial(_empty, *cleared)
        command = [*shared, "--out", str(out / "ours")]
        trainers.append(Trainer(title, command, functools.partial(our_timeline, out / "ours"), prepare))
    return trainers


def _empty(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)


def _interleaved(trainers: list[Trainer], rounds: int, budget: Budget, *, gpu: bool) -> dict[str, list[Trained]]:
    """Results by title, in the order of the trainers."""
    results: dict[str, list[Trained]] = {trainer.title: [] for trainer in trainers}
    for number in range(1, rounds + 1):
        for trainer in trainers:
            lasted = max((each.seconds_total for each in results[trainer.title]), default=0.0)
            if not budget.allows(f"{trainer.title}, round {number}", lasted):
                continue
            try:
                trained = run(trainer, gpu=gpu)
            except (RuntimeError, subprocess.SubprocessError) as error:  # the other rows are still worth having
                budget.left_out.append(f"{trainer.title}, round {number} (failed)")
                print(f"  round {number}  {error}", flush=True)
                continue
            results[trainer.title].append(trained)
            print(
                f"  {time.strftime('%H:%M:%S')} round {number}  {trainer.title}: {trained.seconds_total:.1f} s, first "
                f"epoch {trained.rate_first:.0f}, later {trained.rate_later:.0f} images/s",
                flush=True,
            )
    return {title: values for title, values in results.items() if values}


if __name__ == "__main__":
    main()
