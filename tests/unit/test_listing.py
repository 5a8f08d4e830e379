"""Listing: whatever lies in a source is an entry, a problem with a code, or counted; memory stays bounded."""

import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jobs.ingest
from pipeline.base.errors import Code, InputError, UsageError
from pipeline.ingest.draft import ingest
from pipeline.sources import folders
from pipeline.sources.archives import Entry, Problem
from pipeline.sources.fetch import fetch_rows
from pipeline.sources.filters import Filters, UriPattern, parse_since
from pipeline.sources.listing import Tally, base_folder, entry_row, list_named, list_sources, path_below
from pipeline.sources.manifest import MANIFEST_SCHEMA, Counts, ManifestInfo, read_manifest, write_manifest
from pipeline.sources.objects import ListingOptions
from pipeline.sources.opening import expand
from pipeline.sources.rows import LISTING_SCHEMA, to_table
from pipeline.storage.local import LocalStore
from pipeline.storage.parquet import described
from pipeline.storage.stores import Stores
from pipeline.storage.types import Level, ObjectInfo
from tests.searches import search
from tests.unit.test_archives import tar_bytes, zip_bytes

ODD_NAMES = [
    "with space.jpg",
    "ünï-漢字.png",
    "new\nline.jpg",
    "100%.jpg",
    "%41.jpg",
    "a" * 240 + ".jpg",
    "[x]*.jpg",
    "'\".tif",
]


def put(path: Path, data: bytes = b"image") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def listed(*sources: Path | str, **options: Any) -> tuple[list[Entry], list[Problem], Tally]:
    tally = Tally()
    found = list(list_sources([str(source) for source in sources], tally, **options))
    entries = [item for item in found if isinstance(item, Entry)]
    problems = [item for item in found if isinstance(item, Problem)]
    assert (tally.images, tally.problems) == (len(entries), len(problems))
    return entries, problems, tally


def save_manifest(out: Path, source: Path) -> None:
    """Without labels."""
    table = to_table([entry_row(entry) for entry in listed(source)[0]], LISTING_SCHEMA)
    for field in list(MANIFEST_SCHEMA)[table.num_columns :]:
        table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    write_manifest(str(out), [table], ManifestInfo())


def names(entries: list[Entry]) -> list[str]:
    return sorted(entry.uri.rsplit("/", 1)[-1] for entry in entries)


# ---- names and folders -------------------------------------------------------------------------------------


def test_odd_names_are_listed_and_read(tmp_path: Path) -> None:
    for number, name in enumerate(ODD_NAMES):
        put(tmp_path / "d e" / name, bytes([number]))
    entries, problems, _ = listed(tmp_path)
    assert names(entries) == sorted(ODD_NAMES)
    assert problems == []
    data = {item.row.uri: item.data for item in fetch_rows([entry_row(entry) for entry in entries])}
    assert data == {str(tmp_path / "d e" / name): bytes([number]) for number, name in enumerate(ODD_NAMES)}


def test_names_that_are_no_utf8_are_listed_read_and_stored_in_a_manifest(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/healthy\xfe"
    os.mkdir(folder)
    for name in (b"caf\xe9.jpg", b"caf\xe8.jpg"):
        with open(folder + b"/" + name, "wb") as file:
            file.write(name)
    entries, problems, _ = listed(tmp_path)
    assert problems == []
    rows = [entry_row(entry) for entry in entries]
    assert {item.data for item in fetch_rows(rows)} == {b"caf\xe9.jpg", b"caf\xe8.jpg"}
    draft = ingest([str(tmp_path)])
    assert draft.table.num_rows == 2
    assert draft.listing.paths[0].startswith("healthy")


def test_a_path_of_a_thousand_characters_is_listed(tmp_path: Path) -> None:
    path = put(tmp_path.joinpath(*["deep" * 25] * 11) / "x.jpg")
    assert len(str(path)) > 1000
    assert names(listed(tmp_path)[0]) == ["x.jpg"]


def test_symbolic_links_are_followed_but_loops_end(tmp_path: Path) -> None:
    put(tmp_path / "real" / "x.jpg")
    (tmp_path / "real" / "up").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "real")
    (tmp_path / "file.jpg").symlink_to(tmp_path / "real" / "x.jpg")
    entries, problems, tally = listed(tmp_path)
    assert [entry.uri for entry in entries] == [str(tmp_path / "real" / "x.jpg")]
    assert problems == [] and tally.left_out["link to a file that is listed"] == 1
    assert tally.left_out["folder reached twice by a link"] == 2


