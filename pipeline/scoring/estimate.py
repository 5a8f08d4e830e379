"""What a run would do and about how long it would take, before it is started."""

from collections.abc import Sequence

from pipeline.model.bundle import Bundle
from pipeline.scoring.plan.freeze import make_plan
from pipeline.scoring.plan.plan import Plan
from pipeline.scoring.plan.shards import read_shard
from pipeline.scoring.request import Request
from pipeline.scoring.run_folder import Output, RunFolder
from pipeline.scoring.schemas import ShardRow
from pipeline.storage.stores import Stores

_ESTIMATE_ROWS = 24


def dry_run(out: str, request: Request, stores: Stores) -> tuple[Plan, list[ShardRow]]:
    """(plan, a few of its rows): what a run would do, listed into a folder that is thrown away."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="leukoray-") as scratch:
        folder = RunFolder.at(f"{scratch}/dry", Stores())
        plan = make_plan(Output.at(out, stores).finished(), folder, request, stores, is_dry=True)
        return plan, read_shard(folder, 0)[:_ESTIMATE_ROWS] if plan.shards else []


def estimate_seconds(
    bundle: Bundle, sample: Sequence[ShardRow], stores: Stores, workers: int, rows: int
) -> float | None:
    """About how long `rows` images take, from decoding and predicting a few of them here; None without any."""
    import time

    from pipeline.base.errors import ImageRejected
    from pipeline.model.predictor import Predictor
    from pipeline.sources.fetch import fetch_rows

    predictor = Predictor(bundle)
    samples = [item.data for item in fetch_rows(sample, stores) if item.data is not None]
    if not samples:
        return None
    predictor.probe()  # the first run sets the graph up
    begin = time.perf_counter()
    for data in samples:
        try:
            predictor.predict_each([predictor.load(data).pixels])
        except ImageRejected:
            continue
    each = (time.perf_counter() - begin) / len(samples)
    return rows * each / workers
