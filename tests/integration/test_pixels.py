"""The pixels of a run, held in a cache or streamed: the right ones, in the order asked for, on every rank alike."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from jobs import train
from pipeline.base.cluster import alive_nodes
from pipeline.base.errors import Code, IncompleteError, InputError, PlatformError
from pipeline.base.resources import ClusterPlan, training_plan
from pipeline.images.load import Preprocessing
from pipeline.model.registry import resolve
from pipeline.sources.manifest import read_manifest
from pipeline.storage.local import LocalStore
from pipeline.storage.stores import Stores
from pipeline.storage.types import Bytes, StoreError
from pipeline.training.batch import Batch
from pipeline.training.cache import PixelCache
from pipeline.training.decoded import decode
from pipeline.training.order import share, steps_of_epoch
from pipeline.training.rows import LabelledRows, labelled_rows
from pipeline.training.shard import Shard, open_shards
from pipeline.training.supply import Supply, supply
from tests.training_data import cell_images, manifest_of

SIZE, DAMAGED = 24, 2
RULES = Preprocessing(SIZE)


def rows_in(folder: Path, count: int, damaged: int = 0) -> LabelledRows:
    """Two thirds of the images are for training, of which some are damaged."""
    found = cell_images(folder / "images", count)
    for row in [row for row in found if row["split"] == "train"][:damaged]:
        path = Path(row["uri"])
        path.write_bytes(b"\x89PNG\r\n\x1a\n damaged")
        stat = path.stat()
        row |= {"size_bytes": stat.st_size, "etag": f"{stat.st_mtime_ns:x}-{stat.st_size:x}"}
    return labelled_rows(read_manifest(manifest_of(found, folder / "manifest").uri))


@pytest.fixture(scope="module")
def plan(ray_cluster: Any) -> ClusterPlan:
    return training_plan(alive_nodes(ray_cluster), 2)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> LabelledRows:
    """68 for training, two of them damaged, and 32 for validation."""
    return rows_in(tmp_path_factory.mktemp("pixels"), 100, DAMAGED)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def supplied(rows: LabelledRows, plan: ClusterPlan, root: str | None, stores: Stores = Stores()) -> Supply:
    return supply(rows.splits, RULES, stores, plan, PixelCache(root, RULES) if root else None)


@pytest.fixture(scope="module", params=["held", "streamed"])
def made(request: pytest.FixtureRequest, rows: LabelledRows, plan: ClusterPlan, root: str) -> Supply:
    return supplied(rows, plan, root if request.param == "held" else None)


def pixels_of(rows: LabelledRows) -> dict[int, tuple[int, bytes]]:
    """Target and pixels of every usable image, by the decoder alone."""
    found = {}
    for table in (rows.train, rows.validation):
        targets = dict(zip(table["image_id"].to_pylist(), table["target"].to_pylist(), strict=True))
        decoded = decode(table, RULES)
        for note, image in zip(decoded.notes.to_pylist(), decoded.images, strict=True):
            if note["code"] is None:
                found[note["image_id"]] = targets[note["image_id"]], image.tobytes()
    return found


def seen(batches: Iterator[Batch]) -> list[tuple[int, int, bytes]]:
    return [
        (int(number), int(target), image.numpy().tobytes())
        for batch in batches
        for number, target, image in zip(batch.image_ids, batch.targets, batch.images, strict=True)
    ]


@pytest.mark.parametrize("world", [1, 3])
def test_all_ranks_together_see_each_global_batch_once_with_the_right_pixels(
    made: Supply, rows: LabelledRows, world: int
) -> None:
    expected = pixels_of(rows)
    shards = [open_shards(made, rank, world)[0] for rank in range(world)]
    targets = shards[0].targets
    steps = steps_of_epoch(targets, 10, seed=3, epoch=0, balanced=False)  # 10 is not divided by 3
    taken = [list(shard.batches([share(step, rank, world) for step in steps])) for rank, shard in enumerate(shards)]
    unusable = {*rows.train["image_id"].to_pylist()} - {*expected}
    for number, step in enumerate(steps):
        parts = [batches[number] for batches in taken]
        assert [len(part.image_ids) for part in parts] == [len(share(step, rank, world)) for rank in range(world)]
        wanted = [image for image in shards[0].image_ids[step].tolist() if image not in unusable]
        met = seen(iter(parts))
        assert Counter(wanted) <= Counter(image for image, _, _ in met)
        assert all(expected[image] == (target, pixels) for image, target, pixels in met)
        if len(wanted) == len(step):
            assert sorted(wanted) == sorted(image for image, _, _ in met)


@pytest.mark.parametrize("world", [1, 3, 40])
def test_validation_sees_every_image_once_over_all_ranks_however_few_a_rank_has(
    made: Supply, rows: LabelledRows, world: int
) -> None:
    met = [item for rank in range(world) for item in seen(open_shards(made, rank, world)[1].once(7))]
    assert sorted(image for image, _, _ in met) == sorted(rows.validation["image_id"].to_pylist())
    expected = pixels_of(rows)
    assert all(expected[image] == (target, pixels) for image, target, pixels in met)


def test_damaged_images_are_counted_with_their_names(made: Supply, rows: LabelledRows) -> None:
    shard, validation = open_shards(made, 0, 1)
    list(shard.batches([np.arange(len(shard.targets))]))
    lost = shard.noted().rejected
    assert (lost.total, lost.codes) == (68, {"truncated": DAMAGED})
    assert "cell_000" in str(lost)
    assert validation.noted().rejected.count == 0


def test_a_step_without_images_for_a_rank_is_a_batch_of_none(made: Supply) -> None:
    shard, _ = open_shards(made, 0, 1)
    usable = np.concatenate([batch.image_ids for batch in shard.once(8)])  # ids, and so rows, belong to the folder
    none, some = np.empty(0, np.int64), np.flatnonzero(np.isin(shard.image_ids, usable))[[-2, -2, -1]]
    batches = list(shard.batches([none, some, none]))
    assert [tuple(batch.images.shape) for batch in batches] == [(size, SIZE, SIZE, 3) for size in (0, 3, 0)]
    assert batches[1].image_ids.tolist() == shard.image_ids[some].tolist()


def test_a_second_run_decodes_nothing_and_needs_no_source(
    plan: ClusterPlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, root = rows_in(tmp_path, 60, DAMAGED), str(tmp_path / "cache")
    first = supplied(rows, plan, root)
    expected = [seen(open_shards(first, 0, 1)[split].once(8)) for split in (0, 1)]
    assert sum(part.rows.num_rows for part in first.placed()) == 60
    for uri in rows.train["uri"].to_pylist() + rows.validation["uri"].to_pylist():
        Path(uri).unlink()
    turned = LabelledRows("binary", rows.classes, (), rows.validation, rows.train)  # another fold of the same images
    second = supplied(turned, plan, root)
    assert second.filling == () and "60 of 60 decoded already" in capsys.readouterr().out
    again = open_shards(second, 0, 1)
    assert [seen(again[split].once(8)) for split in (1, 0)] == expected
    assert again[1].noted().rejected.codes == {"truncated": DAMAGED}


def test_two_runs_that_decode_the_same_images_at_once_do_each_other_no_harm(plan: ClusterPlan, tmp_path: Path) -> None:
    rows, root = rows_in(tmp_path, 90), str(tmp_path / "cache")
    both = [supplied(rows, plan, root) for _ in range(2)]
    assert all(made.filling for made in both)
    expected = pixels_of(rows)
    for made in both:
        shard, validation = open_shards(made, 0, 1)
        met = seen(shard.batches(usable_rows(shard))) + seen(validation.once(8))
        assert {image: (target, pixels) for image, target, pixels in met} == expected
    assert supplied(rows, plan, root).filling == ()


def test_only_new_images_are_decoded(plan: ClusterPlan, tmp_path: Path) -> None:
    rows, root = rows_in(tmp_path, 60), str(tmp_path / "cache")
    supplied(LabelledRows("binary", rows.classes, (), rows.train.slice(3), rows.validation), plan, root).placed()
    files = {file.name: file.stat().st_mtime_ns for file in Path(root).glob("*/*/*.pixels")}
    more = supplied(rows, plan, root)
    [filled] = more.filled()
    ids = [number for placed in filled.placed for number in placed.rows["image_id"].to_pylist()]
    assert sorted(ids) == sorted(rows.train["image_id"].to_pylist()[:3])
    assert len(list(Path(root).glob("*/*/*.pixels"))) == len(files) + 1


def usable_rows(shard: Shard) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    return [np.arange(len(shard.targets))]


def test_flipped_pixels_are_decoded_anew_within_the_run_and_their_file_leaves(
    plan: ClusterPlan, tmp_path: Path
) -> None:
    rows, root = rows_in(tmp_path, 30), str(tmp_path / "cache")
    made = supplied(rows, plan, root)
    made.placed()
    for path in Path(root).glob("*/*/*.pixels"):
        with path.open("r+b") as file:  # each last image
            file.seek(-100, os.SEEK_END)
            file.write(bytes(100))
    shard, validation = open_shards(made, 0, 1)
    expected = pixels_of(rows)
    for _ in range(2):
        met = seen(shard.batches(usable_rows(shard))) + seen(validation.once(4))
        assert len(met) == 30
        assert all(expected[image] == (target, pixels) for image, target, pixels in met)
    missing = supplied(rows, plan, root)
    assert len(missing.filling) >= 1


@pytest.mark.parametrize("loss", ["cut", "evicted", "replaced"])
def test_a_file_that_is_lost_before_a_worker_opens_it_is_decoded_anew(
    loss: str, plan: ClusterPlan, tmp_path: Path
) -> None:
    rows, root = rows_in(tmp_path, 30), str(tmp_path / "cache")
    made = supplied(rows, plan, root)
    made.placed()
    for path in Path(root).glob("*/*/*.pixels"):
        if loss == "cut":
            os.truncate(path, path.stat().st_size // 2)
        elif loss == "evicted":
            path.unlink()
        else:
            path.write_bytes(b"another file altogether")
    shard, validation = open_shards(made, 0, 1)
    met = seen(shard.batches(usable_rows(shard))) + seen(validation.once(4))
    assert {image: (target, pixels) for image, target, pixels in met} == pixels_of(rows)


def test_what_the_cache_lost_and_the_source_no_longer_gives_ends_the_run(plan: ClusterPlan, tmp_path: Path) -> None:
    rows, root = rows_in(tmp_path, 12), str(tmp_path / "cache")
    made = supplied(rows, plan, root)
    made.placed()
    for path in [*Path(root).glob("*/*/*.pixels"), *(tmp_path / "images").iterdir()]:
        path.unlink()
    with pytest.raises(PlatformError, match=r"can no longer be read from their source .*cell_"):
        open_shards(made, 0, 1)


class StoreThatKills(LocalStore):
    """One image ends the process that reads it, as one that takes all memory would."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def read(self, uri: str) -> Bytes:
        if uri.endswith("cell_0007.png"):
            with self._log.open("a") as file:
                file.write(".")
            os._exit(1)
        return super().read(uri)


