"""Compressed archives that earlier runs have read: told by their rows, so that the next run need not read them again.

An archive is done when an earlier run noted it in `archives/` with this version and these filters, and all its images
are in the outputs. One that is done in part (a run with --limit, a retry) is listed, so that no image is scored twice.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.scoring.history.ledger import UNCHANGED, UNCHANGED_BAD, Ledger
from pipeline.scoring.run_folder import RunFolder
from pipeline.scoring.schemas import SKIPPED_SCHEMA

DONE, IN_PART, NEW = "done", "in part", "new"
_KINDS = {"predictions": UNCHANGED, "quarantine": UNCHANGED_BAD}


def judge(ledger: Ledger, etags: Mapping[str, str]) -> dict[str, str]:
    """DONE, IN_PART or NEW for every archive of `etags` (URI -> present version)."""
    ids: dict[str, list[NDArray[np.int64]]] = {uri: [] for uri in etags}
    for _, _, table in _rows(ledger, etags):
        for uri in pc.unique(table["uri"]).to_pylist():
            ids[uri].append(table.filter(pc.equal(table["uri"], uri))["image_id"].to_numpy())
    verdicts = {}
    for uri, found in ids.items():
        known = np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
        noted = ledger.archives.get(uri)
        is_whole = noted is not None and noted.is_complete and (noted.etag, noted.images) == (etags[uri], len(known))
        if is_whole and not ledger.tries_again(known):
            verdicts[uri] = DONE
        else:
            verdicts[uri] = IN_PART if len(known) else NEW
    return verdicts


def skipped_rows(ledger: Ledger, etags: Mapping[str, str]) -> Iterator[pa.Table]:
    """SKIPPED_SCHEMA rows of archives that are done, each image once, by the latest run that did it."""
    seen: set[int] = set()
    for folder, kind, table in _rows(ledger, etags):
        fresh = []
        for image_id in table["image_id"].to_pylist():
            fresh.append(image_id not in seen)
            seen.add(image_id)
        table = table.filter(pa.array(fresh, pa.bool_()))
        columns = [table[name] for name in ("image_id", "uri", "member")]
        places = zip(*(column.to_pylist() for column in columns), strict=True)
        reasons = pa.array([ledger.reason(_KINDS[kind], *place) for place in places], pa.string())
        run = pa.array([folder.run_id] * table.num_rows, pa.string())
        yield pa.Table.from_arrays([*columns, reasons, run], schema=SKIPPED_SCHEMA)


def _rows(ledger: Ledger, etags: Mapping[str, str]) -> Iterator[tuple[RunFolder, str, pa.Table]]:
    """Rows of these archives in these versions, from the latest run back."""
    uris = pa.array(etags.keys(), pa.string())
    for folder in reversed(ledger.runs):
        for kind in _KINDS:
            for table in folder.rows(kind, ["image_id", "uri", "member", "etag"], ledger.below):
                table = table.filter(pc.is_in(table["uri"], uris))
                if table.num_rows:
                    wanted = [etags[name] for name in table["uri"].to_pylist()]
                    yield folder, kind, table.filter(pc.equal(table["etag"], pa.array(wanted, pa.string())))
