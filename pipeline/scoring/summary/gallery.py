"""Pictures of a few rows of a run, read again from where the images lie.

Outputs say which archive and member an image was, not at which byte, so the archives of the few shown are listed
again. The work is bounded: so many archives, so many seconds; what cannot be shown says why.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import Code, ImageRejected, Stage
from pipeline.images.load import Limits, load_image
from pipeline.sources.archives import Entry, is_compressed_tar, list_archive
from pipeline.sources.fetch import fetch_rows
from pipeline.sources.listing import entry_row
from pipeline.sources.pseudonyms import Names, names_of
from pipeline.sources.rows import Access, ListingRow
from pipeline.storage.stores import Stores
from pipeline.storage.types import StoreError
from pipeline.storage.uris import is_hidden

SIDE = 176  # pixels
MAX_ARCHIVES = 16
MAX_COMPRESSED_BYTES = 1 << 30  # a compressed archive is read from its start
SECONDS = 45.0


@dataclass(frozen=True)
class Thumbnail:
    """The image as the model sees it, uint8 (SIDE, SIDE, 3) RGB, or the reason why it is not shown."""

    pixels: NDArray[np.uint8] | None
    reason: str = ""


def load_pictures(
    rows: Sequence[Mapping[str, Any]],
    limits: Limits = Limits(),
    stores: Stores = Stores(),
    seconds: float = SECONDS,
    bit_depth: int | None = None,
) -> dict[int, Thumbnail]:
    """A picture for every image id in `rows` (of predictions or quarantine)."""
    deadline = time.monotonic() + seconds
    wanted: dict[int, Mapping[str, Any]] = {row["image_id"]: row for row in rows}
    names = names_of(stores)
    pictures = {image_id: Thumbnail(None, reason) for image_id, row in wanted.items() if (reason := _unfit(row, names))}
    places: list[ListingRow] = []
    members: dict[str, set[int]] = {}
    for image_id, row in wanted.items():
        if image_id in pictures:
            continue
        if row["member"] is None:
            places.append(_whole_file(row))
        else:
            members.setdefault(row["uri"], set()).add(image_id)
    for number, (uri, ids) in enumerate(members.items()):
        if number >= MAX_ARCHIVES or time.monotonic() > deadline:
            reason = "not loaded: too many or too slow archives for one page"
        else:
            found, reason = _find_members(uri, ids, wanted, stores, deadline)
            places += found
            ids = ids - {place.image_id for place in found}
        pictures |= {image_id: Thumbnail(None, reason) for image_id in ids}
    places.sort(key=lambda place: (place.access is Access.STREAM, place.uri))  # one pass an archive
    pictures |= dict(_load(places, wanted, limits, stores, bit_depth))
    return pictures


def _whole_file(row: Mapping[str, Any]) -> ListingRow:
    return ListingRow(
        row["image_id"], row["uri"], None, Access.FILE, None, None, row["size_bytes"], row["etag"], None
    )  # fmt: skip


def _unfit(row: Mapping[str, Any], names: Names) -> str:
    """Why a row is not even tried; empty where it is."""
    if names.key_id is None and is_hidden(row["uri"]):
        return "hidden: the key of its pseudonym was not given (--pseudonymize)"
    if row.get("code") == Code.CRASHED_DECODER:
        return "not decoded again: it ended the scoring process"
    if row.get("code") == Code.UNSAFE_PATH:
        return "not opened: its name tries to leave the archive"
    return "no single image: listing it failed" if row.get("stage") == Stage.LIST else ""


def _find_members(
    uri: str, ids: set[int], wanted: Mapping[int, Mapping[str, Any]], stores: Stores, deadline: float
) -> tuple[list[ListingRow], str]:
    """(listing rows of the members found, why the others were not)."""
    store = stores.of(uri)
    found: list[ListingRow] = []
    names = names_of(stores)
    try:
        info = store.head(uri)
        if info is None:
            return [], "the archive is gone from the source"
        if all(info.etag != wanted[image_id]["etag"] for image_id in ids):
            return [], "the archive was replaced since it was scored"
        if is_compressed_tar(uri) and info.size > MAX_COMPRESSED_BYTES:
            return [], "inside a large compressed archive"
        with store.open(uri) as file:
            for item in list_archive(info, file):
                if isinstance(item, Entry):
                    row = entry_row(names.found(item))
                    if row.image_id in ids:
                        found.append(row)
                if len(found) == len(ids):
                    break
                if time.monotonic() > deadline:
                    return found, "not loaded: listing its archive takes too long"
    except StoreError as error:
        return found, f"the archive cannot be read ({error.code.value})"
    return found, "no longer in its archive"


def _load(
    places: Sequence[ListingRow],
    wanted: Mapping[int, Mapping[str, Any]],
    limits: Limits,
    stores: Stores,
    bit_depth: int | None,
) -> Iterator[tuple[int, Thumbnail]]:
    if not places:
        return
    for fetched in fetch_rows(places, stores, limits):
        image_id = fetched.row.image_id
        if fetched.data is None:
            rejected = fetched.rejected
            gone = rejected is not None and rejected.code is Code.NOT_FOUND
            code = rejected.code.value if rejected is not None else "unknown"
            yield image_id, Thumbnail(None, "gone from the source" if gone else f"cannot be read now ({code})")
        elif wanted[image_id]["etag"] and fetched.etag != wanted[image_id]["etag"]:
            yield image_id, Thumbnail(None, "replaced since it was scored")
        else:
            try:
                yield image_id, Thumbnail(load_image(fetched.data, SIDE, limits, bit_depth).pixels)
            except ImageRejected as error:
                yield image_id, Thumbnail(None, f"no picture: {error.code.value}")
