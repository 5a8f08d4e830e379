"""The plan of a run: its request, and the listing frozen into shard files before anything is scored.

A request is what the user asked for; its digest finds the unfinished run that the same command continues. Once
`plan.json` is written the shards never change, so a resumed run gives the rows of an unbroken one.
"""

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipeline.base.errors import InputError
from pipeline.scoring.request import Request
from pipeline.scoring.run_folder import RunFolder, run_folders
from pipeline.storage.stores import Stores

MAX_META_KEYS = 64


@dataclass
class Plan:
    """`plan.json`: what was listed, counted while the shard files were written."""

    run_id: str
    shards: int = 0
    rows: int = 0  # in shards
    bytes: int = 0
    problems: int = 0  # quarantined while listing
    skipped: dict[str, int] = field(default_factory=dict)  # by reason
    left_out: dict[str, int] = field(default_factory=dict)  # files that are no images, by reason
    meta_keys: list[str] = field(default_factory=list)
    deleted: int = 0  # images of earlier runs that are gone from the source
    files: list[dict[str, Any]] = field(default_factory=list)  # output.Written of skipped/ and deleted/
    layout: str = ""
    shard_rows: list[int] = field(default_factory=list)  # 0 for an archive
    shard_bytes: list[int] = field(default_factory=list)
    archives: list[tuple[int, int]] = field(default_factory=list)  # (shard, bytes) of those that workers open
    opened: list[dict[str, Any]] = field(default_factory=list)  # rows of ARCHIVES_SCHEMA: those that the listing read
    started_at: str = ""
    listing_s: float = 0.0

    @property
    def listed(self) -> int:
        """Without the images of archives that workers open."""
        return self.rows + self.problems + sum(self.skipped.values())


def find_or_start(out: str, request: Request, run_id: str | None, stores: Stores) -> tuple[RunFolder, bool]:
    """(run folder, whether it continues an unfinished run of the same request).

    Raises InputError when `run_id` names a finished run, or an unfinished one of another request.
    """
    store = stores.of(out)
    finished = None
    for folder in run_folders(out, stores):
        if run_id is not None and folder.run_id != run_id:
            continue
        if store.head(folder.file("_SUCCESS")) is not None:
            if run_id is not None:
                raise InputError(f"{folder.uri}: this run is complete; leave out --run-id or choose another")
            finished = folder
            continue
        stored = json.loads(store.read(folder.file("_work", "request.json")).data)
        if stored["digest"] == request.digest():
            return folder, True
        if run_id is not None:
            raise InputError(
                f"{folder.uri}: an unfinished run of another request ({', '.join(stored['sources'])}, model "
                f"{stored['model_sha256'][:12]}); finish it with its own flags, or delete the folder"
            )
    if finished is not None:
        store.delete_tree(finished.work)  # left where the last run was killed between its `_SUCCESS` and its end
    name = run_id or datetime.now(UTC).strftime("run-%Y%m%d-%H%M%S-%f")[:-3]
    folder = RunFolder(f"{out}/{name}")
    document = {**asdict(request), "digest": request.digest(), "run_id": name}
    store.write(folder.file("_work", "request.json"), json.dumps(document, indent=2).encode())
    return folder, False


def read_plan(folder: RunFolder, stores: Stores) -> Plan | None:
    """The frozen plan of a run, None while its listing is not complete."""
    store = stores.of(folder.uri)
    if store.head(folder.plan) is None:
        return None
    return Plan(**json.loads(store.read(folder.plan).data))
