"""The local (or network-mounted) file system as a store. Writes appear whole: a temporary name, then a rename."""

import contextlib
import errno
import fcntl
import io
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG
from typing import cast

from pipeline.base.errors import Code, InputError, LeukorayError, PlatformError
from pipeline.storage.types import Bytes, Level, ObjectInfo, OnFailure, StoreError, replaced
from pipeline.storage.uris import local_path

_TEMPORARY = re.compile(r"[^/]\.tmp-[0-9a-f]{12}\Z")


def translated(error: OSError, uri: str) -> LeukorayError:
    """Our error for one of the disk."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return PlatformError(f"{uri}: the disk is full; free space and run the same command again to continue")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return StoreError(Code.NOT_FOUND, f"{uri}: does not exist; check the path")
    if isinstance(error, PermissionError):
        return StoreError(Code.ACCESS_DENIED, f"{uri}: permission denied; check owner and mode")
    if isinstance(error, FileExistsError):
        return InputError(f"{error.filename or uri}: is a file, expected a folder; choose another --out")
    if isinstance(error, IsADirectoryError):
        return StoreError(Code.NOT_FOUND, f"{uri}: is a folder, expected a file")
    return StoreError(Code.IO_ERROR, f"{uri}: {error.strerror or error}")


def _temporary(uri: str) -> str:
    """A name beside `uri` that readers of whole folders pass over: Arrow and Spark read no `.name`."""
    folder, slash, name = uri.rpartition("/")
    return f"{folder}{slash}.{name}.tmp-{uuid.uuid4().hex[:12]}"


def is_temporary(uri: str) -> bool:
    """Whether this is a file that was being written, by its name; also by that of version 0.1, which had no dot."""
    return _TEMPORARY.search(uri) is not None


def local_etag(stat: os.stat_result) -> str:
    return f"{stat.st_mtime_ns:x}-{stat.st_size:x}"


class LocalStore:
    """The local (or network-mounted) file system."""

    is_remote = False
    is_conditional = True

    def read(self, uri: str) -> Bytes:
        try:
            with open(local_path(uri), "rb", buffering=0) as file:
                etag = local_etag(os.fstat(file.fileno()))
                return Bytes(file.readall(), etag, 1)
        except OSError as error:
            raise translated(error, uri) from error

    def read_range(self, uri: str, offset: int, size: int, etag: str | None = None) -> Bytes:
        try:
            with open(local_path(uri), "rb", buffering=0) as file:
                found = local_etag(os.fstat(file.fileno()))
                if etag is not None and found != etag:
                    raise replaced(uri)
                return Bytes(os.pread(file.fileno(), size, offset), found, 1)
        except OSError as error:
            raise translated(error, uri) from error

    def open(self, uri: str, on_failure: OnFailure | None = None) -> io.BufferedReader:
        try:
            return cast(io.BufferedReader, open(local_path(uri), "rb", buffering=1 << 16))
        except OSError as error:
            raise translated(error, uri) from error

    def write(self, uri: str, data: bytes) -> None:
        temporary = _temporary(uri)
        try:
            Path(uri).parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, uri)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            if isinstance(error, OSError):
                raise translated(error, uri) from error
            raise

    def create(self, uri: str, data: bytes) -> str | None:
        """Write only if nothing is there yet; the new etag, or None when somebody was first."""
        try:
            Path(uri).parent.mkdir(parents=True, exist_ok=True)
            with open(uri, "xb") as file:
                file.write(data)
                file.flush()
                return local_etag(os.fstat(file.fileno()))
        except FileExistsError:
            return None
        except OSError as error:
            raise translated(error, uri) from error

    def replace(self, uri: str, data: bytes, etag: str) -> str | None:
        """Compare-and-swap between those who use it: whoever waited for the file's kernel lock looks at it anew."""
        try:
            with open(uri, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if local_etag(os.stat(uri)) != etag:
                    return None
                self.write(uri, data)
                return local_etag(os.stat(uri))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise translated(error, uri) from error

    def head(self, uri: str) -> ObjectInfo | None:
        try:
            stat = os.stat(local_path(uri))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise translated(error, uri) from error
        if not S_ISREG(stat.st_mode):  # folders; pipes and devices, whose reading may never end
            return None
        return ObjectInfo(uri, stat.st_size, local_etag(stat), stat.st_mtime)

    def is_folder(self, uri: str) -> bool:
        """True for a folder that is there, though it may be closed to us.

        Its first entry is asked for: what the system remembers of a folder outlives a network disk that is gone. Raises
        StoreError where the disk fails.
        """
        path = local_path(uri)
        try:
            with os.scandir(path) as entries:
                next(entries, None)
        except PermissionError:
            return os.path.isdir(path)
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte
            return False
        except OSError as error:
            raise translated(error, uri) from error
        return True

    def levels(self, prefix: str) -> Iterator[Level]:
        """What lies directly in a folder, as one page; nothing where the folder does not exist."""
        folders: list[str] = []
        objects: list[ObjectInfo] = []
        try:
            with os.scandir(prefix) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.is_dir():
                        folders.append(entry.path + "/")
                    elif entry.is_file():
                        stat = entry.stat()
                        objects.append(ObjectInfo(entry.path, stat.st_size, local_etag(stat), stat.st_mtime))
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise translated(error, prefix) from error
        yield Level(folders, objects, is_truncated=False)

    def beginning_with(self, uri: str) -> Iterator[ObjectInfo]:
        """Files whose paths begin with these characters, in no promised order."""
        folder, _, begin = uri.rpartition("/")
        for level in self.levels(folder or "/"):
            yield from (info for info in level.objects if info.uri.rpartition("/")[2].startswith(begin))
            for inner in level.folders:
                if inner.rstrip("/").rpartition("/")[2].startswith(begin):
                    yield from self.walk(inner.rstrip("/"))

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        """Files below a folder, in no promised order; nothing where the folder does not exist."""
        for folder, _, names in os.walk(prefix):
            for name in names:
                path = os.path.join(folder, name)
                with contextlib.suppress(FileNotFoundError):  # removed while we walk
                    stat = os.stat(path)
                    yield ObjectInfo(path, stat.st_size, local_etag(stat), stat.st_mtime)

    def delete(self, uri: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(uri)

    def delete_tree(self, prefix: str) -> None:
        shutil.rmtree(prefix, ignore_errors=True)
