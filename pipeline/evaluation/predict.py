"""From the rows of a split to what a model says of each, one outcome a row, spread over Ray's workers.

Imports neither scikit-learn nor matplotlib, so that a worker starts in a fraction of a second.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.cluster import alive_nodes, refuse_dead_node, tell_waiting
from pipeline.base.errors import ImageRejected, InputError
from pipeline.base.resources import ClusterPlan, check, check_after_loss, places
from pipeline.images.load import Limits, LoadedImage
from pipeline.images.remarks import joined
from pipeline.model.bundle import INFO, Bundle, BundleInfo
from pipeline.model.prediction import Prediction
from pipeline.model.predictor import Predictor
from pipeline.sources.fetch import Fetched
from pipeline.sources.manifest import Manifest, ManifestRow
from pipeline.sources.outage import fetch_while_up
from pipeline.sources.rows import Access
from pipeline.storage.shared import refuse_unshared, spaced
from pipeline.storage.stores import Stores
from pipeline.storage.uris import join

_BATCH = 32
_ROWS_PER_TASK = 128
_NODE_CHECK_S = 5.0
_BORDER = 0.06  # share of the side that counts as background


@dataclass(frozen=True)
class Outcome:
    """What came of one manifest row."""

    row: ManifestRow
    result: Prediction | ImageRejected
    format: str | None = None
    remark: str | None = None
    background: tuple[float, ...] | None = None  # mean and spread of R, G, B along the image border, 0..255


def predict_rows(
    predictor: Predictor, rows: Sequence[ManifestRow], stores: Stores = Stores(), limits: Limits = Limits()
) -> list[Outcome]:
    """Fetch, decode and predict; exactly one outcome a row."""
    outcomes: list[Outcome] = []
    waiting: list[tuple[ManifestRow, LoadedImage]] = []
    for fetched in fetch_while_up(rows, stores, limits):
        try:
            waiting.append((fetched.row, predictor.load(_bytes(fetched), limits)))
        except ImageRejected as error:
            outcomes.append(Outcome(fetched.row, error))
        if len(waiting) == _BATCH:
            outcomes += _predict(predictor, waiting)
            waiting = []
    return [*outcomes, *_predict(predictor, waiting)]


def _bytes(fetched: Fetched[ManifestRow]) -> bytes:
    if fetched.data is None:
        assert fetched.rejected is not None
        raise fetched.rejected
    return fetched.data


def _predict(predictor: Predictor, batch: Sequence[tuple[ManifestRow, LoadedImage]]) -> Iterator[Outcome]:
    results = predictor.predict_each([image.pixels for _, image in batch])
    for (row, image), result in zip(batch, results, strict=True):
        yield Outcome(row, result, image.header.format, joined(image.remarks), background(image.pixels))


def background(pixels: NDArray[np.uint8]) -> tuple[float, ...]:
    """Mean and standard deviation of R, G, B along the border of a uint8 (S, S, 3) image."""
    width = max(1, round(_BORDER * len(pixels)))
    sides = (pixels[:width], pixels[-width:], pixels[:, :width], pixels[:, -width:])
    border = np.concatenate([side.reshape(-1, 3) for side in sides])
    return (*map(float, border.mean(axis=0)), *map(float, border.std(axis=0)))


class EvaluationWorker:
    """A predictor in a process of its own."""

    def __init__(self, bundle: Bundle, stores: Stores, on_gpu: bool) -> None:
        self._predictor = Predictor(bundle, engine="torch" if on_gpu else "onnx")
        self._stores = stores

    def predict(self, rows: Sequence[ManifestRow]) -> list[Outcome]:
        return predict_rows(self._predictor, rows, self._stores)


def predict_split(
    ray: Any, bundle: Bundle, manifest: Manifest, split: str, stores: Stores, *,
    workers: int | None, cpus_per_worker: float, gpus_per_worker: float,
) -> list[Outcome]:  # fmt: skip
    """Outcomes of every labelled image of the split, in no order. `workers` None: as many as are of use and fit.

    Raises InputError where nothing is labelled, PlatformError where the workers do not fit the nodes or a node
    does not see the files.
    """
    wanted = [row for row in manifest.split(split) if is_labelled(bundle.info, row)]
    if not wanted:
        raise InputError(
            f"{manifest.uri}: no labelled image in split {split!r}; choose another --split or ingest again"
        )
    tasks, nodes = tasks_of(wanted), alive_nodes(ray)
    plan = ClusterPlan("evaluate", 1, cpus_per_worker, gpus_per_worker)
    plan = replace(plan, workers=workers or max(1, min(places(plan, nodes), len(tasks))))
    check(plan, nodes)
    tell_waiting(ray, replace(plan, workers=1))
    refuse_unshared(ray, stores, [join(bundle.uri, INFO), *(wanted[index].uri for index in spaced(len(wanted)))])
    outcomes: list[Outcome] = []
    for part in _spread(ray, plan, bundle, tasks, stores):
        outcomes += part
        if sys.stderr.isatty():
            end = "\n" if len(outcomes) == len(wanted) else ""
            print(f"\r{split}: {len(outcomes):,} of {len(wanted):,} images", end=end, file=sys.stderr, flush=True)
    return outcomes


def is_labelled(info: BundleInfo, row: ManifestRow) -> bool:
    return (row.label if info.task == "binary" else row.class_name) is not None


def tasks_of(wanted: Sequence[ManifestRow]) -> list[list[ManifestRow]]:
    """Members of one archive together, in its order; those of a compressed tar in one task, which reads it once."""
    streamed: dict[str, list[ManifestRow]] = {}
    direct: list[ManifestRow] = []
    for row in sorted(wanted, key=lambda row: (row.uri, row.offset or 0)):
        (streamed.setdefault(row.uri, []) if row.access is Access.STREAM else direct).append(row)
    return [*streamed.values(), *(direct[at : at + _ROWS_PER_TASK] for at in range(0, len(direct), _ROWS_PER_TASK))]


def _spread(
    ray: Any, plan: ClusterPlan, bundle: Bundle, tasks: Sequence[Sequence[ManifestRow]], stores: Stores
) -> Iterator[list[Outcome]]:
    """Hand tasks to workers as they become free; results as they come. A lost worker is restarted, its task redone."""
    remote = ray.remote(
        num_cpus=plan.cpus_per_worker, num_gpus=plan.gpus_per_worker, max_restarts=3, max_task_retries=3
    )(EvaluationWorker)
    workers = [remote.remote(bundle, stores, plan.gpus_per_worker > 0) for _ in range(plan.workers)]
    pool = ray.util.ActorPool(workers)
    try:
        for task in tasks:
            pool.submit(lambda worker, batch: worker.predict.remote(batch), task)
        while pool.has_next():
            try:
                yield pool.get_next_unordered(timeout=_NODE_CHECK_S)
            except TimeoutError:
                refuse_dead_node(ray)
                check_after_loss(plan, alive_nodes(ray), "the same command begins anew with what is there")
    finally:
        for worker in workers:
            ray.kill(worker)
