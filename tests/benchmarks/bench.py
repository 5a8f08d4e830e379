"""`make bench`: the first table, in a few minutes. Scoring against the usual Ray template, a DataLoader and the limit."""

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
    parser.add_argument("--images", type=int, default=2000, help="for all contenders")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="mobilenet_v3_small")
    parser.add_argument("--minutes-limit", type=float, default=8.0)
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    options = parser.parse_args()
    work = options.work.resolve()
    print(f"drawing up to {options.images} synthetic images (kept in {work})", flush=True)
    source, bundle = str(folder_of(work, options.images)), str(bundle_of(work, options.model))
    budget = Budget(60 * options.minutes_limit)
    contenders = [
        Contender(OURS, "ours", source, bundle),
        Contender(
            "the limit: decode + ONNX Runtime alone", "limit", source, bundle, best_batch(f"{bundle}/model.onnx")
        ),
        Contender("usual Ray Data template", "rival_ray_template", source, bundle),
        Contender("PyTorch DataLoader, eager", "rival_dataloader", source, bundle),
    ]
    results = interleaved(contenders, options.rounds, work / "runs", budget, lambda text: print(text, flush=True))
    ours = predictions_of(str(work / "runs" / "ours"))
    print(f"\n{options.model}, JPEG 640x480 on disk, synthetic images. {environment()}\n")
    print(result_table(results, OURS))
    for contender in contenders[2:]:
        correlation, difference = agreement(ours, str(work / "runs" / contender.module))
        print(f"same work: {contender.title} agrees with ours, r = {correlation:.3f}, mean difference {difference:.3f}")
    for what in budget.left_out:
        print(f"left out for time: {what}")


if __name__ == "__main__":
    main()
