"""Likely label errors of a cross-validated manifest, into the bundle: a table to edit, and a page of pictures.

The pictures are pixels of patients, in one HTML file that fetches nothing.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.base.errors import ImageRejected
from pipeline.evaluation.label_errors import label_errors
from pipeline.evaluation.outcomes import THUMBNAIL
from pipeline.evaluation.report.filling import data_uri, environment
from pipeline.evaluation.report.words import NOT_A_DEVICE, number
from pipeline.images.load import load_image
from pipeline.ingest.suspects import SUSPECTS_TABLE, Suspect, SuspectsTable
from pipeline.model.bundle import Bundle
from pipeline.model.prediction import probabilities
from pipeline.sources.fetch import fetch_rows
from pipeline.sources.manifest import Manifest, ManifestRow
from pipeline.sources.rows import read_rows
from pipeline.storage.stores import Stores
from pipeline.storage.uris import join, short_name
from pipeline.training.validation import Scores

TABLE, PAGE = f"report/{SUSPECTS_TABLE}", "report/suspects.html"
_SHOWN = 120  # pictures


def keep_suspects(bundle: Bundle, scores: Scores, manifest: Manifest, stores: Stores) -> str:
    """Write TABLE and PAGE into a bundle, by out-of-fold `scores`; what was found, in words."""
    found = suspects_of(scores, bundle.info.temperature, bundle.info.classes)
    table = SuspectsTable(manifest)
    bundle.write(TABLE, table.csv(found).encode())
    bundle.write(PAGE, _page(found, len(scores.image_ids), manifest, table, bundle, stores).encode())
    return (
        f"labels that are likely wrong: {len(found):,} of {len(scores.image_ids):,}; look at "
        f"{join(bundle.uri, PAGE)}, correct the {table.edited} in {join(bundle.uri, TABLE)}, and give that back: "
        f"{table.command}"
    )


def suspects_of(scores: Scores, temperature: float, classes: Sequence[str]) -> list[Suspect]:
    """The suspects among images of out-of-fold scores, most suspicious first."""
    said = probabilities(scores.logits, temperature)  # (N, C)
    found = label_errors(scores.targets, said)
    suspects = []
    for row in found.order.tolist():
        given, suggested = int(scores.targets[row]), int(found.suggested[row])
        reason = (
            f"{classes[suggested]} with {number(said[row, suggested])}, {classes[given]} with "
            f"{number(said[row, given])}, by a model that did not see it"
        )
        suspects.append(Suspect(int(scores.image_ids[row]), classes[suggested], float(found.margin[row]), reason))
    return suspects


def _page(
    found: Sequence[Suspect], images: int, manifest: Manifest, asked: SuspectsTable, bundle: Bundle, stores: Stores
) -> str:
    shown = found[:_SHOWN]
    ids = pa.array([suspect.image_id for suspect in shown], pa.int64())
    table = manifest.table.take(pc.index_in(ids, manifest.table["image_id"].combine_chunks()))
    rows = read_rows(table, ManifestRow)
    pictures = _pictures(rows, bundle.info.bit_depth, stores)
    figures = [
        {
            "source": data_uri(pictures[row.image_id]) if row.image_id in pictures else None,
            "rank": rank,
            "given": row.class_name or ("positive" if row.label else "negative"),
            "suggested": asked.suggestion(suspect.suggested),
            "reason": suspect.reason,
            "subject": row.subject_id,
            "name": short_name(str(row.member or row.uri)),
        }
        for rank, (suspect, row) in enumerate(zip(shown, rows, strict=True), start=1)
    ]
    return (
        environment()
        .get_template("suspects.html.j2")
        .render(
            title=f"{bundle.info.name} / {bundle.info.version}",
            figures=figures,
            suspects=len(found),
            images=images,
            table=SUSPECTS_TABLE,
            edited=asked.edited,
            command=asked.command,
            is_synthetic=manifest.info.synthetic,
            not_a_device=NOT_A_DEVICE,
        )
    )


def _pictures(rows: Sequence[ManifestRow], bit_depth: int | None, stores: Stores) -> dict[int, NDArray[np.uint8]]:
    """Thumbnails uint8 (THUMBNAIL, THUMBNAIL, 3) by image id, of those that can still be read."""
    found = {}
    for item in fetch_rows(sorted(rows, key=lambda row: row.uri), stores):  # one pass an archive
        try:
            if item.data is not None:
                found[item.row.image_id] = load_image(item.data, THUMBNAIL, bit_depth=bit_depth).pixels
        except ImageRejected:
            continue
    return found
