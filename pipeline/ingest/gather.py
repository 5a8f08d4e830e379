"""Sources to one sorted listing with the paths that layouts look at: the same source gives the same manifest."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base.errors import InputError
from pipeline.ingest import measured
from pipeline.sources.archives import Entry, Problem
from pipeline.sources.filters import Filters
from pipeline.sources.listing import Tally, base_folder, entry_row, list_sources, path_below
from pipeline.sources.masks import MASKS, MASKS_NAMED, Masks
from pipeline.sources.pseudonyms import names_of
from pipeline.sources.rows import LISTING_SCHEMA, ListingRow, place_of, read_rows, to_table
from pipeline.storage.stores import Stores

_BATCH_ROWS = 8192
_KEPT_PROBLEMS = 100_000
_TOLD_EVERY = 1000  # images


@dataclass
class Listing:
    """What lies in the sources. `paths`: what layouts look at, one a row of `table` (LISTING_SCHEMA), sorted."""

    table: pa.Table
    paths: list[str]
    meta: dict[str, dict[str, str]]  # WebDataset sidecars by path
    problems: list[Problem]
    tally: Tally
    masks: list[str]  # masks and annotations that were left out, the first of them


def read_sources(roots: Sequence[str], filters: Filters, stores: Stores, limit: int | None) -> Listing:
    """Everything in the sources, sorted by path, so that the same source gives the same manifest."""
    tally, problems = Tally(), list[Problem]()
    base, names = base_folder(roots), names_of(stores)
    batches, waiting = list[pa.Table](), list[ListingRow]()
    paths, meta = list[str](), dict[str, dict[str, str]]()
    masks: list[str] = []
    codes = Counter[str]()
    for found in _without_masks(list_sources(roots, tally, filters, stores, limit), base, filters, tally, masks):
        if isinstance(found, Problem):
            codes[str(found.code)] += 1
            if len(problems) < _KEPT_PROBLEMS:
                problems.append(names.found(found))
            continue
        waiting.append(entry_row(names.found(found)))
        paths.append(path_below(found, base))
        if len(paths) % _TOLD_EVERY == 0:
            measured.listed(len(paths), codes)
        if found.meta:
            meta[paths[-1]] = found.meta
        if len(waiting) >= _BATCH_ROWS:
            batches.append(to_table(waiting, LISTING_SCHEMA))
            waiting = []
    batches.append(to_table(waiting, LISTING_SCHEMA))
    measured.listed(len(paths), codes)
    if not paths:
        raise InputError(_nothing_found(roots, tally, problems))
    table = pa.concat_tables(batches)
    keys = pa.table({"path": paths, "id": table["image_id"]})
    order = pc.sort_indices(keys, sort_keys=[("path", "ascending"), ("id", "ascending")])
    table, paths = table.take(order), keys["path"].take(order).to_pylist()
    _refuse_doubles(table)
    return Listing(table, paths, meta, problems, tally, [names.scrubbed(place, [place]) for place in masks])


def _without_masks(
    found: Iterable[Entry | Problem], base: str, filters: Filters, tally: Tally, named: list[str]
) -> Iterator[Entry | Problem]:
    """All but masks and annotations, which are counted in `tally`; the first are added to `named`."""
    masks, suspects = Masks(filters.include), list[Entry]()
    for item in found:
        if isinstance(item, Entry) and item.image_id is None and masks.is_suspect(path_below(item, base)):
            suspects.append(item)
        else:
            yield item
    for item, is_mask in zip(suspects, masks.find(path_below(item, base) for item in suspects), strict=True):
        if not is_mask:
            yield item
            continue
        tally.images -= 1
        tally.bytes -= item.size_bytes
        tally.left_out[MASKS] += 1
        if len(named) < MASKS_NAMED:
            named.append(place_of(item.uri, item.member))


def _nothing_found(roots: Sequence[str], tally: Tally, problems: Sequence[Problem]) -> str:
    seen = ", ".join(f"{count} {reason}" for reason, count in tally.left_out.most_common(5))
    where = ", ".join(roots[:3])
    failed = (
        f"; {len(problems)} could not be listed, e.g. {problems[0].place}: {problems[0].message}" if problems else ""
    )
    held = f"it holds {seen}" if seen else "it is empty"
    return (
        f"{where}: no images ({held}{failed}); "
        "JPEG, PNG, TIFF, DICOM and others are read, also inside tar and zip; check the path, --include and --since"
    )


def _refuse_doubles(table: pa.Table) -> None:
    counts = table.group_by("image_id").aggregate([([], "count_all")])
    doubled = counts.filter(pc.greater(counts["count_all"], 1))["image_id"]
    if len(doubled):
        rows = table.filter(pc.is_in(table["image_id"], value_set=doubled.combine_chunks()))
        example = read_rows(rows.slice(0, 1), ListingRow)[0]
        raise InputError(
            f"{len(doubled)} images are listed twice (id {example.image_id}: {example.place}): "
            "two of the sources name the same file; give each once"
        )
