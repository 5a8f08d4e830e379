"""Bytes in and out: one object for local paths and `s3://` URIs, with one set of S3 settings.

Reads are retried with jittered back-off, writes appear whole (temporary name and rename, or a single PUT), and
every failure is a `StoreError` that carries one of the stable codes of `pipeline.errors`.
"""

import contextlib
import errno
import io
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, Protocol, cast
from urllib.parse import unquote_to_bytes

from pipeline.errors import OUTAGE_CODES, Code, InputError, LeukorayError, PlatformError, UsageError

if TYPE_CHECKING:
    import pyarrow.fs


class StoreError(LeukorayError):
    """A store operation failed for good; `code` says why, in the words of the quarantine."""

    exit_code = 3

    def __init__(self, code: Code, message: str, attempts: int = 1) -> None:
        super().__init__(message)
        self.code = code
        self.attempts = attempts
        if code in OUTAGE_CODES:
            self.exit_code = PlatformError.exit_code

    def refusal(self, message: str | None = None) -> LeukorayError:
        """What a command ends with that cannot go on without the object: its input is wrong, or the store is out."""
        if self.code in OUTAGE_CODES:
            return PlatformError(f"the store does not answer ({self}); run again when it is back")
        return InputError(message or str(self))

    def __reduce__(self) -> tuple[type, tuple[Code, str, int]]:
        return StoreError, (self.code, str(self), self.attempts)


@dataclass(frozen=True)
class S3Settings:
    """How every client of this project, boto3 or PyArrow, reaches S3. Empty fields follow the AWS_* variables."""

    endpoint: str | None = None
    region: str | None = None
    anonymous: bool = False
    requester_pays: bool = False
    max_attempts: int = 8
    connect_timeout_s: float = 5.0
    quick_timeout_s: float = 3.0  # the first attempts: an image arrives in well under a second or is stuck
    patient_timeout_s: float = 30.0  # the later ones
    pool: int = 64  # connections a process keeps

    @classmethod
    def from_config(cls, config: Any) -> "S3Settings":
        """From the `s3_*` fields of a `JobConfig`, completed by the environment of the caller.

        The endpoint and region are resolved here, once, so that workers on other machines use the same.
        """
        env = os.environ
        endpoint = config.s3_endpoint or env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL")
        region = config.s3_region or env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1"
        return cls(endpoint, region, config.s3_anonymous, config.s3_requester_pays)


@dataclass(frozen=True)
class ObjectInfo:
    """One stored object. `etag` is S3's, or `<mtime_ns>-<size>` on disk; `mtime` in seconds since 1970 (UTC)."""

    uri: str
    size: int
    etag: str
    mtime: float


@dataclass(frozen=True)
class Bytes:
    """What a read gave, with the version of the object it came from."""

    data: bytes
    etag: str
    attempts: int


# Asked before a read that failed for good is tried once more; may raise what ends the whole.
OnFailure = Callable[[StoreError], None]


class Store(Protocol):
    """What listing, scoring and publishing need of a store. URIs are absolute."""

    def read(self, uri: str) -> Bytes: ...
    def read_range(self, uri: str, offset: int, size: int, etag: str | None = None) -> Bytes: ...
    def open(self, uri: str, on_failure: OnFailure | None = None) -> io.BufferedReader: ...
    def write(self, uri: str, data: bytes) -> None: ...
    def create(self, uri: str, data: bytes) -> str | None: ...
    def head(self, uri: str) -> ObjectInfo | None: ...
    def is_folder(self, uri: str) -> bool: ...
    def walk(self, prefix: str) -> Iterator[ObjectInfo]: ...
    def delete(self, uri: str) -> None: ...
    def delete_tree(self, prefix: str) -> None: ...


def is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def absolute(uri: str) -> str:
    """Local paths made absolute against the caller's folder; other machines would resolve them elsewhere."""
    if not uri.strip():
        raise UsageError("an empty path was given (an unset variable?); name a folder or s3:// URI")
    if "\0" in uri:
        raise UsageError(f"{uri!r}: a path cannot hold a zero byte")
    if is_s3(uri):
        return uri.rstrip("/")
    if "://" in uri and not uri.startswith("file://"):
        raise UsageError(f"{uri}: only local paths and s3:// URIs can be read; copy the data there first")
    if uri.startswith("file://"):
        path = local_path(uri)
        return path if _is_utf8(path) else uri
    return os.path.abspath(os.path.expanduser(uri))


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *parts])