def test_a_process_that_dies_at_an_image_is_started_again_some_times_and_then_ends_the_run(
    plan: ClusterPlan, tmp_path: Path
) -> None:
    rows = rows_in(tmp_path, 60)
    stores = Stores(mounts=((str(tmp_path / "images"), StoreThatKills(tmp_path / "log")),))
    made = supplied(rows, plan, str(tmp_path / "cache"), stores)
    with pytest.raises(PlatformError, match="a process that decodes images keeps dying"):
        made.placed()
    assert (tmp_path / "log").read_text() == "...."


def test_images_are_decoded_where_workers_hold_every_core(ray_cluster: Any, tmp_path: Path) -> None:
    """What Ray Data asks for beside them would never be given, and the workers wait for the images."""
    holding = [ray.remote(num_cpus=1)(Worker).remote() for _ in range(4)]
    ray.get([worker.answers.remote() for worker in holding])
    rows = rows_in(tmp_path, 60)
    made = supplied(rows, ClusterPlan("train", 4, 1.0), str(tmp_path / "cache"))
    try:
        done, _ = ray.wait(list(made.filling), timeout=120)
    finally:
        for worker in holding:
            ray.kill(worker)
    assert done and sum(placed.rows.num_rows for placed in made.placed()) == 60


class Worker:
    def answers(self) -> bool:
        return True


