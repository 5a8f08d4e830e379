"""What decoders say beside their result: warnings and log records of Pillow, and lines that libtiff prints on stderr.

Pillow is heard by thread, so that images decoded side by side keep their own. libtiff prints from C; only while it
may be at work is file descriptor 2 led into a file, one image at a time in this process. Lines of others pass on.
"""

import contextlib
import functools
import logging
import os
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from pipeline.images.remarks import remark

_LIBTIFF = re.compile(r"[\w.]+: \S.*\.$")  # `ZIPDecode: Decoding error at scanline 0, incorrect data check.`
_MAX_LINES = 1000
_PILLOW_LOG = logging.getLogger("PIL")
_STDERR = 2


class _Ears(threading.local):
    """The lines of the image that this thread decodes; None while it decodes none."""

    lines: list[str] | None = None


_ears = _Ears()
_stderr = threading.Lock()


@contextlib.contextmanager
def heard(*, from_libtiff: bool = False) -> Iterator[list[str]]:
    """The lines said in the block, none of which is printed; all of them are there when it has ended."""
    _listen()
    lines: list[str] = []
    before, _ears.lines = _ears.lines, lines
    try:
        with _read_stderr(lines) if from_libtiff else contextlib.nullcontext():
            yield lines
    finally:
        _ears.lines = before


def decoder_remarks(lines: Sequence[str]) -> tuple[str, ...]:
    """One remark on all that was said of an image; nothing where nothing was."""
    return (remark("decoder warned", summed_up(lines)),) if lines else ()


def summed_up(lines: Sequence[str]) -> str:
    more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
    return lines[0][:200].rstrip(".") + more


def _listen() -> None:
    """Have what Pillow says shown by `_show` and `_LogHandler`; each time, for users of `catch_warnings` undo it."""
    shown_by = warnings.showwarning
    if getattr(shown_by, "func", None) is not _show:
        warnings.filterwarnings("always", module=r"PIL\.")  # not once a place, as by default: once an image
        warnings.showwarning = functools.partial(_show, shown_by)

    if not any(isinstance(handler, _LogHandler) for handler in _PILLOW_LOG.handlers):
        _PILLOW_LOG.addHandler(_LogHandler())
        _PILLOW_LOG.propagate = False


class _LogHandler(logging.Handler):
    """Of Pillow's logger; records of what is not decoded here go where they went."""

    def emit(self, record: logging.LogRecord) -> None:
        if _ears.lines is None or record.levelno < logging.WARNING:
            logging.getLogger().handle(record)
        else:
            _ears.lines.append(" ".join(record.getMessage().split()))


def _show(elsewhere: Callable[..., None], message: Warning | str, *others: Any, **named: Any) -> None:
    if _ears.lines is None:
        elsewhere(message, *others, **named)
    else:
        _ears.lines.append(" ".join(str(message).split()))


@contextlib.contextmanager
def _read_stderr(lines: list[str]) -> Iterator[None]:
    with _stderr:
        file = _file()
        try:
            kept = os.dup(_STDERR)
        except OSError:  # closed: nothing can be printed
            yield
            return
        _flush()
        os.dup2(file.fileno(), _STDERR)
        try:
            yield
        finally:
            _flush()
            os.dup2(kept, _STDERR)
            os.close(kept)
            _sort_out(file, lines)


@functools.cache
def _file() -> IO[bytes]:
    """Of this process, without a name, empty between images."""
    return tempfile.TemporaryFile()


def _flush() -> None:
    with contextlib.suppress(Exception):  # a closed or replaced stderr is not ours to mend
        sys.stderr.flush()


def _sort_out(file: IO[bytes], lines: list[str]) -> None:
    if not file.seek(0, os.SEEK_END):
        return
    file.seek(0)
    said = file.read().decode("utf-8", "replace")
    file.truncate(0)
    file.seek(0)
    for line in said.splitlines():
        if _LIBTIFF.fullmatch(line.strip()):
            if len(lines) < _MAX_LINES:
                lines.append(line.strip())
        else:
            with contextlib.suppress(OSError):
                os.write(_STDERR, line.encode() + b"\n")
