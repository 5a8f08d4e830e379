"""Files beside a manifest, for a person to look at or to edit: contradictions and near copies."""

from collections.abc import Sequence

import pyarrow as pa

from pipeline.base.errors import InputError
from pipeline.ingest.alike import Alike
from pipeline.ingest.contradictions import CONTRADICTIONS, read_verdicts
from pipeline.ingest.near_copies import Pair
from pipeline.ingest.near_copies_files import NEAR_COPIES_SHEET, NEAR_COPIES_TABLE, sheet_of_pairs, table_of_pairs
from pipeline.ingest.remarks import torn_pairs
from pipeline.ingest.splits import SplitResult
from pipeline.sources.manifest import NearCopyCounts
from pipeline.sources.tables import read_table
from pipeline.storage.stores import Stores
from pipeline.storage.uris import join


def refuse_lost_answers(out: str, given: str | None, stores: Stores = Stores()) -> None:
    """Raises InputError where the list of contradictions in `out` holds answers that are not in the one `given`."""
    where = join(out, CONTRADICTIONS)
    if given == where or stores.read_if_there(where) is None:
        return
    known = read_verdicts(read_table(given, stores), given) if given is not None else frozenset()
    try:
        is_lost = not read_verdicts(read_table(where, stores), where) <= known
    except InputError:  # no list as we write it: a person was at work
        is_lost = True
    if is_lost:
        raise InputError(f"{where}: was edited, and would be made anew; give it with --contradictions, or move it away")


def write_findings(out: str, alike: Alike, split: SplitResult, manifest: pa.Table, stores: Stores = Stores()) -> None:
    """Into the folder of the manifest (MANIFEST_SCHEMA); what an earlier one left there and holds no longer goes."""
    texts: dict[str, str] = {}
    if alike.contradictions_csv:
        texts[CONTRADICTIONS] = alike.contradictions_csv
    near = [] if alike.near is None else alike.near.pairs
    if near:
        texts[NEAR_COPIES_SHEET] = sheet_of_pairs(_first_torn(near, split), manifest, stores)
    if alike_pairs := [*near, *alike.identical]:  # folds keep together what this table names
        texts[NEAR_COPIES_TABLE] = table_of_pairs(_first_torn(alike_pairs, split), manifest)
    store = stores.of(out)
    for name in (CONTRADICTIONS, NEAR_COPIES_TABLE, NEAR_COPIES_SHEET):
        if name in texts:
            store.write(join(out, name), texts[name].encode("utf-8", "surrogateescape"))
        elif store.head(join(out, name)) is not None:
            store.delete(join(out, name))


def _first_torn(pairs: Sequence[Pair], split: SplitResult) -> list[Pair]:
    torn = set(torn_pairs(pairs, split))
    return sorted(pairs, key=lambda pair: pair not in torn)


def near_copy_counts(alike: Alike, split: SplitResult) -> NearCopyCounts | None:
    near = alike.near
    if near is None:
        return None
    return NearCopyCounts(
        compared=near.compared,
        unread=near.unread,
        pairs=len(near.pairs),
        images=sum(map(len, near.groups)),
        torn=len(torn_pairs(near.pairs, split)),
        images_per_s=round(near.images_per_s, 1),
    )
