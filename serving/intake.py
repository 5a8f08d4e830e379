"""Request bodies into memory, never more than agreed: bounded work in flight, bounded bytes, bounded files."""

import contextlib
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serving.errors import HttpError
from serving.settings import ServingSettings

MULTIPART = "multipart/form-data"
_ENVELOPE_BYTES = 64 * 1024  # boundaries and part headers around the files
_MAX_FIELDS = 16  # form fields that are no files; accepted and ignored
_FILE_FIELDS = frozenset({"file", "files", "image", "images"})  # but not by these names


class Admission:
    """What a replica takes on at a time: so many requests, so many bytes. More is refused at once, not queued."""

    def __init__(self, settings: ServingSettings) -> None:
        self._settings = settings
        self.requests = 0
        self.held_bytes = 0

    @contextlib.contextmanager
    def enter(self) -> Iterator["Ticket"]:
        """A place for one request. Raises HttpError 503 with Retry-After when there is none."""
        if self.requests >= self._settings.max_in_flight:
            raise self.overloaded(f"{self.requests} requests are in work")
        self.requests += 1
        ticket = Ticket(self)
        try:
            yield ticket
        finally:
            self.requests -= 1
            self.held_bytes -= ticket.size_bytes

    def overloaded(self, reason: str) -> HttpError:
        seconds = self._settings.retry_after_s
        message = f"{reason}, no room for another; try again in {seconds} s"
        return HttpError(503, "overloaded", message, {"Retry-After": str(seconds)})

    def has_room(self, size_bytes: int) -> bool:
        return self.held_bytes + size_bytes <= self._settings.max_in_flight_bytes


@dataclass
class Ticket:
    """One request's place, and the bytes it holds."""

    admission: Admission
    size_bytes: int = 0

    def hold(self, size_bytes: int) -> None:
        """Account for `size_bytes` in all. Raises HttpError 503 when the replica cannot hold them."""
        more = size_bytes - self.size_bytes
        if more <= 0:
            return
        if not self.admission.has_room(more):
            raise self.admission.overloaded(f"{self.admission.held_bytes} bytes of requests are held")
        self.admission.held_bytes += more
        self.size_bytes = size_bytes


@dataclass(frozen=True)
class ReceivedFile:
    """One part of a multipart body; `data` is None when the file alone is over the limit of `size_bytes`."""

    filename: str
    size_bytes: int
    data: bytes | None


def media_type(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def check_encoding(headers: Headers) -> None:
    """Compressed bodies are refused: their length says nothing about what they unfold to."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        message = f"Content-Encoding {encoding[:40]!r}: send the image file as it is"
        raise HttpError(415, "unsupported_encoding", message)


async def read_body(request: Request, limit: int, ticket: Ticket) -> bytes:
    """The body, of at most `limit` bytes; it may have none. Raises HttpError 413 or 503."""
    return b"".join([chunk async for chunk in _chunks(request, limit, ticket)])


async def read_raw(request: Request, settings: ServingSettings, ticket: Ticket) -> bytes:
    """The image that is the body. Raises HttpError 400, 413 or 503."""
    data = await read_body(request, settings.max_bytes, ticket)
    if not data:
        raise HttpError(400, "empty", "the body has no bytes; send one image as the body, or files as multipart")
    return data


async def read_files(request: Request, settings: ServingSettings, ticket: Ticket) -> list[ReceivedFile]:
    """The files of a multipart body (RFC 7578), in the order sent. Raises HttpError 400, 413 or 503."""
    chunks = _chunks(request, settings.max_request_bytes + _ENVELOPE_BYTES, ticket)
    parser = _MemoryParser(request.headers, chunks, max_files=settings.max_files, max_fields=_MAX_FIELDS)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            message = f"more than {settings.max_files} files; send several requests"
            raise HttpError(413, "too_many_files", message) from error
        raise HttpError(400, "malformed_multipart", f"the multipart body is malformed: {error.message}") from error
    if not parser.has_ended:
        message = "the multipart body ends before its closing boundary; send it again"
        raise HttpError(400, "malformed_multipart", message)
    async with contextlib.AsyncExitStack() as stack:
        uploads = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        for upload in uploads:
            stack.push_async_callback(upload.close)
        unnamed = sorted({key for key, value in form.multi_items() if isinstance(value, str)} & _FILE_FIELDS)
        if unnamed:
            raise HttpError(400, "no_filename", f"part {unnamed[0]!r} has no filename, so it is no file; give it one")
        if not uploads:
            raise HttpError(400, "no_file", "the multipart body has no file part; give each image a filename")
        return [await _received(upload, settings.max_bytes) for upload in uploads]


async def _received(upload: UploadFile, max_bytes: int) -> ReceivedFile:
    size = upload.size or 0
    data = await upload.read() if size <= max_bytes else None
    return ReceivedFile(upload.filename or "", size, data)


class _MemoryParser(MultiPartParser):
    spool_max_size = 0  # never to disk: `_chunks` bounds the memory, patients' cells stay off the temp folder
    has_ended = False  # by the closing boundary; without it the last part is not whole

    def on_end(self) -> None:
        self.has_ended = True
        super().on_end()


async def _chunks(request: Request, limit: int, ticket: Ticket) -> AsyncGenerator[bytes, None]:
    declared = request.headers.get("content-length")
    if declared is not None and declared.isdecimal() and int(declared) > limit:
        raise _too_large(f"{int(declared)} bytes announced", limit)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            raise _too_large(f"more than {limit} bytes sent", limit)
        ticket.hold(received)
        yield chunk


def _too_large(what: str, limit: int) -> HttpError:
    # No `Connection: close`: a socket closed on unread bytes is reset, and the client would not see this answer.
    return HttpError(413, "too_large", f"{what}, limit {limit}; send a smaller image")
