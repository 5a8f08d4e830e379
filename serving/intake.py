"""Request bodies into memory, each byte once and never more than agreed."""

import contextlib
import io
import re
from collections.abc import AsyncGenerator

from starlette.datastructures import Headers
from starlette.requests import Request

from serving.admission import Ticket
from serving.errors import HttpError
from serving.multipart import MultipartReader, ReceivedFile
from serving.settings import ServingSettings

MULTIPART = "multipart/form-data"
_WHOLE_NUMBER = re.compile(r"[0-9]{1,18}")  # int() takes digits of every script, and fails at 4,300 of them
_ENVELOPE_BYTES = 64 * 1024  # boundaries and part headers around the files


def whole_number(text: str) -> int | None:
    """What a header says in plain digits; None where it says anything else."""
    return int(text) if _WHOLE_NUMBER.fullmatch(text) else None


def media_type(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def check_encoding(headers: Headers) -> None:
    """Compressed bodies are refused: their length says nothing about what they unfold to."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        message = f"Content-Encoding {encoding[:40]!r}: send the image file as it is"
        raise HttpError(415, "unsupported_encoding", message)


async def read_body(request: Request, limit: int, ticket: Ticket) -> bytes:
    """The body, of at most `limit` bytes; it may have none. Raises HttpError 408, 413 or 503."""
    buffer = io.BytesIO()  # which gives its bytes away without a copy; a list of chunks would have to be joined
    async with ticket.arriving():
        async for chunk in _chunks(request, limit, ticket):
            buffer.write(chunk)
    return buffer.getvalue()


async def read_raw(request: Request, settings: ServingSettings, ticket: Ticket) -> bytes:
    """The image that is the body. Raises HttpError 400, 408, 413 or 503."""
    data = await read_body(request, settings.max_bytes, ticket)
    if not data:
        raise HttpError(400, "empty", "the body has no bytes; send one image as the body, or files as multipart")
    return data


async def read_files(request: Request, settings: ServingSettings, ticket: Ticket) -> list[ReceivedFile]:
    """The files of a multipart body, in the order sent. Raises HttpError 400, 408, 413 or 503."""
    reader = MultipartReader(request.headers["content-type"], settings)
    with contextlib.closing(reader):
        async with ticket.arriving():
            async for chunk in _chunks(request, settings.max_request_bytes + _ENVELOPE_BYTES, ticket):
                reader.write(chunk)
        return reader.files()


async def _chunks(request: Request, limit: int, ticket: Ticket) -> AsyncGenerator[bytes, None]:
    announced = request.headers.get("content-length")
    if announced is not None:
        size_bytes = whole_number(announced)
        if size_bytes is None:
            raise HttpError(400, "bad_request", f"Content-Length {announced[:20]!r}: expected a whole number of bytes")
        if size_bytes > limit:
            raise _too_large(f"{size_bytes} bytes announced", limit)
    async for chunk in request.stream():
        if ticket.size_bytes + len(chunk) > limit:
            raise _too_large(f"more than {limit} bytes sent", limit)
        await ticket.hold(len(chunk))
        yield chunk


def _too_large(what: str, limit: int) -> HttpError:
    # No `Connection: close`: a socket closed on unread bytes is reset, and the client would not see this answer.
    return HttpError(413, "too_large", f"{what}, limit {limit}; send a smaller image")
