"""How the files beside a manifest are told from those of somebody else that have their names.

The manifest itself does not tell: one of an older version has fewer files, and an interrupted ingest leaves files
without it.
"""

from pipeline.base.record import RECORD, is_record_of
from pipeline.ingest.croissant import CROISSANT, describes_manifest
from pipeline.ingest.near_copies_files import NEAR_COPIES_SHEET, NEAR_COPIES_TABLE, is_sheet, is_table
from pipeline.storage.foreign import json_of, refuse_foreign_files
from pipeline.storage.stores import Stores

PROBLEMS = "problems.json"
_OF_PROBLEM = {"uri", "member", "code", "message"}


def refuse_foreign_findings(out: str, stores: Stores = Stores()) -> None:
    """Raises InputError where a file of somebody else has the name of one that ingest writes or removes."""
    refuse_foreign_files(out, _IS_OURS, "manifest", stores=stores)


def _is_problems(data: bytes) -> bool:
    found = json_of(data)
    return isinstance(found, list) and all(isinstance(item, dict) and set(item) >= _OF_PROBLEM for item in found)


def _is_croissant(data: bytes) -> bool:
    found = json_of(data)
    return isinstance(found, dict) and describes_manifest(found)


_IS_OURS = {
    RECORD: lambda data: is_record_of("ingest", data),
    CROISSANT: _is_croissant,
    PROBLEMS: _is_problems,
    NEAR_COPIES_TABLE: is_table,
    NEAR_COPIES_SHEET: is_sheet,
}
