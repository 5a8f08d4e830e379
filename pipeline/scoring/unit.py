"""What the scored images show, by their manifest or the layout of their names, else what the model takes."""

import contextlib
from collections.abc import Iterator

from pipeline.images.unit import Unit
from pipeline.ingest.layouts import LAYOUTS
from pipeline.scoring.task import ScoringTask
from pipeline.sources.manifest import ManifestInfo, is_manifest, read_info
from pipeline.sources.pseudonyms import names_of
from pipeline.storage.types import StoreError


def unit_of_sources(task: ScoringTask) -> Unit | None:
    """None where nothing tells it, or sources differ."""
    layout = LAYOUTS.get(task.plan.layout)
    found = {layout.unit if layout is not None else None, *(info.unit for info in _manifests(task))}
    found.discard(None)
    return found.pop() if len(found) == 1 else None


def unit_scored(task: ScoringTask) -> Unit | None:
    return unit_of_sources(task) or task.bundle.info.unit


def has_blocks(task: ScoringTask) -> bool:
    """Whether a source is a manifest whose subjects are blocks of file numbers, and so no patients."""
    return any(info.units != "subjects" for info in _manifests(task))


def _manifests(task: ScoringTask) -> Iterator[ManifestInfo]:
    """Of the sources, those that are manifests."""
    for source in task.request.sources:
        uri = names_of(task.stores).real_path(source)
        with contextlib.suppress(StoreError):  # gone since it was listed
            if is_manifest(uri, task.stores):
                yield read_info(uri, task.stores)
