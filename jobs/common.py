"""What every job shares: from a command line to an exit code, and how a person is told about it."""

import contextlib
import errno
import functools
import io
import itertools
import os
import signal
import sys
import tempfile
import time
import traceback
import urllib.request
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NoReturn, TypeVar

from jobs import lineage
from jobs.config import JobConfig, NamingConfig, effective, parse
from jobs.ending import ends_when_told, hear_no_more, is_terminated
from pipeline.base.errors import (
    IncompleteError,
    InputError,
    LeukorayError,
    NotBetterThanChanceError,
    NotPromotedError,
    PlatformError,
    UsageError,
)
from pipeline.base.extras import needs_training
from pipeline.base.head import on_lost_head
from pipeline.base.log import JSON, TEXT, in_json, redacted, speaking_json, tell
from pipeline.base.text import first_line
from pipeline.storage.abilities import for_writing
from pipeline.storage.stores import Stores
from pipeline.storage.types import S3Settings, StoreError
from pipeline.storage.uris import absolute, is_s3

if TYPE_CHECKING:
    from pipeline.sources.pseudonyms import Names

Config = TypeVar("Config", bound=JobConfig)
BUG, INTERRUPTED, TERMINATED = 1, 130, 143
EXIT_CODES = {
    0: "done",
    BUG: "bug",
    UsageError.exit_code: "usage",
    InputError.exit_code: "input",
    IncompleteError.exit_code: "data incomplete",
    PlatformError.exit_code: "environment",
    NotBetterThanChanceError.exit_code: "trained, but not better than chance: best.json stays",
    NotPromotedError.exit_code: "not promoted: its protocol is not met, best.json stays",
    INTERRUPTED: "interrupted",
    TERMINATED: "ended by SIGTERM",
}
_WRONG_PLACE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

_CONTINUED = ("leukoray score", "leukoray train", "leukoray tune")  # keep what they have finished
_INTERRUPTED = "interrupted; what was finished is kept, the same command continues"
_STOPPED = "interrupted; nothing is left half written, the same command starts anew"

# For this machine's own endpoint: a proxy that the environment names for the world does not know it
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))

Command = Callable[[Sequence[str]], int]


def job(name: str, config_class: type[Config], main: Callable[[Config], None], examples: str = "") -> Command:
    """The command of a job: parses, runs, and turns every failure into one line on stderr and an exit code."""
    return functools.partial(_run, f"leukoray {name}", config_class, main, examples)


def _run(
    prog: str, config_class: type[Config], main: Callable[[Config], None], examples: str, argv: Sequence[str]
) -> int:
    _print_anything()
    on_lost_head(functools.partial(_end, prog))
    speak = functools.partial(speaking_json, prog.partition(" ")[2], has_results=config_class.has_results)

    def parsed() -> Config:
        config = parse(config_class, argv, prog=prog, epilog=examples)
        if config.log_format == JSON and in_json() is None:  # a file asks for it
            speaking.enter_context(speak())
        return config

    with contextlib.ExitStack() as speaking:
        if _asked_format(argv) == JSON:
            speaking.enter_context(speak())
        code = _ended(prog, parsed, main, debug="--debug" in argv)
        if (lines := in_json()) is not None:
            with contextlib.suppress(BrokenPipeError):
                lines.end(code, EXIT_CODES[code])
    return code


def _ended(prog: str, parsed: Callable[[], Config], main: Callable[[Config], None], *, debug: bool) -> int:
    """The exit code. `debug`: as far as it is known before the configuration is."""
    try:
        with ends_when_told(functools.partial(give_up, prog)):
            config = parsed()
            debug = config.debug
            lineage.begin(prog.partition(" ")[2], config)
            main(config)
        lineage.end("COMPLETE")
        return 0
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code != signal.SIGTERM:  # Ray's own handler exits so while it starts
            raise
        if isinstance(error, KeyboardInterrupt | SystemExit):
            hear_no_more()
        code = told(prog, error, debug=debug)
        _end_lineage(code, error)
        return code


def _end_lineage(code: int, error: BaseException) -> None:
    """The sentence of an error stays here: it may name a subject or a path, and events go to catalogues of others."""
    state: Literal["ABORT", "FAIL"] = "ABORT" if code in (INTERRUPTED, TERMINATED) else "FAIL"
    lineage.end(state, f"exit code {code}, {EXIT_CODES[code]} ({type(error).__name__}); the job's own output says more")


def _asked_format(argv: Sequence[str]) -> str:
    """Before the configuration is read, so that an error of it is told as was asked for."""
    asked = os.environ.get("LEUKORAY_LOG_FORMAT", TEXT)
    for word, behind in itertools.pairwise([*argv, ""]):
        flag, has_value, value = word.partition("=")
        if flag == "--log-format":
            asked = value if has_value else behind
    return asked


