"""Archives and folders that cannot be read to their end: they count as no image, and the run is incomplete."""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.model.bundle import Bundle
from pipeline.scoring.history.uncounted import described
from pipeline.scoring.run_folder import SUCCESS
from pipeline.scoring.summary.summary import summarize
from tests.bundles import make_bundle
from tests.scoring_sources import Here, contents, picture, rows, tar, write_files
from tests.scoring_sources import score_here as score


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle"), size=16)


def cut_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in contents(20, bad=False).items():
            archive.writestr(name, data)
    return buffer.getvalue()[:40_000]


def cut_tar(mode: str) -> bytes:
    whole = tar(contents(40, bad=False), mode)
    return whole[: len(whole) * 2 // 3]


DAMAGED = {
    "a.tar.gz": cut_tar("w:gz"),
    "a.tar.xz": cut_tar("w:xz"),
    "a.tar.bz2": cut_tar("w:bz2"),
    "a.tar": cut_tar("w"),
    "a.zip": cut_zip(),
    "empty.tgz": b"",
    "text.tar.gz": b"Not Found\n" * 100,
    "outer.tar": tar({"one.jpg": picture(1), "inner.tar.gz": cut_tar("w:gz")}),
}


def numbers(run: dict[str, Any]) -> tuple[int, ...]:
    counts = run["counts"]
    assert counts["listed"] == counts["scored"] + counts["quarantined"] + counts["skipped"]
    return tuple(counts[name] for name in ("scored", "quarantined", "skipped", "uncounted"))


@pytest.mark.parametrize("name", DAMAGED)
def test_an_archive_that_cannot_be_counted_is_never_counted_as_one(name: str, bundle: Bundle, tmp_path: Path) -> None:
    source, out = write_files(tmp_path / "in", {"ok.jpg": picture(1), name: DAMAGED[name]}), tmp_path / "out"
    folder, first = score([source], bundle, out, "run-1")
    scored, quarantined, skipped, uncounted = numbers(first)
    assert scored >= 1 and quarantined <= 1 and (skipped, uncounted) == (0, 1), "at most the member that was cut"
    assert first["status"] == folder.read(SUCCESS).decode().strip() == "incomplete"
    assert rows(Path(folder.uri), "quarantine")["is_uncounted"].to_pylist().count(True) == 1
    second_folder, second = score([source], bundle, out, "run-2")
    assert numbers(second) == (0, 0, scored + quarantined, 1), "it is not read again"
    assert second["status"] == "incomplete" and second["counts"]["uncounted_unchanged"] == 1
    assert "unchanged since run-1" in described(second_folder, 5)[0]
    assert "could not be read to their end" in summarize(second_folder).headline()


def test_an_accepted_archive_is_no_alarm_until_it_changes(bundle: Bundle, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write_files(source, {"a.tar.gz": cut_tar("w:gz")})
    assert score([source], bundle, out, "run-1")[1]["status"] == "incomplete"
    _, accepted = score([source], bundle, out, "run-2", accepts_damaged=True)
    _, later = score([source], bundle, out, "run-3")
    _, still_later = score([source], bundle, out, "run-4")
    assert [run["status"] for run in (accepted, later, still_later)] == ["complete"] * 3
    assert later["counts"]["uncounted"] == later["counts"]["uncounted_accepted"] == 1
    assert score([source], bundle, out, "run-4b", limit=5)[1]["status"] == "complete", "also where it is listed anew"
    write_files(source, {"a.tar.gz": cut_tar("w:gz")[:-50]})
    assert score([source], bundle, out, "run-5")[1]["status"] == "incomplete", "another archive than the accepted one"
    write_files(source, {"a.tar.gz": tar(contents(40, bad=False), "w:gz")})
    _, mended = score([source], bundle, out, "run-6")
    assert mended["status"] == "complete" and mended["counts"]["deleted_at_source"] == 0


def test_a_retry_reads_a_damaged_archive_again(bundle: Bundle, tmp_path: Path) -> None:
    source, out = write_files(tmp_path / "in", {"a.tar.gz": cut_tar("w:gz")}), tmp_path / "out"
    first, run = score([source], bundle, out, "run-1")
    _, again = score([source], bundle, out, "run-2", retry_of=first.uri)
    assert again["status"] == "incomplete" and again["counts"]["uncounted_unchanged"] == 0
    assert again["counts"]["skipped"] == run["counts"]["scored"]


def test_what_may_be_a_folder_is_uncounted_and_a_lost_image_is_one(bundle: Bundle, tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", {"ok.jpg": picture(1)})
    for name in ("latest", "latest.tar", "latest.jpg", "notes.txt"):
        os.symlink("nowhere", source / name)
    folder, run = score([source], bundle, tmp_path / "out")
    assert numbers(run) == (1, 1, 0, 2) and run["counts"]["left_out"] == {".txt": 1}
    uris = {row["uri"] for row in rows(Path(folder.uri), "quarantine").to_pylist() if row["is_uncounted"]}
    assert uris == {f"{source}/latest/", f"{source}/latest.tar"}


@pytest.mark.skipif(os.geteuid() == 0, reason="a folder without rights: root reads it all the same")
def test_a_folder_that_cannot_be_listed_is_uncounted(bundle: Bundle, tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", {"ok.jpg": picture(1), "shut/x.jpg": picture(2)})
    (source / "shut").chmod(0)
    _, run = score([source], bundle, tmp_path / "out")
    assert numbers(run) == (1, 0, 0, 1) and run["status"] == "incomplete"


def test_a_retry_reads_an_archive_that_was_gone_for_a_night(bundle: Bundle, tmp_path: Path) -> None:
    whole = tar(contents(5, bad=False), "w:gz")
    source, out = write_files(tmp_path / "in", {"a.tar.gz": whole}), tmp_path / "out"
    here = Here.plan([source], bundle, out)
    (source / "a.tar.gz").unlink()
    first = here.finish(here.work())
    assert (first["counts"]["uncounted"], first["status"]) == (1, "incomplete")
    write_files(source, {"a.tar.gz": whole})
    _, again = score([source], bundle, out, "run-2", retry_of=here.task.folder.uri)
    assert again["counts"]["scored"] == 5 and again["status"] == "complete"
