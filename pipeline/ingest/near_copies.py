"""Near copies among listed images, so that a split can keep them on one side.

Reads and decodes every wanted image once, small, in threads. Memory holds a key an image (220 bytes); the small
pictures (4 KiB an image) lie in a file of the temp folder until they are compared.
"""

import itertools
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline.base.errors import Code, ImageRejected
from pipeline.base.machine import usable_cores
from pipeline.images.likeness import AGREEMENT, KEY_LENGTH, REACH, SIDE, Floats, agreement, keys, small_picture
from pipeline.images.load import Limits, load_image
from pipeline.ingest import measured
from pipeline.sources.fetch import Fetched
from pipeline.sources.outage import fetch_while_up
from pipeline.sources.rows import ListingRow, read_rows
from pipeline.storage.stores import Stores

_BATCH = 256
_BLOCK, _TILE = 512, 4096  # rows and columns of distances at once: 8 MiB
_NEIGHBOURS = 8  # that an image is compared with: in a large set of cells of one shape, many have similar keys
# Confirmed pairs that join more than this is no finding but a set in which all is alike.
_MOST_OF_SET, _FEW = 0.25, 10


@dataclass(frozen=True)
class Pair:
    """Two rows of the listing that show one image; `agreement` is the share of windows that agree."""

    first: int
    second: int
    agreement: float


@dataclass(frozen=True)
class NearCopies:
    """What was found, and what finding it took."""

    pairs: list[Pair] = field(default_factory=list)
    groups: list[list[int]] = field(default_factory=list)  # rows that pairs join
    compared: int = 0  # images
    unread: int = 0  # images that could not be read or decoded
    seconds: float = 0.0
    dropped: int = 0  # images in a group too large to mean anything

    @property
    def images_per_s(self) -> float:
        return self.compared / self.seconds if self.seconds else 0.0


def find_near_copies(
    listing: pa.Table, wanted: Sequence[bool], copies: Sequence[Sequence[int]] = (), stores: Stores = Stores()
) -> NearCopies:
    """Compare the wanted rows of a listing (LISTING_SCHEMA) with each other; of byte-identical `copies` one each."""
    begin = time.perf_counter()
    doubles = {row for group in copies for row in group[1:]}
    positions = [row for row, is_wanted in enumerate(wanted) if is_wanted and row not in doubles]
    rows = read_rows(listing.take(pa.array(positions, pa.int64())), ListingRow)
    with tempfile.TemporaryFile(prefix="leukoray-near-copies-") as file:
        file.truncate(max(1, len(rows)) * SIDE * SIDE)
        pictures = np.memmap(file, np.uint8, "r+", shape=(max(1, len(rows)), SIDE, SIDE))
        of_rows, unread = _read(rows, pictures, stores)
        with threadpool_limits(1):  # products of this size lose more by waiting for each other than they gain
            found = [Pair(positions[a], positions[b], share) for a, b, share in _confirmed(of_rows, pictures)]
    pairs, groups, dropped = _grouped(found, len(positions))
    return NearCopies(pairs, groups, len(rows) - unread, unread, time.perf_counter() - begin, dropped)


def _read(rows: Sequence[ListingRow], pictures: NDArray[np.uint8], stores: Stores) -> tuple[Floats, int]:
    """Fill `pictures`; the keys, float32 (rows, d), NaN where a row has none, and how many could not be read."""
    place = {row.image_id: number for number, row in enumerate(rows)}
    found = np.full((len(rows), KEY_LENGTH), np.nan, np.float32)
    unread, done = Counter[str](), 0
    with ThreadPoolExecutor(usable_cores()) as pool:
        fetched = fetch_while_up(rows, stores, Limits())
        while batch := list(itertools.islice(fetched, _BATCH)):
            small = {
                place[item.row.image_id]: picture for item, picture in zip(batch, pool.map(_small, batch), strict=True)
            }
            read = {number: picture for number, picture in small.items() if not isinstance(picture, Code)}
            unread.update(str(code) for code in small.values() if isinstance(code, Code))
            done += len(small)
            if read:
                pictures[list(read)] = list(read.values())
                found[list(read)] = keys(np.stack(list(read.values())))
            measured.read(done - unread.total(), unread, len(rows) - done)
    return found, unread.total()


