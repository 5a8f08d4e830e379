"""What a model says of changed copies of an image: each image decoded once, all its copies predicted in one place.

Imports neither scikit-learn nor matplotlib: it runs in Ray's workers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.evaluation.changes import Copies
from pipeline.evaluation.predict import Spread, tasks_of, tell_progress
from pipeline.evaluation.read import BATCH, Seen, in_batches
from pipeline.images.load import Limits
from pipeline.model.bundle import Bundle
from pipeline.model.prediction import Prediction
from pipeline.model.predictor import Predictor
from pipeline.sources.manifest import ManifestRow
from pipeline.storage.stores import Stores

_ROWS_PER_TASK = BATCH  # each of them in many copies


@dataclass(frozen=True)
class Shown:
    """What was said of one image; `said` in the order of `Copies.keys`, empty where not each copy got an answer."""

    row: ManifestRow
    said: tuple[Prediction, ...] = ()


def predict_copies(
    predictor: Predictor,
    rows: Sequence[ManifestRow],
    copies: Copies,
    stores: Stores = Stores(),
    limits: Limits = Limits(),
) -> list[Shown]:
    """Fetch, decode, change and predict; exactly one record a row."""

    def answers(batch: Sequence[Seen[ManifestRow, None]]) -> Iterator[Shown]:
        images = np.stack([seen.image.pixels for seen in batch])
        numbers = [int(seen.row.image_id) for seen in batch]
        made = copies.made(images, predictor.info.seen_size, numbers)
        said = zip(*(predictor.predict_each(list(some)) for some in made), strict=True)
        for seen, of_image in zip(batch, said, strict=True):
            known = tuple(each for each in of_image if isinstance(each, Prediction))
            yield Shown(seen.row, known if len(known) == len(of_image) else ())

    return in_batches(predictor, rows, answers, lambda row, _: Shown(row), stores=stores, limits=limits)


class CopyWorker:
    """A predictor in a process of its own, that shows its model copies of images."""

    def __init__(self, bundle: Bundle, stores: Stores, on_gpu: bool, copies: Copies) -> None:
        self._predictor = Predictor(bundle, engine="torch" if on_gpu else "onnx")
        self._stores, self._copies = stores, copies

    def show(self, rows: Sequence[ManifestRow]) -> list[Shown]:
        return predict_copies(self._predictor, rows, self._copies, self._stores)


def predict_shown(
    ray: Any, bundle: Bundle, rows: Sequence[ManifestRow], copies: Copies, stores: Stores, *,
    workers: int | None, cpus_per_worker: float, gpus_per_worker: float,
) -> list[Shown]:  # fmt: skip
    """What is said of copies of each image, in no order; workers as in `predict.predict_split`, errors as well."""
    made = Spread(CopyWorker, (bundle, stores, gpus_per_worker > 0, copies), [bundle])
    found: list[Shown] = []
    tasks = [("show", some) for some in tasks_of(rows, _ROWS_PER_TASK)]
    for part in made.results(
        ray, tasks, stores, workers=workers, cpus_per_worker=cpus_per_worker, gpus_per_worker=gpus_per_worker
    ):
        found += part
        tell_progress("audit", len(found), len(rows))
    return found
