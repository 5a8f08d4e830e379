"""Archives as people and programs make them: each gives its images, or says by name why not and what to do."""

import gzip
import io
import struct
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import Code
from pipeline.sources.archives import Entry, Found, Problem, holds_many, unread_archive
from pipeline.sources.archives.zstd import refuse_long_window
from pipeline.sources.fetch import fetch_rows
from pipeline.sources.filters import Filters
from pipeline.sources.listing import Tally, entry_row, list_sources
from tests.searches import search

DATA = {"a.jpg": b"first", "b/b.jpg": b"second", "c.jpg": b"third" * 100}


def zipped(files: dict[str, bytes], comment: bytes = b"", method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.comment = comment
    return buffer.getvalue()


def tarred(members: list[tarfile.TarInfo | tuple[str, bytes]], mode: str = "w", **options: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as archive:  # type: ignore[call-overload]
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            item = tarfile.TarInfo(member[0])
            item.size = len(member[1])
            archive.addfile(item, io.BytesIO(member[1]))
    return buffer.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.LNKTYPE) -> tarfile.TarInfo:
    item = tarfile.TarInfo(name)
    item.type, item.linkname = kind, target
    return item


def found_in(
    folder: Path, name: str, data: bytes, tally: Tally | None = None, **filters: tuple[str, ...]
) -> list[Found]:
    (folder / name).write_bytes(data)
    return list(list_sources([str(folder / name)], tally or Tally(), Filters(**filters)))


def images(found: list[Found]) -> list[tuple[str | None, bytes | None]]:
    rows = [entry_row(item) for item in found if isinstance(item, Entry)]
    read = {item.row.image_id: item.data for item in fetch_rows(rows)}
    return [(row.member, read[row.image_id]) for row in rows]


def problems(found: list[Found]) -> list[Problem]:
    return [item for item in found if isinstance(item, Problem)]


COMMENTS = [
    b"PK\x05\x06", b"x" * 300 + b"PK\x05\x06" + b"\0" * 18, b"PK\x05\x06" + b"\xff" * 40, b"PK\x01\x02PK\x05\x06" * 9,
    b"PK\x05\x06\0\0\0\0\x01\0\x01\0\x2e\0\0\0\0\0\0\0\0\0",
]  # fmt: skip


@pytest.mark.parametrize("comment", COMMENTS)
def test_a_comment_that_holds_the_mark_of_a_directory_hides_nothing(comment: bytes, tmp_path: Path) -> None:
    found = found_in(tmp_path, "a.zip", zipped(DATA, comment))
    assert images(found) == list(DATA.items()) and problems(found) == []


@given(comment=st.binary(max_size=80).map(lambda some: some + b"PK\x05\x06" + some))
@search(40)
def test_whatever_a_comment_holds_all_members_are_found(
    comment: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = found_in(tmp_path_factory.mktemp("zip"), "a.zip", zipped({"a.jpg": b"first"}, comment))
    assert ("a.jpg", b"first") in images(found)


@pytest.mark.parametrize("comment", [b"", b"one", b"PK\x05\x06 in a comment"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zips_joined_by_cat_give_the_images_of_all(method: int, comment: bytes, tmp_path: Path) -> None:
    parts = [{f"{n}/{name}": data + bytes([n]) for name, data in DATA.items()} for n in range(3)]
    joined = b"".join(zipped(part, comment, method) for part in parts)
    found = found_in(tmp_path, "a.zip", joined)
    assert images(found) == [item for part in parts for item in part.items()] and problems(found) == []


def test_nested_archives_of_joined_zips_are_read_in_their_order(tmp_path: Path) -> None:
    inner = tarred([("in.jpg", b"nested")], "w:gz")
    joined = zipped({"n.tgz": inner, "a.jpg": b"1"}) + zipped({"n.tgz": inner, "b.jpg": b"2"})
    found = found_in(tmp_path, "a.zip", joined)
    assert sorted(images(found)) == [("a.jpg", b"1"), ("b.jpg", b"2"), *[("n.tgz!/in.jpg", b"nested")] * 2]


@pytest.mark.parametrize("lead", [b"MZ" + b"\x90" * 5000, b"#!/bin/sh\nexit\n"])
def test_a_program_before_a_zip_is_passed_over(lead: bytes, tmp_path: Path) -> None:
    found = found_in(tmp_path, "a.zip", lead + zipped(DATA))
    assert images(found) == list(DATA.items()) and problems(found) == []


def test_a_cut_zip_before_a_whole_one_costs_its_own_end_only(tmp_path: Path) -> None:
    first = zipped({f"x{n}.jpg": b"y" * 300 for n in range(9)}, method=zipfile.ZIP_STORED)
    found = found_in(tmp_path, "a.zip", first[:1000] + zipped(DATA))
    names = [member for member, _ in images(found)]
    assert names[:2] == ["x0.jpg", "x1.jpg"] and names[-3:] == list(DATA)
    assert [(item.member, item.code) for item in problems(found)] == [(None, Code.TRUNCATED)]


def test_a_split_zip_says_how_to_join_it(tmp_path: Path) -> None:
    data = bytearray(zipped(DATA))
    at = data.rindex(b"PK\x05\x06")
    struct.pack_into("<HH", data, at + 4, 2, 2)
    for name, whole in (("a.zip", bytes(data)), ("a.z01", b"PK\x07\x08"), ("b.zip.001", zipped(DATA))):
        [problem] = problems(found_in(tmp_path, name, whole))
        assert problem.code == Code.UNSUPPORTED_FORMAT and "join" in problem.message
        assert holds_many(problem.uri, problem.member)


@pytest.mark.parametrize("name", ["a.7z", "A.RAR", "a.tar.lz4", "a.tar-2", "a.tar.001", "disc.iso", "a.tar.Z", "a.z12"])
def test_an_archive_that_is_not_read_is_named_wherever_it_lies(name: str, tmp_path: Path) -> None:
    packed = tarred([(name, b"x"), ("ok.jpg", b"y")])
    for found in (found_in(tmp_path, name, b"x"), found_in(tmp_path, "o.tar", packed)):
        [problem] = problems(found)
        assert problem.code == Code.UNSUPPORTED_FORMAT and holds_many(problem.uri, problem.member)
    kept = found_in(tmp_path, "o.tar", packed, include=("*.jpg",))
    assert len(problems(kept)) == 1, "it may hold what is to be included"
    assert problems(found_in(tmp_path, "o.tar", packed, exclude=(f"*{name}",))) == []
    assert unread_archive("notes.txt") is unread_archive("x.jpg") is unread_archive("a.12") is None


def test_a_hard_link_gives_the_image_whose_bytes_have_another_name(tmp_path: Path) -> None:
    soft = link("d/y.jpg", "../blobs/7f3a", tarfile.SYMTYPE)
    hard = [link("x.jpg", "blobs/7f3a"), link("again.jpg", "z.jpg")]
    members = [("blobs/7f3a", b"pixels"), hard[0], soft, ("z.jpg", b"plain"), hard[1]]
    tally = Tally()
    found = found_in(tmp_path, "a.tar", tarred(members), tally)
    assert sorted(images(found)) == [("d/y.jpg", b"pixels"), ("x.jpg", b"pixels"), ("z.jpg", b"plain")]
    assert tally.left_out["link inside an archive"] == 1 and problems(found) == []
    streamed = found_in(tmp_path, "a.tgz", tarred(members, "w:gz"))
    assert images(streamed) == [("z.jpg", b"plain")]
    assert [(item.member, item.code) for item in problems(streamed)] == [
        ("x.jpg", Code.UNSUPPORTED_FORMAT), ("d/y.jpg", Code.UNSUPPORTED_FORMAT)]  # fmt: skip


def test_a_hard_link_to_nothing_is_a_problem(tmp_path: Path) -> None:
    [problem] = problems(found_in(tmp_path, "a.tar", tarred([link("x.jpg", "gone"), ("z.jpg", b"1")])))
    assert (problem.member, problem.code) == ("x.jpg", Code.TRUNCATED)


def test_names_in_latin_1_stay_different(tmp_path: Path) -> None:
    members = [("Gr\xfcn/1.jpg", b"1"), ("Gr\xe4n/1.jpg", b"2")]
    data = tarred(members, format=tarfile.GNU_FORMAT, encoding="latin-1")
    assert images(found_in(tmp_path, "a.tar", data)) == members
    pax = tarred(members, format=tarfile.PAX_FORMAT)
    assert images(found_in(tmp_path, "b.tar", pax)) == members


def zstd_frame(window_log: int) -> bytes:
    return b"\x28\xb5\x2f\xfd" + bytes([0, (window_log - 10) << 3]) + b"\0" * 12


def test_a_zstd_window_that_is_too_long_says_so(tmp_path: Path) -> None:
    [problem] = problems(found_in(tmp_path, "a.tar.zst", zstd_frame(31)))
    assert problem.code == Code.UNSUPPORTED_FORMAT and "2048 MiB" in problem.message and "--long=27" in problem.message
    refuse_long_window(zstd_frame(27))
    whole = pa.compress(tarred([("x.jpg", b"pixels")]), "zstd", asbytes=True)
    assert images(found_in(tmp_path, "b.tar.zst", whole)) == [("x.jpg", b"pixels")]
    nested = tarred([("n.tar.zst", whole), ("far.tar.zst", zstd_frame(30))], "w:gz")
    found = found_in(tmp_path, "c.tar.gz", nested)
    assert images(found) == [("n.tar.zst!/x.jpg", b"pixels")] and "1024 MiB" in problems(found)[0].message


def test_volumes_of_a_tar_are_named(tmp_path: Path) -> None:
    further = bytearray(tarred([("x.jpg", b"rest of it"), ("y.jpg", b"whole")]))
    further[156:157] = b"M"
    header = bytes(further[:148]) + b" " * 8 + bytes(further[156:512])
    further[148:156] = f"{sum(header):06o}\0 ".encode()
    found = found_in(tmp_path, "a.tar", bytes(further))
    [problem] = problems(found)
    assert images(found) == [("y.jpg", b"whole")]
    assert "volume" in problem.message and holds_many(problem.uri, problem.member)


def test_times_in_the_headers_of_incremental_tars_are_no_folders(tmp_path: Path) -> None:
    data = bytearray(tarred([("x.jpg", b"pixels")], format=tarfile.GNU_FORMAT))
    data[345:356] = b"15302105746"
    header = bytes(data[:148]) + b" " * 8 + bytes(data[156:512])
    data[148:156] = f"{sum(header):06o}\0 ".encode()
    assert images(found_in(tmp_path, "a.tar", bytes(data))) == [("x.jpg", b"pixels")]


@pytest.mark.parametrize("tool", ["zip", "tar"])
def test_what_the_tools_of_this_machine_make_is_read(tool: str, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name, data in (("a.jpg", b"first"), ("\xfc b.jpg", b"second"), ("link.jpg", None)):
        (source / name).write_bytes(data) if data else (source / name).hardlink_to(source / "a.jpg")
    commands = {
        "zip": {"plain.zip": ["zip", "-q", "-r", "OUT", "."], "stored.zip": ["zip", "-q", "-0", "-r", "OUT", "."],
                "zip64.zip": ["zip", "-q", "-fz", "-r", "OUT", "."], "piped.zip": ["sh", "-c", "zip -q -r - . > OUT"]},
        "tar": {f"{kind}.tar": ["tar", f"--format={kind}", "-cf", "OUT", "."] for kind in ("gnu", "pax", "ustar", "v7")}
        | {f"c.tar.{end}": ["tar", "-caf", "OUT", "."] for end in ("gz", "xz", "bz2", "zst")},
    }[tool]  # fmt: skip
    for name, command in commands.items():
        out = str(tmp_path / name)
        try:
            done = subprocess.run([part.replace("OUT", out) for part in command], cwd=source, check=False)
        except FileNotFoundError:
            pytest.skip(f"{tool}: not on this machine")
        if done.returncode:  # a compression of which the program is missing
            continue
        found = list(list_sources([out], Tally()))
        read = {str(member).removeprefix("./"): data for member, data in images(found)}
        assert read.items() >= {"\xfc b.jpg": b"second"}.items() and b"first" in read.values(), name
        assert problems(found) == [], name


def test_folders_that_windows_has_parted_by_backslashes_are_folders(tmp_path: Path) -> None:
    data = zipped({"A#blast#1.jpg": b"first", "A#2.jpg": b"second"}).replace(b"#", b"\\")
    at = -1
    while (at := data.find(b"PK\x01\x02", at + 1)) >= 0:
        data = data[: at + 5] + b"\0" + data[at + 6 :]  # made by DOS
    found = found_in(tmp_path, "a.zip", data)
    assert {item.member for item in found if isinstance(item, Entry)} == {"A/blast/1.jpg", "A/2.jpg"}
    rows = [entry_row(item) for item in found if isinstance(item, Entry)]
    assert sorted(fetched.data for fetched in fetch_rows(rows)) == [b"first", b"second"]  # type: ignore[type-var]


@pytest.mark.parametrize("name", ["a.tar", "a.zip", "a.tar.gz"])
def test_text_in_the_place_of_an_archive_is_called_what_it_is(name: str, tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 9\n"
    for data, said in ((pointer, "git lfs pull"), (b"<!DOCTYPE html><html>login</html>" * 40, "an HTML page")):
        [problem] = found_in(tmp_path, name, data)
        assert isinstance(problem, Problem) and problem.code is Code.UNSUPPORTED_FORMAT and said in problem.message
        assert holds_many(problem.uri, None)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_tar_whose_end_was_never_copied_is_no_whole_one(name: str, tmp_path: Path) -> None:
    mode = "w:gz" if name.endswith("gz") else "w"
    whole = tarred(list(DATA.items()))
    for data, images in ((whole + bytes(1 << 21), 3), (bytes(1 << 21), 0), (whole[:1024] + bytes(1 << 21) + whole, 1)):
        packed = gzip.compress(data) if mode == "w:gz" else data
        found = found_in(tmp_path, name, packed)
        [problem] = [item for item in found if isinstance(item, Problem)]
        assert (problem.code, len(found) - 1) == (Code.TRUNCATED, images)
        assert "nothing but zeros" in problem.message
    padded = whole + bytes(1 << 18) + whole  # tapes and cat
    found = found_in(tmp_path, name, gzip.compress(padded) if mode == "w:gz" else padded)
    assert len(found) == 6 and all(isinstance(item, Entry) for item in found)


def test_compressed_bytes_without_a_zero_are_no_text(tmp_path: Path) -> None:
    data = gzip.compress(tarred(list(DATA.items())), mtime=0x01010101)
    assert data[:2] == b"\x1f\x8b" and len(found_in(tmp_path, "a.tar.gz", data)) == 3
