"""What a job counts while it works, for Prometheus at the metrics port of its Ray node.

Ray names them `ray_<name>`, counters `ray_<name>_total` (https://docs.ray.io, `ray.util.metrics`). A node goes on
telling a counter of a process that has ended. A gauge is gone half a minute after it was last told, sooner where
RAY_metrics_report_interval_ms is less than 10 s, and a job that is stuck tells nothing new: so gauges are told again as
long as their job goes on.
"""

import contextlib
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Measure:
    """One figure, by name and labels."""

    name: str
    kind: Literal["Counter", "Gauge"]
    meaning: str
    labels: tuple[str, ...]

    @property
    def series(self) -> str:
        """As Prometheus has it."""
        return f"ray_{self.name}" + ("_total" if self.kind == "Counter" else "")


_AGAIN_S = 5.0
_telling = threading.Lock()  # held while gauges are told again
_living: "weakref.WeakSet[Measures]" = weakref.WeakSet()
_again: threading.Thread | None = None


class Measures:
    """The figures of one job. Where this process has not joined Ray, nobody is told."""

    def __init__(self, measures: Sequence[Measure], **labels: str) -> None:
        """`labels` are those that all figures have."""
        self._labels, self._counted = labels, dict[tuple[str, tuple[str, ...]], float]()
        self._made: dict[str, Any] = {}
        self._shown: dict[tuple[str, ...], tuple[str, float, dict[str, str]]] = {}
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            from ray.util import metrics

            for one in measures:
                made = getattr(metrics, one.kind)(one.name, description=one.meaning, tag_keys=one.labels)
                self._made[one.name] = made

    def count(self, measure: Measure, total: float, **labels: str) -> None:
        """`total` so far. Less than before, as where work was taken back, adds nothing until it has caught up."""
        key = (measure.name, tuple(labels.values()))
        more = total - self._counted.get(key, 0.0)
        if more > 0 and measure.name in self._made:
            self._counted[key] = total
            self._made[measure.name].inc(more, tags=self._labels | labels)

    def show(self, measure: Measure, value: float | None, **labels: str) -> None:
        """What it is now; None is not known, and not told."""
        if value is not None and measure.name in self._made:
            tags = self._labels | labels
            with _telling:
                self._shown[measure.name, *tags.values()] = measure.name, value, tags
                self._made[measure.name].set(value, tags=tags)
                _tell_again_later(self)

    def show_again(self) -> None:
        for name, value, tags in self._shown.values():
            self._made[name].set(value, tags=tags)


def _tell_again_later(measures: Measures) -> None:
    global _again
    _living.add(measures)
    if _again is None:
        _again = threading.Thread(target=_tell_again, name="gauges", daemon=True)
        _again.start()


def _tell_again() -> None:
    while True:
        time.sleep(_AGAIN_S)
        with _telling:
            for measures in list(_living):
                measures.show_again()


def quiet() -> None:
    """Nothing is told again: before this process leaves Ray, which nobody may call afterwards."""
    with _telling:
        _living.clear()


_job: Measures | None = None


@contextlib.contextmanager
def telling(measures: Sequence[Measure], **labels: str) -> Iterator[None]:
    """The figures of this process's job for the length of the block, which `count` and `show` tell: joined to Ray, if
    it is to be, before.
    """
    global _job
    before, _job = _job, Measures(measures, **labels)
    try:
        yield
    finally:
        _job = before


def count(measure: Measure, total: float, **labels: str) -> None:
    """Of the job that is telling; nobody is told where none is."""
    if _job is not None:
        _job.count(measure, total, **labels)


def show(measure: Measure, value: float | None, **labels: str) -> None:
    """Of the job that is telling; nobody is told where none is."""
    if _job is not None:
        _job.show(measure, value, **labels)
