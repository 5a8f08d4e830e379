"""Images that earlier runs did and that are gone from the source since: noted once, when the listing misses them.

Only what the present listing would have met counts: below its sources, past its filters, in no folder or archive that
could not be listed, in no source of which nothing was met: a disk that is not mounted is an empty folder. What a table
or a manifest no longer names is not gone.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.scoring.history.ledger import Ledger
from pipeline.scoring.run_folder import RunFolder
from pipeline.scoring.schemas import DELETED_SCHEMA
from pipeline.sources.archives import holds_many
from pipeline.sources.filters import Filters, UriPattern
from pipeline.sources.pseudonyms import Names, RealNames
from pipeline.storage.uris import readable_path


class Met:
    """In which of these folders the listing found something."""

    def __init__(self, roots: Iterable[str]) -> None:
        self.nothing_in = {readable_path(root).rstrip("/") for root in roots}

    def see(self, uri: str) -> None:
        if not self.nothing_in:
            return
        place = readable_path(uri)
        while place:
            self.nothing_in.discard(place)
            place = place.rpartition("/")[0]


class Reach:
    """What a listing of these sources would have met."""

    def __init__(
        self, sources: tuple[str, ...], filters: Filters, unlisted: set[str], names: Names = RealNames()
    ) -> None:
        self._names = names
        sources = tuple(map(readable_path, sources))
        self._folders = [source.rstrip("/") + "/" for source in sources]
        self._patterns = [UriPattern(source) for source in sources]
        self._compiled = [pattern.compiled() for pattern in self._patterns]
        self._filters, self._unlisted = filters, set(map(readable_path, unlisted))

    def covers(self, uri: str, member: str | None) -> bool:
        """Whether the image would have been listed if it were still there."""
        uri, member = readable_path(self._names.real_path(uri)), self._names.real_member(member)
        if self._filters.since is not None or self._is_unlisted(uri):
            return False
        for folder, pattern, compiled in zip(self._folders, self._patterns, self._compiled, strict=True):
            is_below = uri.startswith(folder) or uri == folder[:-1]
            if is_below or compiled.match(uri):
                base = folder if is_below else pattern.folder + "/"
                path = uri.removeprefix(base) if uri != folder[:-1] else uri.rsplit("/", 1)[-1]
                if member is None:
                    return self._filters.refuse([path], 0.0) is None
                return self._filters.refuse_member(path, member, 0.0) is None
        return False

    def _is_unlisted(self, uri: str) -> bool:
        place = uri
        while place:
            if place in self._unlisted or place + "/" in self._unlisted:
                return True
            place = place.rpartition("/")[0]
        return False


def find_deleted(ledger: Ledger, reach: Reach) -> Iterator[pa.Table]:
    """Tables of DELETED_SCHEMA: what the ledger holds, the listing did not meet, and no earlier run noted."""
    missing, run_of = ledger.unseen()
    if not len(missing):
        return
    tables = (table for folder in ledger.runs for table in folder.rows("deleted", ["image_id"], ledger.below))
    noted = [table["image_id"].to_numpy() for table in tables]
    for number, folder in enumerate(ledger.runs):
        ids = np.setdiff1d(missing[run_of == number], np.concatenate(noted) if noted else [])
        if len(ids):
            yield from _of_run(folder, ids, reach, ledger.below)


def _of_run(
    folder: RunFolder, ids: NDArray[np.int64], reach: Reach, below: tuple[str, ...] | None
) -> Iterator[pa.Table]:
    wanted = pa.array(ids)
    for kind in ("predictions", "quarantine"):
        for table in folder.rows(kind, ["image_id", "uri", "member"], below):
            gone = [
                {**row, "earlier_run": folder.run_id}
                for row in table.filter(pc.is_in(table["image_id"], wanted)).to_pylist()
                if not holds_many(row["uri"], row["member"]) and reach.covers(row["uri"], row["member"])
            ]
            if gone:
                yield pa.Table.from_pylist(gone, DELETED_SCHEMA)
