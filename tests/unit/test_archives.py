"""Archives: every image that was packed is listed and comes back byte for byte; damage is never silent."""

import gzip
import io
import lzma
import random
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import Code, PlatformError
from pipeline.images.load import Limits
from pipeline.sources import archives, fetch
from pipeline.sources.archives import Entry, Found, Ignored, Problem, tars, walk, zips
from pipeline.sources.archives.members import Place
from pipeline.sources.junk import is_junk
from pipeline.sources.listing import Tally, entry_row, list_sources
from pipeline.sources.rows import Access
from pipeline.storage import ranged
from pipeline.storage.local import LocalStore
from pipeline.storage.stores import Stores
from pipeline.storage.types import Bytes, ObjectInfo, StoreError
from tests.searches import search

Members = Sequence[tuple[str, bytes]]
pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")
QUICK = search(25)

words = st.text(
    st.characters(exclude_characters="/\\\0\r", exclude_categories=["Cs"]) | st.sampled_from(" %\nüя漢😀'\"!*[]"),
    min_size=1,
    max_size=12,
).filter(lambda text: text not in (".", "..") and not text.startswith("._") and text[1:2] != ":")
names = st.builds(
    lambda folders, stem, ending: "/".join([*folders, stem + ending]),
    st.lists(words, max_size=3),
    words,
    st.sampled_from([".jpg", ".PNG", ".tif", ".webp"]),
).filter(lambda name: not is_junk(name) and "!/" not in name and not archives.is_archive(name))
member_lists = st.lists(st.tuples(names, st.binary(min_size=0, max_size=700)), min_size=1, max_size=12)


def tar_bytes(members: Members, mode: str = "w", format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=cast(Literal["w"], mode), format=format) as archive:
        for name, data in members:
            item = tarfile.TarInfo(name)
            item.size = len(data)
            archive.addfile(item, io.BytesIO(data))
    return buffer.getvalue()


