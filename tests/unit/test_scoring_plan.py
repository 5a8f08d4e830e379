"""What a run is frozen to: every image in one shard, and which run a command continues."""

import json
from pathlib import Path

import pytest

from pipeline.base.errors import InputError
from pipeline.model.bundle import Bundle
from pipeline.scoring.plan.plan import find_or_start
from pipeline.scoring.plan.shards import Shards, read_shard, shard_size
from pipeline.scoring.request import Request, RunOptions, Workforce
from pipeline.scoring.run import score
from pipeline.scoring.run_folder import Output, RunFolder
from pipeline.scoring.schemas import ShardRow
from pipeline.sources.rows import Access, image_id
from pipeline.storage.stores import Stores
from tests.bundles import make_bundle
from tests.scoring_sources import contents, score_here, tar, write_files


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle"), size=16)


def row(uri: str, number: int, access: Access) -> ShardRow:
    name = f"{number}.jpg"
    return ShardRow(image_id(uri, name), uri, name, access, number, 1, 1, "etag", None, None, ())


def shards_of(folder: Path, rows: list[ShardRow]) -> list[list[ShardRow]]:
    run = RunFolder.at(str(folder), Stores())
    shards = Shards(run)
    for item in rows:
        shards.add(item)
    shards.close()
    found = [read_shard(run, number) for number in range(len(shards.images))]
    assert [len(shard) for shard in found] == shards.images
    assert sorted(item.image_id for shard in found for item in shard) == sorted(item.image_id for item in rows)
    return found


def test_shards_are_small_at_first_and_grow_with_the_run(tmp_path: Path) -> None:
    sizes = [len(shard) for shard in shards_of(tmp_path, [row("a.tar", n, Access.RANGE) for n in range(2_500)])]
    assert sizes == [64] * 32 + [256, 196]
    assert [shard_size(rows) for rows in (0, 2_047, 2_048, 499_999, 500_000)] == [64, 64, 256, 256, 2_048]


def test_an_archive_that_is_read_from_its_front_stays_in_one_shard(tmp_path: Path) -> None:
    rows = [row(uri, n, Access.STREAM) for n in range(300) for uri in ("a.tgz", "b.tgz")]
    found = shards_of(tmp_path, [*rows, *(row("c.tar", n, Access.RANGE) for n in range(70))])
    assert sorted(len(shard) for shard in found) == [6, 64, 300, 300]
    assert all(len({item.uri for item in shard}) == 1 for shard in found)


def test_rows_held_back_for_their_archive_are_bounded_and_the_largest_goes_first(tmp_path: Path) -> None:
    large = [row("large.tgz", n, Access.STREAM) for n in range(15_000)]
    small = [row("small.tgz", n, Access.STREAM) for n in range(5_001)]
    found = shards_of(tmp_path, [*large, *small, *(row("large.tgz", n, Access.STREAM) for n in range(15_000, 15_010))])
    assert [(shard[0].uri, len(shard)) for shard in found] == [
        ("large.tgz", 15_000), ("small.tgz", 5_001), ("large.tgz", 10),
    ]  # fmt: skip


def test_a_command_continues_the_unfinished_run_of_its_own_request(bundle: Bundle, tmp_path: Path) -> None:
    source, out = write_files(tmp_path / "in", contents(4, bad=False)), tmp_path / "out"
    score_here([source], bundle, out, "run-1")
    output = Output.at(str(out), Stores())
    mine, theirs = (Request((str(source),), bundle.uri, bundle.info.identity(), limit=limit) for limit in (None, 2))
    for request, run_id in ((theirs, "run-2"), (mine, "run-3")):
        folder, continues = find_or_start(output, request, run_id)
        assert (folder.run_id, continues) == (run_id, False)
    for request, run_id in ((theirs, "run-2"), (mine, "run-3")):
        folder, continues = find_or_start(output, request, None)
        assert (folder.run_id, continues) == (run_id, True)
    with pytest.raises(InputError, match=r"run-1: this run is complete"):
        find_or_start(output, mine, "run-1")
    with pytest.raises(InputError, match=r"run-2: an unfinished run of another request"):
        find_or_start(output, mine, "run-2")


