"""Damage told from bugs: what the libraries that read archives raise on foreign bytes, as one exception of our own.

Only calls into them, and reads of the archive's own bytes, stand in `with reading:`. Whatever else raises there or
anywhere around them is a bug of ours, and ends the command as one.
"""

import errno
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from types import TracebackType

from pipeline.base.errors import Code
from pipeline.storage.types import StoreError

# Of tarfile, zipfile, gzip, bz2, lzma, zlib, struct and PyArrow on damage, and of seeking to where a header says.
_RAISED_ON_DAMAGE = (
    EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, OSError, ValueError,
    ArithmeticError, RecursionError, MemoryError,
)  # fmt: skip
# What they stumble into on bytes that nobody foresaw. Raised in a function of ours that they call, it is a bug.
_STUMBLES = (LookupError, TypeError, AssertionError, RuntimeError)
_QUOTED = re.compile(r"""b?'(?:\\.|[^'\\])*'|b?"(?:\\.|[^"\\])*\"""")
_NO_SUCH_PLACE = (None, errno.EINVAL)  # of an OSError: no system call failed, or it was asked for a place below 0


class Damaged(Exception):
    """Bytes of an archive that cannot be what they should be: cut (`truncated`) or altered (`corrupt`)."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Reading:
    """A context that raises Damaged for what libraries raise on damage, StoreError where the disk failed."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        if isinstance(error, OSError) and error.errno not in _NO_SUCH_PLACE:
            raise StoreError(Code.IO_ERROR, f"the disk cannot read it: {error.strerror}") from error
        if isinstance(error, _RAISED_ON_DAMAGE) or (isinstance(error, _STUMBLES) and not _is_ours(trace)):
            raise Damaged(_code(error), _said(error) or "ends too early") from error


reading = _Reading()


def _is_ours(trace: TracebackType | None) -> bool:
    """Whether the innermost function is of this project."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("pipeline.")


def _said(error: BaseException) -> str:
    """What a library says, without what it quotes: names and bytes from inside the archive, also of other members."""
    return _QUOTED.sub("…", str(error))


def _code(error: BaseException) -> Code:
    is_cut = isinstance(error, EOFError) or any(word in str(error).lower() for word in ("end of data", "ended before"))
    return Code.TRUNCATED if is_cut else Code.CORRUPT
