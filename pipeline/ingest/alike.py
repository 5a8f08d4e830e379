"""Images that are the same image: byte-identical copies, their contradicting labels, near copies.

Takes the listing with its annotations, gives what must stay on one side of a split, and what is out of every split.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.base.errors import InputError
from pipeline.ingest.annotation import Annotation
from pipeline.ingest.contradictions import find_contradictions, read_verdicts, settled, to_csv
from pipeline.ingest.copies import find_copies
from pipeline.ingest.near_copies import NearCopies, Pair, find_near_copies
from pipeline.sources.rows import places_of
from pipeline.sources.tables import read_table
from pipeline.storage.stores import Stores
from pipeline.storage.uris import absolute


@dataclass(frozen=True)
class Alike:
    """Groups hold rows of the listing."""

    annotations: list[Annotation]  # contradictions settled, or set apart
    copies: list[list[int]]
    contradictions: list[list[int]]  # the groups of copies that are under several labels, and nobody has said which
    contradictions_csv: str  # those, and those that were settled; empty where there are none
    near: NearCopies | None  # None where nobody wanted to know

    @property
    def identical(self) -> list[Pair]:
        """Copies that may be in a split, each with the first of its group."""
        undecided = {rows[0] for rows in self.contradictions}
        return [Pair(first, row, 1.0) for first, *others in self.copies if first not in undecided for row in others]

    @property
    def groups(self) -> list[list[int]]:
        """What must stay on one side of a split; groups that share a row are one."""
        return self.copies + (self.near.groups if self.near is not None else [])


def find_alike(
    listing: pa.Table,
    annotations: Sequence[Annotation],
    *,
    verdicts: str | None,
    near_copies: bool,
    stores: Stores = Stores(),
) -> Alike:
    """`listing`: LISTING_SCHEMA. `verdicts`: URI of an edited table of contradictions.

    Raises InputError for verdicts that name no contradiction.
    """
    copies = find_copies(listing, [row.is_used for row in annotations], stores)
    contradictions = find_contradictions(copies, annotations)
    places = places_of(listing)
    said = _verdicts(verdicts, places, stores)
    result = settled(annotations, contradictions, places, said)
    undecided = [rows for rows in contradictions if result[rows[0]].is_contradicted]
    listed = to_csv(contradictions, annotations, places, said) if contradictions else ""
    used = [row.is_used for row in result]
    near = find_near_copies(listing, used, copies, stores) if near_copies else None
    return Alike(result, copies, undecided, listed, near)


def _verdicts(uri: str | None, places: Sequence[str], stores: Stores) -> frozenset[str]:
    if uri is None:
        return frozenset()
    where = absolute(uri)
    said = read_verdicts(read_table(where, stores), where)
    if unknown := sorted(said - set(places)):
        raise InputError(
            f"{where}: {len(unknown)} of {len(said)} paths are no image of this source, e.g. {unknown[0]}; "
            "give the same sources as when it was written"
        )
    return said
