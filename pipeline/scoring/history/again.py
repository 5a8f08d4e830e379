"""Some of what a model has scored, scored again under today's pixel rules: by how much its probabilities move."""

from typing import Any

import numpy as np

from pipeline.base.errors import ImageRejected, InputError
from pipeline.model.bundle import Bundle
from pipeline.model.migration import Change, under_todays_rules
from pipeline.model.prediction import Prediction, decide
from pipeline.model.predictor import Predictor
from pipeline.scoring.record import ModelUsed
from pipeline.scoring.run_folder import Output
from pipeline.sources.archives import Entry
from pipeline.sources.fetch import fetch_rows
from pipeline.sources.filters import Filters
from pipeline.sources.listing import Tally, entry_row, list_named
from pipeline.sources.objects import ListingOptions
from pipeline.storage.stores import Stores

_SAMPLE, _POOL = 256, 16 * 1024  # rows that are scored again; of the latest so many
_COLUMNS = ["image_id", "uri", "member", "etag", "probability"]


def score_again(bundle: Bundle, output: Output, stores: Stores) -> Change:
    """Score images anew that earlier runs of this very model scored, whatever their threshold.

    Raises InputError when the output has none, or none that is still what it was.
    """
    before = _sample(bundle, output)
    if not before:
        raise InputError(f"{output.uri}: holds no run of {bundle.uri}; name an output that this model has scored")
    found = list_named(sorted({row["uri"] for row in before.values()}), "", Tally(), ListingOptions(Filters(), stores))
    rows = [entry_row(item) for item in found if isinstance(item, Entry)]
    rows = [row for row in rows if row.image_id in before and before[row.image_id]["etag"] == row.etag]
    predictor = Predictor(under_todays_rules(bundle))
    pairs: list[tuple[float, Prediction]] = []
    for fetched in fetch_rows(rows, stores):
        said = _predict(predictor, fetched.data)
        if said is not None:
            pairs.append((before[fetched.row.image_id]["probability"], said))
    if not pairs:
        raise InputError(f"{output.uri}: none of the images that {bundle.uri} scored there can be read as they were")
    distances = np.array([abs(said.probability - probability) for probability, said in pairs])
    changed = [
        decide(bundle.info, probability) != said.decision for probability, said in pairs if said.decision is not None
    ]
    return Change(len(pairs), float(distances.mean()), float(distances.max()), sum(changed))


def _sample(bundle: Bundle, output: Output) -> dict[int, dict[str, Any]]:
    """Rows of the latest runs by image id; loose images where there are enough, for archives are read whole."""
    pool: dict[int, dict[str, Any]] = {}
    for folder, record in reversed(output.finished()):
        if len(pool) < _POOL and _is_of(bundle, record.model):
            for table in folder.rows("predictions", _COLUMNS):
                for row in table.slice(0, _POOL).to_pylist():
                    pool.setdefault(row["image_id"], row)
    loose = [row for row in pool.values() if row["member"] is None]
    rows = loose if len(loose) >= _SAMPLE else list(pool.values())
    return {row["image_id"]: row for row in rows[:: max(1, len(rows) // _SAMPLE)][:_SAMPLE]}


def _is_of(bundle: Bundle, used: ModelUsed) -> bool:
    return bundle.with_threshold(used.threshold).info.identity() == used.sha256


def _predict(predictor: Predictor, data: bytes | None) -> Prediction | None:
    if data is None:
        return None
    try:
        [said] = predictor.predict_each([predictor.load(data).pixels])
    except ImageRejected:  # refused by today's rules: a run will say so
        return None
    return said if isinstance(said, Prediction) else None