# ---- streamed --------------------------------------------------------------------------------------------------------


def test_a_damaged_image_is_replaced_within_its_batch_wherever_it_lies(plan: ClusterPlan, tmp_path: Path) -> None:
    rows = rows_in(tmp_path, 30, damaged=3)
    shard, _ = open_shards(supplied(rows, plan, None), 0, 1)
    expected = pixels_of(rows)
    bad = [number for number, image in enumerate(shard.image_ids.tolist()) if image not in expected]
    good = [number for number, image in enumerate(shard.image_ids.tolist()) if image in expected]
    steps = [bad, [bad[0], good[0], good[1]], [good[2]], [bad[1], bad[2]], good]
    batches = list(shard.batches([np.array(step) for step in steps]))
    assert [len(batch.image_ids) for batch in batches] == [len(step) for step in steps]
    assert all(expected[image] == (target, pixels) for image, target, pixels in seen(iter(batches)))
    assert set(batches[1].image_ids.tolist()) == set(shard.image_ids[good[:2]].tolist())
    assert set(batches[3].image_ids.tolist()) == {int(shard.image_ids[good[0]])}  # whatever came before
    assert shard.noted().rejected.count == 3


def test_a_split_without_one_usable_image_ends_instead_of_asking_for_ever(plan: ClusterPlan, tmp_path: Path) -> None:
    rows = rows_in(tmp_path, 12, damaged=8)
    shard, _ = open_shards(supplied(rows, plan, None), 0, 1)
    with pytest.raises(IncompleteError, match=r"8 of 8 images could not be used: 8 truncated .*none is left"):
        list(shard.batches([np.arange(4)]))


