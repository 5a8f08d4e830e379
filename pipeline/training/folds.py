"""Cross-validation: the images of training and validation in folds that share no subject, or no site.

Each fold is held out once, while the others train; what the models say of the images they did not see is worth more
than one small validation split. The test split stays apart.
"""

import csv
import io
import warnings
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.base.csv_text import unguarded
from pipeline.base.errors import InputError, UsageError
from pipeline.ingest.near_copies_files import NEAR_COPIES_TABLE
from pipeline.sources.manifest import Manifest
from pipeline.sources.rows import places_of
from pipeline.storage.stores import Stores
from pipeline.storage.uris import join
from pipeline.training.rows import LabelledRows

GroupBy = Literal["subject", "site"]


def fold_numbers(
    manifest: Manifest, rows: LabelledRows, count: int | None, by: GroupBy, seed: int, stores: Stores
) -> "Folds":
    """Deal all labelled images of training and validation to `count` folds, alike in classes; None: one a group.

    Images of one subject stay together, as do near copies of each other, and with `by` 'site' all images of a site.
    Raises UsageError when there are fewer groups, or images of every class, than folds, InputError where an image has
    no site, a class is in one fold only or a fold is empty.
    """
    table = pa.concat_tables([rows.train, rows.validation]).sort_by("image_id")
    groups = groups_of(manifest, table["image_id"], by, stores)
    found = int(groups.max()) + 1
    wanted = count or found
    if found < 2:
        named = int(_components(manifest, table["image_id"], _named(manifest, table["image_id"], by)).max()) + 1
        tied = f"near copies tie all of its {named} groups (--group-by {by}) together, see {NEAR_COPIES_TABLE}"
        why = f"all images are of one {by}" if named < 2 else tied
        raise InputError(f"{manifest.uri}: {why}, so there is nothing to hold out; leave folds out")
    if found < wanted:
        raise UsageError(f"--folds {wanted}: the manifest has {found} groups (--group-by {by}); use at most {found}")
    largest = max(np.bincount(table["target"].to_numpy()).tolist())
    if wanted != found and largest < wanted:
        raise UsageError(f"--folds {wanted}: no class has more than {largest} images; use at most {largest}")
    fold = groups if wanted == found else dealt(table["target"].to_numpy(), groups, wanted, seed)
    folds = Folds(rows, table, fold, wanted)
    folds.refuse_gaps(manifest.uri)
    return folds


def dealt(targets: NDArray[np.int64], groups: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """The fold of each image, int64 (N,): no group in two, classes alike in all.

    Raises ValueError where no class has an image for each fold.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    fold = np.zeros(len(targets), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer images than folds
        for number, (_, held_out) in enumerate(splitter.split(targets, targets, groups)):
            fold[held_out] = number
    return fold


class Folds:
    """Rows (ROW_SCHEMA, in id order) with the fold of each."""

    def __init__(self, rows: LabelledRows, table: pa.Table, fold: NDArray[np.int64], count: int) -> None:
        self._rows, self._table, self._fold, self.count = rows, table, fold, count

    def without(self, number: int) -> LabelledRows:
        """All folds but one to train on, that one as the validation split."""
        held_out = self._fold == number
        return replace(
            self._rows,
            train=self._table.filter(pa.array(~held_out)).combine_chunks(),
            validation=self._table.filter(pa.array(held_out)).combine_chunks(),
        )

    def sizes(self) -> list[int]:
        return [int(size) for size in np.bincount(self._fold, minlength=self.count)]

    def digest(self) -> str:
        """SHA-256, hex, of which image is in which fold: sites and near copies decide it, and no digest of a manifest
        knows them.
        """
        ids, fold = self._table["image_id"].to_numpy().astype("<i8"), self._fold.astype("<i8")
        return sha256(np.stack([ids, fold], axis=1).tobytes()).hexdigest()

    def fold_of(self, image_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        known = self._table["image_id"].to_numpy()
        found: NDArray[np.int64] = self._fold[np.searchsorted(known, image_ids)]
        return found

    def refuse_gaps(self, uri: str) -> None:
        """Raise InputError when a fold holds all images of a class: nothing would be left to learn it from; or none."""
        if 0 in self.sizes():
            raise InputError(f"{uri}: subjects are so unlike in size that a fold of {self.count} is empty; use fewer")
        targets = self._table["target"].to_numpy()
        for number in range(self.count):
            left = set(targets[self._fold != number].tolist())
            missing = [name for code, name in enumerate(self._rows.classes) if code not in left]
            if missing:
                raise InputError(
                    f"{uri}: fold {number + 1} of {self.count} holds every image of class {', '.join(missing)}: give "
                    "more subjects of it, or group by subject instead of site"
                )


def groups_of(manifest: Manifest, image_ids: pa.ChunkedArray, by: GroupBy, stores: Stores) -> NDArray[np.int64]:
    """A number an image, (N,), from 0: the same for images that must stay together.

    Also for two that an image of the manifest ties which is not asked for: of another split, or without a label.
    """
    links = [_named(manifest, image_ids, by), _near_copies(manifest, stores)]
    return _components(manifest, image_ids, np.concatenate(links))


def _named(manifest: Manifest, image_ids: pa.ChunkedArray, by: GroupBy) -> NDArray[np.int64]:
    """Pairs of rows of the manifest that subject or site hold together."""
    names: list[list[str | None]] = [manifest.table["subject_id"].to_pylist()]
    if by == "site":
        without = manifest.table["site"].take(pa.array(_places(manifest, image_ids))).null_count
        if without:
            raise InputError(
                f"{manifest.uri}: {without} images have no site; give it with `leukoray ingest --site-pattern` or a "
                "table with a column site, or use --group-by subject"
            )
        names.append(manifest.table["site"].to_pylist())
    return np.concatenate([_same(column) for column in names])


def _places(manifest: Manifest, image_ids: pa.ChunkedArray) -> NDArray[np.int64]:
    """Rows of the manifest, (N,)."""
    found: NDArray[np.int64] = pc.index_in(image_ids, manifest.table["image_id"].combine_chunks()).to_numpy()
    return found


def _same(names: Sequence[str | None]) -> NDArray[np.int64]:
    """Pairs (first row of a name, other row of it), int64 (P, 2)."""
    first: dict[str, int] = {}
    pairs = [(first.setdefault(name, row), row) for row, name in enumerate(names) if name is not None]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _near_copies(manifest: Manifest, stores: Stores) -> NDArray[np.int64]:
    """Pairs of rows of the manifest that ingest found to show the same."""
    found = stores.read_if_there(join(manifest.uri, NEAR_COPIES_TABLE))
    if found is None:
        return np.empty((0, 2), np.int64)
    row_of = {place: row for row, place in enumerate(places_of(manifest.table))}
    read = csv.DictReader(io.StringIO(found.decode("utf-8", "surrogateescape")))
    pairs = [tuple(row_of.get(unguarded(pair[side]), -1) for side in ("first", "second")) for pair in read]
    return np.array([pair for pair in pairs if -1 not in pair], np.int64).reshape(-1, 2)


def _components(manifest: Manifest, image_ids: pa.ChunkedArray, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which part of the manifest, joined by `pairs`, each image is in, (N,): from 0 in the order of first images."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = manifest.table.num_rows
    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    part = connected_components(graph, directed=False)[1][_places(manifest, image_ids)]
    _, first, own = np.unique(part, return_index=True, return_inverse=True)
    found: NDArray[np.int64] = np.argsort(np.argsort(first))[own].astype(np.int64)
    return found
