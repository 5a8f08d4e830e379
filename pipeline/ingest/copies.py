"""Byte-identical copies among listed images, so that a split can keep them on one side.

Images of one size are compared by a window in their middle, those that agree by all of their bytes. S3 objects are
compared by the ETag that the listing gave, members of compressed tars not at all: it would read the whole archive.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.sources.fetch import fetch
from pipeline.sources.rows import Access, ListingRow, read_rows
from pipeline.storage.stores import Stores
from pipeline.storage.types import StoreError
from pipeline.storage.uris import is_s3

_WINDOW_BYTES = 16 << 10
_THREADS = 16


@dataclass(frozen=True)
class _Candidate:
    position: int  # in the listing
    row: ListingRow


Group = list[_Candidate]  # that may be copies of each other


def find_copies(listing: pa.Table, wanted: Sequence[bool], stores: Stores = Stores()) -> list[list[int]]:
    """Rows of a listing (LISTING_SCHEMA) that hold the same bytes: a list for each group of two and more.

    Only rows that are `wanted` are looked at; what cannot be read has no copies.
    """
    of_size: defaultdict[int, list[int]] = defaultdict(list)
    accesses = listing["access"].to_pylist()
    for position, size in enumerate(listing["size_bytes"].to_pylist()):
        if wanted[position] and size and accesses[position] != Access.STREAM:
            of_size[size].append(position)
    positions = [position for group in of_size.values() if len(group) > 1 for position in group]
    rows = read_rows(listing.take(pa.array(positions, pa.int64())), ListingRow)
    candidates = map(_Candidate, positions, rows)
    kinds: defaultdict[str, list[Group]] = defaultdict(list)
    for group in _grouped(candidates, lambda item: item.row.size_bytes):
        kinds[_kind(group)].append(group)
    same = [part for group in kinds["objects"] for part in _grouped(group, lambda item: item.row.etag)]
    alike = _divided(kinds["plain"], lambda item: _window(item.row, stores)) + kinds["packed"]
    same += _divided(alike, lambda item: _digest(item.row, stores))
    return [[item.position for item in group] for group in same]


def _kind(group: Group) -> str:
    # Equal ETags of S3 mean equal bytes; other stores promise only that another version has another one.
    if all(item.row.access is Access.FILE and is_s3(item.row.uri) for item in group):
        return "objects"
    # What a zip stores of equal bytes depends on the program that packed them.
    return "packed" if any(item.row.access is Access.ZIP for item in group) else "plain"


def _grouped(items: Iterable[_Candidate], key: Callable[[_Candidate], Any]) -> list[Group]:
    groups: defaultdict[Any, Group] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    groups.pop(None, None)
    return [group for group in groups.values() if len(group) > 1]


def _divided(groups: list[Group], key: Callable[[_Candidate], Any]) -> list[Group]:
    """The groups, each divided by a key that may take a read; items whose key is None drop out."""
    with ThreadPoolExecutor(_THREADS) as pool:
        items = [item for group in groups for item in group]
        found = dict(zip((item.position for item in items), pool.map(key, items), strict=True))
    return [part for group in groups for part in _grouped(group, lambda item: found[item.position])]


def _window(row: ListingRow, stores: Stores) -> bytes | None:
    start = (row.offset or 0) + max(0, row.size_bytes - _WINDOW_BYTES) // 2
    try:
        data = stores.of(row.uri).read_range(row.uri, start, min(row.size_bytes, _WINDOW_BYTES)).data
    except StoreError:
        return None
    return hashlib.blake2b(data, digest_size=16).digest()


def _digest(row: ListingRow, stores: Stores) -> bytes | None:
    data = fetch(row, stores.of(row.uri)).data
    return hashlib.blake2b(data, digest_size=16).digest() if data is not None else None
