"""What earlier runs in the same output already did: image ids and object versions, in two sorted arrays.

16 bytes an image. A run counts once its `_SUCCESS` is there, and only for the same model identity, of which the pixel
rules are a part: under other rules all is scored anew.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.base.errors import TRANSIENT_CODES, Code, InputError
from pipeline.scoring.history.uncounted import ACCEPTED_UNCOUNTED, UNCHANGED_UNCOUNTED, accepted
from pipeline.scoring.record import RunRecord
from pipeline.scoring.request import Request
from pipeline.scoring.run_folder import Finished, RunFolder, next_number
from pipeline.scoring.schemas import ARCHIVES_SCHEMA, ArchiveRow, version_hash
from pipeline.sources.archives import holds_many

UNCHANGED, UNCHANGED_BAD = "unchanged", "unchanged_quarantined"
_SCORED, _BAD, _AGAIN = 0, 1, 2  # has a probability; has a code that stays; has a code that may pass
_LIMITS = {Code.TOO_LARGE: "max_bytes", Code.TOO_MANY_PIXELS: "max_pixels", Code.TOO_MANY_FRAMES: "max_frames"}


@dataclass(frozen=True)
class Ledger:
    """What became of images by id. `runs` are oldest first; `seen` marks what the present listing met again."""

    ids: NDArray[np.int64]
    versions: NDArray[np.int64]
    states: NDArray[np.int8]
    run_of: NDArray[np.int32]
    runs: tuple[RunFolder, ...]
    seen: NDArray[np.bool_]
    archives: dict[str, ArchiveRow] = field(default_factory=dict)  # by URI, the latest
    accepted: frozenset[int] = frozenset()  # ids of archives that cannot be counted, and need not be
    pixel_rules: Mapping[str, int] = field(default_factory=dict)  # rows of any version of the model, by digest
    next_number: int = 1  # of the run that comes next, see RunRecord
    below: tuple[str, ...] | None = None  # beginnings of all URIs that the listing can meet; None: any

    def _find(self, image_id: int) -> int | None:
        if not self.runs:  # a first run asks as often as any other
            return None
        at = int(self.ids.searchsorted(image_id))
        return at if at < len(self.ids) and self.ids[at] == image_id else None

    def look_up(self, image_id: int, etag: str, size_bytes: int) -> tuple[str, str] | None:
        """(reason, run) when this version of the image is done, else None."""
        at = self._find(image_id)
        if at is None or self.states[at] == _AGAIN or not self.is_known(image_id, etag, size_bytes):
            return None
        return (UNCHANGED_BAD if self.states[at] == _BAD else UNCHANGED), self.runs[self.run_of[at]].run_id

    def is_known(self, image_id: int, etag: str, size_bytes: int) -> bool:
        """Whether a run has tried this version of the image, whatever came of it."""
        at = self._find(image_id)
        return at is not None and bool(self.versions[at] == version_hash(etag, size_bytes))

    def reason(self, done: str, image_id: int, uri: str, member: str | None) -> str:
        """Why something that is done (UNCHANGED or UNCHANGED_BAD) is skipped."""
        if done == UNCHANGED or not holds_many(uri, member):
            return done
        return ACCEPTED_UNCOUNTED if image_id in self.accepted else UNCHANGED_UNCOUNTED

    def failed(self) -> NDArray[np.int64]:
        """Ids that the latest run that met them quarantined."""
        return np.asarray(self.ids[self.states != _SCORED], np.int64)

    def tries_again(self, ids: NDArray[np.int64]) -> bool:
        """Whether one of these, all in the ledger, is to be tried again."""
        return bool((self.states[self.ids.searchsorted(ids)] == _AGAIN).any())

    def see(self, image_id: int) -> None:
        """Note that the present listing met an image."""
        at = self._find(image_id)
        if at is not None:
            self.seen[at] = True

    def unseen(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """(ids done earlier that the present listing did not meet, the run of each)."""
        gone = ~self.seen & (self.states != _AGAIN)
        return self.ids[gone], self.run_of[gone]


def read_ledger(finished: Finished, request: Request, below: tuple[str, ...] | None = None) -> Ledger:
    """The ledger of those of the finished runs that had this request's model; a later run wins over an earlier one.

    `below`: the listing meets no URI that begins otherwise, so that what only holds others is not read: a night that
    lists one day costs what the day holds, however long the history.
    """
    ids, versions = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    states, number = [np.empty(0, np.int8)], [np.empty(0, np.int32)]
    runs: list[RunFolder] = []
    records: list[RunRecord] = []
    archives: dict[str, ArchiveRow] = {}
    pixel_rules: Counter[str] = Counter()
    for folder, record in finished:
        _refuse_other_names(folder, record.request, request)
        if _model_folder(record.model.uri) == _model_folder(request.model_uri):
            pixel_rules[record.model.preprocessing_digest] += record.counts.scored
        if record.model.sha256 != request.model_sha256:
            continue
        runs.append(folder)
        records.append(record)
        earlier = record.request
        if (earlier.include, earlier.exclude) == (request.include, request.exclude):
            for table in folder.rows("archives", ARCHIVES_SCHEMA.names):
                archives |= {row["uri"]: ArchiveRow(**row) for row in table.to_pylist()}
        for table, state in _rows_of(folder, earlier, request, below):
            ids.append(table["image_id"].to_numpy().astype(np.int64))
            pairs = zip(table["etag"].to_pylist(), table["size_bytes"].to_pylist(), strict=True)
            versions.append(np.array([version_hash(etag, size) for etag, size in pairs], np.int64))
            states.append(state)
            number.append(np.full(table.num_rows, len(runs) - 1, np.int32))
    all_ids, run_of = np.concatenate(ids), np.concatenate(number)
    order = np.lexsort((run_of, all_ids))
    last = np.append(all_ids[order][1:] != all_ids[order][:-1], True)[: len(order)]  # the latest run of each id
    keep = order[last]
    return Ledger(
        all_ids[keep],
        np.concatenate(versions)[keep],
        np.concatenate(states)[keep],
        run_of[keep],
        tuple(runs),
        np.zeros(len(keep), bool),
        archives,
        accepted(zip(runs, records, strict=True)),
        pixel_rules,
        next_number(finished),
        below,
    )


def _refuse_other_names(folder: RunFolder, earlier: Request, request: Request) -> None:
    """What is named in two ways in one output would be scored and counted twice."""
    if earlier.pseudonym_key_id != request.pseudonym_key_id:
        held = "real names" if earlier.pseudonym_key_id is None else f"names of key {earlier.pseudonym_key_id}"
        raise InputError(
            f"{folder.uri}: holds {held}; go on with the same --pseudonymize as then, or give another --out"
        )


def _model_folder(bundle_uri: str) -> str:
    """Where the versions of one model lie."""
    return bundle_uri.rpartition("/")[0]


def _rows_of(
    folder: RunFolder, earlier: Request, request: Request, below: tuple[str, ...] | None
) -> Iterator[tuple[pa.Table, NDArray[np.int8]]]:
    """Rows of one run with their states. What was beyond a limit is worth another try when the limit is another."""
    again = {str(code) for code in TRANSIENT_CODES}
    again |= {str(code) for code, name in _LIMITS.items() if getattr(earlier, name) != getattr(request, name)}
    for table in folder.rows("predictions", ["image_id", "etag", "size_bytes"], below):
        yield table, np.full(table.num_rows, _SCORED, np.int8)
    for table in folder.rows("quarantine", ["image_id", "etag", "size_bytes", "code"], below):
        is_passing = pc.is_in(table["code"], pa.array(sorted(again))).to_numpy()
        yield table, np.where(is_passing, _AGAIN, _BAD).astype(np.int8)
