"""What a model says of manifest rows, one outcome a row: the part of an evaluation that runs in the workers.

Imports neither scikit-learn nor matplotlib, so that a worker starts in a fraction of a second.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import ImageRejected
from pipeline.images.load import Limits
from pipeline.model.bundle import Bundle
from pipeline.model.predictor import Predictor
from pipeline.sources.fetch import Fetched
from pipeline.sources.manifest import ManifestRow
from pipeline.sources.outage import fetch_while_up
from pipeline.storage.stores import Stores

BATCH = 32
_BORDER = 0.06  # share of the side that counts as background


@dataclass(frozen=True)
class Outcome:
    """What came of one manifest row: class probabilities, or why there are none."""

    row: ManifestRow
    classes: tuple[float, ...] | None  # calibrated probability of each class
    probability: float | None  # of disease, or of the top class; see Predictions
    decision: str | None
    format: str | None
    background: tuple[float, ...] | None  # mean and spread of R, G, B along the image border, 0..255
    code: str | None  # quarantine code
    message: str | None


def predict_rows(
    predictor: Predictor, rows: Sequence[ManifestRow], stores: Stores = Stores(), limits: Limits = Limits()
) -> list[Outcome]:
    """Fetch, decode and predict; exactly one outcome a row."""
    outcomes: list[Outcome] = []
    waiting: list[tuple[ManifestRow, str, NDArray[np.uint8]]] = []
    for fetched in fetch_while_up(rows, stores, limits):
        try:
            image = predictor.load(_bytes(fetched), limits)
        except ImageRejected as error:
            outcomes.append(_rejected(fetched.row, error))
            continue
        waiting.append((fetched.row, image.header.format, image.pixels))
        if len(waiting) == BATCH:
            outcomes += _predict(predictor, waiting)
            waiting = []
    return outcomes + (_predict(predictor, waiting) if waiting else [])


def _bytes(fetched: Fetched[ManifestRow]) -> bytes:
    if fetched.rejected is not None or fetched.data is None:
        assert fetched.rejected is not None
        raise fetched.rejected
    return fetched.data


def _rejected(row: ManifestRow, error: ImageRejected) -> Outcome:
    return Outcome(row, None, None, None, None, None, error.code.value, error.message)


def _predict(predictor: Predictor, batch: Sequence[tuple[ManifestRow, str, NDArray[np.uint8]]]) -> list[Outcome]:
    try:
        said = predictor(np.stack([pixels for _, _, pixels in batch]))
    except ImageRejected as error:
        if len(batch) == 1:
            return [_rejected(batch[0][0], error)]
        return [outcome for item in batch for outcome in _predict(predictor, [item])]
    return [
        Outcome(
            row,
            tuple(map(float, said.classes[k])),
            float(said.probability[k]),
            said.decisions[k],
            name,
            background(pixels),
            None,
            None,
        )
        for k, (row, name, pixels) in enumerate(batch)
    ]


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
