"""What earlier runs in the same output already did: image ids and object versions, in two sorted arrays.

16 bytes an image. A run counts once its `_SUCCESS` is there, and only for the same model identity.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import TRANSIENT_CODES
from pipeline.scoring.records import RunFolder, version_hash
from pipeline.scoring.request import Request
from pipeline.storage import S3Settings, StoreError, join, store_for

_BATCH_ROWS = 32 * 1024
UNCHANGED, UNCHANGED_BAD = "unchanged", "unchanged_quarantined"


@dataclass(frozen=True)
class Ledger:
    """Finished images by id. `runs` names where each was done; `seen` marks what the present listing met again."""

    ids: NDArray[np.int64]
    versions: NDArray[np.int64]
    is_bad: NDArray[np.bool_]
    run_of: NDArray[np.int32]
    runs: tuple[str, ...]
    seen: NDArray[np.bool_]
    archives: dict[str, dict[str, Any]] = field(default_factory=dict)  # rows of ARCHIVES_SCHEMA by URI, the latest

    def look_up(self, image_id: int, etag: str, size_bytes: int) -> tuple[str, str] | None:
        """(reason, run) when this version of the image is done, else None."""
        at = int(np.searchsorted(self.ids, image_id))
        if at >= len(self.ids) or self.ids[at] != image_id:
            return None
        if self.versions[at] != version_hash(etag, size_bytes):
            return None
        return (UNCHANGED_BAD if self.is_bad[at] else UNCHANGED), self.runs[self.run_of[at]]

    def see(self, image_id: int) -> None:
        """Note that the present listing met an image."""
        at = int(np.searchsorted(self.ids, image_id))
        if at < len(self.ids) and self.ids[at] == image_id:
            self.seen[at] = True

    def unseen(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """(ids done earlier that the present listing did not meet, the run of each)."""
        return self.ids[~self.seen], self.run_of[~self.seen]


def finished_runs(out: str, s3: S3Settings | None) -> Iterator[tuple[RunFolder, dict[str, Any]]]:
    """Runs with `_SUCCESS` below an output, oldest first, with their run.json."""
    store = store_for(out, s3)
    for folder in run_folders(out, s3):
        if store.head(folder.file("_SUCCESS")) is not None:
            yield folder, json.loads(store.read(folder.file("run.json")).data)


def run_folders(out: str, s3: S3Settings | None) -> list[RunFolder]:
    """All runs below an output, finished or not, oldest first."""
    if out.startswith("s3://"):
        from pipeline.s3 import s3_store

        levels = s3_store(s3 or S3Settings()).levels(out)
        found = [name.rstrip("/") for level in levels for name in level.folders]
    else:
        from pathlib import Path

        found = [str(path) for path in Path(out).iterdir() if path.is_dir()] if Path(out).is_dir() else []
    store = store_for(out, s3)
    runs = [uri for uri in found if store.head(join(uri, "_work", "request.json")) or store.head(join(uri, "run.json"))]
    return [RunFolder(uri) for uri in sorted(runs)]


def read_ledger(out: str, request: Request, s3: S3Settings | None) -> Ledger:
    """The ledger of all finished runs with this request's model; a later run wins over an earlier one."""
    ids: list[NDArray[np.int64]] = []
    versions: list[NDArray[np.int64]] = []
    bad: list[NDArray[np.bool_]] = []
    runs: list[str] = []
    number: list[NDArray[np.int32]] = []
    archives: dict[str, dict[str, Any]] = {}
    for folder, info in finished_runs(out, s3):
        if info["model"]["sha256"] != request.model_sha256:
            continue
        runs.append(folder.run_id)
        if all(tuple(info["request"][name]) == getattr(request, name) for name in ("include", "exclude")):
            for uri in output_files(folder, "archives", s3):
                archives |= {row["uri"]: row for row in read_columns(uri, None, s3).to_pylist()}
        for table, is_bad in _done(folder, s3):
            ids.append(table["image_id"].to_numpy().astype(np.int64))
            pairs = zip(table["etag"].to_pylist(), table["size_bytes"].to_pylist(), strict=True)
            versions.append(np.array([version_hash(etag, size) for etag, size in pairs], np.int64))
            bad.append(np.full(table.num_rows, is_bad))
            number.append(np.full(table.num_rows, len(runs) - 1, np.int32))
    if not ids:
        empty = np.empty(0, np.int64)
        return Ledger(empty, empty, np.empty(0, bool), np.empty(0, np.int32), tuple(runs), np.empty(0, bool), archives)
    all_ids, run_of = np.concatenate(ids), np.concatenate(number)
    order = np.lexsort((run_of, all_ids))
    last = np.append(all_ids[order][1:] != all_ids[order][:-1], True)  # the latest run of each id
    keep = order[last]
    return Ledger(
        all_ids[keep],
        np.concatenate(versions)[keep],
        np.concatenate(bad)[keep],
        run_of[keep],
        tuple(runs),
        np.zeros(len(keep), bool),
        archives,
    )


def _done(folder: RunFolder, s3: S3Settings | None) -> Iterator[tuple[pa.Table, bool]]:
    transient = pa.array([str(code) for code in TRANSIENT_CODES])
    for uri in output_files(folder, "predictions", s3):
        for table in read_batches(uri, ["image_id", "etag", "size_bytes"], s3):
            yield table, False
    for uri in output_files(folder, "quarantine", s3):
        table = read_columns(uri, ["image_id", "etag", "size_bytes", "code", "stage"], s3)
        again = pc.or_(pc.is_in(table["code"], transient), pc.equal(table["stage"], "list"))
        yield table.filter(pc.invert(again)), True


def output_files(folder: RunFolder, kind: str, s3: S3Settings | None) -> list[str]:
    """Parquet files of a finished run, by its manifest of parts."""
    try:
        listed = json.loads(store_for(folder.uri, s3).read(folder.file("parts.json")).data)
    except StoreError:
        return []
    return [folder.file(item["name"]) for item in listed if item["name"].startswith(f"{kind}/")]


def read_columns(uri: str, columns: list[str] | None, s3: S3Settings | None) -> pa.Table:
    with store_for(uri, s3).open(uri) as file:
        return pq.ParquetFile(file).read(columns=columns)


def read_batches(uri: str, columns: list[str], s3: S3Settings | None) -> Iterator[pa.Table]:
    """The rows of one file piece by piece, so that memory does not grow with the file."""
    with store_for(uri, s3).open(uri) as file:
        for batch in pq.ParquetFile(file).iter_batches(_BATCH_ROWS, columns=columns):
            yield pa.Table.from_batches([batch])
