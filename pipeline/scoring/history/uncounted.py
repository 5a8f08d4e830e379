"""What holds an unknown number of images: archives and folders that could not be read to their end.

Such a row counts as no image. One that is unchanged since an earlier run is not read again, but the run is incomplete
all the same, until the archive is mended or a run is told to accept it.
"""

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.scoring.record import RunRecord
from pipeline.scoring.run_folder import RunFolder
from pipeline.scoring.schemas import IS_UNCOUNTED
from pipeline.sources.rows import place_of

UNCHANGED_UNCOUNTED, ACCEPTED_UNCOUNTED = "unchanged_uncounted", "accepted_uncounted"
UNCOUNTED = (UNCHANGED_UNCOUNTED, ACCEPTED_UNCOUNTED)  # reasons in skipped/


def accepted(runs: Iterable[tuple[RunFolder, RunRecord]]) -> frozenset[int]:
    """Ids of archives, in their latest version, that one of the runs (oldest first) was to accept."""
    ids: set[int] = set()
    for folder, record in runs:
        if not record.counts.uncounted:
            continue
        fresh = {row["image_id"] for table in _quarantined(folder, ["image_id"]) for row in table.to_pylist()}
        ids = ids | fresh if record.accepts_damaged else ids - fresh
        if record.accepts_damaged:
            ids.update(row["image_id"] for table in _skipped(folder, ["image_id"]) for row in table.to_pylist())
    return frozenset(ids)


def described(folder: RunFolder, limit: int) -> list[str]:
    """The first few of a run, each with what is wrong with it."""
    found: list[str] = []
    for table in _quarantined(folder, ["uri", "member", "code", "message"]):
        found += [_failure(row) for row in table.slice(0, limit).to_pylist()]
    for table in _skipped(folder, ["uri", "member", "earlier_run"]):
        found += [f"{_place(row)}: unchanged since {row['earlier_run']}" for row in table.slice(0, limit).to_pylist()]
    return found[:limit]


def _failure(row: dict[str, str]) -> str:
    place = _place(row)
    return f"{place}: {row['code']}, {row['message'].removeprefix(place + ': ')}"


def _place(row: dict[str, str]) -> str:
    return place_of(row["uri"], row["member"])


def _quarantined(folder: RunFolder, columns: list[str]) -> Iterator[pa.Table]:
    for table in folder.rows("quarantine", [*columns, IS_UNCOUNTED]):
        if IS_UNCOUNTED in table.column_names:  # 0.1 wrote none
            yield table.filter(pc.fill_null(table[IS_UNCOUNTED], False))


def _skipped(folder: RunFolder, columns: list[str]) -> Iterator[pa.Table]:
    for table in folder.rows("skipped", [*columns, "reason"]):
        yield table.filter(pc.is_in(table["reason"], pa.array(UNCOUNTED)))
