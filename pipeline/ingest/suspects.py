"""Labels that are likely wrong, as a table that a person edits and `leukoray ingest --labels` reads back.

A row for every image of the manifest, suspects first: a table of labels is all that counts of an image, so one of the
suspects alone would take the labels of all others away. SUSPECT_COLUMNS are notes, which ingest does not keep.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.sources.manifest import MANIFEST_SCHEMA
from pipeline.sources.rows import places_of

SUSPECTS_TABLE = "suspects.csv"
SUSPECT_COLUMNS = ("suspect_rank", "suspect_given", "suspect_suggested", "suspect_margin", "suspect_reason")
_KEPT = ("subject_id", "split", "site")


@dataclass(frozen=True)
class Suspect:
    """An image whose label is likely wrong."""

    image_id: int
    suggested: str  # class
    margin: float  # probability of the given class less that of the likeliest other one, -1..1
    reason: str


def suspects_csv(manifest: pa.Table, suspects: Sequence[Suspect]) -> str:
    """CSV of all rows of a manifest, `suspects` first and in their order.

    The column to edit is `class_name`, or `label` where the manifest names no classes.
    """
    named = manifest["class_name"].null_count < manifest.num_rows
    edited = "class_name" if named else "label"
    further = [name for name in manifest.column_names if name not in MANIFEST_SCHEMA.names]
    kept = [name for name in _KEPT if manifest[name].null_count < manifest.num_rows]
    columns = {name: manifest[name].to_pylist() for name in (edited, *kept, *further)}
    rank = {suspect.image_id: number for number, suspect in enumerate(suspects)}
    ids, places = manifest["image_id"].to_pylist(), places_of(manifest)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", *columns, *SUSPECT_COLUMNS])
    for row in sorted(range(manifest.num_rows), key=lambda row: rank.get(ids[row], len(rank))):
        said = [_text(values[row]) for values in columns.values()]
        number = rank.get(ids[row])
        notes = [""] * len(SUSPECT_COLUMNS)
        if number is not None:
            found = suspects[number]
            notes = [str(number + 1), said[0], found.suggested, f"{found.margin:.3f}", found.reason]
        writer.writerow([places[row], *said, *notes])
    return text.getvalue()


def _text(value: object) -> str:
    return "" if value is None else str(value)
