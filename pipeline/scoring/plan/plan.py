"""The plan of a run: the listing frozen into shard files before anything is scored.

Once `plan.json` is written the shards never change, so a resumed run gives the rows of an unbroken one.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from pydantic import TypeAdapter

from pipeline.base.errors import InputError
from pipeline.base.versions import check_version
from pipeline.scoring.output import Written
from pipeline.scoring.request import Request
from pipeline.scoring.run_folder import PLAN, REQUEST, WORK, Output, RunFolder
from pipeline.scoring.schemas import SCHEMA_VERSION, ArchiveRow


@dataclass(frozen=True)
class Plan:
    """`plan.json`: what was listed, counted while the shard files were written."""

    run_id: str
    shard_rows: list[int] = field(default_factory=list)  # images of each shard; 0 for an archive
    shard_bytes: list[int] = field(default_factory=list)
    archives: list[tuple[int, int]] = field(default_factory=list)  # (shard, bytes) of those that workers open
    opened: list[ArchiveRow] = field(default_factory=list)  # compressed archives that the listing read
    meta_keys: list[str] = field(default_factory=list)  # of 0.1 the first 64
    problems: int = 0  # quarantined while listing
    uncounted: int = 0  # of problems and skipped, those that hold an unknown number of images
    skipped: dict[str, int] = field(default_factory=dict)  # by reason
    pixel_rules: dict[str, int] = field(default_factory=dict)  # rows of the model in earlier runs, by digest
    left_out: dict[str, int] = field(default_factory=dict)  # files that are no images, by reason
    masks: list[str] = field(default_factory=list)  # the first of left_out's masks
    files: list[Written] = field(default_factory=list)  # of skipped/ and deleted/
    number: int = 0  # of the run in its output, see RunRecord
    earlier: list[str] | None = None  # finished runs of this model that the listing knew; None: 0.1 wrote none
    layout: str = ""
    started_at: str = ""  # ISO 8601, UTC
    listing_s: float = 0.0

    @property
    def shards(self) -> int:
        return len(self.shard_rows)

    @cached_property
    def rows(self) -> int:
        """Images in shards."""
        return sum(self.shard_rows)

    @cached_property
    def bytes(self) -> int:
        return sum(self.shard_bytes)

    @property
    def listed(self) -> int:
        """Without the images of archives that workers open."""
        return self.rows + self.problems + sum(self.skipped.values())

    @property
    def known_images(self) -> str:
        """`listed` for a person."""
        return f"at least {self.listed - self.uncounted}" if self.uncounted else str(self.listed)


def read_plan(folder: RunFolder) -> Plan | None:
    """The frozen plan of a run, None while its listing is not complete."""
    return TypeAdapter(Plan).validate_json(folder.read(PLAN)) if folder.has(PLAN) else None


def write_plan(folder: RunFolder, plan: Plan) -> None:
    folder.write(PLAN, json.dumps(asdict(plan), indent=1).encode())


def find_or_start(
    output: Output, request: Request, run_id: str | None, say: Callable[[str], None] = print
) -> tuple[RunFolder, bool]:
    """(run folder, whether it continues an unfinished run of the same request). Those of others are told.

    Raises InputError when `run_id` names a finished run, an unfinished one of another request, or a folder of others.
    """
    finished, unfinished = None, list[str]()
    for folder in output.runs():
        is_meant = run_id is None or folder.run_id == run_id
        if folder.is_finished:
            if run_id is not None and is_meant:
                raise InputError(f"{folder.uri}: this run is complete; leave out --run-id or choose another")
            finished = folder if is_meant else finished
            continue
        if not folder.has(REQUEST):  # a run.json of another program
            continue
        stored = json.loads(folder.read(REQUEST))
        if is_meant and stored["digest"] == request.digest():
            version = stored.get("schema_version", 1)  # 0.1 wrote none
            check_version(version, SCHEMA_VERSION, f"{folder.uri}: unfinished run", "delete the folder")
            return folder, True
        if run_id is not None and is_meant:
            raise InputError(
                f"{folder.uri}: an unfinished run of another request ({', '.join(stored['sources'])}, model "
                f"{stored['model_sha256'][:12]}); finish it with its own flags, or delete the folder"
            )
        unfinished.append(f"{folder.uri}, of {', '.join(stored['sources'])}")
    for place in unfinished:
        say(f"unfinished: {place}; the command that began it continues it, or delete the folder")
    if finished is not None:
        finished.delete(WORK)  # left where the last run was killed between its `_SUCCESS` and its end
    folder = output.run(run_id or datetime.now(UTC).strftime("run-%Y%m%d-%H%M%S-%f")[:-3])
    if not folder.is_free():
        raise InputError(f"{folder.uri}: holds files that are of no scoring run; give another --run-id, or none")
    document = {**asdict(request), "digest": request.digest(), "run_id": folder.run_id}
    document["schema_version"] = SCHEMA_VERSION
    folder.write(REQUEST, json.dumps(document, indent=2).encode())
    return folder, False