def _small(item: Fetched[ListingRow]) -> NDArray[np.uint8] | Code:
    try:
        return small_picture(load_image(item.bytes_or_raise(), SIDE).pixels)
    except ImageRejected as error:
        return error.code


def _confirmed(of_rows: Floats, pictures: NDArray[np.uint8]) -> Iterator[tuple[int, int, float]]:
    kept = np.flatnonzero(np.isfinite(of_rows).all(axis=1))
    for first, second in _candidates(of_rows[kept]):
        for start in range(0, len(first), _BATCH):
            a, b = kept[first[start : start + _BATCH]], kept[second[start : start + _BATCH]]
            share = agreement(pictures[a], pictures[b])
            for number in np.flatnonzero(share >= AGREEMENT).tolist():
                first_row, second_row = sorted((int(a[number]), int(b[number])))
                yield first_row, second_row, float(share[number])


def _candidates(of_rows: Floats) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of rows whose keys are near, block by block: all distances, but for rows far apart along the main axis."""
    if len(of_rows) < 2:
        return
    centred = of_rows - of_rows.mean(axis=0)
    along = centred @ np.linalg.eigh(centred.T @ centred)[1][:, -1]
    order = np.argsort(along, kind="stable")
    centred, along = centred[order], along[order]
    squares, ones = (centred**2).sum(axis=1, keepdims=True), np.ones((len(order), 1), np.float32)
    left, right = (
        np.hstack([-2 * centred, squares, ones]),
        np.hstack([centred, ones, squares]),
    )  # left @ right: distance
    for start in range(0, len(order), _BLOCK):
        stop = min(start + _BLOCK, len(order))
        end = int(np.searchsorted(along, along[stop - 1] + REACH, side="right"))
        tiles = (slice(begin, min(begin + _TILE, end)) for begin in range(start, end, _TILE))
        found = [_near(left[start:stop] @ right[tile].T, start, tile.start) for tile in tiles]
        rows, columns, distances = (np.concatenate(column) for column in zip(*found, strict=True))
        kept = _nearest_of_each(rows, distances)
        yield order[rows[kept]], order[columns[kept]]


def _near(distances: Floats, first_row: int, first_column: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """(row, column, distance) of what is within reach and behind the row itself, at most _NEIGHBOURS a row."""
    near = distances < REACH**2
    for row in np.flatnonzero(np.count_nonzero(near, axis=1) > 2 * _NEIGHBOURS).tolist():
        own = max(0, first_row + row + 1 - first_column)
        behind = distances[row, own:]
        near[row] = False
        near[row, own + np.argsort(behind)[:_NEIGHBOURS]] = True
    rows, columns = np.nonzero(near)
    found = distances[rows, columns]
    rows, columns = rows + first_row, columns + first_column
    is_pair = (columns > rows) & (found < REACH**2)
    return rows[is_pair], columns[is_pair], found[is_pair]


def _nearest_of_each(rows: NDArray[np.int64], distances: Floats) -> NDArray[np.int64]:
    """Which entries to keep: of each row the _NEIGHBOURS nearest."""
    by_row = np.lexsort((distances, rows))
    starts = np.searchsorted(rows[by_row], rows[by_row], side="left")
    return by_row[np.arange(len(rows)) - starts < _NEIGHBOURS]


def _grouped(pairs: list[Pair], n_images: int) -> tuple[list[Pair], list[list[int]], int]:
    """(pairs, the groups that they join, images in groups too large to mean anything, whose pairs are left out)."""
    group = joined([[pair.first, pair.second] for pair in pairs])
    sizes = Counter(group.values())
    most = max(_FEW, _MOST_OF_SET * n_images)
    kept = [pair for pair in pairs if sizes[group[pair.first]] <= most]
    groups: dict[int, list[int]] = {}
    for row, number in sorted(group.items()):
        if sizes[number] <= most:
            groups.setdefault(number, []).append(row)
    return (
        sorted(kept, key=lambda pair: (pair.first, pair.second)),
        list(groups.values()),
        len(group) - sum(map(len, groups.values())),
    )


def joined(groups: Sequence[Sequence[int]]) -> dict[int, int]:
    """Row -> number of the group that it is in, when groups that share a row are one."""
    parent: dict[int, int] = {}

    def find(row: int) -> int:
        while parent.setdefault(row, row) != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for first, *others in groups:
        for other in others:
            parent[find(other)] = find(first)
    return {row: find(row) for row in list(parent)}
