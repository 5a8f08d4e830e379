"""Images that are streamed: how a batch is filled up, and what stays known of damaged ones. Decoding is pretended."""

import json
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.images.load import Preprocessing
from pipeline.training.decoded import Note, Noted
from pipeline.training.streamed import StreamedShard

DAMAGED = (0, 4, 5)
Step = tuple[Any, Any, Any]


@pytest.fixture
def shard(monkeypatch: pytest.MonkeyPatch) -> StreamedShard:
    """Ten images, each of its own gray; those of DAMAGED cannot be used."""

    def decoded(_: StreamedShard, steps: Sequence[Any]) -> Iterator[Step]:
        for rows in steps:
            images = np.ones((len(rows), 8, 8, 3), np.uint8) * rows[:, None, None, None].astype(np.uint8)
            yield rows, images, ~np.isin(rows, DAMAGED)

    monkeypatch.setattr(StreamedShard, "_decoded", decoded)
    return shard_of()


def shard_of(known: Noted = Noted(0)) -> StreamedShard:
    rows = pa.table({"image_id": np.arange(100, 110), "target": np.arange(10) % 2})
    supply: Any = SimpleNamespace(rows=lambda _: rows, pixels=Preprocessing(8))
    return StreamedShard(supply, "train", 0, 1, known)


def test_a_batch_without_a_usable_image_is_the_same_wherever_a_run_goes_on(shard: StreamedShard) -> None:
    steps = [np.array([7, 4, 8]), np.array([4, 5]), np.array([2, 3])]
    whole = [batch.image_ids.tolist() for batch in shard.batches(steps)]
    assert whole == [[107, 108, 108], [101, 101], [102, 103]]
    resumed = list(shard_of().batches(steps[1:]))
    assert [batch.image_ids.tolist() for batch in resumed] == whole[1:]
    assert (resumed[0].images == 1).all() and resumed[0].targets.tolist() == [1, 1]


def test_what_a_run_had_met_is_known_when_it_goes_on(shard: StreamedShard) -> None:
    met = Noted(20, {104: Note("truncated", "p.png: ends early", None), 3: Note("empty", "of the other split", None)})
    kept = json.loads(json.dumps(met.rows()))  # as in state.json
    noted = shard_of(Noted.of_rows(0, kept)).noted()
    assert (noted.total, noted.rejected.codes) == (10, {"truncated": 1})
    assert noted.rejected.examples == {"truncated": "p.png: ends early"}
    assert shard.noted().rejected.codes == {}
