"""What every job shares: from a command line to an exit code, and how a person is told about it.

Exit codes: 0 done, 1 bug, 2 usage, 3 input, 4 data incomplete, 5 environment, 130 interrupted (143 by SIGTERM).
"""

import os
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Sequence
from typing import TypeVar

from jobs.config import JobConfig, effective, parse
from pipeline.base.errors import InputError, LeukorayError, PlatformError
from pipeline.storage.stores import Stores
from pipeline.storage.types import S3Settings, StoreError

Config = TypeVar("Config", bound=JobConfig)
INTERRUPTED, TERMINATED = 130, 143
_WRONG_PLACE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)


_signals: list[int] = []


def _terminate(signum: int, frame: types.FrameType | None) -> None:
    """SIGTERM, as sent by `ray job stop`, systemd and Kubernetes: handled like Ctrl-C.

    It is noted, because Ray's core swallows what a handler raises in the middle of a `ray.wait` and raises a
    KeyboardInterrupt of its own.
    """
    _signals.append(signum)
    raise KeyboardInterrupt


def raise_if_terminated() -> None:
    """Raise KeyboardInterrupt when SIGTERM came and what it raised was swallowed, as in a callback or an import."""
    if _signals:
        raise KeyboardInterrupt


def run(
    config_class: type[Config],
    main: Callable[[Config], None],
    *,
    prog: str,
    epilog: str = "",
    argv: Sequence[str] | None = None,
) -> int:
    """Parse, run, and turn every failure into one line on stderr and an exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments  # until the configuration, which may come from elsewhere, is known
    if threading.current_thread() is threading.main_thread():
        _signals.clear()
        signal.signal(signal.SIGTERM, _terminate)
    try:
        config = parse(config_class, arguments, prog=prog, epilog=epilog)
        debug = config.debug
        main(config)
        return 0
    except StoreError as error:
        refusal = error.refusal()
        return _report(error, refusal.exit_code, str(refusal), prog, debug)
    except LeukorayError as error:
        own = _known_cause(error) or error  # Ray gives what a worker raised a class of both kinds
        return _report(error, own.exit_code, str(own), prog, debug)
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code != signal.SIGTERM:  # Ray's own handler exits so while it starts
            raise
        message = "interrupted; what was finished is kept, the same command continues"
        code = INTERRUPTED if isinstance(error, KeyboardInterrupt) and not _signals else TERMINATED
        return _report(error, code, message, prog, debug)
    except OSError as error:
        if error.errno in (28, 122):  # ENOSPC, EDQUOT
            return _report(
                error,
                PlatformError.exit_code,
                f"disk full: {error}; free space and run again",
                prog,
                debug,
            )
        if isinstance(error, _WRONG_PLACE):
            return _report(error, InputError.exit_code, f"{error.filename}: {error.strerror}", prog, debug)
        return _report(error, 1, f"bug: {type(error).__name__}: {error}", prog, True)
    except Exception as error:
        cause = _known_cause(error)
        if cause is not None:
            return _report(error, cause.exit_code, str(cause), prog, debug)
        return _report(error, 1, f"bug, please report it: {type(error).__name__}: {error}", prog, True)


def _known_cause(error: BaseException) -> LeukorayError | None:
    """An error of ours that Ray wrapped on its way from a worker."""
    seen: BaseException | None = error
    while seen is not None:
        inner = getattr(seen, "cause", None)
        if isinstance(inner, LeukorayError):
            return inner
        if isinstance(seen, LeukorayError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _report(error: BaseException, code: int, message: str, prog: str, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    print(f"{prog}: {message}", file=sys.stderr, flush=True)
    return code


def finish(code: int) -> None:
    """End the process with `code` now. PyArrow's S3 threads can abort an ordinary exit (apache/arrow 50188)."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def job_stores(config: JobConfig) -> Stores:
    return Stores(S3Settings.from_config(config))


def show_config(config: JobConfig) -> None:
    """Print what is in force, one line, without what was left at None."""
    shown = {name: value for name, value in effective(config).items() if value is not None and value != []}
    print("configuration: " + "  ".join(f"{name}={value}" for name, value in shown.items()), flush=True)


class Clock:
    """Seconds since it was made, for the account a job prints."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start
