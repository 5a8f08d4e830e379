"""Compressed tars are read once from their front: what that gives, how it resumes, and what the next run reads."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import Code, IncompleteError
from pipeline.model.bundle import Bundle
from pipeline.scoring.run_folder import PARTS, WORK, RunFolder, chunk_file
from pipeline.scoring.work.crashes import Suspects, find_culprits
from pipeline.scoring.work.stream import ReadRules
from pipeline.sources.archives.members import Place
from pipeline.storage.local import LocalStore
from pipeline.storage.stores import Stores
from pipeline.storage.types import OnFailure
from tests.bundles import make_bundle
from tests.scoring_sources import Here, contents, picture, tar
from tests.scoring_sources import score_here as score
from tests.searches import search

SAME = ("image_id", "uri", "member", "size_bytes", "width", "height", "probability", "subject_id")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle"), size=16)


def tgz(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar(files, mode))
    return path


def rows(folder: RunFolder, kind: str) -> pa.Table:
    files = sorted(Path(folder.uri, kind).glob("*.parquet"))
    return pa.concat_tables([pq.ParquetFile(file).read() for file in files]).sort_by(
        "uri" if kind == "archives" else "image_id"
    )


class CountingDisk(LocalStore):
    """The disk, counting how often each file is opened."""

    def __init__(self) -> None:
        self.opened: list[str] = []

    def open(self, uri: str, on_failure: OnFailure | None = None) -> io.BufferedReader:
        self.opened.append(Path(uri).name)
        return super().open(uri, on_failure)


class FailingDisk(LocalStore):
    """The disk of a process that is killed when it writes for the fourth time."""

    def __init__(self) -> None:
        self.writes = 0

    def write(self, uri: str, data: bytes) -> None:
        self.writes += 1
        if self.writes == 4:
            raise KeyboardInterrupt
        super().write(uri, data)


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_an_archive_is_read_once_and_gives_the_rows_of_a_plain_one(mode: str, bundle: Bundle, tmp_path: Path) -> None:
    disk = CountingDisk()
    files = {f"cells/{name}": data for name, data in contents(90).items()}
    night = tgz(tmp_path / "in" / f"night.tar.{mode}", files, f"w:{mode}")
    plain = tgz(tmp_path / "plain" / "night.tar", files, "w")
    pattern = r"(S\d{3})_"
    stores = Stores(mounts=(("/", disk),))
    streamed, run = score([night.parent], bundle, tmp_path / "a", stores=stores, chunk_rows=16, subject_pattern=pattern)
    assert disk.opened.count(night.name) == 1
    ranged, other = score([plain.parent], bundle, tmp_path / "b", "run", subject_pattern=pattern)
    assert run["counts"] == {**other["counts"]} and run["counts"]["listed"] == 90
    for kind in ("predictions", "quarantine"):
        found, expected = rows(streamed, kind), rows(ranged, kind)
        names = [name for name in SAME if name in found.column_names and name not in ("image_id", "uri")]
        assert found.select(names).sort_by("member") == expected.select(names).sort_by("member")
    assert run["progress"]["images"] == 90
    assert not Path(streamed.file(WORK)).exists()


def test_a_bug_of_ours_on_a_sound_archive_ends_the_run_and_blames_no_image(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("planted")

    tgz(tmp_path / "in" / "night.tgz", contents(20))
    monkeypatch.setattr(Place, "entry", broken)
    with pytest.raises(KeyError, match="planted"):
        score([tmp_path / "in"], bundle, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("quarantine*"))


def test_the_next_run_opens_no_archive_that_is_unchanged(bundle: Bundle, tmp_path: Path) -> None:
    disk = CountingDisk()
    source, out = tmp_path / "in", tmp_path / "out"
    tgz(source / "a.tgz", contents(50))
    tgz(source / "b.tgz", {f"b{n}.jpg": picture(n) for n in range(20)})
    score([source], bundle, out, "run-1")
    (source / "b.tgz").unlink()
    tgz(source / "c.tgz", {"c.jpg": picture(1)})
    second, run = score([source], bundle, out, "run-2", stores=Stores(mounts=(("/", disk),)))
    assert [name for name in disk.opened if name.endswith(".tgz")] == ["c.tgz"]
    counts = run["counts"]
    assert (counts["listed"], counts["scored"], counts["skipped"], counts["deleted_at_source"]) == (51, 1, 50, 20)
    assert counts["skipped_reasons"] == {"unchanged": 48, "unchanged_quarantined": 2}
    assert set(rows(second, "deleted")["uri"].to_pylist()) == {str(source / "b.tgz")}
    _, third = score([source], bundle, out, "run-3")
    assert third["counts"]["skipped"] == 51 and third["counts"]["deleted_at_source"] == 0


def test_a_changed_archive_is_read_anew(bundle: Bundle, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    tgz(source / "a.tgz", contents(20, bad=False))
    score([source], bundle, out, "run-1")
    tgz(source / "a.tgz", contents(21, bad=False))
    _, run = score([source], bundle, out, "run-2")
    assert (run["counts"]["scored"], run["counts"]["skipped"]) == (21, 0)
    assert run["counts"]["deleted_at_source"] == 0, "nobody had looked into it when the listing was done"


@pytest.mark.parametrize("first", [{"limit": 7}, {"include": ("*0.jpg",)}, {"exclude": ("S000_*",)}])
def test_what_an_earlier_run_did_of_an_archive_is_not_done_again(
    first: dict[str, Any], bundle: Bundle, tmp_path: Path
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    tgz(source / "a.tgz", contents(40))
    _, part = score([source], bundle, out, "run-1", **first)
    done = part["counts"]["listed"]
    assert 0 < done < 40
    _, run = score([source], bundle, out, "run-2")
    assert (run["counts"]["listed"], run["counts"]["skipped"]) == (40, done)
    _, third = score([source], bundle, out, "run-3")
    assert (third["counts"]["listed"], third["counts"]["skipped"]) == (40, 40)
    folders = [RunFolder.at(str(out / name), Stores()) for name in ("run-1", "run-2")]
    ids = [row for folder in folders for row in rows(folder, "predictions")["image_id"]]
    assert len(ids) == len(set(ids)) == 39


def test_rescore_and_another_threshold_read_it_again(bundle: Bundle, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    tgz(source / "a.tgz", contents(10, bad=False))
    score([source], bundle, out, "run-1")
    _, again = score([source], bundle, out, "run-2", rescore=True)
    _, other = score([source], bundle.with_threshold(0.9), out, "run-3")
    _, last = score([source], bundle, out, "run-4")
    assert [run["counts"]["scored"] for run in (again, other, last)] == [10, 10, 0]
    assert last["counts"]["skipped"] == 10


def test_a_retry_reads_only_what_was_quarantined_in_an_archive(bundle: Bundle, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    tgz(source / "a.tgz", contents(40))
    first, _ = score([source], bundle, out, "run-1")
    _, run = score([source], bundle, out, "run-2", retry_of=first.uri)
    assert run["counts"]["listed"] == run["counts"]["quarantined"] == 1


def test_an_interrupted_archive_starts_over_and_gives_the_same(bundle: Bundle, tmp_path: Path) -> None:
    source = tmp_path / "in"
    tgz(source / "a.tgz", contents(50))
    whole, _ = score([source], bundle, tmp_path / "whole", chunk_rows=8)
    here = Here.plan([source], bundle, tmp_path / "out", chunk_rows=8)
    killed = replace(here.task, folder=RunFolder(here.task.folder.uri, FailingDisk()))
    with pytest.raises(KeyboardInterrupt):
        replace(here, task=killed).work()
    folder = here.task.folder
    assert len(list(Path(folder.file(PARTS)).iterdir())) == 3
    with pytest.raises(IncompleteError, match="run the same command again"):
        here.finish()
    here.finish(here.work())
    for kind in ("predictions", "quarantine"):
        columns = [name for name in (*SAME, "code") if name in rows(whole, kind).column_names]
        assert rows(folder, kind).select(columns) == rows(whole, kind).select(columns)


def test_a_missing_piece_of_an_archive_stops_the_commit(bundle: Bundle, tmp_path: Path) -> None:
    tgz(tmp_path / "in" / "a.tgz", contents(30))
    here = Here.plan([tmp_path / "in"], bundle, tmp_path / "out", chunk_rows=8)
    here.work()
    piece = Path(here.task.folder.file(chunk_file(0, 1)))
    pq.write_table(pq.read_table(piece).slice(1), piece)
    with pytest.raises(IncompleteError, match="29 rows, 30 listed"):
        here.finish()


def test_a_piece_of_another_version_of_the_archive_stops_the_commit(bundle: Bundle, tmp_path: Path) -> None:
    tgz(tmp_path / "in" / "a.tgz", contents(30))
    here = Here.plan([tmp_path / "in"], bundle, tmp_path / "out", chunk_rows=8)
    here.work()
    piece = Path(here.task.folder.file(chunk_file(0, 1)))
    table = pq.read_table(piece)
    index = table.schema.get_field_index("etag")
    pq.write_table(table.set_column(index, table.schema.field(index), pa.array(["other"] * table.num_rows)), piece)
    with pytest.raises(IncompleteError, match=r"images of another version of .*a\.tgz"):
        here.finish()


@pytest.mark.parametrize("change", ["cut", "replaced", "gone", "empty"])
def test_an_archive_that_fails_is_a_row_with_a_code(change: str, bundle: Bundle, tmp_path: Path) -> None:
    path = tgz(tmp_path / "in" / "a.tgz", contents(30, bad=False))
    whole = path.read_bytes()
    if change in ("cut", "empty"):
        path.write_bytes(whole[: len(whole) // 2] if change == "cut" else b"")
    here = Here.plan([path.parent], bundle, tmp_path / "out")
    if change == "replaced":
        tgz(path, contents(5))
    elif change == "gone":
        path.unlink()
    run = here.finish(here.work())
    counts = run["counts"]
    code = {"cut": "truncated", "replaced": "changed", "gone": "not_found", "empty": "empty"}[change]
    assert counts["codes"] == ({code: 1} if change == "cut" else {}), "the member that was cut; the archive is no image"
    assert (counts["uncounted"], run["status"]) == (1, "incomplete")
    [whole_archive] = [row for row in rows(here.task.folder, "quarantine").to_pylist() if row["is_uncounted"]]
    assert (whole_archive["code"], whole_archive["uri"], whole_archive["member"]) == (code, str(path), None)
    assert counts["listed"] == counts["scored"] + counts["quarantined"]
    assert (counts["scored"] > 5) == (change == "cut")
    [noted] = rows(here.task.folder, "archives").to_pylist()
    assert noted["is_complete"] == (Code(code) in (Code.TRUNCATED, Code.EMPTY))


def test_members_are_filtered_and_their_sidecars_become_columns(bundle: Bundle, tmp_path: Path) -> None:
    files = {f"{kind}/{n}.{end}": data for kind in ("a", "b") for n in range(3)
             for end, data in (("jpg", picture(n)), ("cls", str(n).encode()))}  # fmt: skip
    tgz(tmp_path / "in" / "x.tgz", files)
    folder, run = score([tmp_path / "in"], bundle, tmp_path / "out", "run", include=("*a/*",))
    assert (run["counts"]["scored"], run["counts"]["left_out"]) == (3, {"not in --include": 3, ".cls": 6})
    assert rows(folder, "predictions")["meta_cls"].to_pylist().count("2") == 1


def test_the_images_of_a_shard_are_had_again_to_look_for_a_culprit(bundle: Bundle, tmp_path: Path) -> None:
    tgz(tmp_path / "in" / "x.tgz", contents(12, bad=False))
    (tmp_path / "in" / "loose.jpg").write_bytes(picture(1))
    task = Here.plan([tmp_path / "in"], bundle, tmp_path / "out").task
    suspects = Suspects(task.folder, task.stores, ReadRules.of(task.request), bundle)
    shards = {len(suspects.ids(number)): number for number in range(task.plan.shards)}
    assert set(shards) == {1, 12}
    for count, number in shards.items():
        ids = suspects.ids(number)
        assert len(set(ids)) == count
        for use in (suspects.decode, suspects.predict):
            assert use(number, frozenset(ids[3:5] or ids)) == min(count, 2)
        assert suspects.decode(number, frozenset()) == 0


@given(st.sets(st.integers(0, 200)), st.sets(st.integers(0, 200)))
def test_the_search_finds_every_culprit_and_blames_no_other(ids: set[int], culprits: set[int]) -> None:
    found = find_culprits(sorted(ids), lambda group: culprits.isdisjoint(group))
    assert found == sorted(ids & culprits)


def test_who_fails_once_only_is_no_culprit() -> None:
    asked: list[list[int]] = []

    def survives(group: list[int]) -> bool:
        asked.append(group)
        return asked.count(group) > 1

    assert find_culprits([1, 2, 3], survives) == []


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4), chunk=st.integers(1, 50))
@search(15)
def test_every_member_is_accounted_for_however_archives_are_cut_into_pieces(
    sizes: list[int], chunk: int, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    for index, size in enumerate(sizes):
        tgz(folder / "in" / f"{index}.tgz", {f"{n}.jpg": b"no image" for n in range(size)})
    (folder / "in" / "loose.jpg").write_bytes(b"no image")
    written, run = score([folder / "in"], bundle, folder / "out", chunk_rows=chunk)
    assert run["counts"]["listed"] == run["counts"]["quarantined"] == sum(sizes) + 1
    assert len(set(rows(written, "quarantine")["image_id"].to_pylist())) == sum(sizes) + 1
    assert sum(rows(written, "archives")["images"].to_pylist()) == sum(sizes)
