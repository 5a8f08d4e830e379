"""From the rows of a split to what a model says of each, one outcome a row, spread over Ray's workers.

Imports neither scikit-learn nor matplotlib, so that a worker starts in a fraction of a second.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.cluster import alive_nodes, refuse_dead_node, tell_waiting
from pipeline.base.errors import ImageRejected, InputError
from pipeline.base.resources import ClusterPlan, check, check_after_loss, places
from pipeline.evaluation import measured
from pipeline.evaluation.colours import Colours, colours_of
from pipeline.evaluation.read import Seen, in_batches
from pipeline.images.appearance import NAMES, appearance
from pipeline.images.load import Limits, LoadedImage
from pipeline.images.remarks import joined
from pipeline.model.bundle import INFO, Bundle, BundleInfo
from pipeline.model.prediction import Prediction
from pipeline.model.predictor import Predictor
from pipeline.model.sketch import Met, Sketch, read_sketch
from pipeline.sources.manifest import Manifest, ManifestRow
from pipeline.sources.rows import Access, ListingRow, Row
from pipeline.storage.shared import refuse_unshared, spaced
from pipeline.storage.stores import Stores
from pipeline.storage.uris import join

_ROWS_PER_TASK = 128
LOOKS = ("brightness", "sharpness")  # figures of `appearance` that images are divided by
_NODE_CHECK_S = 5.0


@dataclass(frozen=True)
class Outcome:
    """What came of one manifest row."""

    row: ManifestRow
    result: Prediction | ImageRejected
    format: str | None = None
    remark: str | None = None
    colours: Colours | None = None
    met: Met | None = None  # with an image that took part in making the model; None as well where that is not known
    looks: tuple[float, ...] | None = None  # LOOKS of it


@dataclass(frozen=True)
class Glance:
    """The colours of an image that nothing is predicted of; None where it could not be read."""

    row: ManifestRow
    colours: Colours | None


def predict_rows(
    predictor: Predictor,
    rows: Sequence[ManifestRow],
    stores: Stores = Stores(),
    limits: Limits = Limits(),
    sketch: Sketch | None = None,
) -> list[Outcome]:
    """Fetch, decode and predict; exactly one outcome a row."""

    def met(data: bytes, image: LoadedImage) -> Met | None:
        return None if sketch is None else sketch.by_bytes(data) or sketch.by_looks(image.pixels)

    return in_batches(
        predictor, rows, partial(predicted, predictor), Outcome, note=met, stores=stores, limits=limits
    )  # fmt: skip


def predicted(predictor: Predictor, batch: Sequence[Seen[ManifestRow, Met | None]]) -> Iterator[Outcome]:
    results = predictor.predict_each([seen.image.pixels for seen in batch])
    for seen, result in zip(batch, results, strict=True):
        pixels, kind, remarks = seen.image.pixels, seen.image.header.format, joined(seen.image.remarks)
        yield Outcome(seen.row, result, kind, remarks, colours_of(pixels), seen.note, _looks(pixels))


def _looks(pixels: NDArray[np.uint8]) -> tuple[float, ...]:
    found = dict(zip(NAMES, appearance(pixels), strict=True))
    return tuple(found[name] for name in LOOKS)


def look_at_rows(
    predictor: Predictor, rows: Sequence[ManifestRow], stores: Stores = Stores(), limits: Limits = Limits()
) -> list[Glance]:
    """Fetch and decode as for a prediction, and keep the colours."""

    def glances(batch: Sequence[Seen[ManifestRow, None]]) -> list[Glance]:
        return [Glance(seen.row, colours_of(seen.image.pixels)) for seen in batch]

    return in_batches(
        predictor, rows, glances, lambda row, _: Glance(row, None), stores=stores, limits=limits, size=1
    )  # fmt: skip


class EvaluationWorker:
    """A predictor in a process of its own."""

    def __init__(self, bundle: Bundle, stores: Stores, on_gpu: bool) -> None:
        self._predictor = Predictor(bundle, engine="torch" if on_gpu else "onnx")
        self._sketch = read_sketch(bundle)
        self._stores = stores

    def predict(self, rows: Sequence[ManifestRow]) -> list[Outcome]:
        return predict_rows(self._predictor, rows, self._stores, sketch=self._sketch)

    def look_at(self, rows: Sequence[ManifestRow]) -> list[Glance]:
        return look_at_rows(self._predictor, rows, self._stores)


def predict_split(
    ray: Any, bundle: Bundle, manifest: Manifest, split: str, stores: Stores, *,
    workers: int | None, cpus_per_worker: float, gpus_per_worker: float, look_at: Sequence[ManifestRow] = (),
) -> tuple[list[Outcome], list[Glance]]:  # fmt: skip
    """Outcomes of every labelled image of the split, and a glance at each of `look_at`, in no order.

    `workers` None: as many as are of use and fit.

    Raises InputError where nothing is labelled, PlatformError where the workers do not fit the nodes or a node
    does not see the files.
    """
    wanted = [row for row in manifest.split(split) if is_labelled(bundle.info, row)]
    if not wanted:
        raise InputError(
            f"{manifest.uri}: no labelled image in split {split!r}; choose another --split or ingest again"
        )
    tasks = [("predict", rows) for rows in tasks_of(wanted)] + [("look_at", rows) for rows in tasks_of(look_at)]
    made = Spread(EvaluationWorker, (bundle, stores, gpus_per_worker > 0), [bundle])
    outcomes: list[Outcome] = []
    glances: list[Glance] = []
    codes = Counter[str]()
    for part in made.results(
        ray, tasks, stores, workers=workers, cpus_per_worker=cpus_per_worker, gpus_per_worker=gpus_per_worker
    ):
        outcomes += [found for found in part if isinstance(found, Outcome)]
        glances += [found for found in part if isinstance(found, Glance)]
        codes.update(codes_of(found for found in part if isinstance(found, Outcome)))
        tell_progress(split, len(outcomes) + len(glances), len(wanted) + len(look_at), codes)
    return outcomes, glances


def codes_of(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """Of those that could not be read."""
    return (str(found.result.code) for found in outcomes if isinstance(found.result, ImageRejected))


def tell_progress(step: str, done: int, every: int, codes: Mapping[str, int] = {}) -> None:
    """To Prometheus, and on a terminal, one line that is written over."""
    measured.done(step, done, every, codes)
    if sys.stderr.isatty():
        end = "\n" if done == every else ""
        print(f"\r{step}: {done:,} of {every:,} images", end=end, file=sys.stderr, flush=True)


def is_labelled(info: BundleInfo, row: ManifestRow) -> bool:
    return (row.label if info.task == "binary" else row.class_name) is not None


def tasks_of(wanted: Sequence[Row], rows: int = _ROWS_PER_TASK) -> list[list[Row]]:
    """Members of one archive together, in its order; those of a compressed tar in one task, which reads it once."""
    streamed: dict[str, list[Row]] = {}
    direct: list[Row] = []
    for row in sorted(wanted, key=lambda row: (row.uri, row.offset or 0)):
        (streamed.setdefault(row.uri, []) if row.access is Access.STREAM else direct).append(row)
    return [*streamed.values(), *(direct[at : at + rows] for at in range(0, len(direct), rows))]


@dataclass(frozen=True)
class Spread:
    """A class whose instances are workers, made of `arguments`, that read these bundles."""

    worker: type
    arguments: tuple[Any, ...]
    bundles: Sequence[Bundle]

    def results(
        self, ray: Any, tasks: Sequence[tuple[str, Sequence[ListingRow]]], stores: Stores, *,
        workers: int | None, cpus_per_worker: float, gpus_per_worker: float,
    ) -> Iterator[list[Any]]:  # fmt: skip
        """Hand tasks, each a method of the worker and its rows, to workers as they become free; results as they come.

        A lost worker is restarted, its task redone. Raises PlatformError where the workers do not fit the nodes or a
        node does not see the files.
        """
        nodes = alive_nodes(ray)
        plan = ClusterPlan("evaluate", 1, cpus_per_worker, gpus_per_worker)
        plan = replace(plan, workers=workers or max(1, min(places(plan, nodes), len(tasks))))
        check(plan, nodes)
        tell_waiting(ray, replace(plan, workers=1))
        first = [row for name, rows in tasks if name == tasks[0][0] for row in rows]
        infos = [join(bundle.uri, INFO) for bundle in self.bundles]
        refuse_unshared(ray, stores, [*infos, *(first[index].uri for index in spaced(len(first)))])
        yield from self._spread(ray, plan, tasks)

    def _spread(
        self, ray: Any, plan: ClusterPlan, tasks: Sequence[tuple[str, Sequence[ListingRow]]]
    ) -> Iterator[list[Any]]:
        remote = ray.remote(
            num_cpus=plan.cpus_per_worker, num_gpus=plan.gpus_per_worker, max_restarts=3, max_task_retries=3
        )(self.worker)
        workers = [remote.remote(*self.arguments) for _ in range(plan.workers)]
        pool = ray.util.ActorPool(workers)
        try:
            for task in tasks:
                pool.submit(lambda worker, asked: getattr(worker, asked[0]).remote(asked[1]), task)
            while pool.has_next():
                try:
                    yield pool.get_next_unordered(timeout=_NODE_CHECK_S)
                except TimeoutError:
                    refuse_dead_node(ray)
                    check_after_loss(plan, alive_nodes(ray), "the same command begins anew with what is there")
        finally:
            for worker in workers:
                ray.kill(worker)
