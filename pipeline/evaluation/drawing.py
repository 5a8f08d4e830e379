"""Some images of a source, drawn evenly from all that it lists, whatever their order: a few hundred tell its looks."""

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipeline.base.errors import InputError
from pipeline.images.unit import Unit
from pipeline.sources.archives import Entry, Problem
from pipeline.sources.listing import Tally, base_folder, entry_id, entry_row, list_sources, path_below
from pipeline.sources.manifest import ManifestRow, read_manifest
from pipeline.sources.masks import MASKS, Masks
from pipeline.sources.pseudonyms import names_of
from pipeline.sources.rows import ListingRow, read_rows
from pipeline.storage.stores import Stores

Item = TypeVar("Item")
SubjectsOf = Callable[[Sequence[str]], Sequence[str | None]]  # of paths


@dataclass(frozen=True)
class Drawn:
    """Images of a source. `subjects`: of each row, None where nothing names one."""

    rows: list[ListingRow]
    subjects: list[str | None]
    listed: int  # images there are
    problems: dict[str, int]  # that could not be listed, by code
    left_out: dict[str, int]  # files, by reason
    unit: Unit | None = None  # of a manifest: what its images show

    @property
    def subject_count(self) -> int:
        return len({subject for subject in self.subjects if subject})


def draw_listed(source: str, most: int, seed: int, stores: Stores, subjects_of: SubjectsOf | None = None) -> Drawn:
    """At most so many images of a folder, bucket, archive or table; masks beside them are left out.

    `subjects_of`: who paths name, where no sidecar does. Raises InputError where there is no image.
    """
    tally, problems, masks, base = Tally(), Counter[str](), Masks(), base_folder([source])
    suspects: list[Entry] = []

    def images() -> Iterator[Entry]:
        for item in list_sources([source], tally, stores=stores):
            if isinstance(item, Problem):
                problems[item.code.value] += 1
            elif masks.is_suspect(path_below(item, base)):
                suspects.append(item)
            else:
                yield item

    chosen = drawn(images(), most, seed, entry_id)
    are_masks = masks.find(path_below(item, base) for item in suspects)
    no_masks = [item for item, is_mask in zip(suspects, are_masks, strict=True) if not is_mask]
    chosen = drawn([*chosen, *no_masks], most, seed, entry_id)
    hidden = len(suspects) - len(no_masks)
    left_out = dict(tally.left_out + Counter({MASKS: hidden}))
    if not chosen:
        told = ", ".join(f"{count} {reason}" for reason, count in {**left_out, **problems}.items())
        raise InputError(f"{source}: no images found" + (f" ({told})" if told else ""))
    named = [item.meta.get("subject_id") for item in chosen]
    if subjects_of is not None and not any(named):
        named = list(subjects_of([path_below(item, base) for item in chosen]))
    names = names_of(stores)
    rows = [entry_row(names.found(item)) for item in chosen]
    return Drawn(rows, named, tally.images - hidden, dict(problems), left_out)


def draw_recorded(uri: str, split: str | None, most: int, seed: int, stores: Stores) -> Drawn:
    """At most so many images of a manifest, or of one of its splits. Raises InputError where there is none."""
    manifest = read_manifest(uri, stores)
    rows = manifest.split(split) if split else read_rows(manifest.table, ManifestRow)
    if not rows:
        raise InputError(f"{uri}: no image" + (f" in split {split!r}; choose another --split" if split else ""))
    chosen = drawn(rows, most, seed, lambda row: row.image_id)
    return Drawn([*chosen], [row.subject_id for row in chosen], len(rows), {}, {}, manifest.info.unit)


def drawn(items: Iterable[Item], most: int, seed: int, number_of: Callable[[Item], int]) -> list[Item]:
    """At most so many items, by a hash of seed and number: the same ones in whatever order they come."""

    def place(item: Item) -> bytes:
        return hashlib.blake2b(f"{seed}:{number_of(item)}".encode(), digest_size=8).digest()

    return heapq.nsmallest(most, items, key=place)
