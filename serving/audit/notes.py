"""What is noted of the images of one request, wherever on its way that is known.

The notes follow the request's tasks by a context variable, so that no way to a prediction can leave them out: the
engine itself makes them. A request without notes (no audit log, a probe) costs nothing.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipeline.model.prediction import Prediction


@dataclass
class ImageNote:
    """Of one image. `sha256`: of its file, or of its pixels as they were sent; None: too large to be held."""

    sha256: str | None
    size_bytes: int
    decision: str | None = None
    class_name: str | None = None
    probability: float | None = None
    is_ood: bool | None = None
    error_code: str | None = None
    model_name: str | None = None
    model_version: str | None = None
    model_sha256: str | None = None

    def predicted(self, said: Prediction, name: str, version: str, sha256: str) -> None:
        """`name`, `version` and `sha256` are the model's."""
        self.decision, self.class_name, self.is_ood = said.decision, said.class_name, said.is_ood
        self.probability = said.probability
        self.model_name, self.model_version, self.model_sha256 = name, version, sha256

    @property
    def is_open(self) -> bool:
        return self.error_code is None and self.probability is None


@dataclass
class Notes:
    """Of one request. `key`: the name of whose key it is; None where none is asked for."""

    key: str | None
    request_id: str
    route: str
    images: list[ImageNote] = field(default_factory=list)

    def image(self, size_bytes: int) -> ImageNote:
        """A note to be filled in, which is the one of this task until the next."""
        note = ImageNote(None, size_bytes)
        self.images.append(note)
        _IMAGE.set(note)
        return note

    def begin_anew(self) -> None:
        """The request is answered from its beginning by another model: what the first one said goes to nobody."""
        for image in self.images:
            image.error_code = image.error_code or "not_answered"  # no note to be filled in
        self.images.clear()

    def lines(self, status: int | None) -> list[str]:
        """JSON, one an image. `status`: of the answer, None where the client left before."""
        about = {
            "time": utc_now(),
            "key": self.key,
            "request_id": self.request_id,
            "route": self.route,
            "status": status,
        }
        return [json.dumps({**about, **asdict(image)}) for image in self.images]


_NOTES: ContextVar[Notes | None] = ContextVar("notes", default=None)
_IMAGE: ContextVar[ImageNote | None] = ContextVar("image", default=None)


@contextmanager
def taking(notes: Notes | None) -> Iterator[None]:
    """Around the work for a request, tasks that it starts included."""
    token = _NOTES.set(notes)
    try:
        yield
    finally:
        _NOTES.reset(token)


def notes() -> Notes | None:
    """Of the request that is worked on here."""
    return _NOTES.get()


def image() -> ImageNote | None:
    """The image that this task is at, where nothing came of it yet."""
    note = _IMAGE.get()
    return note if note is not None and note.is_open else None


def utc_now() -> str:
    """As RFC 3339 has it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def sha256(data: Any) -> str:
    """Of bytes, or of an array's, in hex."""
    return hashlib.sha256(data).hexdigest()
