"""Units of a split: rows that must stay together because they share a subject or a group of near-duplicates.

Takes the labelled rows column by column, gives the units with their class counts in a seeded order that does
not depend on the order of the rows.
"""

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

FREE = -1  # a row or unit without a split


@dataclass
class Rows:
    """The labelled rows, column by column. `given`: index into SPLITS, or FREE. `called`: what the subjects are."""

    classes: list[str]
    subjects: list[str | None]
    given: list[int]
    names: list[str]
    groups: list[Hashable | None]
    labels: list[int | None]
    called: str = "subjects"


@dataclass
class Units:
    """Units in the order in which they are dealt out, largest first; (unit, class, count) triples hold their classes.

    A tag is a class or, behind the classes, a label: both must be met in every split for training to be possible.
    """

    of_row: Ints  # (rows,) unit of each row
    given: Ints  # (units,) index into SPLITS, or FREE
    split: Ints  # (units,) index into SPLITS, or FREE while not dealt
    size: Ints  # (units,) rows in the unit
    pair_unit: Ints  # (pairs,) sorted
    pair_class: Ints  # (pairs,)
    pair_count: Ints  # (pairs,)
    class_names: list[str]
    tag_unit: Ints  # (tags of units,)
    tag: Ints  # (tags of units,) class, or len(class_names) + label


def make_units(rows: Rows, seed: int) -> Units:
    component = _components(rows)
    # Near-duplicates may cross a given split (somebody's TRAIN and TEST): each side is a unit of its own.
    tokens: dict[tuple[int, int], int] = {}
    given = _followed(_followed(rows.given, rows.subjects), component)
    raw = [tokens.setdefault(pair, len(tokens)) for pair in zip(component, given, strict=True)]
    n_units = len(tokens)
    raw_unit = np.array(raw, dtype=np.int64)
    size = np.bincount(raw_unit, minlength=n_units)
    order = np.lexsort((_lots(rows, raw, n_units, seed), -size))
    rank = np.empty(n_units, dtype=np.int64)
    rank[order] = np.arange(n_units)
    of_row = rank[raw_unit]
    class_names = sorted(set(rows.classes))
    codes = {name: code for code, name in enumerate(class_names)}
    code_of_row = np.array([codes[name] for name in rows.classes], dtype=np.int64)
    pairs, counts = np.unique(of_row * len(class_names) + code_of_row, return_counts=True)
    labels = np.array([-1 if label is None else label for label in rows.labels], dtype=np.int64)
    is_labelled = labels >= 0
    tags = np.unique(of_row[is_labelled] * 2 + labels[is_labelled])
    unit_given = np.full(n_units, FREE, dtype=np.int64)
    unit_given[of_row] = given
    return Units(
        of_row=of_row,
        given=unit_given,
        split=unit_given.copy(),
        size=size[order].astype(np.int64),
        pair_unit=pairs // len(class_names),
        pair_class=pairs % len(class_names),
        pair_count=counts.astype(np.int64),
        class_names=class_names,
        tag_unit=np.concatenate([pairs // len(class_names), tags // 2]),
        tag=np.concatenate([pairs % len(class_names), len(class_names) + tags % 2]),
    )


def _lots(rows: Rows, unit_of_row: Sequence[int], n_units: int, seed: int) -> NDArray[np.uint64]:
    """What orders units of one size: drawn from the seed and the name that comes first in each, uint64 (units,)."""
    lowest: list[str | None] = [None] * n_units
    for unit, subject, name in zip(unit_of_row, rows.subjects, rows.names, strict=True):
        identity = f"s{subject}" if subject is not None else f"i{name}"
        known = lowest[unit]
        if known is None or identity < known:
            lowest[unit] = identity
    salt = str(seed).encode()
    draw = [hashlib.blake2b(str(name).encode("utf-8", "surrogatepass"), digest_size=8, key=salt) for name in lowest]
    return np.array([int.from_bytes(digest.digest(), "big") for digest in draw], dtype=np.uint64)


def _followed(given: list[int], companions: Sequence[Hashable | None]) -> list[int]:
    """Free rows take the given split of their companions; rows whose companion is None have none."""
    fixed: dict[Hashable, int] = {}
    for companion, own in zip(companions, given, strict=True):
        if own != FREE and companion is not None:
            fixed[companion] = min(own, fixed.get(companion, own))
    return [
        fixed.get(companion, FREE) if own == FREE and companion is not None else own
        for companion, own in zip(companions, given, strict=True)
    ]


def _components(rows: Rows) -> list[int]:
    """Number of the connected component of each row, joined by subject and by group."""
    parent = list(range(len(rows.classes)))

    def find(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first: dict[tuple[str, Hashable], int] = {}
    for row, (subject, group) in enumerate(zip(rows.subjects, rows.groups, strict=True)):
        for kind, value in (("subject", subject), ("group", group)):
            if value is not None:
                parent[find(row)] = find(first.setdefault((kind, value), row))
    return [find(row) for row in range(len(parent))]
