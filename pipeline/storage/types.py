"""What a store is, what it gives, and how it fails."""

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from pipeline.base.errors import OUTAGE_CODES, Code, InputError, LeukorayError, PlatformError
from pipeline.base.secrets import without_secrets


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
        return type(self), (self.code, str(self), self.attempts)


class UnsupportedError(StoreError):
    """The store does not know the request, or a part of it: sending it again would not help."""

    def refusal(self, message: str | None = None) -> LeukorayError:
        return PlatformError(str(self))


class EndpointError(StoreError):
    """What listens at the endpoint is no S3, or cannot be spoken with: asking again would not help."""

    def refusal(self, message: str | None = None) -> LeukorayError:
        return PlatformError(str(self))


class Conditions(StrEnum):
    """How a store wants the ETag of a conditional PUT spelled, or that it does not look at conditions."""

    QUOTED = "quoted"  # RFC 9110, 13.1.1
    BARE = "bare"
    NONE = "none"


@dataclass(frozen=True)
class S3Settings:
    """How every process of this project reaches S3. Empty fields follow the AWS_* variables.

    `conditions` is what the store that is written to was found to honour (pipeline/storage/abilities.py).
    """

    endpoint: str | None = None
    region: str | None = None
    anonymous: bool = False
    requester_pays: bool = False
    max_attempts: int = 8
    connect_timeout_s: float = 5.0
    quick_timeout_s: float = 3.0  # the first attempts: an image arrives in well under a second or is stuck
    patient_timeout_s: float = 30.0  # the later ones
    pool: int = 64  # connections a process keeps
    conditions: Conditions = Conditions.QUOTED

    @property
    def named(self) -> str:
        """The endpoint as people are told of it: what keys its address holds is nobody's business."""
        return without_secrets(self.endpoint) if self.endpoint else "AWS"

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


@dataclass(frozen=True)
class Level:
    """One page of what lies directly below a prefix."""

    folders: list[str]  # URIs that end with a slash
    objects: list[ObjectInfo]
    is_truncated: bool


class Store(Protocol):
    """What the library needs of a store. URIs are absolute. Failures are StoreErrors; a write appears whole or not.

    `create` and `replace` are conditional: they give the new etag, or None when somebody was first (`create`: there is
    an object already; `replace`: it is no longer the one with `etag`). Their bytes must be unlike anybody else's: a
    request whose answer was lost is sent again, and knows by them what it wrote itself.
    """

    is_remote: bool  # a request takes milliseconds and is paid for: many at once, neighbours together
    is_conditional: bool  # `create` and `replace` keep what they promise

    def read(self, uri: str) -> Bytes: ...
    def read_range(self, uri: str, offset: int, size: int, etag: str | None = None) -> Bytes: ...
    def open(self, uri: str, on_failure: OnFailure | None = None) -> io.BufferedReader: ...
    def write(self, uri: str, data: bytes) -> None: ...
    def create(self, uri: str, data: bytes) -> str | None: ...
    def replace(self, uri: str, data: bytes, etag: str) -> str | None: ...
    def head(self, uri: str) -> ObjectInfo | None: ...
    def is_folder(self, uri: str) -> bool: ...
    def levels(self, prefix: str) -> Iterator[Level]: ...
    def walk(self, prefix: str) -> Iterator[ObjectInfo]: ...
    def beginning_with(self, uri: str) -> Iterator[ObjectInfo]: ...
    def delete(self, uri: str) -> None: ...
    def delete_tree(self, prefix: str) -> None: ...


def replaced(uri: str, attempts: int = 1) -> StoreError:
    """What a reader of a listed version is told when the object has another one now."""
    return StoreError(Code.CHANGED, f"{uri}: replaced since it was listed; run again", attempts)


def as_listed(store: Store, uri: str, etag: str) -> ObjectInfo:
    """The object in the version that was listed. Raises StoreError where it is gone or replaced."""
    info = store.head(uri)
    if info is None:
        raise StoreError(Code.NOT_FOUND, f"{uri}: gone since it was listed")
    if info.etag != etag:
        raise replaced(uri)
    return info
