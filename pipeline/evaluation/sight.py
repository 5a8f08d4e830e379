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
from pipeline.evaluation.read import Seen, in_batches
from pipeline.images.load import LoadedImage
from pipeline.model.bundle import Bundle
from pipeline.model.predictor import Predictor
from pipeline.model.sketch import Entry, Met, read_sketch
from pipeline.sources.manifest import Manifest, ManifestRow
from pipeline.storage.stores import Stores


@dataclass(frozen=True)
class Sight:
    """What came of one row; `rejected` where it could not be read, and nothing else then."""

    row: ManifestRow
    logits: NDArray[np.float32] | None = None  # (1 or C,), mean over the turns
    features: NDArray[np.float32] | None = None  # (D,), likewise; None as well where a graph gives none
    is_ood: bool | None = None
    entry: Entry | None = None  # of the bundle's sketch, were the image to be added; None where it has none
    rejected: ImageRejected | None = None
    met: Met | None = None  # with an image that took part in making the model; None as well where it has no sketch

    @property
    def is_learnt(self) -> bool:
        """Whether the model learnt from this very file: what it says of it tells nothing of others."""
        return self.met is not None and (self.met.part, self.met.how) == ("train", "bytes")


_Noted = tuple[Entry, Met | None]


class SightWorker:
    """A predictor in a process of its own."""

    def __init__(self, bundle: Bundle, stores: Stores, on_gpu: bool) -> None:
        self._predictor = Predictor(bundle, engine="torch" if on_gpu else "onnx")
        self._sketch = read_sketch(bundle)
        self._stores = stores

    def see(self, rows: Sequence[ManifestRow]) -> list[Sight]:
        """Exactly one a row."""
        return in_batches(
            self._predictor, rows, self._seen, lambda row, error: Sight(row, rejected=error), note=self._noted,
            stores=self._stores,
        )  # fmt: skip

    def _noted(self, data: bytes, image: LoadedImage) -> _Noted | None:
        if self._sketch is None:
            return None
        met = self._sketch.by_bytes(data) or self._sketch.by_looks(image.pixels)
        return self._sketch.entry(data, image.pixels), met

    def _seen(self, batch: Sequence[Seen[ManifestRow, _Noted | None]]) -> list[Sight]:
        images = [seen.image.pixels for seen in batch]
        logits, features = self._predictor.outputs(images)
        said = self._predictor.predict_each(images)
        return [
            Sight(seen.row, rejected=answer)
            if isinstance(answer, ImageRejected)
            else Sight(
                seen.row,
                logits[k],
                None if features is None else features[k],
                answer.is_ood,
                entry=seen.note and seen.note[0],
                met=seen.note and seen.note[1],
            )
            for k, (seen, answer) in enumerate(zip(batch, said, strict=True))
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
