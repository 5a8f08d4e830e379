"""Logits and features of labelled images, spread over Ray's workers: what a calibration is fitted to.

Imports neither scikit-learn nor matplotlib, so that a worker starts in a fraction of a second.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import ImageRejected
from pipeline.evaluation.predict import Spread, is_labelled, tasks_of
from pipeline.images.load import Limits
from pipeline.model.bundle import Bundle
from pipeline.model.predictor import Predictor
from pipeline.model.sketch import Entry, read_sketch
from pipeline.sources.manifest import Manifest, ManifestRow
from pipeline.sources.outage import fetch_while_up
from pipeline.storage.stores import Stores

_BATCH = 32


@dataclass(frozen=True)
class Sight:
    """What came of one row; `rejected` where it could not be read, and nothing else then."""

    row: ManifestRow
    logits: NDArray[np.float32] | None = None  # (1 or C,), mean over the turns
    features: NDArray[np.float32] | None = None  # (D,), likewise; None as well where a graph gives none
    is_ood: bool | None = None
    entry: Entry | None = None  # of the bundle's sketch, were the image to be added; None where it has none
    rejected: ImageRejected | None = None


class SightWorker:
    """A predictor in a process of its own."""

    def __init__(self, bundle: Bundle, stores: Stores, on_gpu: bool) -> None:
        self._predictor = Predictor(bundle, engine="torch" if on_gpu else "onnx")
        self._sketch = read_sketch(bundle)
        self._stores = stores

    def see(self, rows: Sequence[ManifestRow]) -> list[Sight]:
        """Exactly one a row."""
        found: list[Sight] = []
        waiting: list[tuple[ManifestRow, NDArray[np.uint8], Entry | None]] = []
        for fetched in fetch_while_up(rows, self._stores, Limits()):
            try:
                data = fetched.bytes_or_raise()
                pixels = self._predictor.load(data).pixels
                entry = None if self._sketch is None else self._sketch.entry(data, pixels)
                waiting.append((fetched.row, pixels, entry))
            except ImageRejected as error:
                found.append(Sight(fetched.row, rejected=error))
            if len(waiting) == _BATCH:
                found += self._seen(waiting)
                waiting = []
        return [*found, *self._seen(waiting)]

    def _seen(self, waiting: Sequence[tuple[ManifestRow, NDArray[np.uint8], Entry | None]]) -> list[Sight]:
        if not waiting:
            return []
        images = [pixels for _, pixels, _ in waiting]
        logits, features = self._predictor.outputs(images)
        said = self._predictor.predict_each(images)
        return [
            Sight(row, rejected=answer)
            if isinstance(answer, ImageRejected)
            else Sight(row, logits[k], None if features is None else features[k], answer.is_ood, entry)
            for k, ((row, _, entry), answer) in enumerate(zip(waiting, said, strict=True))
        ]


def see_all(ray: Any, bundle: Bundle, manifest: Manifest, split: str, stores: Stores) -> list[Sight]:
    """Of every labelled image of the split, in the order of ids. Raises PlatformError as `predict_split`."""
    wanted = [row for row in manifest.split(split) if is_labelled(bundle.info, row)]
    made = Spread(SightWorker, (bundle, stores, False), [bundle])
    found: list[Sight] = []
    tasks = [("see", rows) for rows in tasks_of(wanted)]
    for part in made.results(ray, tasks, stores, workers=None, cpus_per_worker=1.0, gpus_per_worker=0.0):
        found += part
    return sorted(found, key=lambda sight: int(sight.row.image_id))
