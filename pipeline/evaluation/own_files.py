"""Whether what lies in `--out` by the names of an evaluation's files is of an earlier one, told by its content."""

import io
import json
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.errors import InputError
from pipeline.evaluation.by_subject import SUBJECTS_CSV
from pipeline.evaluation.recognized import RECOGNIZED
from pipeline.storage.stores import Stores
from pipeline.storage.types import StoreError
from pipeline.storage.uris import absolute, join


def refuse_foreign_files(out: str, stores: Stores = Stores()) -> None:
    """Raises InputError where a file of somebody else would be replaced or removed."""
    for name, is_ours in _TELLS.items():
        where = join(absolute(out), name)
        try:
            found = stores.read_if_there(where)
        except StoreError as error:
            raise error.refusal() from error
        if found is not None and not is_ours(found):
            raise InputError(f"--out {out}: {where} is of no evaluation and would be replaced; give another folder")


def _is_metrics(data: bytes) -> bool:
    try:
        found = json.loads(data)
    except ValueError:
        return False
    return isinstance(found, dict) and {"split", "provenance"} <= set(found)


def _is_predictions(data: bytes) -> bool:
    try:
        names = pq.read_schema(io.BytesIO(data)).names
    except (pa.ArrowException, OSError, ValueError):
        return False
    return {"image_id", "uri", "probability"} <= set(names)


_TELLS: dict[str, Callable[[bytes], bool]] = {
    "metrics.json": _is_metrics,
    "predictions.parquet": _is_predictions,
    SUBJECTS_CSV: lambda data: data.startswith(b"subject_id,cells,"),
    RECOGNIZED: lambda data: data.startswith(b"uri,member,image_id,"),
}
