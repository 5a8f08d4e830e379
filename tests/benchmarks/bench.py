"""`make bench`: the first table, in minutes: scoring beside the usual Ray template, a DataLoader and the limit."""

import argparse
from pathlib import Path

from tests.benchmarks.inputs import DEFAULT_WORK, bundle_of, folder_of
from tests.benchmarks.limit_variants import best_batch
from tests.benchmarks.measure import agreement, environment
from tests.benchmarks.ours import predictions_of
from tests.benchmarks.rounds import Budget, Contender, interleaved, result_table

OURS = "leukoray score"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=2000, help="for ours and the limit")
    parser.add_argument("--slow-images", type=int, default=1000, help="for the rivals")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="mobilenet_v3_small")
    parser.add_argument("--minutes-limit", type=float, default=8.0)
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    options = parser.parse_args()
    work = options.work.resolve()
    print(f"drawing up to {options.images} synthetic images (kept in {work})", flush=True)
    source, slow = str(folder_of(work, options.images)), str(folder_of(work, options.slow_images))
    bundle = str(bundle_of(work, options.model))
    budget = Budget(60 * options.minutes_limit)
    contenders = [
        Contender(OURS, "ours", source, bundle),
        Contender("the limit: no framework, no output", "limit", source, bundle, best_batch(f"{bundle}/model.onnx")),
        Contender("usual Ray Data template", "rival_ray_template", slow, bundle),
        Contender("PyTorch DataLoader, eager", "rival_dataloader", slow, bundle),
    ]
    results = interleaved(contenders, options.rounds, work / "runs", budget, lambda text: print(text, flush=True))
    print(f"\n{options.model}, JPEG 640x480 on disk, synthetic images. {environment()}\n")
    if OURS not in results:
        raise SystemExit(f"no run of {OURS} succeeded: {'; '.join(budget.left_out)}")
    print(result_table(results, OURS))
    ours = predictions_of(str(work / "runs" / "ours"))
    for contender in contenders[2:]:
        if contender.title in results:
            correlation, difference = agreement(ours, str(work / "runs" / contender.module))
            print(f"same work: {contender.title}, r = {correlation:.3f}, mean difference {difference:.3f}")
    for what in budget.left_out:
        print(f"left out: {what}")


if __name__ == "__main__":
    main()
