"""Class-activation maps of a sample of a split, each scored by `explanation`, spread over Ray's workers.

Imports neither scikit-learn nor matplotlib, so that a worker starts in a fraction of a second.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import ImageRejected
from pipeline.evaluation.explanation import MapScores, deletion, judged, pointing, random_order, rank_correlation
from pipeline.evaluation.nuclei import nuclei
from pipeline.evaluation.outcomes import Outcomes
from pipeline.evaluation.predict import Spread, tell_progress
from pipeline.images.load import load_image
from pipeline.model.bundle import GRAPH, Bundle
from pipeline.model.class_maps import ClassMaps
from pipeline.model.map_graph import drawn_last
from pipeline.model.maps import Mapper, placed
from pipeline.model.prediction import probabilities
from pipeline.model.seen import middle_of
from pipeline.sources.fetch import fetch_rows
from pipeline.sources.manifest import ManifestRow
from pipeline.storage.stores import Stores

_ROWS_PER_TASK = 10
_SEED = 0  # of the weights and orders that are drawn


class MapWorker:
    """Maps by the network of a bundle, and by the same with drawn last layers, in a process of its own."""

    def __init__(self, bundle: Bundle, stores: Stores) -> None:
        graph = bundle.file(GRAPH)
        self._mapper, self._drawn = Mapper(graph), Mapper(drawn_last(graph, _SEED))
        self._info, self._stores = bundle.info, stores
        self._seen = middle_of(bundle.info.input_size, bundle.info.seen_size)

    def score(self, rows: Sequence[ManifestRow]) -> list[MapScores]:
        """Of each image that can be read: of two classes the map of the second, of more that of the one named."""
        found = []
        for fetched in fetch_rows(rows, self._stores):
            try:
                image = load_image(
                    fetched.bytes_or_raise(), self._info.input_size, bit_depth=self._info.bit_depth
                ).pixels
            except ImageRejected:
                continue
            found.append(self._score(image, fetched.row))
        return found

    def _score(self, image: NDArray[np.uint8], row: ManifestRow) -> MapScores:
        inner = self._mapper.inner(image[None])
        logit = int(inner.logits.argmax()) if self._info.outputs > 1 else 0
        size, seen = len(image), self._seen
        signed = self._mapper.signed(inner, [logit])
        map_ = placed(signed.clip(0), size, self._info.seen_size).maps[0]
        hits, any_point, middle = pointing(map_, nuclei(image[None])[0], seen) or (None, None, None)
        alike = rank_correlation(signed[0], self._drawn.signed(self._drawn.inner(image[None]), [logit])[0])
        if not map_.any():
            return MapScores(hits, any_point, middle, None, None, alike, row.subject_id)

        def probability(images: NDArray[np.uint8]) -> NDArray[np.float64]:
            found = probabilities(self._mapper.inner(images).logits, self._info.temperature)
            return found[:, logit if self._info.outputs > 1 else 1]

        rng = np.random.default_rng([_SEED, row.image_id & 0xFFFFFFFF])
        by_chance = random_order(rng, signed.shape[1:], size, seen)
        area, by_luck = (deletion(image, order, seen, probability) for order in (map_, by_chance))
        return MapScores(hits, any_point, middle, area, by_luck, alike, row.subject_id)


def sample(outcomes: Outcomes, threshold: float, count: int, seed: int) -> tuple[list[ManifestRow], str]:
    """Images whose maps are worth scoring, equally many of each class that the model names where there are as many.

    Of two classes those that are called the second, which maps are of. In words, what was drawn from.
    """
    called = outcomes.called(threshold)
    names = outcomes.info.classes
    of = [1] if outcomes.info.task == "binary" else list(range(len(names)))
    rng = np.random.default_rng(seed)
    queues = [rng.permutation(np.flatnonzero(called == k)).tolist() for k in of]
    chosen: list[int] = []
    while len(chosen) < count and any(queues):
        chosen += [queue.pop() for queue in queues if queue]
    what = (
        f"drawn from those called {names[1]}" if outcomes.info.task == "binary" else "drawn of each class named alike"
    )
    return [outcomes.scored[k].row for k in sorted(chosen[:count])], what


def judge_maps(
    ray: Any, bundle: Bundle, outcomes: Outcomes, threshold: float, stores: Stores, *,
    asked: int, seed: int, workers: int | None, cpus_per_worker: float,
) -> dict[str, Any] | None:  # fmt: skip
    """`explanation` of metrics.json; None where nothing is asked for, or there is no map, or no image for one."""
    if not asked or ClassMaps(bundle).why_no_map():
        return None
    rows, sampled = sample(outcomes, threshold, asked, seed)
    if not rows:
        return None
    tasks = [("score", rows[at : at + _ROWS_PER_TASK]) for at in range(0, len(rows), _ROWS_PER_TASK)]
    made = Spread(MapWorker, (bundle, stores), [bundle])
    scores: list[MapScores] = []
    for part in made.results(ray, tasks, stores, workers=workers, cpus_per_worker=cpus_per_worker, gpus_per_worker=0):
        scores += part
        tell_progress("maps", len(scores), len(rows))
    return judged(scores, asked, sampled) if scores else None
