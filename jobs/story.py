"""Jobs run one after the other as commands that could have been typed, their output in logs, told to a person."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from jobs.config import JobConfig, options
from pipeline.base.errors import LeukorayError

_STOPPED_WITHIN_S = 30.0
_LOG_LINES_SHOWN = 12
_INDENT = " " * 13


class StepFailed(LeukorayError):
    """A job ended with another exit code than 0; this one ends with the same."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Story:
    """Runs jobs with the flags that all of them know, and keeps what they print in `<out>/logs/<job>.log`."""

    def __init__(self, out: str, config: JobConfig) -> None:
        self._out = out
        self._shared = _shared_flags(config)
        self._seconds: str | None = None  # of the last job, until they stand before a sentence
        Path(self.path("logs")).mkdir(parents=True, exist_ok=True)

    def path(self, *parts: str) -> str:
        return str(Path(self._out, *parts))

    def log(self, job: str) -> Path:
        return Path(self.path("logs", f"{job}.log"))

    def step(self, job: str, *arguments: str, shown: str | None = None) -> None:
        """Run a job to its end. Lines of its output that begin with `shown` are told as they come.

        Raises StepFailed with the end of its log.
        """
        with self._running(job, arguments, subprocess.PIPE) as (process, log):
            for line in process.stdout or ():
                log.write(line)
                log.flush()
                if shown is not None and line.startswith(shown):
                    print(_INDENT + line.rstrip(), flush=True)
            process.wait()
        if process.returncode:
            raise StepFailed(f"step {job} failed; all of {self.log(job)}:\n{self.log_end(job)}", process.returncode)

    @contextlib.contextmanager
    def service(self, job: str, *arguments: str) -> Iterator[Callable[[], bool]]:
        """A job that is stopped where the block ends; gives a function that says whether it still runs."""
        with self._running(job, arguments) as (process, _):
            yield lambda: process.poll() is None

    @contextlib.contextmanager
    def _running(
        self, job: str, arguments: Sequence[str], output: int | None = None
    ) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
        """The job as a child that does not outlive the block, and its log."""
        words = [job, *arguments, *self._shared]
        typed = _wrapped(" ".join(map(shlex.quote, ["leukoray", *words])), reserve=4)
        print(f"\n  {job:<10} $ " + f" \\\n{_INDENT}    ".join(typed), flush=True)
        command, started = [sys.executable, "-m", "jobs.cli", *words], time.monotonic()
        with self.log(job).open("w") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output or log, stderr=log, text=True,
                env=os.environ | {"LEUKORAY_LOG_FORMAT": "text"},
            )  # fmt: skip
            try:
                yield process, log
            finally:
                _stop(process)
        self._seconds = f"{time.monotonic() - started:.1f} s"

    def log_end(self, job: str) -> str:
        lines = self.log(job).read_text(errors="replace").splitlines()
        return "\n".join(f"  | {line}" for line in lines[-_LOG_LINES_SHOWN:])

    def say(self, *sentences: str) -> None:
        """Tell something of the last job, its seconds first."""
        for sentence in sentences:
            for line in _wrapped(sentence):
                start = f"{self._seconds:>10}   " if self._seconds else _INDENT
                self._seconds = None
                print(start + line, flush=True)


def typed_command() -> str:
    """The command's path as short as it can be typed here."""
    command = Path(sys.executable).with_name("leukoray")
    return str(command.relative_to(Path.cwd()) if command.is_relative_to(Path.cwd()) else command)


def _shared_flags(config: JobConfig) -> list[str]:
    """Flags that every job knows, as they were given to this one."""
    flags = []
    for option in options(JobConfig):
        if option.name == "log_format":  # what jobs tell is read here, and told again
            continue
        value = getattr(config, option.name)
        if value is not None and value is not False:
            flags += [option.flag] if value is True else [option.flag, str(value)]
    return flags


def _stop(process: "subprocess.Popen[str]") -> None:
    """As Ctrl-C would, and then for good."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wrapped(text: str, reserve: int = 0) -> list[str]:
    width = max(80, min(130, shutil.get_terminal_size((120, 20)).columns)) - len(_INDENT) - reserve
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
