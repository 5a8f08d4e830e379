"""Byte-identical copies among listed images, so that a split can keep them on one side.

Images of one size are compared by a window in their middle, those that agree by all of their bytes. S3 objects are
compared by the ETag that the listing gave, members of compressed tars not at all: it would read the whole archive.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from pipeline.sources.fetch import Row, fetch
from pipeline.storage.stores import Stores
from pipeline.storage.types import StoreError
from pipeline.storage.uris import is_s3

_WINDOW_BYTES = 16 << 10
_THREADS = 16

Group = list[dict[str, Any]]  # rows of LISTING_SCHEMA that may be copies of each other


def find_copies(listing: pa.Table, wanted: Sequence[bool], stores: Stores = Stores()) -> list[list[int]]:
    """Rows of a listing (LISTING_SCHEMA) that hold the same bytes: a list for each group of two and more.

    Only rows that are `wanted` are looked at; what cannot be read has no copies.
    """
    of_size: defaultdict[int, list[int]] = defaultdict(list)
    accesses = listing["access"].to_pylist()
    for position, size in enumerate(listing["size_bytes"].to_pylist()):
        if wanted[position] and size and accesses[position] != "stream":
            of_size[size].append(position)
    positions = [position for group in of_size.values() if len(group) > 1 for position in group]
    rows = listing.take(pa.array(positions, pa.int64())).to_pylist()
    for row, position in zip(rows, positions, strict=True):
        row["position"] = position
    same_size = _grouped(rows, lambda row: row["size_bytes"])
    kinds: defaultdict[str, list[Group]] = defaultdict(list)
    for group in same_size:
        kinds[_kind(group)].append(group)
    same = [part for group in kinds["objects"] for part in _grouped(group, lambda row: row["etag"])]
    alike = _divided(kinds["plain"], lambda row: _window(row, stores)) + kinds["packed"]
    same += _divided(alike, lambda row: _digest(row, stores))
    return [[row["position"] for row in group] for group in same]


def _kind(group: Group) -> str:
    if all(row["access"] == "file" and is_s3(row["uri"]) for row in group):
        return "objects"
    # What a zip stores of equal bytes depends on the program that packed them.
    return "packed" if any(row["access"] == "zip" for row in group) else "plain"


def _grouped(rows: Iterable[dict[str, Any]], key: Callable[[Row], Any]) -> list[Group]:
    groups: defaultdict[Any, Group] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    groups.pop(None, None)
    return [group for group in groups.values() if len(group) > 1]


def _divided(groups: list[Group], key: Callable[[Row], Any]) -> list[Group]:
    """The groups, each divided by a key that may take a read; rows whose key is None drop out."""
    with ThreadPoolExecutor(_THREADS) as pool:
        rows = [row for group in groups for row in group]
        found = dict(zip(map(id, rows), pool.map(key, rows), strict=True))
    return [part for group in groups for part in _grouped(group, lambda row: found[id(row)])]


def _window(row: Row, stores: Stores) -> bytes | None:
    size = row["size_bytes"]
    start = (row["offset"] or 0) + max(0, size - _WINDOW_BYTES) // 2
    try:
        data = stores.of(row["uri"]).read_range(row["uri"], start, min(size, _WINDOW_BYTES)).data
    except StoreError:
        return None
    return hashlib.blake2b(data, digest_size=16).digest()


def _digest(row: Row, stores: Stores) -> bytes | None:
    data = fetch(row, stores.of(row["uri"])).data
    return hashlib.blake2b(data, digest_size=16).digest() if data is not None else None