def store_for(uri: str, s3: S3Settings | None = None) -> Store:
    """The store that holds `uri`. S3 clients are shared within a process."""
    if not is_s3(uri):
        return LocalStore()
    from pipeline.s3 import s3_store  # boto3 takes 0.4 s to import: only those who need S3 pay

    return s3_store(s3 or S3Settings())


def read_if_there(uri: str, s3: S3Settings | None = None) -> bytes | None:
    """The bytes of an object, None where there is none. Raises StoreError when the store does not say."""
    try:
        return store_for(uri, s3).read(uri).data
    except StoreError as error:
        if error.code is Code.NOT_FOUND:
            return None
        raise


def arrow_filesystem(uri: str, s3: S3Settings | None = None) -> tuple["pyarrow.fs.FileSystem", str]:
    """(filesystem, path) for PyArrow and Ray Data, with the settings that boto3 uses.

    The endpoint is passed explicitly: PyArrow's constructor ignores AWS_ENDPOINT_URL, its from_uri does not.
    """
    import pyarrow.fs

    if not is_s3(uri):
        return pyarrow.fs.LocalFileSystem(), uri
    settings = s3 or S3Settings()
    scheme, _, host = (settings.endpoint or "").rpartition("://")
    options: dict[str, Any] = {"endpoint_override": host, "scheme": scheme or "https"} if host else {}
    filesystem = pyarrow.fs.S3FileSystem(
        region=settings.region,
        anonymous=settings.anonymous,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=settings.max_attempts),
        **options,
    )
    return filesystem, uri.removeprefix("s3://")


def _translate(error: OSError, uri: str) -> LeukorayError:
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


def local_path(uri: str) -> str:
    """The path behind a local URI; `file://` URIs carry names that are no UTF-8, percent-escaped."""
    return os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))) if uri.startswith("file://") else uri


def local_etag(stat: os.stat_result) -> str:
    return f"{stat.st_mtime_ns:x}-{stat.st_size:x}"


class LocalStore:
    """The local (or network-mounted) file system."""

    def read(self, uri: str) -> Bytes:
        try:
            with open(local_path(uri), "rb", buffering=0) as file:
                etag = local_etag(os.fstat(file.fileno()))
                return Bytes(file.readall(), etag, 1)
        except OSError as error:
            raise _translate(error, uri) from error

    def read_range(self, uri: str, offset: int, size: int, etag: str | None = None) -> Bytes:
        try:
            with open(local_path(uri), "rb", buffering=0) as file:
                found = local_etag(os.fstat(file.fileno()))
                if etag is not None and found != etag:
                    raise StoreError(Code.CHANGED, f"{uri}: replaced since it was listed; run again")
                return Bytes(os.pread(file.fileno(), size, offset), found, 1)
        except OSError as error:
            raise _translate(error, uri) from error

    def open(self, uri: str, on_failure: OnFailure | None = None) -> io.BufferedReader:
        try:
            return cast(io.BufferedReader, open(local_path(uri), "rb", buffering=1 << 16))
        except OSError as error:
            raise _translate(error, uri) from error

    def write(self, uri: str, data: bytes) -> None:
        temporary = f"{uri}.tmp-{uuid.uuid4().hex[:12]}"
        try:
            Path(uri).parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, uri)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise _translate(error, uri) from error

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
            raise _translate(error, uri) from error

    def head(self, uri: str) -> ObjectInfo | None:
        try:
            stat = os.stat(local_path(uri))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _translate(error, uri) from error
        if not S_ISREG(stat.st_mode):  # folders; pipes and devices, whose reading may never end
            return None
        return ObjectInfo(uri, stat.st_size, local_etag(stat), stat.st_mtime)

    def is_folder(self, uri: str) -> bool:
        return os.path.isdir(uri)

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
