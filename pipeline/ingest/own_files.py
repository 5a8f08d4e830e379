"""Whether what lies beside a manifest by the name of one of its files is ours, told by its content.

The manifest itself does not tell: somebody's file may lie beside one of an older version, which wrote fewer, and an
interrupted ingest leaves files without it.
"""

import json
from collections.abc import Callable
from typing import Any

from pipeline.base.errors import InputError
from pipeline.ingest.croissant import CROISSANT, describes_manifest
from pipeline.ingest.near_copies_files import NEAR_COPIES_SHEET, NEAR_COPIES_TABLE, is_sheet, is_table
from pipeline.storage.stores import Stores
from pipeline.storage.types import StoreError
from pipeline.storage.uris import absolute, join

PROBLEMS = "problems.json"
_OF_PROBLEM = {"uri", "member", "code", "message"}


def refuse_foreign_files(out: str, stores: Stores = Stores()) -> None:
    """Raises InputError where a file of somebody else has the name of one that ingest writes or removes."""
    for name, is_ours in _TELLS.items():
        where = join(absolute(out), name)
        try:
            found = stores.read_if_there(where)
        except StoreError as error:
            raise error.refusal() from error
        if found is not None and not is_ours(found):
            raise InputError(f"--out {out}: {where} is of no manifest and would be replaced; give another folder")


def _is_problems(data: bytes) -> bool:
    found = _json_of(data)
    return isinstance(found, list) and all(isinstance(item, dict) and set(item) >= _OF_PROBLEM for item in found)


def _is_croissant(data: bytes) -> bool:
    found = _json_of(data)
    return isinstance(found, dict) and describes_manifest(found)


def _json_of(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


_TELLS: dict[str, Callable[[bytes], bool]] = {
    CROISSANT: _is_croissant,
    PROBLEMS: _is_problems,
    NEAR_COPIES_TABLE: is_table,
    NEAR_COPIES_SHEET: is_sheet,
}
