"""Files of a multipart/form-data body (RFC 7578) into memory, each byte once, parsed as it arrives."""

import io
import logging
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving.errors import HttpError
from serving.settings import ServingSettings

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_MAX_FIELDS = 16  # form fields that are no files; accepted and ignored
_FILE_FIELDS = frozenset({"file", "files", "image", "images"})  # but not by these names, nor with these headers:
_FILE_NAME = re.compile(rb";\s*filename\s*\*", re.IGNORECASE)  # RFC 5987, which is not of forms (RFC 7578, 4.2)
_FILE_KIND = re.compile(rb"\s*(image/|application/(octet-stream|dicom)\b)", re.IGNORECASE)


@dataclass(frozen=True)
class ReceivedFile:
    """One part of a multipart body; `data` is None when the file alone is over the limit of `size_bytes`."""

    filename: str
    size_bytes: int
    data: bytes | None


@dataclass
class _Part:
    """One that is being read; `buffer` is None where it is no file, or one that is too large."""

    name: str = ""
    filename: str | None = None
    size_bytes: int = 0
    buffer: io.BytesIO | None = None
    disposition: bytes = b""
    kind: bytes = b""  # its Content-Type

    @property
    def is_unnamed_file(self) -> bool:
        """What cannot have been meant as a field: passed over, fewer images than were sent would be answered."""
        is_file = self.name in _FILE_FIELDS or _FILE_NAME.search(self.disposition) or _FILE_KIND.match(self.kind)
        return self.filename is None and bool(is_file)


@dataclass
class MultipartReader:
    """Takes a body in pieces; its methods raise HttpError 400 or 413."""

    content_type: str
    settings: ServingSettings
    parts: list[_Part] = field(default_factory=list)
    is_complete: bool = False  # its closing boundary is here

    def __post_init__(self) -> None:
        boundary = parse_options_header(self.content_type)[1].get(b"boundary")
        if not boundary:
            raise _malformed("Missing boundary in multipart.")
        logging.getLogger("python_multipart.multipart").disabled = True  # it quotes bytes of the body
        self._field = self._value = b""
        callbacks: MultipartCallbacks = {
            "on_part_begin": self.on_part_begin,
            "on_part_data": self.on_part_data,
            "on_header_field": self.on_header_field,
            "on_header_value": self.on_header_value,
            "on_header_end": self.on_header_end,
            "on_headers_finished": self.on_headers_finished,
            "on_end": self.on_end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise _malformed(str(error)) from error

    def write(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _malformed("Invalid multipart data.") from error

    def files(self) -> list[ReceivedFile]:
        """In the order sent."""
        if not self.is_complete:
            message = "the multipart body ends before its closing boundary; send it again"
            raise HttpError(400, "malformed_multipart", message)
        unnamed = sorted(part.name for part in self.parts if part.is_unnamed_file)
        if unnamed:
            message = f"part {unnamed[0][:80]!r} has no filename=, so it is no file; give it one"
            raise HttpError(400, "no_filename", message)
        files = [part for part in self.parts if part.filename is not None]
        if not files:
            raise HttpError(400, "no_file", "the multipart body has no file part; give each image a filename")
        return [
            ReceivedFile(part.filename or "", part.size_bytes, None if part.buffer is None else part.buffer.getvalue())
            for part in files
        ]

    def close(self) -> None:
        """Let go of the bytes now: parser and callbacks hold one another, and would until a garbage collection."""
        self.parts.clear()

    # ---- what the parser calls ----

    def on_part_begin(self) -> None:
        self.parts.append(_Part())

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self.parts[-1].disposition = self._value
        elif self._field.lower() == b"content-type":
            self.parts[-1].kind = self._value
        self._field = self._value = b""

    def on_headers_finished(self) -> None:
        part = self.parts[-1]
        options = parse_options_header(part.disposition)[1]
        if b"name" not in options:
            raise _malformed('The Content-Disposition header field "name" must be provided.')
        part.name = _text(options[b"name"])
        if b"filename" in options:
            part.filename, part.buffer = _text(options[b"filename"]), io.BytesIO()
        files = sum(part.filename is not None for part in self.parts)
        if files > self.settings.max_files:
            message = f"more than {self.settings.max_files} files; send several requests"
            raise HttpError(413, "too_many_files", message)
        if len(self.parts) - files > _MAX_FIELDS:
            raise _malformed(f"Too many fields. Maximum number of fields is {_MAX_FIELDS}.")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self.parts[-1]
        part.size_bytes += end - start
        if part.size_bytes > self.settings.max_bytes:
            part.buffer = None
        if part.buffer is not None:
            part.buffer.write(memoryview(data)[start:end])

    def on_end(self) -> None:
        self.is_complete = True


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _malformed(what: str) -> HttpError:
    return HttpError(400, "malformed_multipart", f"the multipart body is malformed: {what}")
