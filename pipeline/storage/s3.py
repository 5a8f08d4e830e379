"""S3 through boto3: ranged reads, conditional writes, streaming listings, retries that also cover the body.

botocore's own retries end where the response body begins, so they are switched off and one loop here retries
whole operations, with full jitter (AWS Architecture Blog, 'Exponential Backoff And Jitter', 2015).
"""

import base64
import functools
import hashlib
import io
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import boto3
import botocore
import botocore.exceptions as failures
import urllib3.exceptions
from botocore.config import Config as BotoConfig

from pipeline.base.errors import OUTAGE_CODES, Code
from pipeline.base.secrets import without_secrets
from pipeline.storage.ranged import RangedFile
from pipeline.storage.types import (
    Bytes,
    Conditions,
    EndpointError,
    Level,
    ObjectInfo,
    OnFailure,
    S3Settings,
    StoreError,
    UnsupportedError,
    replaced,
)

Result = TypeVar("Result")

_DELETES_AT_ONCE = 16
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
_DENIED = {"AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AllAccessDisabled"}
_MISSING = {"NoSuchKey", "NoSuchBucket", "404", "NotFound"}
_UNKNOWN = {"NotImplemented", "MethodNotAllowed", "InvalidArgument", "MissingContentLength"}
_FINAL = (UnsupportedError, EndpointError)  # whatever their code
_NO_TLS = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER")  # not what a cut connection says
_ADDRESS = re.compile(r"""(?: for)?:? *"?https?://[^\s"]*"?| with url: \S+""")
_BACKOFF_BASE_S, _BACKOFF_CAP_S = 0.1, 10.0
_QUICK_ATTEMPTS = 3


@functools.lru_cache(maxsize=8)
def s3_store(settings: S3Settings) -> "S3Store":
    return S3Store(settings)


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def _folder(uri: str) -> str:
    """The prefix of what lies below `uri`. Two slashes in a row are a folder without a name, another one."""
    return uri if uri.endswith("/") else uri + "/"


def _objects(uri: str, answer: dict[str, Any]) -> Iterator[ObjectInfo]:
    """The objects of one page; keys that end with a slash are marks that consoles leave for folders."""
    bucket, _ = _split(uri)
    for item in answer.get("Contents", ()):
        if not item["Key"].endswith("/"):
            yield ObjectInfo(f"s3://{bucket}/{item['Key']}", item["Size"], _etag(item), _modified(item))


def _modified(answer: dict[str, Any]) -> float:
    """In whole seconds: some stores list fractions that the headers of HTTP cannot hold."""
    return float(int(answer["LastModified"].timestamp()))


def _etag(answer: dict[str, Any]) -> str:
    """The version of an object, from any answer that describes it.

    Gateways in front of what knows no hashes give an empty ETag: then it is the second of the last change.
    """
    return str(answer.get("ETag", "")).strip('"') or f"{int(_modified(answer)):x}"


def _upload(data: bytes) -> dict[str, Any]:
    """The body of a PUT, with the digest by which any S3 notices that it arrived otherwise (RFC 1864)."""
    digest = hashlib.md5(data, usedforsecurity=False).digest()
    return {"Body": data, "ContentMD5": base64.b64encode(digest).decode()}


