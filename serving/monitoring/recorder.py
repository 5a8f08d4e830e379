"""Counts what one replica does, cheaply: on the event loop only additions; what costs more is left for a thread.

How an image looks (eight figures, some 5 ms) is measured of one image a second, and of the first of a crowd.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.images.appearance import appearances
from pipeline.model.bundle import BundleInfo
from pipeline.model.drift_counts import DriftCounts
from pipeline.model.prediction import Prediction
from serving.monitoring.state import (
    BATCH_IMAGES,
    ERRORS,
    PREDICTIONS,
    PROBABILITY,
    REFUSED_IMAGES,
    REQUEST_SECONDS,
    REQUESTS,
    STAGE_SECONDS,
    Answering,
    Metric,
    State,
    recent,
)

log = logging.getLogger("ray.serve")
_EVERY_S = 1.0  # an image may be looked at, and drift is counted
_AT_ONCE = 32.0  # images that are looked at of a crowd after a pause: enough to tell of
_MANY = 256  # predictions that wait to be counted
OOD_LABELS = {None: "unknown", True: "yes", False: "no"}


class Said(NamedTuple):
    """A prediction whose drift is not counted yet; few have the pixels, uint8 (S, S, 3), RGB."""

    sha256: str
    info: BundleInfo
    prediction: Prediction
    pixels: NDArray[np.uint8] | None


class Recorder:
    """Its methods are called on the event loop, `settle` in any thread."""

    def __init__(self) -> None:
        self.events = 0  # rises with everything that is noted
        self._state = State()
        self._has_old_keys = False
        self._waiting: list[Said] = []
        self._took_at = float("-inf")
        self._looks, self._looks_at = _AT_ONCE, time.monotonic()  # that may be had now: a token bucket
        self._settling = threading.Lock()
        self._drift: dict[tuple[str, int], DriftCounts] = {}

    def request_begins(self) -> None:
        self.events += 1
        self._state.in_work += 1

    def request_ends(self, route: str, method: str, status: int, code: str | None, seconds: float) -> None:
        """`status` is 0 where the client left before there was an answer; `code` is that of the problem."""
        self.events += 1
        self._state.in_work -= 1
        told = str(status) if status else "none"
        self._state.count(REQUESTS, (route, method, told))
        self._state.observe(REQUEST_SECONDS, (route,), seconds)
        if code is not None:
            self._state.count(ERRORS, (code, told))

    def keys_changed(self, is_broken: bool) -> None:
        """Whether the file of keys could not be taken as it is. In any thread."""
        self._has_old_keys = is_broken
        self.events += 1

    def changed(self) -> None:
        """The replica's model, candidate or what it was told is another: the others are to know."""
        self.events += 1

    def keep_trials(self, ids: Collection[str]) -> None:
        """Forget what was counted of other trials: each has an id of its own, and there is no end to them."""
        self._state = self._state.of_trials(ids)

    def stage(self, name: str, seconds: float) -> None:
        self._state.observe(STAGE_SECONDS, (name,), seconds)

    def batch(self, images: int) -> None:
        self._state.observe(BATCH_IMAGES, (), images)

    def count(self, metric: Metric, *labels: str) -> None:
        self.events += 1
        self._state.count(metric, labels)

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        self._state.observe(metric, labels, value)

    def refused(self, code: str) -> None:
        """An image that got no prediction."""
        self._state.count(REFUSED_IMAGES, (code,))

    def predicted(self, sha256: str, info: BundleInfo, said: Prediction, pixels: NDArray[np.uint8]) -> bool:
        """Count a prediction. True when it is time to `take` and `settle`."""
        self._state.count(PREDICTIONS, (said.class_name, said.decision or "none", OOD_LABELS[said.is_ood]))
        self._state.observe(PROBABILITY, (), said.probability)
        now = time.monotonic()
        self._looks = min(_AT_ONCE, self._looks + (now - self._looks_at) / _EVERY_S)
        self._looks_at = now
        is_looked_at = self._looks >= 1
        self._looks -= is_looked_at
        self._waiting.append(Said(sha256, info, said, pixels if is_looked_at else None))
        return now - self._took_at > _EVERY_S or len(self._waiting) >= _MANY

    def take(self) -> list[Said]:
        """What drift is not counted of yet; for `settle`."""
        taken, self._waiting, self._took_at = self._waiting, [], time.monotonic()
        return taken

    def settle(self, taken: list[Said]) -> None:
        """Count the drift of predictions. It never fails a request: what goes wrong is logged."""
        try:
            self._settle(taken)
        except Exception:
            log.exception("drift was not counted of %d images", len(taken))

    def _settle(self, taken: list[Said]) -> None:
        seen = [said for said in taken if said.pixels is not None]
        looks = appearances(np.stack([said.pixels for said in seen if said.pixels is not None])) if seen else ()
        shown = {id(said): look for said, look in zip(seen, looks, strict=True)}
        groups: dict[tuple[str, bool], list[Said]] = {}
        for said in taken:
            groups.setdefault((said.sha256, id(said) in shown), []).append(said)
        day = int(time.time() // 86_400)
        for (sha256, is_shown), group in groups.items():
            fresh = DriftCounts.of(group[0].info)
            told = [said.prediction for said in group]
            fresh.add(told, np.stack([shown[id(said)] for said in group]) if is_shown else None)
            with self._settling:  # what was counted is replaced, never altered: a state may hold it
                known = self._drift.get((sha256, day))
                sum_ = fresh if known is None else known.added(fresh)
                self._drift = recent({**self._drift, (sha256, day): sum_})

    def state(self, answering: Answering | None, is_refusing: bool) -> State:
        """A copy of all that was settled, with what the replica is now."""
        histograms = {key: replace(one, buckets=one.buckets.copy()) for key, one in self._state.histograms.items()}
        return State(
            self._state.counts.copy(), histograms, self._drift, self._state.in_work,
            Counter() if answering is None else Counter([answering]), int(is_refusing),
            int(self._has_old_keys),
        )  # fmt: skip
