"""What people's folders hold beside plainly named images: read, or told by name, and never merely left out."""

import gzip
import os
from pathlib import Path

import pytest

from pipeline.base.errors import Code, ImageRejected
from pipeline.images.load import load_image
from pipeline.sources.archives import holds_many, is_archive, is_image, unread, unread_archive
from pipeline.sources.filters import Filters
from pipeline.sources.junk import is_junk
from tests.dicoms import MICROSCOPIC
from tests.scoring_sources import picture
from tests.unit.test_archives import tar_bytes
from tests.unit.test_listing import listed, names, put

JPEG = picture(1, (40, 30))
DICOM = bytes(128) + b"DICM" + MICROSCOPIC.encode()


def test_an_image_without_a_suffix_is_read_by_its_first_bytes_on_disk(tmp_path: Path) -> None:
    for name, data in {
        "cell_001": JPEG,
        "0f3a": picture(2, (9, 9), "PNG"),
        "README": b"P1 is the first patient",
    }.items():
        put(tmp_path / name, data)
    entries, problems, tally = listed(tmp_path)
    assert (names(entries), problems, tally.left_out) == (["0f3a", "cell_001"], [], {"no suffix": 1})


def test_an_image_by_another_name_is_told_and_what_filters_say_holds(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg.bak", "c.jpeg2", "d.1", "e.txt", "f.thm"):
        put(tmp_path / name, JPEG)
    put(tmp_path / "g.dat", b"no image")
    entries, problems, tally = listed(tmp_path)
    assert names(entries) == ["a.jpg"]
    assert {os.path.basename(problem.uri): problem.code for problem in problems} == dict.fromkeys(
        ["b.jpg.bak", "c.jpeg2", "d.1"], Code.UNSUPPORTED_FORMAT
    )
    assert (
        problems[0].message == "jpeg by its first bytes, but not by its name; rename it, or leave it out with --exclude"
    )
    assert tally.left_out == {".txt": 1, ".thm": 1, ".dat": 1}
    entries, problems, _ = listed(tmp_path, filters=Filters(include=("*.bak",)))
    assert (names(entries), problems) == (["b.jpg.bak"], [])
    entries, problems, tally = listed(tmp_path, filters=Filters(exclude=("*.bak", "d.*")))
    assert [os.path.basename(problem.uri) for problem in problems] == ["c.jpeg2"]
    assert tally.left_out["in --exclude"] == 2


@pytest.mark.parametrize("name", ["SC.1.2.276.0.7230010.3.1.4.83.1234", "VLM.1.2.840.113619.2.55", "IM000001;1"])
def test_dicom_as_receivers_and_cds_name_it_is_known_by_its_name(name: str) -> None:
    assert is_image(name) and is_image(f"PAT_1/{name}")


def test_dicom_of_any_suffix_is_read_by_its_first_bytes(tmp_path: Path) -> None:
    put(tmp_path / "x.ima", DICOM)
    put(tmp_path / "DICOMDIR", DICOM)  # the index of a medium
    entries, problems, tally = listed(tmp_path)
    assert (names(entries), problems, tally.left_out) == (["x.ima"], [], {"a program's own": 1})


@pytest.mark.parametrize("name", ["IMG_1.JPG;1", "a.jpg ", "b.tiff\r", "C.PNG;12"])
def test_versions_of_cds_and_blanks_behind_a_suffix_say_nothing(name: str, tmp_path: Path) -> None:
    put(tmp_path / "folder" / name)
    put(tmp_path / "a.tar", tar_bytes([(name, b"x")]))
    entries, problems, _ = listed(tmp_path)
    assert len(entries) == 2 and problems == []
    assert is_archive("night.ZIP;1") and not is_image("a;b/c.txt")


PARTS = (
    "a.tar.gz.aa", "a.tar.gz.partaa", "a.tgz.00", "a.tar.gz.001", "a.tar.xaa", "a.zip.part1", "a.tar.bz", "a.r00",
    "a.zipx", "a.squashfs", "night.gz", "night.2024.xz", "a.zip.gpg", "a.tar.enc", "a.tar.gz.crdownload", "a.ZIP.part",
)  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_parts_ciphers_and_half_downloads_of_archives_hold_an_unknown_number(name: str, tmp_path: Path) -> None:
    put(tmp_path / name, gzip.compress(b"x"))
    entries, [problem], _ = listed(tmp_path)
    assert (entries, problem.code) == ([], Code.UNSUPPORTED_FORMAT)
    assert holds_many(problem.uri, None)


@pytest.mark.parametrize("name", ["x.jpg.gz", "v.nii.gz", "x.dcm.bz2", "x.jpg.gpg", "s.svs.part", "x.PNG.crdownload"])
def test_a_wrapped_image_counts_as_one(name: str, tmp_path: Path) -> None:
    put(tmp_path / name)
    put(tmp_path / "a.tar", tar_bytes([(name, b"x")]))
    entries, problems, _ = listed(tmp_path)
    assert entries == [] and [problem.code for problem in problems] == [Code.UNSUPPORTED_FORMAT] * 2
    assert not holds_many(name, None)


@pytest.mark.parametrize(
    "name",
    ["a.tar.gz", "a.tar.bz2", "a.tgz", "a.tar.zst", "a.zip", "a.zip.md5", "a.zip.md", "a.tar.gz.sha256", "t.csv.gz",
     "syslog.1.gz", "a.tar.gz.txt", "x.jpg", "README.part"],
)  # fmt: skip
def test_what_is_read_and_what_is_no_image_is_no_unread_archive(name: str) -> None:
    assert unread_archive(name) is None and unread(name) is None


@pytest.mark.parametrize(
    "name",
    [".recycle/x.jpg", ".Recycle.Bin/x.jpg", "trashbox/x.jpg", ".wdmc/x.jpg", ".glusterfs/a/x.jpg", ".snap/x.jpg",
     "_gsdata_/x.jpg", ".thumbs/x.jpg", ".tmb/x.png", ".@upload_cache/x.jpg", "node_modules/p/x.png",
     "DfsrPrivate/x.jpg", "Catalog Previews.lrdata/x.jpg", ".rsync-partial/x.jpg", "x.jpg@SynoEAStream", "x.jpg~",
     "x.jpg_original", ".syncthing.x.jpg.tmp", ".fuse_hidden0001.jpg", "a/Icon\r", "cd/DICOMDIR"],
)  # fmt: skip
def test_what_further_disks_and_programs_leave_is_rubbish(name: str) -> None:
    assert is_junk(f"night/{name}")


@pytest.mark.parametrize(
    "name", ["recycle/x.jpg", "snap/x.jpg", "thumbs/x.jpg", "original/x.jpg", "x_original.jpg", "icon.png"]
)
def test_names_of_peoples_own_are_no_rubbish(name: str) -> None:
    assert not is_junk(name)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x02\0\0\0UL\x04\0" + bytes(40), "without the preamble"),
        (b"../../.git/annex/objects/Xx/Yy/SHA256E-s9--0f.jpg", "git annex get"),
        (b"data:image/jpeg;base64,/9j/4AAQ", "base64"),
        (b"iVBORw0KGgoAAAANSUhEUg", "base64"),
        (b"HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n", "an answer of a server"),
        ("<!DOCTYPE html><html>Anmelden</html>".encode("utf-16"), "an HTML page"),
        (b"-----BEGIN PGP MESSAGE-----\n\nhQ", "PGP"),
    ],
)
def test_what_lies_in_the_place_of_an_image_is_called_what_it_is(data: bytes, said: str) -> None:
    with pytest.raises(ImageRejected, match=said) as caught:
        load_image(data, 32)
    assert caught.value.code is Code.UNSUPPORTED_FORMAT


def test_a_message_is_the_same_in_every_process() -> None:
    with pytest.raises(ImageRejected) as caught:
        load_image(bytes([0, 0, 0, 24]) + b"ftypheic" + bytes(100), 32)
    assert " at 0x" not in caught.value.message
