"""Training on images that do not fit the object store: decoded anew in every epoch, the same rows as held ones."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.model.registry import resolve
from pipeline.sources.manifest import read_manifest
from pipeline.storage.stores import Stores
from pipeline.training.decoded import decoded, fits_object_store
from pipeline.training.rows import labelled_rows
from pipeline.training.shard import Batch, HeldShard, StreamedShard
from tests.training_data import cell_images, manifest_of

SIZE, DAMAGED = 24, 2


@pytest.fixture(scope="module")
def datasets(ray_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    """The train rows of 100 images, 68 with two damaged ones, dealt unevenly: 40, 24 and 4 to a rank."""
    folder = tmp_path_factory.mktemp("streamed")
    rows = cell_images(folder / "images", 100)
    train = [row for row in rows if row["split"] == "train"]
    for row in train[:DAMAGED]:
        Path(row["uri"]).write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    table = labelled_rows(read_manifest(manifest_of(rows, folder / "manifest").uri)).train
    assert table.num_rows == 68
    shares = [table.slice(0, 40), table.slice(40, 24), table.slice(64)]
    yield [decoded(share, SIZE, Stores(), 4.0) for share in shares]


def by_id(batches: Iterator[Batch]) -> dict[int, tuple[int, bytes]]:
    """Target and pixels of each image. An image that comes twice fails."""
    found: dict[int, tuple[int, bytes]] = {}
    for batch in batches:
        for number, target, pixels in zip(batch.image_ids, batch.targets, batch.images, strict=True):
            assert int(number) not in found
            found[int(number)] = int(target), pixels.numpy().tobytes()
    return found


def test_a_streamed_shard_gives_every_row_once_and_the_same_as_a_held_one(datasets: list[Any]) -> None:
    together = {}
    for dataset in datasets:
        held = HeldShard.load(dataset.materialize().iterator(), SIZE)
        streamed = StreamedShard(dataset.iterator(), SIZE)
        expected, found = by_id(held.once(7)), by_id(streamed.once(7))
        assert found == expected
        assert streamed.rejected() == held.rejected()
        together |= found
    assert len(together) == 68 - DAMAGED


def test_every_rank_takes_every_step_with_whole_batches_however_few_its_images(datasets: list[Any]) -> None:
    """A rank that ended early, or gave a short batch and then none, would let the gradient exchange wait for ever."""
    steps, batch_size = 5, 8
    for dataset in datasets:
        batches = list(StreamedShard(dataset.iterator(), SIZE).batches(steps, batch_size, seed=3))
        assert [len(batch.image_ids) for batch in batches] == [batch_size] * steps
        assert all(batch.images.shape == (batch_size, SIZE, SIZE, 3) for batch in batches)


def test_an_epoch_repeats_no_image_before_it_has_shown_all_and_the_next_has_another_order(datasets: list[Any]) -> None:
    shard = StreamedShard(datasets[1].iterator(), SIZE)  # 24 images
    first, again, other = (
        np.concatenate([batch.image_ids for batch in shard.batches(2, 12, seed)]).tolist() for seed in (1, 1, 2)
    )
    assert len(set(first)) == 24
    assert sorted(first) == sorted(other) and first != other
    assert first == again


def test_a_rank_without_one_usable_image_ends_instead_of_asking_for_ever(ray_cluster: Any, tmp_path: Path) -> None:
    rows = cell_images(tmp_path / "images", 12)
    table = labelled_rows(read_manifest(manifest_of(rows, tmp_path / "manifest").uri)).train
    for row in rows:
        Path(row["uri"]).write_bytes(b"")
    shard = StreamedShard(decoded(table, SIZE, Stores(), 4.0).iterator(), SIZE)
    with pytest.raises(RuntimeError, match="no usable image"):
        list(shard.batches(1, 4, seed=0))
    assert shard.rejected().codes == {"empty": table.num_rows}


@pytest.mark.parametrize(("images", "fits"), [(1000, True), (1001, False)])
def test_decoded_images_may_fill_a_third_of_the_object_store(images: int, fits: bool) -> None:
    assert fits_object_store(images, 10, store_bytes=3 * 1000 * 10 * 10 * 3) is fits


@pytest.mark.slow
@pytest.mark.timeout(580)  # starts a Ray of its own, with a small object store
def test_a_run_whose_images_do_not_fit_counts_the_same_images(tmp_path: Path) -> None:
    manifest = manifest_of(cell_images(tmp_path / "images", 100), tmp_path / "manifest").uri  # 29 MB at 320 pixels
    flags = ["--input-size", "320", "--epochs", "1", "--batch-size", "8", "--workers", "1", "--cpus-per-worker", "0.5"]
    command = [
        sys.executable,
        "-m",
        "jobs.train",
        manifest,
        "--out",
        str(tmp_path / "models"),
        "--num-cpus",
        "2",
        *flags,
    ]
    small = {"RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": "80000000"}
    ran = subprocess.run(command, env={**os.environ, **small}, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "do not fit the object store" in ran.stdout
    info = resolve(str(tmp_path / "models")).info
    assert info.training["images"] == {"train": 68, "validation": 32}
    assert info.reference_scores["count"] == 32
