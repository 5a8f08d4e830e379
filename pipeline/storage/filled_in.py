"""Documents that people fill in or correct: one that was edited is never overwritten.

A document ends with a comment that holds the SHA-256 of all before it. Where that does not fit, or is not there, a
person had a hand in it: it stays, and the new text goes beside it.
"""

import hashlib
import re
from itertools import count

from pipeline.storage.stores import Stores

_SEAL = re.compile(r"\n<!-- as made by leukoray: ([0-9a-f]{64}) -->\n\Z")


def sealed(text: str) -> str:
    """`text`, Markdown or HTML, with the comment."""
    return f"{text}\n<!-- as made by leukoray: {_digest(text)} -->\n"


def unsealed(text: str) -> str | None:
    """A document without its comment; None where it was edited."""
    found = _SEAL.search(text)
    if found is None or _digest(text[: found.start()]) != found.group(1):
        return None
    return text[: found.start()]


def write_beside_edited(uri: str, text: str, stores: Stores) -> str:
    """Write `text`, sealed, as `name.md`, or as the first of `name.2.md`, ... that nobody has edited; gives its URI."""
    stem, _, suffix = uri.rpartition(".")
    places = (uri if number == 1 else f"{stem}.{number}.{suffix}" for number in count(1))
    place = next(place for place in places if _is_unedited(stores.read_if_there(place)))
    stores.of(place).write(place, sealed(text).encode())
    if place != uri:
        print(f"{uri}: edited, or of an older version, so it stays; the new text is {place}", flush=True)
    return place


def _is_unedited(found: bytes | None) -> bool:
    return found is None or unsealed(found.decode(errors="replace")) is not None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
