"""What ingest tells Prometheus: what was listed, what was read to be compared, and what could be neither."""

import contextlib
import time
from collections.abc import Iterator, Mapping

from pipeline.base import measures
from pipeline.base.measures import Measure, count, show
from pipeline.base.secrets import without_secrets

_OUTPUT = ("output",)
LISTED = Measure("leukoray_ingest_images", "Counter", "Images found in the sources", _OUTPUT)
PROBLEMS = Measure(
    "leukoray_ingest_problems", "Counter", "What could not be listed and is in no manifest, by code", ("output", "code")
)  # fmt: skip
READ = Measure("leukoray_ingest_read", "Counter", "Images read and decoded, to be compared with each other", _OUTPUT)
UNREAD = Measure(
    "leukoray_ingest_unread", "Counter", "Images in the manifest that could not be read then, by code",
    ("output", "code"),
)  # fmt: skip
LEFT = Measure("leukoray_ingest_left", "Gauge", "Images that are still to be read", _OUTPUT)
BEGUN = Measure("leukoray_ingest_begun_seconds", "Gauge", "When the ingest in work began, Unix time", _OUTPUT)
FINISHED = Measure("leukoray_ingest_finished_seconds", "Gauge", "When it had written its manifest, Unix time", _OUTPUT)
SPLITS = Measure("leukoray_ingest_split_images", "Gauge", "Images of that manifest, by split", ("output", "split"))
MEASURES = (LISTED, PROBLEMS, READ, UNREAD, LEFT, BEGUN, FINISHED, SPLITS)


@contextlib.contextmanager
def telling(output: str) -> Iterator[None]:
    """For the length of an ingest."""
    with measures.telling(MEASURES, output=without_secrets(output)):
        show(BEGUN, time.time())
        yield


def listed(images: int, problems: Mapping[str, int]) -> None:
    """So far."""
    count(LISTED, images)
    for code, of_code in problems.items():
        count(PROBLEMS, of_code, code=code)


def read(images: int, unread: Mapping[str, int], left: int) -> None:
    """So far."""
    count(READ, images)
    for code, of_code in unread.items():
        count(UNREAD, of_code, code=code)
    show(LEFT, left)


def written(splits: Mapping[str, int]) -> None:
    show(FINISHED, time.time())
    for split, images in splits.items():
        show(SPLITS, images, split=split)
