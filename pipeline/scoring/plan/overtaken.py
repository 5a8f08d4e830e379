"""An unfinished run whose images another run has done since: its plan does not know, and would do them twice."""

from collections.abc import Iterator
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.base.errors import TRANSIENT_CODES
from pipeline.scoring.plan.plan import Plan
from pipeline.scoring.plan.shards import first_uri
from pipeline.scoring.record import RunRecord
from pipeline.scoring.request import Request
from pipeline.scoring.run_folder import PARTS, PLAN, PROBLEMS, SUBJECTS, Finished, RunFolder, shard_file

_OUTPUTS = ("predictions", "quarantine", "archives")  # of a commit that was cut short


def overtaken_by(finished: Finished, folder: RunFolder, plan: Plan, request: Request) -> str | None:
    """The first run of this model that ended since the listing and did an image of the plan.

    What failed there for a passing reason is not done. With --rescore all is to be done again, whoever did it.
    """
    later = [run for run, record in finished if _is_later(run, record, plan) and _is_same(record, request)]
    if request.rescore or not later:
        return None
    planned = np.unique(np.concatenate([np.empty(0, np.int64), *_ids(folder, plan)]))
    archives = pa.array([first_uri(folder, number) for number, _ in plan.archives], pa.string())
    for run in later:
        for table in _done(run):
            has_image = np.isin(table["image_id"].to_numpy(), planned).any()
            if has_image or pc.any(pc.is_in(table["uri"], archives), min_count=0).as_py():
                return run.run_id
    return None


def forget(folder: RunFolder) -> None:
    """Leave of an unfinished run its request alone. The plan goes last: a kill on the way is mended by the next try."""
    for kind in _OUTPUTS:
        folder.delete(kind)
    if folder.has(SUBJECTS):
        folder.store.delete(folder.file(SUBJECTS))
    folder.delete(PARTS)
    folder.store.delete(folder.file(PLAN))


def _is_same(record: RunRecord, request: Request) -> bool:
    return record.model.sha256 == request.model_sha256


def _is_later(run: RunFolder, record: RunRecord, plan: Plan) -> bool:
    """Whether the listing did not know the run. 0.1 wrote down no names, so that the clock decides."""
    if plan.earlier is not None:
        return run.run_id not in plan.earlier
    if not plan.started_at:
        return True
    return datetime.fromisoformat(record.finished_at) >= datetime.fromisoformat(plan.started_at)


def _ids(folder: RunFolder, plan: Plan) -> Iterator[NDArray[np.int64]]:
    for name in (*map(shard_file, range(plan.shards)), PROBLEMS):
        yield folder.table(name, ["image_id"])["image_id"].to_numpy()


def _done(run: RunFolder) -> Iterator[pa.Table]:
    """Rows (image_id, uri) that a later run does not do again."""
    passing = pa.array(sorted(map(str, TRANSIENT_CODES)), pa.string())
    yield from run.rows("predictions", ["image_id", "uri"])
    for table in run.rows("quarantine", ["image_id", "uri", "code"]):
        yield table.filter(pc.invert(pc.is_in(table["code"], passing)))