class S3Store:
    """One bucket protocol for reads, writes and listings. Safe to share between threads; travels as its settings."""

    is_remote = True

    def __init__(self, settings: S3Settings) -> None:
        self.settings = settings
        self.is_conditional = settings.conditions is not Conditions.NONE
        self._lock = threading.Lock()
        self._clients: dict[float, Any] = {}
        self._payer = {"RequestPayer": "requester"} if settings.requester_pays else {}

    def __reduce__(self) -> tuple[Callable[[S3Settings], "S3Store"], tuple[S3Settings]]:
        return s3_store, (self.settings,)

    def _client(self, timeout_s: float) -> Any:
        with self._lock:
            if timeout_s not in self._clients:
                self._clients[timeout_s] = self._connect(timeout_s)
            return self._clients[timeout_s]

    def _connect(self, timeout_s: float) -> Any:
        settings = self.settings
        options: dict[str, Any] = {
            "connect_timeout": settings.connect_timeout_s,
            "read_timeout": timeout_s,
            "max_pool_connections": settings.pool,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "s3": {"addressing_style": "path" if settings.endpoint else "auto"},
            # Checksums in trailers are refused by several S3-compatible stores; Content-MD5 is known to all.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
        if settings.anonymous:
            options["signature_version"] = botocore.UNSIGNED
        # A new session reads credentials anew, so that rotated ones are picked up after an expiry.
        config, session = BotoConfig(**options), boto3.session.Session()
        try:
            return session.client("s3", endpoint_url=settings.endpoint, region_name=settings.region, config=config)
        except ValueError as error:
            message = (
                f"{without_secrets(str(error))}; an S3 endpoint is an address such as http://HOST:PORT or https://HOST"
            )
            raise EndpointError(Code.IO_ERROR, message) from error

    def _forget_clients(self) -> None:
        with self._lock:
            self._clients.clear()

    def _retry(self, uri: str, operation: Callable[[Any], Result]) -> tuple[Result, int]:
        """Run `operation(client)` until it succeeds, fails for good, or the attempts are used up."""
        for attempt in range(1, self.settings.max_attempts + 1):
            quick = attempt <= _QUICK_ATTEMPTS
            timeout_s = self.settings.quick_timeout_s if quick else self.settings.patient_timeout_s
            try:
                return operation(self._client(timeout_s)), attempt
            except Exception as error:
                failure = self._translate(error, uri, attempt)
                if failure is None:
                    raise
                expired = isinstance(error, failures.ClientError) and _code(error) in _EXPIRED
                if expired:
                    self._forget_clients()
                is_passing = failure.code in (Code.IO_ERROR, Code.TIMEOUT) and not isinstance(failure, _FINAL)
                is_final = not is_passing and not expired
                if is_final or attempt == self.settings.max_attempts:
                    raise failure from error
                time.sleep(random.uniform(0, min(_BACKOFF_CAP_S, _BACKOFF_BASE_S * 2**attempt)))
        raise AssertionError("max_attempts is at least 1")

    def _translate(self, error: Exception, uri: str, attempts: int) -> StoreError | None:
        """Our error for a client's, None for one that is no store failure."""
        where = f"{uri} (endpoint {self.settings.named})"
        if isinstance(error, StoreError):
            return error
        if isinstance(error, failures.ClientError):
            return _refused(error, where, attempts)
        if isinstance(error, failures.NoCredentialsError | failures.PartialCredentialsError):
            message = f"{where}: no AWS credentials; set AWS_ACCESS_KEY_ID/AWS_PROFILE or pass --s3-anonymous"
            return StoreError(Code.ACCESS_DENIED, message, attempts)
        if isinstance(error, failures.ReadTimeoutError | failures.ConnectTimeoutError | TimeoutError):
            return StoreError(Code.TIMEOUT, f"{where}: no answer in time, {attempts} attempts", attempts)
        if isinstance(error, failures.SSLError) and any(sign in str(error) for sign in _NO_TLS):
            advice = "AWS_CA_BUNDLE=FILE trusts a store's own certificate, http:// is for a store without TLS"
            message = f"{where}: no trusted TLS connection: {_without_address(error)}; {advice}"
            return EndpointError(Code.IO_ERROR, message, attempts)
        if isinstance(error, KeyError):  # of what every S3 says of every object
            message = f"{where}: what answers there is no S3, its answer has no {error}; check the endpoint"
            return EndpointError(Code.IO_ERROR, message, attempts)
        if isinstance(error, failures.ParamValidationError | ValueError):
            return StoreError(Code.NOT_FOUND, f"{where}: not a valid S3 URI: {error}", attempts)
        if isinstance(error, failures.BotoCoreError | urllib3.exceptions.HTTPError | OSError):
            return StoreError(Code.IO_ERROR, f"{where}: {_without_address(error)}; {attempts} attempts", attempts)
        return None

    def _get(self, uri: str, **part: str) -> Bytes:
        bucket, key = _split(uri)

        def operation(client: Any) -> tuple[bytes, str]:
            answer = client.get_object(Bucket=bucket, Key=key, **part, **self._payer)
            if part and "ContentRange" not in answer:
                answer["Body"].close()
                raise UnsupportedError(Code.IO_ERROR, f"{uri}: the store sends whole objects where a part is asked for")
            data = answer["Body"].read()
            if len(data) != answer["ContentLength"]:
                raise OSError(f"body ended after {len(data)} of {answer['ContentLength']} bytes")
            return data, _etag(answer)

        (data, etag), attempts = self._retry(uri, operation)
        return Bytes(data, etag, attempts)

    def read(self, uri: str) -> Bytes:
        return self._get(uri)

    def read_range(self, uri: str, offset: int, size: int, etag: str | None = None) -> Bytes:
        if size == 0:
            return Bytes(b"", etag or "", 1)
        got = self._get(uri, Range=f"bytes={offset}-{offset + size - 1}")
        if etag is not None and got.etag != etag:  # looked at here: not every store heeds an If-Match
            raise replaced(uri, got.attempts)
        return got

    def open(self, uri: str, on_failure: OnFailure | None = None) -> io.BufferedReader:
        """A seekable view of one object version; every read is one ranged GET."""
        info = self.head(uri)
        if info is None:
            raise StoreError(Code.NOT_FOUND, f"{uri}: no such object; check the URI")

        def read_at(offset: int, size: int) -> bytes:
            try:
                return self.read_range(uri, offset, size, info.etag).data
            except StoreError as error:
                if on_failure is None or error.code not in OUTAGE_CODES:
                    raise
                on_failure(error)
            return self.read_range(uri, offset, size, info.etag).data

        return io.BufferedReader(RangedFile(info.size, read_at), buffer_size=1 << 20)

    def write(self, uri: str, data: bytes) -> None:
        bucket, key = _split(uri)
        self._retry(uri, lambda client: client.put_object(Bucket=bucket, Key=key, **_upload(data)))

    def checks_digests(self, uri: str) -> bool:
        """Whether bytes that arrive otherwise than they were sent are refused; writes to `uri` where not."""
        bucket, key = _split(uri)
        another = _upload(b"sent")["ContentMD5"]
        try:
            self._retry(uri, lambda c: c.put_object(Bucket=bucket, Key=key, Body=b"came", ContentMD5=another))
        except StoreError:
            return True
        return False

    def tells_versions(self, uri: str) -> bool:
        """Whether an object has an ETag."""
        bucket, key = _split(uri)
        answer, _ = self._retry(uri, lambda client: client.head_object(Bucket=bucket, Key=key, **self._payer))
        return bool(str(answer.get("ETag", "")).strip('"'))

    def skew_s(self, uri: str) -> float | None:
        """Seconds by which the store's clock is ahead of this one's (its `Date`, RFC 9110, 6.6.1); None: it tells none.

        In whole seconds, and as late as the answer was on its way.
        """
        bucket, key = _split(_folder(uri))
        listed = {"Bucket": bucket, "Prefix": key, "MaxKeys": 1, **self._payer}
        answer, _ = self._retry(uri, lambda client: client.list_objects_v2(**listed))
        said = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        return parsedate_to_datetime(said).timestamp() - time.time() if said else None

    def create(self, uri: str, data: bytes) -> str | None:
        """Conditional PUT: the new etag, or None when somebody was first."""
        return self._put_if(uri, data, IfNoneMatch="*")

    def replace(self, uri: str, data: bytes, etag: str) -> str | None:
        """Compare-and-swap: the new etag, or None when the object is no longer the one with `etag`."""
        return self._put_if(uri, data, IfMatch=etag if self.settings.conditions is Conditions.BARE else f'"{etag}"')

    def _put_if(self, uri: str, data: bytes, **condition: str) -> str | None:
        bucket, key = _split(uri)

        def operation(client: Any) -> str | None:
            try:
                answer = client.put_object(Bucket=bucket, Key=key, **_upload(data), **condition)
            except failures.ClientError as error:
                status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
                is_gone = "IfMatch" in condition and _code(error) in _MISSING - {"NoSuchBucket"}
                if status == 412 or is_gone:
                    return None
                raise
            return str(answer["ETag"]).strip('"')

        etag = self._retry(uri, operation)[0]
        return self._own(uri, data) if etag is None else etag

    def _own(self, uri: str, data: bytes) -> str | None:
        """The etag where these bytes lie there already: written by a request whose answer was lost on the way."""
        try:
            found = self.read(uri)
        except StoreError as error:
            if error.code is Code.NOT_FOUND:
                return None
            raise
        return found.etag if found.data == data else None

    def head(self, uri: str) -> ObjectInfo | None:
        bucket, key = _split(uri)
        if not key:
            return None

        def operation(client: Any) -> ObjectInfo:
            answer = client.head_object(Bucket=bucket, Key=key, **self._payer)
            return ObjectInfo(uri, answer["ContentLength"], _etag(answer), _modified(answer))

        try:
            return self._retry(uri, operation)[0]
        except StoreError as error:
            if error.code == Code.NOT_FOUND:
                return None
            raise

    def is_folder(self, uri: str) -> bool:
        """True when keys lie below the prefix. Raises StoreError for a bucket that is missing or refused."""
        bucket, key = _split(_folder(uri))
        answer, _ = self._retry(uri, lambda c: c.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1, **self._payer))
        return bool(answer.get("KeyCount"))

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects below a prefix, page by page, so that memory does not grow with their number."""
        return self.beginning_with(_folder(prefix))

    def beginning_with(self, uri: str) -> Iterator[ObjectInfo]:
        """Objects whose URIs begin with these characters, page by page."""
        for answer in self._pages(uri):
            yield from _objects(uri, answer)

    def levels(self, prefix: str) -> Iterator[Level]:
        """What lies directly below a prefix, page by page: what lets many prefixes be listed side by side."""
        bucket, _ = _split(prefix)
        for answer in self._pages(_folder(prefix), Delimiter="/"):
            folders = [f"s3://{bucket}/{item['Prefix']}" for item in answer.get("CommonPrefixes", ())]
            yield Level(folders, list(_objects(prefix, answer)), bool(answer.get("IsTruncated")))

    def _pages(self, begin: str, **options: str) -> Iterator[dict[str, Any]]:
        bucket, key = _split(begin)
        request: dict[str, Any] = {"Bucket": bucket, "Prefix": key, **options, **self._payer}
        while True:
            answer = self._retry(begin, lambda client: client.list_objects_v2(**request))[0]
            yield answer
            if not answer.get("IsTruncated"):
                return
            request["ContinuationToken"] = answer["NextContinuationToken"]

    def delete(self, uri: str) -> None:
        bucket, key = _split(uri)
        self._retry(uri, lambda client: client.delete_object(Bucket=bucket, Key=key))

    def delete_tree(self, prefix: str) -> None:
        with ThreadPoolExecutor(_DELETES_AT_ONCE) as pool:  # a large run leaves 10^5 parts
            for _ in pool.map(lambda info: self.delete(info.uri), self.walk(prefix)):
                pass


def _without_address(error: Exception) -> str:
    """What a client says, without the address, which spells the name of the object once more, in its own way."""
    return _ADDRESS.sub("", str(error))


def _refused(error: Any, where: str, attempts: int) -> StoreError:
    """Our error for an answer of the store that is none of the good ones."""
    code, status = _code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _MISSING:
        what = "bucket does not exist" if code == "NoSuchBucket" else "no such object"
        return StoreError(Code.NOT_FOUND, f"{where}: {what}; check the URI", attempts)
    if code in _EXPIRED:
        return StoreError(Code.ACCESS_DENIED, f"{where}: credentials expired; renew them", attempts)
    if code in _DENIED or status in (401, 403):
        message = f"{where}: access denied ({code}); check credentials and policy"
        return StoreError(Code.ACCESS_DENIED, message, attempts)
    if status == 412 or code == "PreconditionFailed":
        return replaced(where, attempts)
    if status == 416:
        return StoreError(Code.CHANGED, f"{where}: shorter than when it was listed", attempts)
    if status in (405, 501) or code in _UNKNOWN:
        message = f"{where}: this store does not take what was sent: {code} (HTTP {status})"
        return UnsupportedError(Code.IO_ERROR, message, attempts)
    return StoreError(Code.IO_ERROR, f"{where}: {code} (HTTP {status}) after {attempts} attempts", attempts)


def _code(error: failures.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
