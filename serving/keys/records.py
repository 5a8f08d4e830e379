"""One key a line: a name, the SHA-256 of the key, and what it may do.

lab-a  9f86d081...  rate=600/min  images=5000/day
ops    60303ae2...  admin
"""

import hashlib
import re
import secrets
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from pipeline.base.errors import InputError

MAX_KEYS = 1000  # each is compared for each request
MAX_FILE_BYTES = 1 << 20
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RATE = re.compile(r"([0-9]{1,9})/(s|min)")
_IMAGES = re.compile(r"([0-9]{1,12})/day")
_SECONDS = {"s": 1.0, "min": 60.0}


@dataclass(frozen=True)
class Rate:
    """So many requests in so many seconds: a token bucket of `requests` that fills in `seconds`."""

    requests: int
    seconds: float

    @property
    def per_s(self) -> float:
        return self.requests / self.seconds


@dataclass(frozen=True)
class Limits:
    """What one name may do, all its keys together. None: without a limit."""

    rate: Rate | None = None
    images_per_day: int | None = None  # UTC


@dataclass(frozen=True)
class Key:
    """`is_admin`: it opens /admin and nothing else."""

    name: str
    sha256: str
    limits: Limits = Limits()
    is_admin: bool = False


def digest(key: str) -> str:
    """SHA-256 in hex. Keys are random (`new_key`), so nothing slower is needed against guessing."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    """256 random bits."""
    return secrets.token_urlsafe(32)


def unnamed(digests: Iterable[str], *, is_admin: bool = False) -> list[Key]:
    """Keys of which only the digest is known go by its beginning."""
    return [Key(f"sha256-{sha256[:12]}", sha256, is_admin=is_admin) for sha256 in digests]


def written(key: Key) -> str:
    """The key's line."""
    words = [key.name, key.sha256]
    if key.limits.rate is not None:
        unit = "s" if key.limits.rate.seconds == 1 else "min"
        words.append(f"rate={key.limits.rate.requests}/{unit}")
    if key.limits.images_per_day is not None:
        words.append(f"images={key.limits.images_per_day}/day")
    return " ".join([*words, *(["admin"] if key.is_admin else [])])


def read_lines(text: str, given: Set[str] = frozenset()) -> list[Key]:
    """All keys of a file. `given`: digests of keys that the settings have, which can have no second line here.

    Raises InputError with the number of the line, and nothing of what stands there.
    """
    keys: list[Key] = []
    for number, line in enumerate(text.splitlines(), 1):
        if words := line.partition("#")[0].split():
            keys.append(_key(words, f"line {number}"))
            if keys[-1].sha256 in given:
                raise InputError(
                    f"line {number}: this key is also one of $LEUKORAY_API_KEYS or $LEUKORAY_ADMIN_KEYS "
                    "(api_key_sha256, admin_key_sha256), where it has no limits; take it away there, or here"
                )
    if not keys:
        raise InputError("it holds no key; `leukoray key NAME` makes one")
    if len(keys) > MAX_KEYS:
        raise InputError(f"{len(keys)} keys, limit {MAX_KEYS}")
    _refuse_contradictions(keys)
    return keys


def _key(words: Sequence[str], where: str) -> Key:
    name, sha256, *options = [*words, ""] if len(words) == 1 else words
    if not NAME.fullmatch(name):
        raise InputError(f"{where}: expected a name first, 1 to 64 of A-Z a-z 0-9 . _ -")
    if not _SHA256.fullmatch(sha256):
        raise InputError(f"{where}: expected the SHA-256 of the key second, 64 digits of 0-9 a-f, not the key itself")
    rate, images, is_admin = None, None, False
    for option in options:
        what, _, value = option.partition("=")
        if what == "rate" and rate is None:
            rate = read_rate(value, where)
        elif what == "images" and images is None:
            images = read_images(value, where)
        elif option == "admin":
            is_admin = True
        else:
            raise InputError(f"{where}: expected rate=N/s, rate=N/min, images=N/day or admin, each once, after the key")
    if is_admin and (rate is not None or images is not None):
        raise InputError(f"{where}: an administrator's key sends no images; it has no rate and no images")
    return Key(name, sha256, Limits(rate, images), is_admin)


def read_rate(text: str, where: str) -> Rate:
    """Raises InputError."""
    match = _RATE.fullmatch(text)
    if match is None or int(match[1]) < 1:
        raise InputError(f"{where}: a rate is a number of requests, as 10/s or 600/min")
    return Rate(int(match[1]), _SECONDS[match[2]])


def read_images(text: str, where: str) -> int:
    """Raises InputError."""
    match = _IMAGES.fullmatch(text)
    if match is None or int(match[1]) < 1:
        raise InputError(f"{where}: a quota is a number of images, as 5000/day")
    return int(match[1])


def _refuse_contradictions(keys: Sequence[Key]) -> None:
    """Several keys of one name are one client's, old and new: they share its limits."""
    by_name: dict[str, Key] = {}
    for key in keys:
        first = by_name.setdefault(key.name, key)
        if (first.limits, first.is_admin) != (key.limits, key.is_admin):
            raise InputError(f"keys named {key.name} may do different things; give them the same, or other names")
    if len({key.sha256 for key in keys}) < len(keys):
        raise InputError("one key has two lines")