@pytest.mark.parametrize("name", ["cell.jpg", "skipped/mine.parquet", "predictions/part-00000.parquet", "run.json"])
def test_a_folder_of_others_is_neither_adopted_nor_touched(name: str, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    source = write_files(tmp_path / "full", contents(2, bad=False))
    theirs = tmp_path / "out" / "photos"
    write_files(theirs, {name: b"{}"})
    for sources in (tmp_path / "in", source):
        request = Request((str(sources),), bundle.uri, bundle.info.identity())
        with pytest.raises(InputError, match="photos: holds files that are of no scoring run"):
            score(str(tmp_path / "out"), request, bundle, RunOptions(Workforce(1), run_id="photos"), Stores(), print)
        assert [path for path in theirs.rglob("*") if path.is_file()] == [theirs / name]
    folder, _ = find_or_start(Output.at(str(tmp_path / "out"), Stores()), request, None)
    assert folder.run_id.startswith("run-2")


@pytest.mark.parametrize("put", [None, "notes.txt"])
def test_a_run_without_anything_to_do_leaves_nothing_but_what_others_put_there(
    put: str | None, bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "readme.md").write_text("no image")
    run = tmp_path / "out" / "run-1"
    request = Request((str(tmp_path / "in"),), bundle.uri, bundle.info.identity())
    write_files(run, {"_work/.request.json.tmp-0123456789ab": b"{"})  # killed in its first moment
    if put is not None:
        find_or_start(Output.at(str(tmp_path / "out"), Stores()), request, "run-1")
        (run / put).write_text("mine")
    with pytest.raises(InputError, match="no images found"):
        score(str(tmp_path / "out"), request, bundle, RunOptions(Workforce(1), run_id="run-1"), Stores(), print)
    assert {path.name for path in run.parent.rglob("*")} == ({"_lock"} if put is None else {"_lock", "run-1", put})


def test_what_a_killed_writer_left_is_gone_once_the_run_is_done(bundle: Bundle, tmp_path: Path) -> None:
    source, run = write_files(tmp_path / "in", contents(3, bad=False)), tmp_path / "out" / "run-1"
    left = [
        "predictions/.part-00000.parquet.tmp-0123456789ab",
        "predictions/k=v/part-00000.parquet.tmp-0123456789ab",  # of version 0.1
    ]
    write_files(run, dict.fromkeys([*left, "predictions/notes.tmp-1"], b"half"))
    score_here([source], bundle, tmp_path / "out", "run-1")
    assert not any((run / name).exists() for name in left) and (run / "predictions/notes.tmp-1").exists()


def test_the_next_night_scores_nothing_that_is_unchanged(bundle: Bundle, tmp_path: Path) -> None:
    source, out = write_files(tmp_path / "in", contents(5, bad=False)), tmp_path / "out"
    score_here([source], bundle, out, "run-1")
    _, second = score_here([source], bundle, out, "run-2")
    assert (second["counts"]["scored"], second["counts"]["skipped"]) == (0, 5)


def test_images_behind_what_is_none_are_listed_in_an_archive_that_was_done_in_part(
    bundle: Bundle, tmp_path: Path
) -> None:
    files = contents(4, bad=False)
    names = sorted(files)
    files = (
        {name: files[name] for name in names[:2]} | {"readme.md": b"text"} | {name: files[name] for name in names[2:]}
    )
    source, out = write_files(tmp_path / "in", {"a.tgz": tar(files, "w:gz")}), tmp_path / "out"
    score_here([source], bundle, out, "run-1", limit=1)
    _, second = score_here([source], bundle, out, "run-2")
    assert (second["counts"]["scored"], second["counts"]["skipped"]) == (3, 1)
    assert second["counts"]["left_out"] == {".md": 1}


def test_a_listing_that_was_cut_short_leaves_nothing_to_the_next_try(bundle: Bundle, tmp_path: Path) -> None:
    source, out = write_files(tmp_path / "in", contents(5, bad=False)), tmp_path / "out"
    score_here([source], bundle, out, "run-1")
    write_files(
        out / "run-2", {"skipped/part-00007.parquet": b"of a larger listing", "deleted/part-00000.parquet": b""}
    )
    score_here([source], bundle, out, "run-2")
    noted = {item["name"] for item in json.loads((out / "run-2" / "parts.json").read_text())}
    assert {str(path.relative_to(out / "run-2")) for path in (out / "run-2").rglob("*.parquet")} == noted