class StoreThatGoesOut(LocalStore):
    """Gives some images, then nothing; nor does it answer when it is asked whether it is there."""

    def __init__(self, log: Path, gives: int) -> None:
        self._log, self._gives = log, gives

    def _refuse(self) -> None:
        raise StoreError(Code.TIMEOUT, "no answer", 8)

    def read(self, uri: str) -> Bytes:
        with self._log.open("a") as file:
            file.write(".")
        if self._log.stat().st_size > self._gives:
            self._refuse()
        return super().read(uri)

    def is_folder(self, uri: str) -> bool:
        self._refuse()
        return False


@pytest.mark.parametrize("keeping", [True, False])
def test_a_store_that_goes_out_ends_the_run_and_blames_no_image(
    keeping: bool, plan: ClusterPlan, tmp_path: Path
) -> None:
    rows = rows_in(tmp_path, 300)
    stores = Stores(mounts=((str(tmp_path / "images"), StoreThatGoesOut(tmp_path / "log", 100)),))
    made = supplied(rows, plan, str(tmp_path / "cache") if keeping else None, stores)
    with pytest.raises(PlatformError, match=r"the store does not answer .*; run again when it is back"):
        for _ in open_shards(made, 0, 1)[0].batches([np.arange(start, start + 10) for start in range(0, 200, 10)]):
            pass


@pytest.mark.slow
def test_a_store_that_goes_out_while_images_are_streamed_ends_training_as_the_platforms_fault(
    ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = manifest_of(cell_images(tmp_path / "images", 60), tmp_path / "manifest").uri
    stores = Stores(mounts=((str(tmp_path / "images"), StoreThatGoesOut(tmp_path / "log", 90)),))  # in epoch 2
    monkeypatch.setattr(train, "writing_stores", lambda *_, **__: stores)
    sizes = ["--architecture", "cnn", "--input-size", "24", "--epochs", "9", "--batch-size", "8", "--workers", "2"]
    assert train.command([manifest, "--out", str(tmp_path / "models"), "--cache", "none", *sizes]) == 5
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("leukoray train: ")]
    assert "the store does not answer" in line and "run again when it is back" in line


def test_images_that_can_only_be_read_in_one_pass_are_not_streamed(
    rows: LabelledRows, plan: ClusterPlan, tmp_path: Path
) -> None:
    access = pa.array(["stream"] * rows.train.num_rows)
    column = rows.train.column_names.index("access")
    tarred = replace(rows, train=rows.train.set_column(column, rows.train.schema.field("access"), access))
    with pytest.raises(InputError, match="give --cache a folder with room, or unpack"):
        supplied(tarred, plan, None)


def test_streaming_wants_room_for_a_task_beside_the_workers(rows: LabelledRows, ray_cluster: Any) -> None:
    with pytest.raises(PlatformError, match=r"beside a task of 0\.5 CPUs that decodes"):
        supplied(rows, ClusterPlan("train", 4, 1.0), None)


@pytest.mark.slow
def test_a_run_without_room_for_a_cache_streams_counts_and_scores_the_same_images(
    ray_cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = cell_images(tmp_path / "images", 60)
    Path(images[0]["uri"]).write_bytes(b"")
    manifest = manifest_of(images, tmp_path / "manifest").uri
    flags = [
        "--architecture",
        "cnn",
        "--input-size",
        "24",
        "--epochs",
        "1",
        "--batch-size",
        "4",
        "--workers",
        "2",
        "--cache-bytes",
        "0",
    ]
    assert train.command([manifest, "--out", str(tmp_path / "models"), "--cache", str(tmp_path / "cache"), *flags]) == 0
    printed = capsys.readouterr().out
    assert "no cache:" in printed and "left out: 1 of 60 images could not be used: 1 empty" in printed
    info = resolve(str(tmp_path / "models")).info
    assert info.training["rejected"] == {"empty": 1}
    assert info.reference_scores["count"] == 20
    assert not list((tmp_path / "cache").glob("*/*/*"))