def test_a_link_to_what_is_listed_gives_no_second_image_wherever_it_points_tonight(tmp_path: Path) -> None:
    """Also where it leads from one source into another, and where one source is a link to the other."""
    for name in ("P1/1.jpg", "P2/2.jpg"):
        put(tmp_path / "a" / name)
    put(tmp_path / "b" / "3.jpg")
    put(tmp_path / "elsewhere" / "4.jpg")
    (tmp_path / "b" / "4.jpg").symlink_to(tmp_path / "elsewhere" / "4.jpg")
    (tmp_path / "b" / "5.jpg").symlink_to(tmp_path / "a" / "notes.bak")  # no image by its own name
    put(tmp_path / "a" / "notes.bak", b"text")
    (tmp_path / "c").symlink_to(tmp_path / "a")
    found = []
    for latest in ("P1", "P2"):
        for link, target in (
            ("a/Latest", latest),
            ("a/latest", latest),
            ("b/all", "../a"),
            ("b/one.jpg", "../a/P1/1.jpg"),
        ):
            (tmp_path / link).unlink(missing_ok=True)
            (tmp_path / link).symlink_to(target)
        entries, problems, _ = listed(tmp_path / "a", tmp_path / "b", tmp_path / "c")
        assert problems == []
        found.append({entry.uri.removeprefix(f"{tmp_path}/") for entry in entries})
    assert found[0] == found[1] == {"a/P1/1.jpg", "a/P2/2.jpg", "b/3.jpg", "b/4.jpg", "b/5.jpg"}
    alone = names(listed(tmp_path / "b")[0])  # links are all that the source has of these
    assert alone == ["1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg", "one.jpg"]


def test_a_link_to_what_is_left_out_stays(tmp_path: Path) -> None:
    """Tools that keep the bytes in a folder of their own: git-annex, DVC."""
    for name in (".git/annex/1.jpg", ".dvc/cache/2.jpg", "old/3.jpg"):
        put(tmp_path / name)
        (tmp_path / name[-5:]).symlink_to(tmp_path / name)
    (tmp_path / "snapshot").symlink_to(tmp_path / ".dvc" / "cache")
    entries, _, _ = listed(tmp_path, filters=Filters(exclude=("old/*",)))
    assert sorted(entry.uri.removeprefix(f"{tmp_path}/") for entry in entries) == [
        "1.jpg", "2.jpg", "3.jpg", "snapshot/2.jpg",
    ]  # fmt: skip


def test_filters_see_the_path_of_a_name_that_is_no_utf_8(tmp_path: Path) -> None:
    for folder in ("siteA", "siteB"):
        (tmp_path / folder).mkdir()
        Path(os.fsdecode(os.fsencode(tmp_path / folder) + b"/caf\xe9.jpg")).write_bytes(b"1")
    for filters in (Filters(include=("siteA/*",)), Filters(exclude=("siteB/*",)), Filters(include=("siteA/caf?.jpg",))):
        [entry], problems, _ = listed(tmp_path, filters=filters)
        assert entry.uri == f"file://{tmp_path}/siteA/caf%E9.jpg" and problems == []
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9")
    os.mkdir(folder)
    Path(folder, "x.jpg").write_bytes(b"1")
    [entry], _, _ = listed(folder, filters=Filters(include=("x.jpg",)))
    assert entry.uri == f"file://{tmp_path}/%E9/x.jpg"


def test_an_empty_folder_is_no_source_as_an_empty_prefix_is_none(tmp_path: Path) -> None:
    (tmp_path / "nas").mkdir()
    put(tmp_path / "local" / "x.jpg")
    with pytest.raises(InputError, match="nas: is an empty folder; if a disk belongs there, mount it"):
        listed(tmp_path / "nas", tmp_path / "local")
    assert names(listed(tmp_path / "*")[0]) == ["x.jpg"]  # a pattern may match one


