"""run.json of jobs: one form, written at their end, and never over a file of somebody else."""

import contextlib
import errno
import json
import os
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from jobs import ingest
from jobs.common import job
from jobs.config import JobConfig
from jobs.record import recorded
from pipeline.base.errors import IncompleteError, LeukorayError, NotBetterThanChanceError, NotPromotedError, UsageError
from pipeline.base.record import JobRecord, Record
from pipeline.scoring.record import RunRecord
from pipeline.sources.manifest import read_manifest
from pipeline.storage.stores import Stores
from tests.training_data import cell_images


def read(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "run.json").read_text())
    assert Record.model_validate(found).model_dump(mode="json") == found
    return dict(found)


def test_an_ingest_says_who_did_what_when_of_what_and_how_it_ended(tmp_path: Path) -> None:
    cell_images(tmp_path / "in" / "healthy", 6)
    (tmp_path / "in" / "notes.txt").write_text("x")
    out = tmp_path / "manifest"
    argv = [str(tmp_path / "in"), "--out", str(out), "--s3-endpoint", "https://me:pass-word@store", "--seed", "5"]
    assert ingest.command(argv) == 0
    found = read(out)
    assert (found["job"], found["status"], found["exit_code"]) == ("ingest", "complete", 0)
    assert found["counts"] == {"images": 6, "left_out": 1, "problems": 0}
    assert found["digests"] == {"manifest": read_manifest(str(out)).info.digest}
    assert found["configuration"]["seed"] == 5 and "pass-word" not in json.dumps(found)
    assert datetime.fromisoformat(found["started_at"]) <= datetime.fromisoformat(found["finished_at"])
    assert "@" in found["who"] and found["packages"]["numpy"]
    assert ingest.command([*argv, "--seed", "6"]) == 0
    assert read(out)["configuration"]["seed"] == 6


@pytest.mark.parametrize("text", ['{"run_id": "of another program"}', "no JSON", '{"job": "score", "run_id": "1"}'])
def test_a_record_of_others_stays(tmp_path: Path, text: str) -> None:
    cell_images(tmp_path / "in", 2)
    out = tmp_path / "manifest"
    out.mkdir()
    (out / "run.json").write_text(text)
    assert ingest.command([str(tmp_path / "in"), "--out", str(out)]) == 3
    assert (out / "run.json").read_text() == text


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (IncompleteError("x"), "incomplete"),
        (NotBetterThanChanceError("x"), "not_better_than_chance"),
        (UsageError("x"), "failed"),
    ],
)
def test_an_end_with_an_error_is_told_with_its_code(tmp_path: Path, error: LeukorayError, status: str) -> None:
    with pytest.raises(type(error)), recorded("example", JobConfig(), Stores()) as kept:
        kept.keep(str(tmp_path), {"images": 1}, manifest="", model="abc")
        raise error
    found = read(tmp_path)
    assert (found["status"], found["exit_code"]) == (status, error.exit_code)
    assert found["digests"] == {"model": "abc"}


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(signal.SIGTERM), 143, "interrupted"),  # as Ray raises while it starts
        (NotPromotedError("x"), 7, "not_promoted"),
        (ZeroDivisionError("x"), 1, "failed"),
        (OSError(errno.ENOSPC, "full"), 5, "failed"),
    ],
)
def test_whatever_ends_a_job_that_had_begun_is_told(
    tmp_path: Path, error: BaseException, code: int, status: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(type(error)), in_good_hands(), recorded("example", JobConfig(), Stores()) as kept:
        kept.begin(str(tmp_path), manifest="abc")
        raise error
    found = read(tmp_path)
    assert (found["status"], found["exit_code"], found["counts"]) == (status, code, {})
    assert found["digests"] == {"manifest": "abc"} and capsys.readouterr().err == ""


@contextlib.contextmanager
def in_good_hands() -> Iterator[None]:
    """The handlers of signals as they were: a job that ends ignores them from then on."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_job_that_is_terminated_says_so_in_its_record(tmp_path: Path) -> None:
    def main(config: JobConfig) -> None:
        with recorded("example", config, Stores()) as kept:
            kept.begin(str(tmp_path))
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    with in_good_hands():
        assert job("example", JobConfig, main)([]) == 143
    assert (read(tmp_path)["status"], read(tmp_path)["exit_code"]) == ("interrupted", 143)


@pytest.mark.parametrize("is_written", [True, False])
def test_the_record_of_files_that_are_there_still_gives_way_to_none_without_files(
    tmp_path: Path, is_written: bool
) -> None:
    with recorded("example", JobConfig(), Stores()) as kept:
        kept.keep(str(tmp_path), {"images": 1})
    before = read(tmp_path)
    for _ in range(2):
        with pytest.raises(UsageError), recorded("example", JobConfig(), Stores()) as kept:
            kept.begin(str(tmp_path))
            if is_written:
                kept.keep(str(tmp_path), {"images": 2})
            raise UsageError("x")
    assert (read(tmp_path) == before) is not is_written


def test_files_of_a_job_that_failed_later_keep_its_record(tmp_path: Path) -> None:
    with pytest.raises(IncompleteError), recorded("example", JobConfig(), Stores()) as kept:
        kept.keep(str(tmp_path), {"images": 1}, model="abc")
        raise IncompleteError("x")
    with pytest.raises(ZeroDivisionError), recorded("example", JobConfig(), Stores()) as kept:
        kept.keep(str(tmp_path), {"images": 2}, model="abc")
        raise ZeroDivisionError
    with pytest.raises(UsageError), recorded("example", JobConfig(), Stores()) as kept:
        kept.begin(str(tmp_path), model="def")
        raise UsageError("x")
    found = read(tmp_path)
    assert (found["status"], found["has_output"], found["digests"]) == ("failed", True, {"model": "abc"})


def test_a_training_is_told_in_its_own_folder_and_in_the_bundle(tmp_path: Path) -> None:
    with recorded("example", JobConfig(), Stores()) as kept:
        kept.begin(str(tmp_path / "run"))
        kept.keep(str(tmp_path / "bundle"), {"train": 3})
    assert read(tmp_path / "run") == read(tmp_path / "bundle")


def test_a_record_that_cannot_be_written_hides_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(IncompleteError), recorded("example", JobConfig(), Stores()) as kept:
        kept.begin(str(tmp_path / "file" / "folder"))
        raise IncompleteError("x")
    assert "warning: run.json was not written" in capsys.readouterr().err


def test_what_was_not_written_has_no_record(tmp_path: Path) -> None:
    with pytest.raises(UsageError), recorded("example", JobConfig(), Stores()):
        raise UsageError("x")
    assert not list(tmp_path.iterdir())


def test_the_record_of_scoring_has_what_all_have() -> None:
    assert set(JobRecord.model_fields) < set(RunRecord.model_fields)
    assert set(Record.model_fields) <= set(RunRecord.model_fields)