def _print_anything() -> None:
    """Names that the terminal's encoding lacks, or that no encoding has, are printed escaped and end no job."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def told(prog: str, error: BaseException, *, debug: bool = False) -> int:
    """Print what ended a job in one line, of a bug all that is known; its exit code."""
    code, message = _outcome(prog, error)
    with contextlib.suppress(BrokenPipeError):  # whoever read stderr may have ended too
        is_traced = debug or (code == BUG and not isinstance(error, LeukorayError))
        if (lines := in_json()) is not None:
            trace = {"traceback": "".join(traceback.format_exception(error))} if is_traced else {}
            lines.event(f"{prog}: {message}", "error", **trace)
            return code
        if is_traced:
            print(redacted("".join(traceback.format_exception(error))), end="", file=sys.stderr)
        print(f"{prog}: {redacted(message)}", file=sys.stderr, flush=True)
    return code


def told_as_asked(prog: str, argv: Sequence[str], error: BaseException) -> int:
    """As `told`, in the form that the command line asks for: of what ended a job before it was begun."""
    if _asked_format(argv) != JSON:
        return told(prog, error)
    with speaking_json(prog.partition(" ")[2], has_results=False) as lines:
        code = told(prog, error)
        lines.end(code, EXIT_CODES[code])
    return code


def _interrupted(prog: str) -> str:
    return _INTERRUPTED if prog in _CONTINUED else _STOPPED


def give_up(prog: str, signum: int) -> None:
    """The end of a process that was told to end and hangs. Written past `sys.stderr`, whose lock may be taken."""
    code, said = TERMINATED if signum == signal.SIGTERM else INTERRUPTED, f"{prog}: {_interrupted(prog)}"
    lines = in_json()
    text = f"{said}\n" if lines is None else lines.line(said, "error") + lines.end_line(code, EXIT_CODES[code])
    os.write(2, text.encode())
    os._exit(code)


def _end(prog: str, error: PlatformError) -> None:
    """End the process from a thread of its own."""
    tell(sys.stderr, redacted(f"{prog}: {error}"), level="error")
    _end_lineage(error.exit_code, error)
    if (lines := in_json()) is not None:
        lines.end(error.exit_code, EXIT_CODES[error.exit_code])
    finish(error.exit_code)


def start(command: Command) -> None:
    """The end of a job's file: run it as a program, `python -m jobs.NAME`."""
    finish(command(sys.argv[1:]))


def _outcome(prog: str, error: BaseException) -> tuple[int, str]:
    """Exit code and the one line to print."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        code = TERMINATED if is_terminated() or isinstance(error, SystemExit) else INTERRUPTED
        return code, _interrupted(prog)
    if isinstance(error, StoreError):
        error = error.refusal()
    if isinstance(error, BrokenPipeError):
        return PlatformError.exit_code, "what read its output has ended; read all of it, or write it to a file"
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return PlatformError.exit_code, f"disk full: {error}; free space and run again"
    if _is_out_of_memory(error):
        return PlatformError.exit_code, f"{first_line(error)}; free memory, or give fewer cores (--num-cpus)"
    if isinstance(error, _WRONG_PLACE):
        return InputError.exit_code, f"{error.filename}: {error.strerror}"
    cause = None if isinstance(error, OSError) else _known_cause(error)
    if cause is not None:  # Ray gives what a worker raised a class of both kinds
        return cause.exit_code, str(cause)
    return BUG, f"bug, please report it: {type(error).__name__}: {error}"


def exit_code_of(error: BaseException) -> int:
    """Of a job that ends with this error."""
    return _outcome("", error)[0]


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether Ray ended a process because its machine had hardly any memory left, whoever took it."""
    ray = sys.modules.get("ray")
    return ray is not None and isinstance(error, ray.exceptions.OutOfMemoryError)


def _known_cause(error: BaseException) -> LeukorayError | None:
    """An error of ours that Ray wrapped on its way from a worker, or a package of training that is not installed."""
    seen: BaseException | None = error
    while seen is not None:
        inner = getattr(seen, "cause", None)
        if isinstance(inner, LeukorayError):
            return inner
        if isinstance(seen, LeukorayError):
            return seen
        if (missing := needs_training(seen)) is not None:
            return missing
        seen = seen.__cause__ or seen.__context__
    return None


def finish(code: int) -> NoReturn:
    """End the process with `code` now. PyArrow's S3 threads can abort an ordinary exit (apache/arrow 50188)."""
    hear_no_more()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def job_stores(config: JobConfig) -> Stores:
    stores = Stores(S3Settings.from_config(config))
    if isinstance(config, NamingConfig) and config.pseudonymize is not None:
        from pipeline.sources.pseudonyms import with_pseudonyms  # most jobs need nothing of the sources

        return with_pseudonyms(stores, absolute(config.pseudonymize))
    return stores


def writing_stores(config: JobConfig, out: str, *, single_writer: bool) -> Stores:
    """As `job_stores`, for a job that locks `out`: its store is asked what it heeds. Raises PlatformError."""
    return for_writing(job_stores(config), out, single_writer=single_writer, say=functools.partial(print, flush=True))


def refuse_unwritable(out: str) -> None:
    """Before the work: raise what its last step would, where no file can be put into the folder `out` of a disk.

    The folder is made. Nothing is asked of S3, where a write that is tried may not be removable.
    """
    if is_s3(out):
        return
    try:
        os.makedirs(out, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"--out {out}: no folder to write to ({error.strerror}); choose another one") from error


def show_config(config: JobConfig, names: "Names | None" = None) -> None:
    """Print what is in force, one line, without what was left at None."""
    shown = {name: value for name, value in effective(config, names).items() if value is not None and value != []}
    said = "configuration: " + "  ".join(f"{name}={value}" for name, value in shown.items())
    tell(sys.stdout, redacted(said), event="configuration", configuration=shown)


class Clock:
    """Seconds since it was made, for the account a job prints."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start
