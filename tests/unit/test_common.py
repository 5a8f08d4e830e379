"""From a failure to an exit code and one line."""

import contextlib
import errno
import io
import os
import signal
import sys
from pathlib import Path

import pytest

from jobs.common import EXIT_CODES, job, refuse_unwritable, told
from jobs.config import JobConfig
from pipeline.base.errors import Code, IncompleteError, InputError, NotBetterThanChanceError, PlatformError, UsageError
from pipeline.storage.types import StoreError


class Plain(JobConfig):
    """A job without options of its own."""


def ends(error: BaseException, *argv: str) -> int:
    def main(config: Plain) -> None:
        raise error

    return job("example", Plain, main)(argv)


class FailedTask(Exception):
    """What Ray makes of an error on its way from a worker."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("ray::task() failed\n  File ...")
        self.cause = cause


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("--x: no"), 2, "--x: no"),
        (InputError("m: none here"), 3, "m: none here"),
        (IncompleteError("too many"), 4, "too many"),
        (PlatformError("no cores"), 5, "no cores"),
        (NotBetterThanChanceError("it guesses"), 6, "it guesses"),
        (StoreError(Code.NOT_FOUND, "s3://a/b: gone"), 3, "s3://a/b: gone"),
        (StoreError(Code.TIMEOUT, "s3://a/b: silent"), 5, "the store does not answer (s3://a/b: silent)"),
        (FailedTask(InputError("of a worker")), 3, "of a worker"),
        (OSError(errno.ENOSPC, "No space left on device"), 5, "disk full"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"), 3, "/x: No such file or directory"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 5, "what read its output has ended"),
        (KeyboardInterrupt(), 130, "the same command starts anew"),
        (SystemExit(signal.SIGTERM), 143, "the same command starts anew"),
    ],
)
def test_a_failure_that_is_no_bug_is_one_line_and_its_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(error) == code
    said = capsys.readouterr().err
    assert said.startswith(f"leukoray example: {line}") or line in said
    assert said.count("\n") == 1
    assert code in EXIT_CODES


@pytest.mark.parametrize("error", [KeyError("name"), OSError(errno.EIO, "Input/output error")])
def test_a_bug_is_told_with_its_traceback(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(error) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said and "bug, please report it" in said


def test_debug_shows_where_any_error_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(InputError("m: none here"), "--debug") == 3
    assert "Traceback" in capsys.readouterr().err


def test_other_ends_of_a_process_stay_what_they_are() -> None:
    with pytest.raises(SystemExit) as end:
        ends(SystemExit(7))
    assert end.value.code == 7


def test_what_a_terminal_cannot_show_is_printed_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(config: Plain) -> None:
        print("Bl\u00e4sten \u6f22 bl\udce4st")

    terminal = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert job("example", Plain, main)([]) == 0
    terminal.flush()
    assert terminal.buffer.getvalue() == b"Bl\xe4sten \\u6f22 bl\\udce4st\n"  # type: ignore[attr-defined]


def test_a_stderr_that_nobody_reads_any_more_leaves_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(sys, "stderr", os.fdopen(writing, "w", buffering=1))
    assert ends(InputError("m: none here")) == 3
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.close()


def test_a_place_that_takes_no_files_is_refused_before_the_work(tmp_path: Path) -> None:
    refuse_unwritable(str(tmp_path / "new" / "folder"))
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        with pytest.raises(InputError, match="no folder to write to"):
            refuse_unwritable(str(tmp_path / place))
    refuse_unwritable("s3://nowhere/out")


@pytest.mark.parametrize(
    ("name", "way_on"), [("train", "is kept, the same command continues"), ("ingest", "starts anew")]
)
def test_an_interrupted_job_says_whether_it_goes_on(name: str, way_on: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(f"leukoray {name}", KeyboardInterrupt()) == 130
    assert way_on in capsys.readouterr().err
