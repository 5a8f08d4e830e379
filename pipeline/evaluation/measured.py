"""What an evaluation tells Prometheus: how far each of its steps is, what could not be read, and the figures found."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.base import measures
from pipeline.base.measures import Measure, count, show
from pipeline.base.secrets import without_secrets

_OUTPUT, _STEP = ("output",), ("output", "step")
IMAGES = Measure("leukoray_evaluate_images", "Counter", "Images done, by step: a split, audit, maps", _STEP)
QUARANTINED = Measure(
    "leukoray_evaluate_quarantined", "Counter", "Images that could not be read, by code", ("output", "step", "code")
)  # fmt: skip
LEFT = Measure("leukoray_evaluate_left", "Gauge", "Images of the step that are not done yet", _STEP)
BEGUN = Measure("leukoray_evaluate_begun_seconds", "Gauge", "When the evaluation in work began, Unix time", _OUTPUT)
FINISHED = Measure("leukoray_evaluate_finished_seconds", "Gauge", "When it had its figures, Unix time", _OUTPUT)
FIGURE = Measure("leukoray_evaluate_figure", "Gauge", "Its figures, by name", ("output", "model", "figure"))
MEASURES = (IMAGES, QUARANTINED, LEFT, BEGUN, FINISHED, FIGURE)


@contextlib.contextmanager
def telling(output: str) -> Iterator[None]:
    """For the length of an evaluation, in which this process has joined Ray."""
    with measures.telling(MEASURES, output=without_secrets(output)):
        show(BEGUN, time.time())
        yield


def done(step: str, images: int, every: int, codes: Mapping[str, int] = {}) -> None:
    """Of `every` image so far; `codes` of those that could not be read."""
    count(IMAGES, images, step=step)
    show(LEFT, every - images, step=step)
    for code, of_code in codes.items():
        count(QUARANTINED, of_code, step=step, code=code)


def finished(model: str, metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """`metrics`: by name, each with its value."""
    show(FINISHED, time.time())
    for name, metric in metrics.items():
        show(FIGURE, metric["value"], model=model, figure=name)
