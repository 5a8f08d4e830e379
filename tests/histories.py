"""Long histories without the work: a bucket whose objects are made up when asked for, and runs that scored them."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import pyarrow as pa

from pipeline.base.record import COMPLETE
from pipeline.scoring.output import OutputSeries
from pipeline.scoring.record import Counts, ModelUsed, Pace, RunRecord
from pipeline.scoring.request import Request, Workforce
from pipeline.scoring.run_folder import PARTS_LIST, RECORD, SUCCESS, Output
from pipeline.scoring.schemas import SCHEMA_VERSION, prediction_schema
from pipeline.sources.rows import image_id
from pipeline.storage.local import LocalStore
from pipeline.storage.stores import Stores
from pipeline.storage.types import Level, ObjectInfo

_PAGE, _BATCH = 1000, 16 * 1024
_MODEL: dict[str, Any] = {
    "uri": "s3://models/all/1", "name": "all", "version": "1", "sha256": "0" * 64, "threshold": 0.5,
}  # fmt: skip
_NOW = "2026-11-28T00:00:00+00:00"


class MadeUp(LocalStore):
    """A remote store that answers at once: `days` folders of `objects` objects below a prefix, or as many in it.

    `new`: in a further folder. `requests` counts pages of listings, as S3 gives them.
    """

    is_remote = True

    def __init__(self, objects: int, days: int = 0, new: int = 0) -> None:
        self._objects, self._days, self._new = objects, days, new
        self.requests = 0

    @property
    def stores(self) -> Stores:
        return Stores(mounts=(("s3://bucket/", self),))

    def infos(self, folder: str, objects: int | None = None) -> Iterator[ObjectInfo]:
        """What lies in a folder."""
        for number in range(self._objects if objects is None else objects):
            name = f"{folder.rstrip('/')}/{number:08d}.jpg"
            yield ObjectInfo(name, 30_000, hashlib.md5(name.encode()).hexdigest(), 1.7e9)

    def head(self, uri: str) -> ObjectInfo | None:
        return None

    def is_folder(self, uri: str) -> bool:
        return True

    def levels(self, prefix: str) -> Iterator[Level]:
        if self._days and not prefix.rstrip("/").rpartition("/")[2].startswith("day-"):
            self.requests += 1
            days = self._days + bool(self._new)
            yield Level([f"{prefix.rstrip('/')}/day-{day:02d}/" for day in range(days)], [], False)
            return
        objects = self._in(prefix)
        page, is_last = list(islice(objects, _PAGE)), False
        while not is_last:
            self.requests += 1
            following = list(islice(objects, _PAGE))
            is_last = not following
            yield Level([], page, not is_last)
            page = following

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        for number, info in enumerate(self._in(prefix)):
            self.requests += number % _PAGE == 0
            yield info

    def _in(self, prefix: str) -> Iterator[ObjectInfo]:
        is_new = self._days and prefix.rstrip("/").endswith(f"day-{self._days:02d}")
        return self.infos(prefix, self._new if is_new else self._objects)


def request_of(sources: Sequence[str], **changes: Any) -> Request:
    return Request(tuple(sources), _MODEL["uri"], _MODEL["sha256"], **changes)


def finished_run(out: str, run_id: str, request: Request, scored: Iterable[ObjectInfo]) -> None:
    """A run below `out` that scored these, as scoring leaves one: predictions, parts.json, run.json, `_SUCCESS`."""
    folder = Output.at(out, Stores()).run(run_id)
    schema = prediction_schema((), ())
    series, rows, count = OutputSeries(folder, "predictions", schema), iter(scored), 0
    while batch := list(islice(rows, _BATCH)):
        count += len(batch)
        series.add(_predictions(batch, schema))
    folder.write(PARTS_LIST, json.dumps([asdict(item) for item in series.finish()]).encode())
    record = RunRecord(
        run_id=run_id, status=COMPLETE, schema_version=SCHEMA_VERSION, leukoray_version="0",
        counts=Counts(listed=count, scored=count, quarantined=0), error_share=0.0, max_error_share=0.05,
        model=ModelUsed.model_validate(_MODEL), request=request, started_at=_NOW, finished_at=_NOW,
        progress=Pace(images=count, elapsed_s=1.0, images_per_s=1.0, mb_per_s=1.0, workers=1), resources=Workforce(1),
    )  # fmt: skip
    folder.write(RECORD, json.dumps(record.model_dump(mode="json")).encode())
    folder.write(SUCCESS, b"complete\n")


def _predictions(batch: Sequence[ObjectInfo], schema: pa.Schema) -> pa.Table:
    known = {
        "image_id": pa.array([image_id(info.uri, None, 0) for info in batch], pa.int64()),
        "uri": pa.array([info.uri for info in batch], pa.string()),
        "etag": pa.array([info.etag for info in batch], pa.string()),
        "size_bytes": pa.array([info.size for info in batch], pa.int64()),
    }
    columns = [known[name] if name in known else pa.nulls(len(batch), schema.field(name).type) for name in schema.names]
    return pa.Table.from_arrays(columns, schema=schema)
