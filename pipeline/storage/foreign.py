"""Whether what lies where a command writes is its own of an earlier time, told by the content of each file.

A folder does not tell: somebody's file may lie beside ours, and an interrupted run leaves some without the rest.
"""

import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.errors import InputError
from pipeline.storage.stores import Stores
from pipeline.storage.types import StoreError
from pipeline.storage.uris import absolute, join


def refuse_foreign_files(
    out: str, is_ours: Mapping[str, Callable[[bytes], bool]], of: str, fate: str = "replaced", stores: Stores = Stores()
) -> None:
    """Raises InputError for the first file in `out` that `is_ours`, by its name there, says somebody else made.

    `of` and `fate` are words for the message: what ours are files of, and what would become of it.
    """
    for name, tells in is_ours.items():
        where = join(absolute(out), name)
        try:
            found = stores.read_if_there(where)
        except StoreError as error:
            raise error.refusal() from error
        if found is not None and not tells(found):
            raise InputError(f"--out {out}: {where} is of no {of} and would be {fate}; give another folder")


def json_of(data: bytes) -> Any:
    """None where it is no JSON."""
    try:
        return json.loads(data)
    except ValueError:
        return None


def has_keys(data: bytes, keys: set[str]) -> bool:
    """Whether it is a JSON object with these keys."""
    found = json_of(data)
    return isinstance(found, dict) and keys <= set(found)


def has_columns(data: bytes, names: set[str]) -> bool:
    """Whether it is a Parquet file with these columns."""
    try:
        return names <= set(pq.read_schema(io.BytesIO(data)).names)
    except (pa.ArrowException, OSError, ValueError):
        return False
