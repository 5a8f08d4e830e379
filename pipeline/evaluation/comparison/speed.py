"""How fast predictors are on this machine, on one core by ONNX Runtime: the forward pass alone, images decoded before.

Models take turns, so that whatever else the machine does meets all of them; medians and percentiles over the rounds.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.model.bundle import GRAPH, Bundle
from pipeline.model.predictor import Predictor
from pipeline.storage.uris import join

BATCH = 32
_ROUNDS, _FEWEST = 400, 20  # of one image each, within the time that is given


@dataclass(frozen=True)
class Speed:
    """Of one model."""

    images_per_s: float  # in batches of BATCH, median of the rounds
    median_ms: float  # of one image alone
    p95_ms: float
    rounds: int  # of one image
    graph_bytes: int

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "batch": BATCH, "engine": "onnx", "threads": 1}


def speeds(bundles: Sequence[Bundle], seconds: float = 3.0) -> list[Speed]:
    """Of each model, in some `seconds` a model, more where `_FEWEST` rounds take longer."""
    predictors = [Predictor(bundle, engine="onnx") for bundle in bundles]
    rng = np.random.default_rng(0)  # what is in the pixels does not matter to the time
    batches = [list(rng.integers(0, 256, (BATCH, p.size, p.size, 3), np.uint8)) for p in predictors]
    single = _rounds(lambda k: _timed(predictors[k], batches[k][:1]), len(bundles), seconds / 2, _FEWEST)
    whole = _rounds(lambda k: _timed(predictors[k], batches[k]), len(bundles), seconds / 2, 3)
    found = []
    for k, bundle in enumerate(bundles):
        one, many = (np.array([times[k] for times in rounds]) for rounds in (single, whole))
        head = bundle.stores.of(bundle.uri).head(join(bundle.uri, GRAPH))
        median, p95 = (float(1000 * value) for value in np.quantile(one, [0.5, 0.95]))
        size = head.size if head is not None else 0
        found.append(Speed(BATCH / float(np.median(many)), median, p95, len(one), size))
    return found


def _rounds(timed: Callable[[int], float], models: int, seconds: float, fewest: int) -> list[list[float]]:
    """Seconds of each model by round; the first round, which warms up, is left out."""
    for k in range(models):
        timed(k)
    rounds: list[list[float]] = []
    start = time.perf_counter()
    while len(rounds) < fewest or (time.perf_counter() - start < seconds * models and len(rounds) < _ROUNDS):
        rounds.append([timed(k) for k in range(models)])
    return rounds


def _timed(predictor: Predictor, images: Sequence[Any]) -> float:
    start = time.perf_counter()
    predictor.predict_each(images)
    return time.perf_counter() - start
