"""`make bench-score`: how fast, how lean and how linear `leukoray score` is, beside its rivals and the machine's limit.

Everything is measured in one go, round by round, and written as Markdown to <work>/score.md. Ours and the limit take
all images; slow rivals, S3 and heavy models a stated part.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.inputs import DEFAULT_WORK, bundle_of, folder_of, tars_of
from tests.benchmarks.limit_variants import best_batch
from tests.benchmarks.measure import agreement, environment, markdown_table, ratio, spread
from tests.benchmarks.memory import growth, memory_table, plot, traced_run
from tests.benchmarks.ours import predictions_of
from tests.benchmarks.rounds import Budget, Contender, interleaved, result_table
from tests.benchmarks.store import served, server_limit
from tests.servers import Faults, faulty_proxy

OURS, LIMIT = "leukoray score", "the limit"
RIVALS = {
    "rival_ray_template": "usual Ray Data template",
    "rival_dataloader": "PyTorch DataLoader, eager",
    "rival_daft": "Daft, eager",
}
HEAVY = {"mobilenet_v3_small": 1, "resnet18": 8}  # their images are divided by this: the same time for each model


@dataclass
class Report:
    """Collects the Markdown and shows it as it grows."""

    path: Path
    text: str = ""

    def add(self, text: str) -> None:
        self.text += text + "\n\n"
        self.path.write_text(self.text)
        print(f"\n{text}", flush=True)

    def end(self, budget: Budget) -> None:
        """What the time was too short for, and where all of it lies."""
        if budget.left_out:
            self.add("Left out: failed, or beyond the time limit: " + "; ".join(budget.left_out) + ".")
        print(f"\nwritten to {self.path}")


def main() -> None:
    options = _options()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    print(f"drawing up to {options.images} synthetic images (kept in {work})", flush=True)
    folder_of(work, options.images)
    report = Report(work / "score.md")
    report.add(
        f"Synthetic JPEGs 640x480, networks at 224 pixels with random weights. {environment()}\n\n"
        "Steady: images/s between 20 % and 90 % of the images. Whole job: from the start of the process to its "
        "last row. Median (smallest–largest)."
    )
    budget = Budget(60 * options.minutes_limit)
    sections: dict[str, Callable[[], None]] = {
        "disk": lambda: _disk(options, work, budget, report),
        "tar": lambda: _tar(options, work, budget, report),
        "s3": lambda: _s3(options, work, budget, report),
        "faults": lambda: _faults(options, work, budget, report),
        "cold": lambda: _cold(options, work, budget, report),
        "workers": lambda: _workers(options, work, budget, report),
        "memory": lambda: _memory(options, work, budget, report),
    }
    for name in options.sections:
        sections[name]()
    report.end(budget)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000, help="for ours and the limit")
    parser.add_argument("--slow-images", type=int, default=2000, help="for the rivals")
    parser.add_argument("--s3-images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=list(HEAVY))
    names = ["disk", "tar", "s3", "faults", "cold", "workers", "memory"]
    parser.add_argument("--sections", nargs="+", default=names, choices=names)
    parser.add_argument("--memory-images", nargs="+", type=int, default=[1000, 10_000, 100_000])
    parser.add_argument("--minutes-limit", type=float, default=40.0)
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, flush=True)


def _pair(source: str, bundle: str, environment_of_both: dict[str, str] | None = None) -> list[Contender]:
    batch = best_batch(f"{bundle}/model.onnx")
    return [
        Contender(OURS, "ours", source, bundle, environment=environment_of_both),
        Contender(LIMIT, "limit", source, bundle, batch, environment=environment_of_both),
    ]


def _disk(options: argparse.Namespace, work: Path, budget: Budget, report: Report) -> None:
    for model in options.models:
        _disk_with(model, options, work, budget, report)


def _disk_with(model: str, options: argparse.Namespace, work: Path, budget: Budget, report: Report) -> None:
    share = HEAVY.get(model, 1)
    bundle = str(bundle_of(work, model))
    pair = _pair(str(folder_of(work, options.images // share)), bundle)
    slow = str(folder_of(work, options.slow_images // share))
    rivals = [Contender(title, module, slow, bundle) for module, title in RIVALS.items()]
    results = interleaved([*pair, *rivals], options.rounds, work / "runs", budget, _say)
    if OURS not in results:
        return
    report.add(f"### {model}, files on disk\n\n{result_table(results, OURS)}")
    ours = predictions_of(str(work / "runs" / "ours"))
    agreements = []
    for module, title in RIVALS.items():
        if title in results:
            correlation, difference = agreement(ours, str(work / "runs" / module))
            agreements.append(f"{title} r = {correlation:.3f}, mean difference {difference:.3f}")
    means = [results[title][-1].mean_probability for title in (OURS, LIMIT) if title in results]
    same = f"; the limit's mean probability differs by {abs(means[0] - means[-1]):.1e}" if len(means) == 2 else ""
    report.add(f"The same work: {'; '.join(agreements)}{same}.")


def _tar(options: argparse.Namespace, work: Path, budget: Budget, report: Report) -> None:
    pair = _pair(str(tars_of(work, options.images)), str(bundle_of(work, options.models[0])))
    results = interleaved(pair, min(2, options.rounds), work / "runs", budget, _say)
    if OURS in results:
        report.add(f"### {options.models[0]}, tar archives on disk\n\n{result_table(results, OURS)}")


def _s3(options: argparse.Namespace, work: Path, budget: Budget, report: Report) -> None:
    folder = folder_of(work, options.s3_images)
    names = sorted(path.name for path in folder.iterdir())
    with served(folder) as (source, environment_of_both):
        alone = [server_limit(environment_of_both["AWS_ENDPOINT_URL"], names) for _ in range(options.rounds)]
        pair = _pair(source, str(bundle_of(work, options.models[0])), environment_of_both)
        results = interleaved(pair, options.rounds, work / "runs", budget, _say)
    if OURS in results:
        report.add(
            f"### {options.models[0]}, S3\n\n{result_table(results, OURS)}\n\n"
            f"The S3 server is moto on the same cores: plain GETs from threads, with nothing done to the bytes, reach "
            f"{spread(alone)} objects/s, so both rows measure it as much as themselves."
        )


def _faults(options: argparse.Namespace, work: Path, budget: Budget, report: Report) -> None:
    """Both ways lead through the same proxy; it has one core's worth of work itself."""
    bundle = str(bundle_of(work, options.models[0]))
    bad = Faults(share=0.05, latency_s=0.05, stall_s=30.0, seed=1)
    with (
        served(folder_of(work, options.s3_images)) as (source, environment_of_both),
        faulty_proxy(environment_of_both["AWS_ENDPOINT_URL"], Faults()) as good_endpoint,
        faulty_proxy(environment_of_both["AWS_ENDPOINT_URL"], bad) as bad_endpoint,
    ):
        good, faulty = (
            Contender(title, "ours", source, bundle, environment={**environment_of_both, "AWS_ENDPOINT_URL": endpoint})
            for title, endpoint in (("S3 in good health", good_endpoint), ("S3 at its worst", bad_endpoint))
        )
        results = interleaved([good, faulty], options.rounds, work / "runs", budget, _say)
    if len(results) == 2:
        share = ratio(*([run.rate_steady for run in results[each.title]] for each in (faulty, good)))
        report.add(
            f"### {options.models[0]}, S3 at its worst\n\n{result_table(results, good.title)}\n\n5 % of the GETs fail "
            f"(503, 500, reset, cut body, stall of 30 s) and all wait 50 ms: steady {share:.2f}x of the same store in "
            f"good health, {bad.failed} requests failed, every image scored."
        )


