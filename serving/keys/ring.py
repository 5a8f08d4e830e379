"""The keys that are accepted now: those of the settings, and those of a file that is read again when it changes."""

import contextlib
import hmac
import logging
import os
import stat
import threading
from collections.abc import Callable, Sequence, Set

from pipeline.base.errors import InputError
from serving.keys.records import MAX_FILE_BYTES, Key, digest, read_lines

log = logging.getLogger("ray.serve")
LOOK_EVERY_S = 2.0
_Seen = tuple[int, ...] | None


class KeyMissing(Exception):
    """No key was given where one is asked for."""


class KeyRefused(Exception):
    """A key was given that is not accepted here."""


class KeyRing:
    """`given`: keys that stay. `file` is looked at every two seconds by a thread of its own, so that no request waits.

    `on_change` is called with whether the file is broken, at the start and whenever that may have changed.

    Raises InputError where the file cannot be used. Later the keys stay as they were until it can be again.
    """

    def __init__(
        self,
        given: Sequence[Key],
        file: str | None = None,
        on_change: Callable[[bool], None] = lambda is_broken: None,
        every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._given, self._file, self._on_change = tuple(given), file, on_change
        self.broken: str | None = None  # why the file was not taken
        self._seen: _Seen = None
        self._closed = threading.Event()
        self._keys = self._given
        if file is not None:
            self._seen = _seen(file)
            self._keys = self._read()
            threading.Thread(target=self._watch, args=(every_s,), name="keys", daemon=True).start()

    @property
    def asks(self) -> bool:
        """Whether a key is asked for. With a file always: none in it is broken, not open."""
        return self._file is not None or any(not key.is_admin for key in self._given)

    def check(self, key: str | None, *, is_admin: bool = False) -> Key | None:
        """Whose key it is; None where none is asked for. Raises KeyMissing and KeyRefused.

        Every digest is compared, each in constant time.
        """
        if not (is_admin or self.asks):
            return None
        if not key:
            raise KeyMissing
        given = digest(key)
        matches = [known for known in self._keys if hmac.compare_digest(given, known.sha256)]
        for known in matches:
            if known.is_admin == is_admin:
                return known
        raise KeyRefused

    def look(self) -> None:
        """Take the file as it is now, if it has changed."""
        assert self._file is not None
        seen = _seen(self._file)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            keys, reason = self._read(), None
        except InputError as error:
            log.error("the keys stay as they were: %s", error)
            keys, reason = self._keys, str(error).removeprefix(f"{self._file}: ")  # which is nobody's business
        else:
            log.warning("keys are taken anew: %d of %s", len(keys), self._file)
        self._keys, self.broken = keys, reason
        self._on_change(reason is not None)

    def close(self) -> None:
        self._closed.set()

    def _watch(self, every_s: float) -> None:
        while not self._closed.wait(every_s):
            try:
                self.look()
            except Exception:
                log.exception("the file of keys could not be looked at")

    def _read(self) -> tuple[Key, ...]:
        assert self._file is not None
        keys = (*self._given, *read_file(self._file, {key.sha256 for key in self._given}))
        if all(key.is_admin for key in keys):
            raise InputError(f"{self._file}: it holds administrators' keys alone, which send no images")
        return keys


def _seen(file: str) -> _Seen:
    """What tells one state of the file from another; a mounted secret of Kubernetes gets another inode."""
    with contextlib.suppress(OSError):
        found = os.stat(file)
        return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev
    return None


def read_file(file: str, given: Set[str] = frozenset()) -> list[Key]:
    """The keys of a file. `given`: digests that it may not hold. Raises InputError, which names the line but nothing
    in it."""
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # a pipe would be waited for
            raise InputError(f"{file}: no file; expected one of keys, docs/serve.md")
        with open(file, "rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"{file}: cannot be read ({error.strerror}); expected a file of keys, docs/serve.md"
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"{file}: more than {MAX_FILE_BYTES} bytes, no file of keys")
    try:
        return read_lines(data.decode(), given)
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: no text") from error
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def open_to_others(file: str) -> str | None:
    """A warning where others than the owner and the group may read or write the file."""
    mode = os.stat(file).st_mode
    if mode & 0o022:
        return f"{file}: others may write there, and so let themselves in; chmod 640"
    if mode & 0o004:
        return f"{file}: everybody on this machine may read the digests of keys; chmod 640"
    return None
