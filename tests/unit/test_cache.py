"""The cache of decoded images: what is found in it, what is not believed, what leaves it."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.base.errors import PlatformError
from pipeline.images.load import Preprocessing, load_image
from pipeline.sources.manifest import read_manifest
from pipeline.training.batch import read_ahead
from pipeline.training.cache import PixelCache, Placed, default_root
from pipeline.training.decoded import decode
from pipeline.training.filling import chunks
from pipeline.training.held import _alone
from pipeline.training.pixel_file import TEMPORARY
from pipeline.training.rows import labelled_rows
from tests.training_data import cell_images, manifest_of

RULES = Preprocessing(24)
NODE = "this node"


def rows_of(folder: Path, count: int = 30, seed: int = 0) -> pa.Table:
    """Rows of the train split, two thirds of the images."""
    found = cell_images(folder / f"images-{seed}", count, seed=seed)
    return labelled_rows(read_manifest(manifest_of(found, folder / f"manifest-{seed}").uri)).train


@pytest.fixture
def rows(tmp_path: Path) -> pa.Table:
    return rows_of(tmp_path)


@pytest.fixture
def cache(tmp_path: Path) -> PixelCache:
    return PixelCache(str(tmp_path / "cache"), RULES)


def put(cache: PixelCache, rows: pa.Table) -> Path:
    return Path(cache.path(cache.put(decode(rows, cache.pixels), NODE).name))


def found(cache: PixelCache, rows: pa.Table) -> set[int]:
    return {number for placed in cache.find(rows, NODE) for number in placed.rows["image_id"].to_pylist()}


def unused_since(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_an_image_comes_out_as_the_decoder_gave_it(cache: PixelCache, rows: pa.Table) -> None:
    put(cache, rows)
    [placed] = cache.find(rows, NODE)
    file = cache.open(placed.name)
    sources = dict(zip(rows["image_id"].to_pylist(), rows["uri"].to_pylist(), strict=True))
    assert placed.rows["image_id"].to_pylist() == sorted(sources)
    for number, position in zip(*(placed.rows[name].to_pylist() for name in ("image_id", "position")), strict=True):
        assert (file.images[position] == load_image(Path(sources[number]).read_bytes(), RULES.size).pixels).all()
        assert file.is_sound(position)


def test_an_image_is_found_whatever_the_run_that_decoded_it(cache: PixelCache, tmp_path: Path) -> None:
    """Splits, folds and seeds ask for other sets of the same images."""
    first, second, third = rows_of(tmp_path), rows_of(tmp_path, seed=1), rows_of(tmp_path, seed=2)
    put(cache, first)
    put(cache, pa.concat_tables([second, first.slice(0, 5)]))
    wanted = pa.concat_tables([first.slice(3, 9), second.slice(5), third])
    placed = cache.find(wanted, NODE)
    ids = [number for one in placed for number in one.rows["image_id"].to_pylist()]
    assert sorted(ids) == sorted(pa.concat_tables([first.slice(3, 9), second.slice(5)])["image_id"].to_pylist())


def test_another_version_of_an_object_and_other_rules_are_other_pixels(cache: PixelCache, rows: pa.Table) -> None:
    put(cache, rows)
    etags = pa.array(["another", *rows["etag"].to_pylist()[1:]])
    changed = rows.set_column(rows.column_names.index("etag"), rows.schema.field("etag"), etags)
    assert found(cache, changed) == set(rows["image_id"].to_pylist()[1:])
    assert found(PixelCache(cache.root, Preprocessing(24, bit_depth=12)), rows) == set()


def test_a_damaged_image_stays_with_its_reason_and_one_that_was_not_to_be_had_is_tried_again(
    cache: PixelCache, tmp_path: Path
) -> None:
    images = cell_images(tmp_path / "images", 12)
    Path(images[0]["uri"]).write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    stat = Path(images[0]["uri"]).stat()
    images[0] |= {"size_bytes": stat.st_size, "etag": f"{stat.st_mtime_ns:x}-{stat.st_size:x}"}
    table = labelled_rows(read_manifest(manifest_of(images, tmp_path / "manifest").uri)).train
    Path(images[1]["uri"]).unlink()
    Path(images[2]["uri"]).touch()  # no longer the version that was listed
    placed = cache.put(decode(table, RULES), NODE)
    codes = dict(zip(placed.rows["image_id"].to_pylist(), placed.rows["code"].to_pylist(), strict=True))
    assert [codes[image["image_id"]] for image in images[:3]] == ["truncated", "not_found", None]
    assert found(cache, table) == {*table["image_id"].to_pylist()} - {image["image_id"] for image in images[1:3]}
    said = dict(zip(placed.rows["image_id"].to_pylist(), placed.rows["remark"].to_pylist(), strict=True))
    assert "not the version that the manifest lists" in said.pop(images[2]["image_id"])
    assert set(said.values()) == {None}
    [again] = cache.find(table, NODE)
    [message] = again.rows["message"].drop_null().to_pylist()
    assert "cell_0000.png" in message


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def cut_header(path: Path) -> None:
    os.truncate(path, 100)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def flip_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(600)
        byte = file.read(1)
        file.seek(600)
        file.write(bytes([byte[0] ^ 1]))


def replace_by_foreign(path: Path) -> None:
    path.write_bytes(b"something else" * 1000)


def announce_endless_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(12)
        file.write(b"\xff" * 8)


@pytest.mark.parametrize(
    "damage", [cut, cut_header, empty, lengthen, flip_header, replace_by_foreign, announce_endless_header]
)
def test_a_file_that_is_not_whole_is_removed_and_its_images_are_decoded_again(
    damage: Any, cache: PixelCache, rows: pa.Table
) -> None:
    path = put(cache, rows)
    damage(path)
    assert found(cache, rows) == set()
    assert not path.exists()
    put(cache, rows)
    assert found(cache, rows) == set(rows["image_id"].to_pylist())


def test_a_file_of_other_rules_is_not_believed_under_a_name_of_these(cache: PixelCache, rows: pa.Table) -> None:
    other = PixelCache(cache.root, Preprocessing(24, bit_depth=12))
    theirs, mine = put(other, rows), put(cache, rows)
    mine.write_bytes(theirs.read_bytes())
    assert found(cache, rows) == set()


def test_a_bit_that_flipped_in_the_pixels_is_noticed(cache: PixelCache, rows: pa.Table) -> None:
    path = put(cache, rows)
    with path.open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        byte = file.read(1)
        file.seek(-5, os.SEEK_END)
        file.write(bytes([byte[0] ^ 4]))
    file_ = cache.open(path.name)
    assert [file_.is_sound(number) for number in range(rows.num_rows)] == [True] * (rows.num_rows - 1) + [False]


def test_writers_of_one_file_do_each_other_no_harm(cache: PixelCache, rows: pa.Table) -> None:
    """A reader sees no file, or a whole one, at any moment."""
    decoded = decode(rows, RULES)
    written: list[Placed] = []
    writers = [threading.Thread(target=lambda: written.append(cache.put(decoded, NODE))) for _ in range(6)]
    for writer in writers:
        writer.start()
    everything = set(rows["image_id"].to_pylist())
    while any(writer.is_alive() for writer in writers):
        assert found(cache, rows) in (set(), everything)
    assert len({placed.name for placed in written}) == 1 and len(written) == 6
    assert found(cache, rows) == everything
    assert [file.name for file in cache.folder.iterdir()] == [written[0].name]


def test_what_was_not_used_for_longest_leaves_and_who_has_it_mapped_keeps_it(tmp_path: Path) -> None:
    tables = [rows_of(tmp_path, seed=seed) for seed in range(3)]  # 20 images each
    roomy = PixelCache(str(tmp_path / "cache"), RULES)
    paths = [put(roomy, table) for table in tables]
    for path, hours in zip(paths, (2, 3, 1), strict=True):
        unused_since(path, hours * 3600)
    size = paths[0].stat().st_size
    mapped = roomy.open(paths[1].name)
    narrow = PixelCache(roomy.root, RULES, max_bytes=3 * size + 1000)
    assert narrow.make_room(10, [paths[0].name]) is None
    assert [path.exists() for path in paths] == [True, False, True]
    assert all(mapped.is_sound(number) for number in range(20))


def test_where_there_is_no_room_nothing_is_removed_and_the_reason_told(tmp_path: Path) -> None:
    cache = PixelCache(str(tmp_path / "cache"), RULES)
    path = put(cache, rows_of(tmp_path))
    unused_since(path, 3600)
    full = PixelCache(cache.root, RULES, max_bytes=path.stat().st_size)
    assert "1.8 MB of decoded images, room for 0.0 MB" in str(full.make_room(1000, []))
    assert "room" in str(full.make_room(10, [path.name]))  # it is needed itself
    assert path.exists()
    unused_since(path, 1)  # a run may be about to map it
    assert "room" in str(full.make_room(20, []))
    assert path.exists()
    beside = tmp_path / "file"
    beside.touch()
    assert "cannot be made" in str(PixelCache(str(beside), RULES).make_room(1, []))


def test_nothing_that_others_keep_in_the_folder_is_ever_removed(cache: PixelCache, rows: pa.Table) -> None:
    """--cache may be any folder: of models, reports, manifests."""
    path = put(cache, rows)
    alike = f"{'0' * 32}.pixels"  # even a name as ours
    names = ("models/best.onnx", "report/metrics.json", "run/model.safetensors", f"report/a.json{TEMPORARY}b", alike)
    theirs = [Path(cache.root, name) for name in (*names, f"run/{alike}", f"leukoray-cache/{alike}")]
    theirs.append(path.with_name("notes.json"))
    for file in (*theirs, path):
        file.parent.mkdir(exist_ok=True)
        file.touch()
        unused_since(file, 365 * 24 * 3600)
    assert PixelCache(cache.root, RULES, max_bytes=1 << 20).make_room(570, []) is None
    assert [file for file in theirs if not file.exists()] == []
    assert not path.exists()


def test_a_warm_cache_asks_for_no_room(cache: PixelCache, rows: pa.Table) -> None:
    path = put(cache, rows)
    unused_since(path, 3600)
    assert PixelCache(cache.root, RULES, max_bytes=0).make_room(0, [path.name]) is None


def test_what_was_left_half_written_is_swept_when_it_is_old(cache: PixelCache, rows: pa.Table) -> None:
    path = put(cache, rows)
    fresh, old = (path.with_name(f"{path.name}{TEMPORARY}{name}") for name in ("0123456789ab", "ba9876543210"))
    for file in (fresh, old):
        file.write_bytes(path.read_bytes()[:1000])
    unused_since(old, 2 * 24 * 3600)
    assert found(cache, rows) == set(rows["image_id"].to_pylist())
    assert cache.make_room(1, [path.name]) is None
    assert fresh.exists() and not old.exists()


def test_a_disk_that_does_not_take_a_file_ends_with_the_way_on(cache: PixelCache, rows: pa.Table) -> None:
    cache.folder.parent.mkdir(parents=True)
    cache.folder.write_bytes(b"")
    with pytest.raises(PlatformError, match="give --cache a folder on a disk with room, or none"):
        put(cache, rows)


def test_a_cache_that_others_own_ends_with_the_way_on_where_a_file_is_to_be_made_anew(
    cache: PixelCache, rows: pa.Table
) -> None:
    put(cache, rows)
    (cache.folder / "lock").mkdir()  # as good as one that may not be opened, for a test that root may run
    with pytest.raises(PlatformError, match=r"cannot be made anew .*give --cache a folder of your own"), _alone(cache):
        pass


def test_only_its_owner_reads_the_cache(cache: PixelCache, rows: pa.Table) -> None:
    path = put(cache, rows)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_the_cache_lies_where_the_desktop_specification_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast/disk")
    assert default_root() == "/fast/disk/leukoray/pixels"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/paths/are/ignored")
    monkeypatch.setenv("HOME", "/home/lab")
    assert default_root() == "/home/lab/.cache/leukoray/pixels"


def listed(uris: list[str], offsets: list[int], access: str) -> pa.Table:
    ids = pa.array(np.random.default_rng(0).integers(0, 2**62, len(uris)), pa.int64())
    return pa.table({"image_id": ids, "uri": uris, "offset": offsets, "access": [access] * len(uris)})


def test_files_are_cut_by_place_so_that_new_images_lie_together() -> None:
    table = listed(["a.tar"] * 300 + ["b.tar"] * 300, [*range(600)], "range").take(
        pa.array(np.random.default_rng(1).permutation(600))
    )
    parts = chunks(table, 600, 128)
    assert [part["offset"].to_pylist() for part in parts] == [[*range(at, at + 75)] for at in range(0, 600, 75)]
    assert [part.num_rows for part in chunks(table.slice(0, 3), 603, 128)] == [3]


def test_a_file_is_bounded_in_images_and_bytes_but_a_compressed_tar_is_read_once() -> None:
    many = listed(["s3://lab/x"] * 10_000, [*range(10_000)], "range")
    assert max(part.num_rows for part in chunks(many, 10_000, 64)) == 512
    assert max(part.num_rows for part in chunks(many, 10_000, 1024)) == 10
    tars = listed(["b.tar.gz", "a.tar.gz"] * 600, [*range(1200)], "stream")
    assert [set(part["uri"].to_pylist()) for part in chunks(tars, 1200, 64)] == [{"b.tar.gz"}, {"a.tar.gz"}]


def test_reading_ahead_keeps_the_order_and_the_errors_in_their_turn() -> None:
    def items() -> Any:
        yield from range(5)
        raise PlatformError("the store is out")

    taken = []
    with pytest.raises(PlatformError, match="is out"):
        for item in read_ahead(items()):
            taken.append(item)
    assert taken == [0, 1, 2, 3, 4]


def test_reading_ahead_is_bounded_and_ends_with_its_reader() -> None:
    made: list[int] = []

    def items() -> Any:
        for number in range(10_000):
            made.append(number)
            yield number

    reader = read_ahead(items())
    assert next(reader) == 0
    time.sleep(0.1)
    assert len(made) <= 5
    reader.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "read-ahead"]