def _cold(options: argparse.Namespace, work: Path, budget: Budget, report: Report) -> None:
    bundle = str(bundle_of(work, options.models[0]))
    contender = Contender("leukoray score of 100 images, cold", "ours", str(folder_of(work, 100)), bundle)
    results = interleaved([contender], options.rounds, work / "runs", budget, _say)
    for title, runs in results.items():
        seconds = spread([run.seconds_total for run in runs])
        report.add(f"{title}: {seconds.median:.1f} s ({seconds.low:.1f}–{seconds.high:.1f}), start-up included.")


def _workers(options: argparse.Namespace, work: Path, budget: Budget, report: Report) -> None:
    source = str(folder_of(work, max(100, options.images // 4)))
    bundle = str(bundle_of(work, options.models[0]))
    counts = sorted({1, 2, os.cpu_count() or 1})
    contenders = [Contender(f"{count} workers", "ours", source, bundle, workers=count) for count in counts]
    results = interleaved(contenders, min(2, options.rounds), work / "runs", budget, _say)
    if not results:
        return
    rates = {title: spread([run.rate_steady for run in runs]) for title, runs in results.items()}
    one = next(iter(rates.values())).median
    rows = [[title, str(rate), f"{rate.median / one:.2f}x"] for title, rate in rates.items()]
    report.add(f"### Scaling\n\n{markdown_table(['', 'steady, img/s', 'of the first'], rows)}")


def _memory(options: argparse.Namespace, work: Path, budget: Budget, report: Report) -> None:
    bundle, workers = str(bundle_of(work, options.models[0])), os.cpu_count() or 1
    traces = []
    for images in options.memory_images:
        rate = traces[-1].measured.rate_steady if traces and traces[-1].measured else 400.0
        if not budget.allows(f"memory at {images} images", 15 + images / rate):
            continue
        out = work / "runs" / f"memory-{len(traces)}"
        source = str(folder_of(work, images, distinct=options.images))
        traces.append(traced_run(source, bundle, _emptied(out), workers, images))
        _say(f"  memory: {images} images done")
    if not traces:
        return
    picture = work / "memory.png"
    plot(traces, picture)
    driver, worker = growth(traces)
    report.add(
        f"### Memory and linearity\n\n{memory_table(traces)}\n\nPeak RSS from {traces[0].images:,} to "
        f"{traces[-1].images:,} images: driver x{driver:.2f}, worker x{worker:.2f}. Beyond {options.images:,} images "
        f"the files are hard links under other names. Drawn in {picture.name}."
    )


def _emptied(out: Path) -> str:
    import shutil

    shutil.rmtree(out, ignore_errors=True)
    return str(out)


if __name__ == "__main__":
    main()
