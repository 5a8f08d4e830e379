"""Files beside a manifest, for a person to look at or to edit: contradictions and near copies."""

import pyarrow as pa

from pipeline.base.errors import InputError
from pipeline.ingest.alike import Alike
from pipeline.ingest.contradictions import CONTRADICTIONS, read_verdicts
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
    if alike.near is not None and alike.near.pairs:
        torn = torn_pairs(alike.near.pairs, split)
        first_torn = [*torn, *(pair for pair in alike.near.pairs if pair not in torn)]
        texts[NEAR_COPIES_TABLE] = table_of_pairs(first_torn, manifest)
        texts[NEAR_COPIES_SHEET] = sheet_of_pairs(first_torn, manifest, stores)
    store = stores.of(out)
    for name in (CONTRADICTIONS, NEAR_COPIES_TABLE, NEAR_COPIES_SHEET):
        if name in texts:
            store.write(join(out, name), texts[name].encode("utf-8", "surrogateescape"))
        elif store.head(join(out, name)) is not None:
            store.delete(join(out, name))


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