def test_a_broken_link_is_a_problem(tmp_path: Path) -> None:
    put(tmp_path / "x.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    entries, problems, _ = listed(tmp_path)
    assert names(entries) == ["x.jpg"]
    assert [problem.code for problem in problems] == [Code.NOT_FOUND]


@pytest.fixture
def folder_of_a_user() -> Iterator[Path]:
    """A folder of somebody whom permissions hold back: root becomes nobody meanwhile."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        if user == 0:
            os.chown(name, 65534, -1)
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(user)


def test_a_folder_that_refuses_is_a_problem_and_the_rest_is_listed(folder_of_a_user: Path) -> None:
    put(folder_of_a_user / "open" / "x.jpg")
    (put(folder_of_a_user / "closed" / "y.jpg").parent).chmod(0)
    entries, problems, _ = listed(folder_of_a_user)
    assert names(entries) == ["x.jpg"]
    assert [problem.code for problem in problems] == [Code.ACCESS_DENIED]
    (folder_of_a_user / "closed").chmod(0o700)


def test_a_folder_that_refuses_the_listing_call_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "open" / "x.jpg")
    put(tmp_path / "closed" / "y.jpg")
    listdir = os.listdir

    def refusing(path: str) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return listdir(path)

    monkeypatch.setattr(folders.os, "listdir", refusing)
    entries, problems, _ = listed(tmp_path)
    assert names(entries) == ["x.jpg"]
    assert [problem.code for problem in problems] == [Code.ACCESS_DENIED]


def test_files_of_file_managers_and_other_kinds_are_counted_by_reason(tmp_path: Path) -> None:
    for name in (
        "x.jpg",
        ".y.jpg",
        "._x.jpg",
        ".DS_Store",
        ".ipynb_checkpoints/x.jpg",
        ".z/z.jpg",
        "notes.txt",
        "README",
    ):
        put(tmp_path / name)
    entries, _, tally = listed(tmp_path)
    assert names(entries) == [".y.jpg", "x.jpg", "z.jpg"]
    assert tally.left_out == {"a program's own": 3, ".txt": 1, "no suffix": 1}


RUBBISH = (
    "@eaDir/x.jpg@SynoEAStream/x.jpg", "#recycle/x.jpg", "$RECYCLE.BIN/S-1/x.jpg", ".snapshot/0/x.jpg", ".zfs/s/x.jpg",
    ".stversions/x~1.jpg", ".DS_x.jpg", "._x.jpg", "a/Thumbs.db", "System Volume Information/x.jpg", "@Recycle/x.jpg",
    ".@__thumb/x.jpg", "__MACOSX/._x.jpg", ".Trash-1000/files/x.jpg", "lost+found/x.jpg", "night/@eadir/x.jpg",
    ".AppleDouble/x.jpg", "~snapshot/x.jpg", ".ipynb_checkpoints/x.jpg",
)  # fmt: skip


@pytest.mark.parametrize("packed", ["folder", "tar", "tgz", "zip"])
def test_what_network_disks_and_desktops_leave_is_left_out_and_counted(packed: str, tmp_path: Path) -> None:
    kept = ["x.jpg", "snapshot/x.jpg", "recycle/x.jpg", "a@eaDir/x.jpg", ".hidden/x.jpg"]
    members = [(name, b"x") for name in (*RUBBISH, *kept)]
    if packed == "folder":
        for name, _ in members:
            put(tmp_path / name)
    else:
        packer = {"tar": tar_bytes, "tgz": lambda each: tar_bytes(each, "w:gz"), "zip": zip_bytes}[packed]
        put(tmp_path / f"a.{packed}", packer(members))
    entries, problems, tally = listed(tmp_path)
    found = {entry.member or Path(entry.uri).relative_to(tmp_path).as_posix() for entry in entries}
    assert found == set(kept) and problems == []
    assert sum(tally.left_out.values()) == len(RUBBISH)


UNREAD = ("a.svs", "b/B.NDPI", "c.czi", "d.nef", "e.psd", "f.jxl", "g.lif")
READ = ("x.jpg", "a.jp2", "b.avif", "c.heic", "d.dcm", "e.ppm", "IM000001", "1.2.840.113619.2.55.3.7")


@pytest.mark.parametrize("packed", ["folder", "tar", "tgz", "zip"])
def test_images_of_formats_that_are_not_read_are_problems_and_never_left_out(packed: str, tmp_path: Path) -> None:
    members = [(name, b"image") for name in (*UNREAD, *READ, "notes.txt", "README")]
    if packed == "folder":
        for name, data in members:
            put(tmp_path / name, data)
    else:
        packer = {"tar": tar_bytes, "tgz": lambda each: tar_bytes(each, "w:gz"), "zip": zip_bytes}[packed]
        put(tmp_path / f"a.{packed}", packer(members))

    def found(kinds: list[Any]) -> set[str]:
        return {kind.member or Path(kind.uri).relative_to(tmp_path).as_posix() for kind in kinds}

    entries, problems, tally = listed(tmp_path)
    assert (found(entries), found(problems)) == (set(READ), set(UNREAD))
    assert {problem.code for problem in problems} == {Code.UNSUPPORTED_FORMAT}
    assert sum(tally.left_out.values()) == 2
    assert all(problem.size_bytes == 5 and problem.etag for problem in problems)
    entries, problems, tally = listed(tmp_path, filters=Filters(include=("*.jpg",)))
    assert (found(entries), problems) == ({"x.jpg"}, [])
    entries, problems, tally = listed(tmp_path, filters=Filters(exclude=("*.svs", "*.czi")))
    assert found(problems) == set(UNREAD) - {"a.svs", "c.czi"} and tally.left_out["in --exclude"] == 2


def test_ingest_says_which_images_are_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.svs", "b.svs", "c.nef", "x.jpg", "README"):
        put(tmp_path / "in" / name)
    assert jobs.ingest.command([str(tmp_path / "in"), "--out", str(tmp_path / "m")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "NOT READ 3 files that hold images: 2 a whole slide of Aperio, 1 raw data of a camera" in said
    problems = json.loads((tmp_path / "m" / "problems.json").read_text())
    assert [problem["code"] for problem in problems] == ["unsupported_format"] * 3


def test_a_file_without_a_suffix_is_known_as_dicom_by_its_bytes_on_disk(tmp_path: Path) -> None:
    put(tmp_path / "A1B2C3", b"\0" * 128 + b"DICM" + b"\0" * 8)
    put(tmp_path / "LICENSE", b"text" * 100)
    entries, problems, tally = listed(tmp_path)
    assert (names(entries), problems, tally.left_out) == (["A1B2C3"], [], {"no suffix": 1})
    entries, _, _ = listed(tmp_path, filters=Filters(include=("LIC*",)))
    assert names(entries) == ["LICENSE"]


word = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=30)
tree = st.sets(st.tuples(word, word), min_size=1, max_size=12)


@given(files=tree)
@search(40)
def test_every_image_of_any_tree_is_listed_once(
    files: set[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("tree")
    made = {put(root / f"d{folder}" / f"n{name}.jpg") for folder, name in files}
    entries, problems, _ = listed(root)
    assert sorted(entry.uri for entry in entries) == sorted(map(str, made))
    assert problems == []


# ---- sources -----------------------------------------------------------------------------------------------


def test_overlapping_sources_list_nothing_twice(tmp_path: Path) -> None:
    put(tmp_path / "a" / "x.jpg")
    put(tmp_path / "b.jpg")
    assert names(listed(tmp_path, tmp_path / "a", tmp_path, f"{tmp_path}/a/x.jpg")[0]) == ["b.jpg", "x.jpg"]


def test_sources_with_the_same_beginning_do_not_overlap(tmp_path: Path) -> None:
    put(tmp_path / "day1" / "x.jpg")
    put(tmp_path / "day10" / "y.jpg")
    assert names(listed(tmp_path / "day1", tmp_path / "day10")[0]) == ["x.jpg", "y.jpg"]


def test_a_glob_is_every_match_and_one_without_match_is_an_error(tmp_path: Path) -> None:
    put(tmp_path / "night_1.tar", tar_bytes([("x.jpg", b"1")]))
    put(tmp_path / "night_2.tar", tar_bytes([("y.jpg", b"2")]))
    put(tmp_path / "day.jpg")
    assert sorted(str(entry.member) for entry in listed(f"{tmp_path}/night_*.tar")[0]) == ["x.jpg", "y.jpg"]
    with pytest.raises(InputError, match="matches nothing"):
        listed(f"{tmp_path}/week_*.tar")


def test_a_glob_of_folders_and_what_is_in_them_lists_nothing_twice(tmp_path: Path) -> None:
    for name in ("a.jpg", "b/c.jpg", "b/d/e.jpg"):
        put(tmp_path / name)
    for pattern in ("*", "**", "**/*", "b*", "[ab]*"):
        entries, _, _ = listed(f"{tmp_path}/{pattern}", tmp_path / "b" / "d")
        assert len({entry.uri for entry in entries}) == len(entries), pattern
    assert len(listed(f"{tmp_path}/**")[0]) == 3


def test_a_hundred_thousand_matches_of_a_glob_are_told_apart_at_once() -> None:
    many = [f"/data/{number:06d}" for number in range(100_000)] + ["/data/000007/x", "/data/0"]
    assert len(expand(many)) == 100_001


def test_an_image_that_a_table_names_and_a_folder_holds_is_listed_once(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        put(tmp_path / "in" / name)
    put(tmp_path / "z.zip", zip_bytes([("m.jpg", b"1")]))
    put(tmp_path / "t.csv", b"uri\nin/a.jpg\nz.zip\n")
    put(tmp_path / "u.csv", b"uri\nin/../in/a.jpg\n")
    given = (tmp_path / "t.csv", tmp_path / "in", tmp_path / "z.zip", tmp_path / "u.csv")
    entries, _, tally = listed(*given, drop_doubles=True)
    assert sorted((entry.uri.rsplit("/", 1)[-1], entry.member) for entry in entries) == [
        ("a.jpg", None), ("b.jpg", None), ("z.zip", "m.jpg"),
    ]  # fmt: skip
    assert tally.left_out["in two of the sources"] == 3
    assert len(listed(*given)[0]) == 6


def test_a_table_inside_another_source_still_names_what_lies_elsewhere(tmp_path: Path) -> None:
    for name in ("data/near.jpg", "other/far.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    table = tmp_path / "data" / "list.csv"
    table.write_text("path\n../other/far.jpg\nnear.jpg\n")
    found = list_sources([str(tmp_path / "data"), str(table)], Tally(), drop_doubles=True)
    assert sorted(Path(item.uri).name for item in found) == ["far.jpg", "near.jpg"]


def test_what_cannot_be_had_counts_once_when_two_sources_name_it(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "list.csv").write_text("path\nd/gone.jpg\n")
    tally = Tally()
    found = list(list_sources([str(tmp_path / "d"), str(tmp_path / "list.csv")], tally, drop_doubles=True))
    assert len(found) == tally.problems == 1


def test_filters_know_single_objects_by_their_path_below_the_source(tmp_path: Path) -> None:
    path = tmp_path / "site-a" / "x.jpg"
    path.parent.mkdir()
    path.write_bytes(b"x")
    options = ListingOptions(Filters(include=("site-a/*",)))
    assert len(list(list_named([str(path)], str(tmp_path), Tally(), options))) == 1


def test_pipes_and_devices_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "null.jpg").symlink_to("/dev/null")
    put(tmp_path / "x.jpg")
    entries, problems, tally = listed(tmp_path)
    assert (names(entries), problems, tally.left_out) == (["x.jpg"], [], {"no regular file": 2})
    with pytest.raises(InputError, match="does not exist"):
        listed(tmp_path / "pipe.jpg")


def test_a_missing_or_foreign_source_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        listed(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="only local paths and s3://"):
        listed("gs://bucket/x")
    with pytest.raises(UsageError, match="empty path"):
        listed("")


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_table_of_uris_is_a_source(tmp_path: Path, ending: str) -> None:
    put(tmp_path / "a" / "x.jpg")
    put(tmp_path / "z.zip", zip_bytes([("in.jpg", b"1")]))
    uris = ["a/x.jpg", str(tmp_path / "a/x.jpg"), "a/gone.jpg", "z.zip"]
    table = pa.table({"uri": uris})
    source = tmp_path / f"t{ending}"
    if ending == ".csv":
        pa.csv.write_csv(table, source)
    else:
        pq.write_table(table, source)
    entries, problems, tally = listed(source)
    assert sorted((entry.uri.rsplit("/", 1)[-1], entry.member) for entry in entries) == [
        ("x.jpg", None),
        ("z.zip", "in.jpg"),
    ]
    assert [problem.code for problem in problems] == [Code.NOT_FOUND]
    assert tally.left_out["named twice in the table"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffURI,label\n007.jpg,1\n,0\n",
        "label;Path\n1;007.jpg\n0;\n",
        "label\tfile\r\n1\t007.jpg\r\n0\t\r\n",
    ],
)
def test_tables_of_other_programs_are_read_as_they_were_written(tmp_path: Path, text: str) -> None:
    put(tmp_path / "007.jpg")
    put(tmp_path / "t.csv", text.encode())
    entries, problems, tally = listed(tmp_path / "t.csv")
    assert (names(entries), problems) == (["007.jpg"], [])
    assert tally.left_out == {"row of the table without a URI": 1}


def test_names_in_the_encodings_of_excel_are_found(tmp_path: Path) -> None:
    put(tmp_path / "müller.jpg")
    for number, encoding in enumerate(("cp1252", "utf-16", "utf-8-sig")):
        put(tmp_path / f"{number}.csv", "uri\nmüller.jpg\n".encode(encoding))
        assert names(listed(tmp_path / f"{number}.csv")[0]) == ["müller.jpg"], encoding
    pq.write_table(pa.table({"uri": pa.array([b"m\xc3\xbcller.jpg"], pa.binary())}), tmp_path / "b.parquet")
    assert names(listed(tmp_path / "b.parquet")[0]) == ["müller.jpg"]


def test_a_name_that_cannot_be_is_a_problem(tmp_path: Path) -> None:
    pq.write_table(pa.table({"uri": ["a\0b.jpg", "gs://b/x.jpg"]}), tmp_path / "t.parquet")
    entries, problems, _ = listed(tmp_path / "t.parquet")
    assert entries == [] and {problem.code for problem in problems} == {Code.NOT_FOUND}


def test_images_of_a_manifest_are_listed_as_they_are_now(tmp_path: Path) -> None:
    put(tmp_path / "in" / "a.jpg")
    put(tmp_path / "in" / "b.jpg")
    put(tmp_path / "in" / "c.tar", tar_bytes([("m.jpg", b"1")]))
    save_manifest(tmp_path / "manifest", tmp_path / "in")
    put(tmp_path / "in" / "a.jpg", b"another image")
    (tmp_path / "in" / "b.jpg").unlink()
    put(tmp_path / "in" / "c.tar", tar_bytes([("m.jpg", b"2")]))
    [entry], problems, _ = listed(tmp_path / "manifest")
    assert (entry.size_bytes, entry.etag) == (13, listed(tmp_path / "in" / "a.jpg")[0][0].etag)
    assert {(problem.member, problem.code) for problem in problems} == {(None, Code.NOT_FOUND), ("m.jpg", Code.CHANGED)}


def test_further_columns_come_through_a_manifest_and_older_ones_lack_what_is_new(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        put(tmp_path / "in" / name)
    save_manifest(tmp_path / "manifest", tmp_path / "in")
    both = read_manifest(str(tmp_path / "manifest")).table
    field, table = described("age", pa.int64(), "years"), both.slice(1)
    old = (
        both.slice(0, 1).drop_columns(["site"]).append_column(field, pa.array([61]))
    )  # as 0.1 wrote it, with a column more
    written = write_manifest(str(tmp_path / "manifest"), [old, table], ManifestInfo())
    found = read_manifest(written.uri)
    assert (found.table.schema, found.info.digest) == (written.table.schema, written.info.digest)
    assert found.further == ["age"] and found.table.schema.field("age").metadata == {b"meaning": b"years"}
    assert found.table.select(["site", "age"]).to_pylist() == [{"site": None, "age": 61}, {"site": None, "age": None}]
    bad = table.drop_columns(["etag"])
    pq.write_table(bad, tmp_path / "manifest" / "part-00000.parquet")
    with pytest.raises(InputError, match="no column etag"):
        read_manifest(written.uri)


def test_what_manifest_json_says_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    info = ManifestInfo(
        source=["/data"],
        split_rule="subjects",
        warnings=["three"],
        counts=Counts(classes={"a": {"train": 2}}),
        left_out={".txt": 1},
    )
    written = write_manifest(str(tmp_path), [MANIFEST_SCHEMA.empty_table()], info)
    assert read_manifest(str(tmp_path)).info == written.info
    assert written.info.source == ["/data"] and len(written.info.digest) == 64


def test_a_manifest_json_of_another_version_says_less_or_more_and_is_read(tmp_path: Path) -> None:
    """0.1 wrote these three at its end; what a later one adds is left alone."""
    digest = write_manifest(str(tmp_path), [MANIFEST_SCHEMA.empty_table()], ManifestInfo()).info.digest
    text = {"layout": "flat", "later": [1], "version": 1, "digest": digest, "images": 0}
    put(tmp_path / "manifest.json", json.dumps(text).encode())
    info = read_manifest(str(tmp_path)).info
    assert (info.layout, info.units, info.digest) == ("flat", "subjects", digest)


def test_parts_of_another_ingest_are_not_read_under_this_ones_name(tmp_path: Path) -> None:
    """Two wrote at once: as many rows, other labels."""
    put(tmp_path / "in" / "a.jpg")
    save_manifest(tmp_path / "manifest", tmp_path / "in")
    table = read_manifest(str(tmp_path / "manifest")).table
    at = table.schema.get_field_index("label")
    changed = table.set_column(at, table.schema.field(at), pa.array([1], pa.int8()))
    theirs = write_manifest(str(tmp_path / "theirs"), [changed], ManifestInfo())
    (tmp_path / "theirs" / "part-00000.parquet").rename(tmp_path / "manifest" / "part-00000.parquet")
    with pytest.raises(InputError, match="its parts are not those that"):
        read_manifest(str(tmp_path / "manifest"))
    (tmp_path / "manifest" / "manifest.json").write_bytes((tmp_path / "theirs" / "manifest.json").read_bytes())
    assert read_manifest(str(tmp_path / "manifest")).table.equals(theirs.table)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1", "damaged"),
        ("[1]", "version None"),
        ('{"version": 2}', "version 2"),
        ('{"version": 1, "warnings": "one"}', "damaged"),
        ('{"version": 1, "images": 7}', "0 rows, manifest.json says 7"),
    ],
)
def test_a_manifest_json_that_cannot_be_used_is_refused_in_one_line(text: str, said: str, tmp_path: Path) -> None:
    write_manifest(str(tmp_path), [MANIFEST_SCHEMA.empty_table()], ManifestInfo())
    put(tmp_path / "manifest.json", text.encode())
    with pytest.raises(InputError, match=said) as refused:
        read_manifest(str(tmp_path))
    assert "leukoray" in str(refused.value) and "\n" not in str(refused.value)


def test_somebody_elses_manifest_json_makes_no_manifest_of_a_folder(tmp_path: Path) -> None:
    put(tmp_path / "x.jpg")
    put(tmp_path / "manifest.json", b'{"version": 3, "files": []}')
    assert names(listed(tmp_path)[0]) == ["x.jpg"]


def test_a_folder_in_a_table_is_a_problem_that_says_so(tmp_path: Path) -> None:
    put(tmp_path / "a" / "x.jpg")
    put(tmp_path / "t.csv", b"uri\na\n")
    [problem] = listed(tmp_path / "t.csv")[1]
    assert "is a folder" in problem.message


def test_filters_count_for_tables_and_manifests_too(tmp_path: Path) -> None:
    put(tmp_path / "a" / "x.jpg")
    put(tmp_path / "a" / "y.png")
    put(tmp_path / "t.csv", b"uri\na/x.jpg\na/y.png\n")
    save_manifest(tmp_path / "manifest", tmp_path / "a")
    for source in (tmp_path / "t.csv", tmp_path / "manifest", f"{tmp_path}/*/*.*g", f"{tmp_path}/a"):
        assert names(listed(source)[0]) == ["x.jpg", "y.png"]
        assert names(listed(source, filters=Filters(include=("*.png",)))[0]) == ["y.png"]
        assert names(listed(source, filters=Filters(since=datetime.now(UTC) + timedelta(1)))[0]) == []


def test_members_of_one_name_keep_their_ids_through_a_manifest(tmp_path: Path) -> None:
    put(tmp_path / "t.tar", tar_bytes([("x.jpg", b"1"), ("x.jpg", b"22")]))
    rows = [entry_row(entry) for entry in listed(tmp_path)[0]]
    save_manifest(tmp_path / "manifest", tmp_path)
    again = [entry_row(entry) for entry in listed(tmp_path / "manifest")[0]]
    assert again == rows and len({row.image_id for row in rows}) == 2


def test_a_table_without_a_column_of_paths_names_its_columns(tmp_path: Path) -> None:
    put(tmp_path / "t.csv", b"picture,label\nx.jpg,1\n")
    with pytest.raises(InputError, match="found picture, label"):
        listed(tmp_path / "t.csv")


# ---- patterns on S3 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "fits", "does_not"),
    [
        ("s3://b/*.jpg", ["s3://b/x.jpg", "s3://b/x.jpg/in.png"], ["s3://b/a/x.jpg", "s3://b/x.png"]),
        ("s3://b/2026-1?-*/", ["s3://b/2026-11-22/a/x.jpg"], ["s3://b/2026-09-22/x.jpg", "s3://b/2026-11"]),
        ("s3://b/**/*.tar", ["s3://b/x.tar", "s3://b/a/b/x.tar"], ["s3://b/x.tar.gz", "s3://c/x.tar"]),
        ("s3://b/**", ["s3://b/x", "s3://b/new\nline/%.jpg"], ["s3://c/x"]),
        ("s3://b/[ab]/x", ["s3://b/a/x"], ["s3://b/c/x"]),
        ("s3://b/[!ab]/x", ["s3://b/c/x"], ["s3://b/a/x"]),
        ("s3://b/a+(1).*", ["s3://b/a+(1).jpg"], ["s3://b/aa(1).jpg"]),
    ],
)
def test_patterns_on_s3_fit_like_those_of_a_shell(pattern: str, fits: list[str], does_not: list[str]) -> None:
    compiled = UriPattern(pattern).compiled()
    assert [uri for uri in (*fits, *does_not) if compiled.match(uri)] == fits
    assert all(uri.startswith(UriPattern(pattern).literal) for uri in fits)


@given(st.text(st.characters(exclude_characters="*?[/", exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_a_pattern_without_wildcards_fits_itself_alone(name: str) -> None:
    compiled = UriPattern(f"s3://b/{name}").compiled()
    assert compiled.match(f"s3://b/{name}") and not compiled.match(f"s3://b/{name}x")


# ---- filters -----------------------------------------------------------------------------------------------


def test_include_and_exclude_look_at_paths_names_and_members(tmp_path: Path) -> None:
    put(tmp_path / "a" / "x.jpg")
    put(tmp_path / "b" / "y.png")
    put(tmp_path / "c.tar", tar_bytes([("m/x.jpg", b"1"), ("m/z.png", b"2")]))
    assert len(listed(tmp_path, filters=Filters(include=("*.jpg",)))[0]) == 2
    assert len(listed(tmp_path, filters=Filters(include=("a/*",)))[0]) == 1
    assert len(listed(tmp_path, filters=Filters(exclude=("*.tar",)))[0]) == 2
    entries, _, tally = listed(tmp_path, filters=Filters(include=("*.jpg", "*.png"), exclude=("x.*",)))
    assert len(entries) == 2
    assert tally.left_out["in --exclude"] == 2


def test_filters_look_at_the_path_behind_the_first_wildcard_of_a_glob(tmp_path: Path) -> None:
    for name in ("a/x.jpg", "b/x.jpg"):
        put(tmp_path / name)
    assert len(listed(f"{tmp_path}/*/x.jpg", filters=Filters(exclude=("a/*",)))[0]) == 1
    assert len(listed(f"{tmp_path}/*", filters=Filters(exclude=("a/*",)))[0]) == 1
    assert len(listed(tmp_path / "a" / "x.jpg", filters=Filters(exclude=("x.*",)))[0]) == 0


def test_since_leaves_older_files_out(tmp_path: Path) -> None:
    old, new = put(tmp_path / "old.jpg"), put(tmp_path / "new.jpg")
    os.utime(old, (1_700_000_000, 1_700_000_000))
    entries, _, tally = listed(tmp_path, filters=Filters(since=parse_since("1d")))
    assert names(entries) == [new.name]
    assert tally.left_out["older than --since"] == 1


def test_since_reads_dates_times_and_ages() -> None:
    assert parse_since("2026-11-01") == datetime(2026, 11, 1, tzinfo=UTC)
    assert parse_since("2026-11-01T02:00:00+02:00") == datetime(2026, 11, 1, tzinfo=UTC)
    assert abs(datetime.now(UTC) - timedelta(hours=36) - parse_since("36h")) < timedelta(seconds=5)
    for text in ("yesterday", "h", "", "-", "9999999999999d"):
        with pytest.raises(UsageError, match="--since"):
            parse_since(text)


def test_limit_ends_the_listing(tmp_path: Path) -> None:
    for number in range(20):
        put(tmp_path / f"{number % 4}" / f"{number}.jpg")
    assert len(listed(tmp_path, limit=7)[0]) == 7


def test_paths_are_below_the_source_and_members_behind_their_archive(tmp_path: Path) -> None:
    entry = Entry(f"{tmp_path}/a/b.tar", 1, "e", 0.0, member="c/x.jpg")
    assert path_below(entry, str(tmp_path)) == "a/b.tar!/c/x.jpg"
    assert base_folder([f"{tmp_path}/healthy", f"{tmp_path}/leukemia"]) == str(tmp_path)
    assert base_folder(["s3://b/x/one", "s3://b/x/two"]) == "s3://b/x"
    assert base_folder([f"{tmp_path}/*/a_*.tar"]) == str(tmp_path)
    assert base_folder(["/data/labels.csv"]) == "/data"
    assert base_folder(["s3://b/2026-*/x.tar"]) == "s3://b"


# ---- scale -------------------------------------------------------------------------------------------------


class EndlessStore(LocalStore):
    """A remote store: `folders` prefixes of `objects` objects, and as many beside them, made when asked for."""

    is_remote = True

    def __init__(self, folders: int, objects: int) -> None:
        self.folders, self.objects = folders, objects

    def head(self, uri: str) -> ObjectInfo | None:
        return None

    def is_folder(self, uri: str) -> bool:
        return True

    def levels(self, prefix: str) -> Iterator[Level]:
        """All folders on the first page, then as many objects beside them as in all folders together, a page a time."""
        beside = self.folders * self.objects
        yield Level([f"{prefix}/{number:04d}/" for number in range(self.folders)], [], beside > 0)
        for start in range(0, beside, 1000):
            page = [ObjectInfo(f"{prefix}/{n:07d}.jpg", 30_000, "etag", 1.7e9) for n in range(start, start + 1000)]
            yield Level([], page, start + 1000 < beside)

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        for number in range(self.objects):
            yield ObjectInfo(f"{prefix}{number:07d}.jpg", 30_000, "etag", 1.7e9)


def endless(folders: int, objects: int) -> Stores:
    return Stores(mounts=(("s3://bucket/", EndlessStore(folders, objects)),))


def test_memory_does_not_grow_with_the_objects_that_are_listed() -> None:
    """What is held at most is what waits between threads, so a few times that tells what a million would."""

    def list_all(objects: int) -> None:
        tally = Tally()
        found = sum(1 for _ in list_sources(["s3://bucket/root"], tally, stores=endless(20, objects)))
        assert found == tally.images == 2 * 20 * objects

    list_all(1_000)
    before = _rss_bytes()
    list_all(4_000)
    assert _rss_bytes() - before < 24 << 20  # all 160,000 together would be 60 MB and more


def _rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_listing_that_is_left_early_stops_its_threads() -> None:
    before = set(threading.enumerate())
    store = endless(20, 10**12)
    assert len(list(list_sources(["s3://bucket/root"], Tally(), limit=1000, stores=store))) == 1000
    assert_ended(before)
    with pytest.raises(ValueError, match="of the consumer"):
        for number, _ in enumerate(list_sources(["s3://bucket/root"], Tally(), stores=store)):
            if number == 1000:
                raise ValueError("of the consumer")
    assert_ended(before)


def test_a_listing_that_fails_in_one_folder_raises_and_stops_its_threads() -> None:
    class Broken(EndlessStore):
        def walk(self, prefix: str) -> Iterator[ObjectInfo]:
            if prefix.endswith("/0007/"):
                raise RuntimeError("a bug")
            yield from super().walk(prefix)

    before = set(threading.enumerate())
    stores = Stores(mounts=(("s3://bucket/", Broken(20, 10**12)),))
    with pytest.raises(RuntimeError, match="a bug"):
        for _ in list_sources(["s3://bucket/root"], Tally(), stores=stores):
            pass
    assert_ended(before)


def assert_ended(before: set[threading.Thread]) -> None:
    """All threads that were not there `before` end soon."""
    deadline = time.monotonic() + 30
    while left := set(threading.enumerate()) - before:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
