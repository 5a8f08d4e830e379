"""What a model says of manifest rows, one outcome a row: the part of an evaluation that runs in the workers.

Imports neither scikit-learn nor matplotlib, so that a worker starts in a fraction of a second.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import ImageRejected
from pipeline.images.load import Limits, LoadedImage
from pipeline.model.bundle import Bundle
from pipeline.model.prediction import Prediction
from pipeline.model.predictor import Predictor
from pipeline.sources.fetch import Fetched
from pipeline.sources.manifest import ManifestRow
from pipeline.sources.outage import fetch_while_up
from pipeline.storage.stores import Stores

BATCH = 32
_BORDER = 0.06  # share of the side that counts as background


@dataclass(frozen=True)
class Outcome:
    """What came of one manifest row."""

    row: ManifestRow
    result: Prediction | ImageRejected
    format: str | None = None
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
        if len(waiting) == BATCH:
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
        yield Outcome(row, result, image.header.format, background(image.pixels))


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