def zip_bytes(members: Members, method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return buffer.getvalue()


PACKERS = {
    ".tar": tar_bytes,
    ".gnu.tar": lambda members: tar_bytes(members, format=tarfile.GNU_FORMAT),
    ".tar.gz": lambda members: tar_bytes(members, "w:gz"),
    ".tar.bz2": lambda members: tar_bytes(members, "w:bz2"),
    ".tar.xz": lambda members: tar_bytes(members, "w:xz"),
    ".zip": zip_bytes,
    ".deflated.zip": lambda members: zip_bytes(members, zipfile.ZIP_DEFLATED),
}


def listed(path: Path) -> list[Found]:
    info = LocalStore().head(str(path))
    assert info is not None
    with path.open("rb") as file:
        return list(archives.list_archive(info, file))


def list_bytes(name: str, data: bytes) -> list[Found]:
    return list(archives.list_archive(ObjectInfo(name, len(data), "etag", 0.0), io.BytesIO(data)))


def entries(found: Sequence[Found]) -> list[Entry]:
    return [item for item in found if isinstance(item, Entry)]


class CountingStore(LocalStore):
    """A disk that takes itself for a remote store, counts its ranged reads and fails them when told to."""

    is_remote = True

    def __init__(self) -> None:
        self.reads: list[int] = []
        self.fails = False

    def read_range(self, uri: str, offset: int, size: int, etag: str | None = None) -> Bytes:
        self.reads.append(size)
        if self.fails:
            raise StoreError(Code.IO_ERROR, "no answer", 8)
        return super().read_range(uri, offset, size, etag)


def mounted(store: CountingStore) -> Stores:
    return Stores(mounts=(("/", store),))


def fetched(found: Sequence[Found]) -> list[tuple[str, bytes | None]]:
    """What comes of the entries, read alone as from a disk and, alike, in stretches as from a remote store."""
    rows = [entry_row(entry) for entry in entries(found)]
    alone = [_outcome(item) for item in fetch.fetch_rows(rows)]
    together = [_outcome(item) for item in fetch.fetch_rows(rows, mounted(CountingStore()))]
    assert Counter(together) == Counter(alone)
    return [(name, data) for name, data, _ in alone]


def _outcome(item: fetch.Fetched) -> tuple[str, bytes | None, Code | None]:
    return str(item.row.member), item.data, item.rejected.code if item.rejected else None


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


# ---- whole archives ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", PACKERS)
@given(members=member_lists)
@QUICK
def test_every_member_comes_back_byte_for_byte_whatever_its_name(
    members: list[tuple[str, bytes]], ending: str, tmp_path: Path
) -> None:
    found = listed(write(tmp_path, f"a{ending}", PACKERS[ending](members)))
    assert not [item for item in found if not isinstance(item, Entry)]
    assert Counter(fetched(found)) == Counter(members)


@pytest.mark.parametrize("inner", PACKERS)
@pytest.mark.parametrize("outer", [".tar", ".tar.gz", ".zip", ".deflated.zip"])
def test_members_of_a_nested_archive_come_back(inner: str, outer: str, tmp_path: Path) -> None:
    members = [("a/x.jpg", b"first"), ("a/ü %.png", b"second" * 99), ("a/x.jpg", b"double")]
    packed = PACKERS[outer]([("before.jpg", b"0"), (f"deep/in{inner}", PACKERS[inner](members)), ("z.jpg", b"1")])
    found = listed(write(tmp_path, f"outer{outer}", packed))
    expected = [("before.jpg", b"0"), ("z.jpg", b"1"), *((f"deep/in{inner}!/{name}", data) for name, data in members)]
    assert Counter(fetched(found)) == Counter(expected)


def in_one_pass(path: Path, max_bytes: int = 1 << 20) -> list[tuple[Found, Any]]:
    info = LocalStore().head(str(path))
    assert info is not None
    with path.open("rb") as file:
        return list(archives.read_archive(info, file, max_bytes))


COMPRESSED = (".tar.gz", ".tar.bz2", ".tar.xz")


@pytest.mark.parametrize("ending", COMPRESSED)
@given(members=member_lists)
@QUICK
def test_one_pass_finds_what_a_listing_finds_with_its_bytes(
    members: list[tuple[str, bytes]], ending: str, tmp_path: Path
) -> None:
    path = write(tmp_path, f"a{ending}", PACKERS[ending](members))
    held = in_one_pass(path)
    assert [item for item, _ in held] == listed(path)
    assert Counter((str(item.member), data) for item, data in held if isinstance(item, Entry)) == Counter(members)


@pytest.mark.parametrize("inner", PACKERS)
def test_one_pass_opens_nested_archives(inner: str, tmp_path: Path) -> None:
    members = [("a/x.jpg", b"first"), ("a/x.jpg", b"double")]
    path = write(tmp_path, "o.tar.gz", PACKERS[".tar.gz"]([(f"in{inner}", PACKERS[inner](members)), ("z.jpg", b"1")]))
    held = in_one_pass(path)
    assert [item for item, _ in held] == listed(path)
    assert [data for _, data in held] == [b"first", b"double", b"1"]


def test_one_pass_leaves_out_the_bytes_of_members_beyond_the_limit(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tar.gz", PACKERS[".tar.gz"]([("x.jpg", b"1" * 100), ("y.jpg", b"1")]))
    assert [data for _, data in in_one_pass(path, max_bytes=99)] == [None, b"1"]


@pytest.mark.parametrize("percent", range(5, 100, 10))
@pytest.mark.parametrize("ending", COMPRESSED)
def test_one_pass_through_a_cut_archive_gives_whole_members_then_a_problem(
    ending: str, percent: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    members = [(f"{number}.jpg", rng.bytes(3000)) for number in range(40)]
    whole = PACKERS[ending](members)
    path = write(tmp_path, f"a{ending}", whole[: len(whole) * percent // 100])
    held = in_one_pass(path)
    assert [item for item, _ in held] == listed(path)
    assert isinstance(held[-1][0], Problem) and held[-1][0].code == Code.TRUNCATED
    given = [(item.member, data) for item, data in held if isinstance(item, Entry)]
    if given and isinstance(given[-1][1], Exception):  # its name was there, its bytes were not
        assert given.pop()[1].code == Code.TRUNCATED
    assert given == members[: len(given)]


def test_sidecars_reach_the_images_of_their_sample_in_compressed_tars_too(tmp_path: Path) -> None:
    members = [("1.jpg", b"1"), ("1.cls", b"0"), ("2.json", b'{"site": "north"}'), ("2.a.jpg", b"2"), ("2.b.jpg", b"3")]
    for ending in (".tar", *COMPRESSED):
        path = write(tmp_path, f"a{ending}", PACKERS[ending](members))
        assert [entry.meta for entry in entries(listed(path))] == [{"cls": "0"}, {"site": "north"}, {"site": "north"}]
    assert [item.meta for item, _ in in_one_pass(path) if isinstance(item, Entry)] == [
        entry.meta for entry in entries(listed(path))
    ]


def test_names_that_share_much_before_a_dot_do_not_keep_an_archive_waiting(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tar.gz", PACKERS[".tar.gz"]([(f"2026.{n:04d}.jpg", b"x") for n in range(100)]))
    info = LocalStore().head(str(path))
    assert info is not None
    with path.open("rb") as file:
        walk = archives.read_archive(info, file, 100)
        next(walk)
        assert file.tell() <= info.size
        assert sum(1 for _ in walk) == 99


@pytest.mark.parametrize("outer", [".tar.gz", ".deflated.zip"])
def test_a_damaged_member_of_a_nested_zip_costs_itself_and_shifts_no_other(outer: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    members = [(f"{number}.jpg", rng.bytes(500)) for number in range(6)]
    packed = bytearray(zip_bytes(members, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        start = archive.getinfo("2.jpg").header_offset + 30 + len("2.jpg")
    packed[start : start + 20] = b"\xff" * 20
    path = write(tmp_path, f"o{outer}", PACKERS[outer]([("in.zip", bytes(packed)), ("more.zip", zip_bytes(members))]))
    found = dict(fetched(listed(path)))
    assert found.pop("in.zip!/2.jpg") is None
    assert found == {
        **{f"in.zip!/{name}": data for name, data in members if name != "2.jpg"},
        **{f"more.zip!/{name}": data for name, data in members},
    }


def test_links_inside_a_tar_are_counted(tmp_path: Path) -> None:
    for mode, ending in (("w", ".tar"), ("w:gz", ".tar.gz")):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=cast(Literal["w"], mode)) as archive:
            item = tarfile.TarInfo("x.jpg")
            item.size = 1
            archive.addfile(item, io.BytesIO(b"1"))
            for name, kind in (
                ("hard.jpg", tarfile.LNKTYPE),
                ("soft.jpg", tarfile.SYMTYPE),
                ("d.jpg", tarfile.DIRTYPE),
            ):
                link = tarfile.TarInfo(name)
                link.type, link.linkname = kind, "x.jpg"
                archive.addfile(link)
        found = listed(write(tmp_path, f"a{ending}", buffer.getvalue()))
        assert [item.reason for item in found if isinstance(item, Ignored)] == ["link inside an archive"] * 2
        assert len(entries(found)) == 1


def tar_header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header with a sum that fits, whatever the size says."""
    item = tarfile.TarInfo(name)
    item.type = kind
    block = bytearray(item.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = (
        b"%011o\0" % size
        if 0 <= size < 8**11
        else bytes([0xFF if size < 0 else 0x80]) + size.to_bytes(11, "big", signed=True)
    )
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def squeezed(data: bytes, ending: str) -> bytes:
    if ending == ".tar.zst":
        return bytes(pa.compress(data, codec="zstd", asbytes=True))
    return {".tar": lambda: data, ".tar.gz": lambda: gzip.compress(data), ".tar.xz": lambda: lzma.compress(data)}[
        ending
    ]()


ENDINGS = (".tar", ".tar.gz", ".tar.xz", ".tar.zst")
FIVE = [(f"{n}.jpg", b"%d" % n * 600) for n in range(5)]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_damaged_header_in_the_middle_is_told(ending: str, tmp_path: Path) -> None:
    data = bytearray(tar_bytes(FIVE, format=tarfile.GNU_FORMAT))
    data[3 * 1536 : 3 * 1536 + 100] = b"?" * 100
    found = listed(write(tmp_path, f"a{ending}", squeezed(bytes(data), ending)))
    assert len(entries(found)) == 3
    assert isinstance(found[-1], Problem) and found[-1].code == Code.CORRUPT and "header" in found[-1].message


@pytest.mark.parametrize("cut", [3 * 1536, 3 * 1536 + 100])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_tar_that_was_cut_before_it_was_compressed_is_told(ending: str, cut: int, tmp_path: Path) -> None:
    data = tar_bytes(FIVE, format=tarfile.GNU_FORMAT)[:cut]
    found = listed(write(tmp_path, f"a{ending}", squeezed(data, ending)))
    assert len(entries(found)) == 3
    assert isinstance(found[-1], Problem) and found[-1].code == Code.TRUNCATED


@pytest.mark.parametrize("ending", ENDINGS)
def test_tars_joined_by_cat_are_read_to_their_end(ending: str, tmp_path: Path) -> None:
    first, second = (squeezed(tar_bytes(members), ending) for members in (FIVE[:2], FIVE[2:]))
    assert Counter(fetched(listed(write(tmp_path, f"a{ending}", first + second)))) == Counter(FIVE)


def test_what_lies_behind_the_end_of_a_tar_and_is_none_is_told(tmp_path: Path) -> None:
    found = listed(write(tmp_path, "a.tar", tar_bytes(FIVE) + b"something else" * 99))
    assert len(entries(found)) == 5
    assert isinstance(found[-1], Problem) and "behind the end-of-archive mark" in found[-1].message
    padded = listed(write(tmp_path, "b.tar", tar_bytes(FIVE) + b"\0" * 70_000))
    assert len(padded) == 5


@pytest.mark.parametrize("size", [-512, -1, 1 << 62, 1 << 80])
@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
@pytest.mark.parametrize("is_first", [True, False])
def test_sizes_that_cannot_be_end_the_archive_and_not_the_run(
    size: int, ending: str, is_first: bool, tmp_path: Path
) -> None:
    before = b"" if is_first else tar_bytes(FIVE[:1], format=tarfile.GNU_FORMAT)[:1536]
    data = before + tar_header("x.jpg", size) + b"\0" * 2048
    found = listed(write(tmp_path, f"a{ending}", squeezed(data, ending)))
    assert len(entries(found)) <= 2
    assert any(isinstance(item, Problem) for item in found)
    assert all(item.size_bytes < 2**63 for item in found if isinstance(item, Problem))
    fetched(found)


def test_a_name_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    data = tar_bytes(FIVE[:1], format=tarfile.GNU_FORMAT)[:1536] + tar_header("n", 2 << 30, tarfile.GNUTYPE_LONGNAME)
    found = listed(write(tmp_path, "a.tar", data + b"x" * 4096))
    assert len(entries(found)) == 1
    assert isinstance(found[-1], Problem) and "bytes" in found[-1].message


def test_members_beyond_the_limit_are_not_unpacked(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tgz", tar_bytes([("x.jpg", b"1" * 1000), ("y.jpg", b"1")], "w:gz"))
    rows = [entry_row(entry) for entry in entries(listed(path))]
    big, small = sorted(fetch.fetch_rows(rows, limits=Limits(max_bytes=10)), key=lambda item: item.row.offset)
    assert big.rejected is not None and big.rejected.code == Code.TOO_LARGE
    assert small.data == b"1"


def test_sidecars_that_parquet_cannot_hold_are_mended(tmp_path: Path) -> None:
    deep = b"[" * 50_000 + b"]" * 50_000
    members = [("1.jpg", b"1"), ("1.json", b'{"a": "\\ud800", "b": 1}'), ("2.jpg", b"2"), ("2.json", deep[:60_000])]
    found = entries(listed(write(tmp_path, "a.tar", tar_bytes(members))))
    assert found[0].meta == {"a": "?", "b": "1"}
    assert len(found) == 2 and set(found[1].meta) == {"json"}


def test_a_zip_member_without_a_name_costs_itself(tmp_path: Path) -> None:
    data = zip_bytes([("ab.jpg", b"1"), ("cd.jpg", b"2")]).replace(b"ab.jpg", b"\0b.jpg")
    found = listed(write(tmp_path, "a.zip", data))
    assert [entry.member for entry in entries(found)] == ["cd.jpg"]
    assert [item.code for item in found if isinstance(item, Problem)] == [Code.CORRUPT]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_zip_member_of_another_check_sum_is_corrupt(method: int, streamed: bool, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    target: Any = _Unseekable(buffer) if streamed else buffer
    with zipfile.ZipFile(target, "w", method) as archive:
        archive.writestr("x.jpg", b"abcdefgh" * 40)
        archive.writestr("y.jpg", b"good")
    data = bytearray(buffer.getvalue())
    whole = dict(fetched(listed(write(tmp_path, "w.zip", bytes(data)))))
    assert whole == {"x.jpg": b"abcdefgh" * 40, "y.jpg": b"good"}
    crc = struct.pack("<I", zlib.crc32(b"abcdefgh" * 40))
    at = data.index(crc)
    data[at] ^= 1
    assert dict(fetched(listed(write(tmp_path, "a.zip", bytes(data))))) == {"x.jpg": None, "y.jpg": b"good"}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("outer", [None, ".zip", ".tar.gz"])
def test_local_headers_may_be_longer_than_the_directory_says(method: int, outer: str | None, tmp_path: Path) -> None:
    """As those of Info-ZIP are: more extra fields, here so many that the usual slack is not enough."""
    members = [("x.jpg", random.Random(0).randbytes(900)), ("y.jpg", b"good" * 50)]
    plain, extra = zip_bytes(members, method), struct.pack("<HH", 0x7570, 4000) + b"e" * 4000
    local, directory = plain.index(b"PK\x03\x04"), plain.index(b"PK\x01\x02")
    data = bytearray(plain[:directory])
    for at in sorted((local, plain.index(b"PK\x03\x04", 4)), reverse=True):
        name_length = struct.unpack_from("<H", data, at + 26)[0]
        struct.pack_into("<H", data, at + 28, len(extra))
        data[at + 30 + name_length : at + 30 + name_length] = extra
    tail = bytearray(plain[directory:])
    struct.pack_into("<I", tail, tail.index(b"PK\x01\x02", 4) + 42, plain.index(b"PK\x03\x04", 4) + len(extra))
    struct.pack_into("<I", tail, tail.index(b"PK\x05\x06") + 16, len(data))
    whole, name = bytes(data + tail), "a.zip"
    if outer is not None:
        packed = [("inner.zip", whole)]
        whole, name = (zip_bytes(packed, 8) if outer == ".zip" else tar_bytes(packed, "w:gz")), f"a{outer}"
    found = dict(fetched(listed(write(tmp_path, name, whole))))
    assert list(found.values()) == [data for _, data in members]


class _Unseekable(io.RawIOBase):
    """Makes zipfile write data descriptors."""

    def __init__(self, inner: io.BytesIO) -> None:
        self.inner = inner

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self.inner.write(data)


@pytest.mark.parametrize("inner", [".tar", ".zip"])
def test_a_cut_zip_gives_its_own_members_and_those_of_a_zip_inside(inner: str, tmp_path: Path) -> None:
    nested = PACKERS[inner]([("in.jpg", b"deep")])
    whole = zip_bytes([("a.jpg", b"1"), (f"n{inner}", nested), ("z.jpg", b"2")])
    found = listed(write(tmp_path, "a.zip", whole[: whole.index(b"PK\x01\x02", len(nested) + 100)]))
    assert Counter(fetched(found)) == Counter([("a.jpg", b"1"), (f"n{inner}!/in.jpg", b"deep"), ("z.jpg", b"2")])
    assert [item.code for item in found if isinstance(item, Problem)] == [Code.TRUNCATED]


@pytest.mark.parametrize("damage", ["local header", "method"])
def test_a_nested_archive_that_cannot_be_opened_leaves_the_rest(damage: str, tmp_path: Path) -> None:
    method = zipfile.ZIP_STORED if damage == "local header" else zipfile.ZIP_DEFLATED
    data = bytearray(zip_bytes([("a.jpg", b"1"), ("n.zip", zip_bytes([("in.jpg", b"x")])), ("z.jpg", b"2")], method))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        at = archive.getinfo("n.zip").header_offset
    if damage == "local header":
        data[at : at + 4] = b"????"
    else:
        data[data.index(b"n.zip", data.index(b"PK\x01\x02")) - 36] = 99
    found = listed(write(tmp_path, "a.zip", bytes(data)))
    assert [entry.member for entry in entries(found)] == ["a.jpg", "z.jpg"]
    assert [(item.member, item.code) for item in found if isinstance(item, Problem)] == [("n.zip", Code.CORRUPT)]


@pytest.mark.parametrize("outer", [".tar", ".zip", ".tar.gz"])
def test_a_damaged_nested_archive_leaves_its_siblings(outer: str, tmp_path: Path) -> None:
    rng = random.Random(3)
    members = [(f"{n}.jpg", rng.randbytes(4000)) for n in range(6)]
    whole = tar_bytes(members, "w:gz")
    bad = whole[: len(whole) // 2] + bytes(64) + whole[len(whole) // 2 + 64 :]
    path = write(tmp_path, f"o{outer}", PACKERS[outer]([("bad.tgz", bad), ("good.tgz", whole)]))
    found = listed(path)
    rows = [entry_row(entry) for entry in entries(found)]
    codes = {item.rejected.code for item in fetch.fetch_rows(rows) if item.rejected is not None}
    assert codes <= {Code.CORRUPT, Code.TRUNCATED}
    data = dict(fetched(found))
    assert {name: data[f"good.tgz!/{name}"] for name, _ in members} == dict(members)
    assert any(isinstance(item, Problem) and item.member == "bad.tgz" for item in found)


@pytest.mark.parametrize(("name", "kind"), [("a.tar", "gz"), ("a.zip", "tar"), ("a.tgz", "zip"), ("a.tgz", "tar")])
def test_an_archive_named_by_another_kind_is_told_what_it_is(name: str, kind: str) -> None:
    data = {"gz": gzip.compress(tar_bytes(FIVE)), "tar": tar_bytes(FIVE), "zip": zip_bytes(FIVE)}[kind]
    [problem] = list_bytes(name, data)
    assert isinstance(problem, Problem) and problem.code == Code.UNSUPPORTED_FORMAT
    assert f"holds {kind} data" in problem.message


def test_a_colon_in_a_name_is_no_drive(tmp_path: Path) -> None:
    names = ["a:b.jpg", "C:/x.jpg", "C:\\y.jpg"]
    found = listed(write(tmp_path, "a.tar", tar_bytes([(name, b"1") for name in names])))
    assert [entry.member for entry in entries(found)] == ["a:b.jpg"]


def test_failures_of_one_name_have_ids_of_their_own(tmp_path: Path) -> None:
    whole = tar_bytes([("x.jpg", b"1" * 600), ("../x.jpg", b"1"), ("../x.jpg", b"2")], format=tarfile.GNU_FORMAT)
    found = listed(write(tmp_path, "a.tar", whole))
    assert [item.occurrence for item in found if isinstance(item, Problem)] == [0, 1]
    cut = tar_bytes([("x.jpg", b"1" * 600), ("x.jpg", b"2" * 600)], format=tarfile.GNU_FORMAT)[: 1536 + 600]
    whole_one, cut_one = listed(write(tmp_path, "b.tar", cut))[:2]
    assert isinstance(whole_one, Entry) and isinstance(cut_one, Problem)
    assert (whole_one.member, whole_one.occurrence, cut_one.member, cut_one.occurrence) == ("x.jpg", 0, "x.jpg", 1)


def test_duplicate_members_have_ids_of_their_own(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tar", tar_bytes([("x.jpg", b"one"), ("x.jpg", b"two"), ("x.jpg", b"three")]))
    rows = [entry_row(entry) for entry in entries(listed(path))]
    assert len({row.image_id for row in rows}) == 3
    assert [item.data for item in fetch.fetch_rows(rows)] == [b"one", b"two", b"three"]


def test_names_longer_than_a_tar_header_come_back(tmp_path: Path) -> None:
    name = "/".join(["folder" * 20] * 12) + "/cell.jpg"
    assert len(name) > 1000
    for ending in PACKERS:
        assert fetched(listed(write(tmp_path, f"a{ending}", PACKERS[ending]([(name, b"data")])))) == [(name, b"data")]


def test_a_zip64_archive_is_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, archive.open("x.jpg", "w", force_zip64=True) as member:
        member.write(b"image")
    assert fetched(listed(write(tmp_path, "a.zip", buffer.getvalue()))) == [("x.jpg", b"image")]


def test_webdataset_sidecars_become_meta() -> None:
    shard = [("0.jpg", b"i"), ("0.cls", b"blast\n"), ("0.json", b'{"subject_id": "P1", "n": 3}'), ("1.jpg", b"j")]
    first, second = entries(list_bytes("a.tar", tar_bytes(shard)))
    assert first.meta == {"cls": "blast", "subject_id": "P1", "n": "3"}
    assert second.meta == {}


@pytest.mark.parametrize("name", ["../../etc/x.jpg", "/abs/x.jpg", "a/../../x.jpg", "C:\\x.jpg", "..\\x.jpg"])
def test_members_that_leave_the_archive_are_problems(name: str) -> None:
    for found in (list_bytes("a.tar", tar_bytes([(name, b"x")])), list_bytes("a.zip", zip_bytes([(name, b"x")]))):
        assert [item.code for item in found if isinstance(item, Problem)] == [Code.UNSAFE_PATH]


def test_what_is_no_image_is_counted_and_what_cannot_be_read_says_why() -> None:
    deep = tar_bytes([("deeper.tar", tar_bytes([("x.jpg", b"x")]))])
    found = list_bytes("a.tar", tar_bytes([("readme.md", b"t"), ("._x.jpg", b"t"), ("one.tar", deep)]))
    assert sorted(item.reason for item in found if isinstance(item, Ignored)) == [".md", "a program's own"]
    assert [item.code for item in found if isinstance(item, Problem)] == [Code.UNSUPPORTED_FORMAT]


def test_an_encrypted_or_exotically_compressed_member_says_what_to_do() -> None:
    packed = bytearray(zip_bytes([("x.jpg", b"x" * 50), ("y.jpg", b"y" * 50)]))
    directory = packed.index(b"PK\x01\x02")
    packed[directory + 8] |= 0x1  # general purpose flag, bit 0: encrypted
    (problem,) = [item for item in list_bytes("a.zip", bytes(packed)) if isinstance(item, Problem)]
    assert problem.code == Code.UNSUPPORTED_FORMAT
    assert "encrypted" in problem.message
    (problem,) = list_bytes("a.zip", zip_bytes([("x.jpg", b"x" * 50)], zipfile.ZIP_LZMA))
    assert isinstance(problem, Problem)
    assert "only stored and deflated" in problem.message


def test_links_and_folders_of_a_tar_are_no_images() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in (
            ("folder.jpg", tarfile.DIRTYPE),
            ("link.jpg", tarfile.SYMTYPE),
            ("pipe.jpg", tarfile.FIFOTYPE),
        ):
            item = tarfile.TarInfo(name)
            item.type = kind
            item.linkname = "/etc/passwd"
            archive.addfile(item)
    assert entries(list_bytes("a.tar", buffer.getvalue())) == []


# ---- bugs of our own ---------------------------------------------------------------------------------------

BUGS = [TypeError, KeyError, AssertionError, ValueError, RuntimeError, EOFError, OSError, MemoryError, zlib.error]
NESTED_IN = [".tar", ".tar.gz", ".zip", ".deflated.zip"]


def listed_and_read(path: Path) -> None:
    """Everything that listing and scoring do with an archive."""
    rows = [entry_row(entry) for entry in entries(list(list_sources([str(path)], Tally())))]
    assert all(item.data for item in fetch.fetch_rows(rows))
    if archives.is_compressed_tar(path.name):
        assert all(data for item, data in in_one_pass(path) if isinstance(item, Entry))


def sound_archive(folder: Path, ending: str, inner: str | None) -> Path:
    plain = [("x.jpg", b"image"), ("x.json", b"{}")]
    packed = [(f"in{inner}", PACKERS[inner](plain))] if inner is not None else plain
    return write(folder, f"a{ending}", PACKERS[ending](packed))


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.parametrize(
    ("ending", "inner"),
    [*((ending, None) for ending in PACKERS), *((outer, inner) for outer in NESTED_IN for inner in NESTED_IN)],
)
def test_a_bug_of_ours_on_a_sound_archive_is_no_damage(
    ending: str, inner: str | None, bug: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sound_archive(tmp_path, ending, inner)
    listed_and_read(path)

    def broken(*_: object, **__: object) -> None:
        raise bug("planted")

    with monkeypatch.context() as patch, pytest.raises(bug, match="planted"):
        for module in (tars, walk, zips):
            patch.setattr(module, "classify", broken)
        listed_and_read(path)
    with monkeypatch.context() as patch, pytest.raises(bug, match="planted"):
        patch.setattr(Place, "entry", broken)
        listed_and_read(path)
    rows = [entry_row(entry) for entry in entries(listed(path))]
    if rows[0].access is Access.STREAM:
        with monkeypatch.context() as patch, pytest.raises(bug, match="planted"):
            patch.setattr(Place, "entry", broken)
            list(fetch.fetch_rows(rows))


@pytest.mark.parametrize(("module", "name", "ending"), [(tars, "_EXTENSIONS", ".tar.gz"), (ranged, "min", ".zip")])
def test_a_bug_in_what_a_library_calls_is_no_damage(
    module: Any, name: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our header class is called by tarfile, our window on a nested archive by zipfile."""
    path = sound_archive(tmp_path, ending, ".zip")
    monkeypatch.setattr(module, name, None, raising=False)
    with pytest.raises(TypeError, match="NoneType"):
        listed(path)


def test_a_disk_that_fails_is_no_damage(tmp_path: Path) -> None:
    for ending in PACKERS:
        data = PACKERS[ending]([("x.jpg", b"image" * 9999)])
        (problem,) = archives.list_archive(ObjectInfo(f"a{ending}", len(data), "etag", 0.0), _BadDisk(data))
        assert isinstance(problem, Problem) and problem.code is Code.IO_ERROR and "Input/output" in problem.message


class _BadDisk(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        raise OSError(5, "Input/output error")


def test_a_full_disk_is_no_damage_of_the_archive_that_was_to_be_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = write(tmp_path, "a.tar.gz", PACKERS[".tar.gz"]([("in.zip", zip_bytes([("x.jpg", b"image")]))]))
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "write", full)
    with pytest.raises(PlatformError, match="disk is full"):
        listed(path)


# ---- damaged archives --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("data", [b"", b"\0" * 3, b"this is no archive" * 60, b"PK\x03\x04", b"PK\x05\x06"])
def test_an_empty_or_foreign_file_is_one_problem(ending: str, data: bytes) -> None:
    found = list_bytes(f"a{ending}", data)
    assert len(found) == 1
    assert isinstance(found[0], Problem)
    codes = {Code.EMPTY, Code.CORRUPT, Code.TRUNCATED}
    is_zip = data == b"PK\x03\x04" and not ending.endswith(".zip")
    assert found[0].code in ({Code.UNSUPPORTED_FORMAT} if is_zip else codes)


@pytest.mark.parametrize("ending", PACKERS)
@given(members=member_lists, share=st.floats(0, 1, exclude_max=True))
@search(40)
def test_a_cut_archive_never_loses_a_member_silently(
    members: list[tuple[str, bytes]], ending: str, share: float
) -> None:
    whole = PACKERS[ending](members)
    cut = whole[: int(len(whole) * share)]
    found = list_bytes(f"a{ending}", cut)
    kept = Counter(entry.member for entry in entries(found))
    missing = Counter(name for name, _ in members) - kept
    assert not kept - Counter(name for name, _ in members)
    assert not missing or any(isinstance(item, Problem) for item in found)


@given(members=member_lists, share=st.floats(0, 1, exclude_max=True))
@search(40)
def test_members_before_the_cut_of_a_tar_or_stored_zip_are_still_read(
    members: list[tuple[str, bytes]], share: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    for ending in (".tar", ".zip"):
        whole = PACKERS[ending](members)
        at = int(len(whole) * share)
        ends = [row.end for row in map(entry_row, entries(list_bytes("a" + ending, whole)))]
        found = fetched(listed(write(folder, f"a{ending}", whole[:at])))
        complete = [member for member, end in zip(members, ends, strict=True) if end <= at]
        assert [pair for pair in found if pair[1] is not None][: len(complete)] == complete


@pytest.mark.parametrize("ending", PACKERS)
@given(members=member_lists, place=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
@search(40)
def test_a_flipped_byte_never_crashes_listing_or_reading(
    members: list[tuple[str, bytes]],
    place: float,
    mask: int,
    ending: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    whole = bytearray(PACKERS[ending](members))
    whole[int(len(whole) * place)] ^= mask
    found = listed(write(tmp_path_factory.mktemp("flip"), f"a{ending}", bytes(whole)))
    assert found
    assert len(fetched(found)) == len(entries(found))


def test_an_archive_replaced_after_listing_is_not_read_with_old_offsets(tmp_path: Path) -> None:
    for ending, packer in PACKERS.items():
        path = write(tmp_path, f"a{ending}", packer([("x.jpg", b"old"), ("y.jpg", b"old")]))
        rows = [entry_row(entry) for entry in entries(listed(path))]
        write(tmp_path, f"a{ending}", packer([("new.jpg", b"something else"), ("x.jpg", b"new")]))
        results = list(fetch.fetch_rows(rows))
        assert {item.rejected.code if item.rejected else None for item in results} == {Code.CHANGED}


@pytest.mark.parametrize("ending", [".tar", ".zip", ".deflated.zip"])
def test_neighbours_on_a_remote_store_share_requests_of_bounded_size(ending: str, tmp_path: Path) -> None:
    members = [(f"{number:03d}.jpg", random.Random(number).randbytes(40_000)) for number in range(200)]
    members[100] = ("100.jpg", random.Random(100).randbytes(3_000_000))
    rows = [entry_row(entry) for entry in entries(listed(write(tmp_path, f"a{ending}", PACKERS[ending](members))))]
    remote = CountingStore()
    results = list(fetch.fetch_rows(rows, mounted(remote), Limits(max_bytes=2_500_000)))
    assert {str(item.row.member): item.data for item in results} == {**dict(members), "100.jpg": None}
    assert [item.rejected.code for item in results if item.rejected] == [Code.TOO_LARGE]
    assert len(remote.reads) == 4 and max(remote.reads) <= 2 << 20  # 4 MB on each side of the one that is too large


def test_a_request_that_fails_for_neighbours_is_not_repeated_for_each(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tar", tar_bytes([(f"{number}.jpg", b"data") for number in range(20)]))
    rows = [entry_row(entry) for entry in entries(listed(path))]
    remote = CountingStore()
    remote.fails = True
    codes = [item.rejected.code for item in fetch.fetch_rows(rows, mounted(remote)) if item.rejected]
    assert codes == [Code.IO_ERROR] * 20 and len(remote.reads) == 1


@pytest.mark.parametrize(
    ("raw", "name"),
    [("Bläschen/é.jpg".encode(), "Bläschen/é.jpg"), ("Bl\x84schen.jpg".encode("latin-1"), "Bläschen.jpg")],
)
def test_names_of_zips_that_do_not_say_utf_8(raw: bytes, name: str, tmp_path: Path) -> None:
    placeholder = "x" * (len(raw) - 4) + ".jpg"
    data = zip_bytes([(placeholder, b"pixels"), ("plain.jpg", b"more")]).replace(placeholder.encode(), raw)
    for whole in (data, data[:-20]):  # the directory is read, or the local headers where it is damaged
        found = entries(listed(write(tmp_path, "a.zip", whole)))
        assert [entry.member for entry in found] == [name, "plain.jpg"]
        assert [item.data for item in fetch.fetch_rows([entry_row(entry) for entry in found])] == [b"pixels", b"more"]


def test_listing_counts_what_it_saw(tmp_path: Path) -> None:
    write(tmp_path, "a.tar", tar_bytes([("x.jpg", b"12345"), ("t.txt", b"")]))
    write(tmp_path, "b.zip", zip_bytes([("x.jpg", b"123")])[:20])
    write(tmp_path, "c.jpg", b"1")
    tally = Tally()
    found = list(list_sources([str(tmp_path)], tally))
    assert (tally.images, tally.problems, tally.bytes, tally.left_out[".txt"]) == (2, 1, 6, 1)
    assert len(found) == 3
