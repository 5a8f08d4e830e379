"""Pseudonyms: paths and subjects that only the holder of a key can tell, the same every night.

A path becomes a token, `hidden-…:FOLDER/NAME`, by deterministic authenticated encryption (AES-SIV, RFC 5297): equal
paths give equal tokens, and whoever has the key reads the images behind them. A subject becomes `ps-` and 64 bits of a
keyed hash (HMAC-SHA-256, RFC 2104). Real names are known to the listing alone: rows, logs, reports and errors behind it
hold tokens, and image ids are made of them; the store of a token is mounted as any other.
"""

import base64
import contextlib
import functools
import hmac
import io
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NoReturn, Protocol, TypeVar
from urllib.parse import quote, quote_plus, unquote

from pipeline.base.errors import Code, InputError, PlatformError
from pipeline.base.text import folded
from pipeline.images.load import IMAGE_SUFFIXES
from pipeline.sources.archives import Entry, Problem, is_archive, readable, suffix
from pipeline.sources.objects import NO_IMAGES
from pipeline.storage.stores import Stores
from pipeline.storage.types import Bytes, Level, ObjectInfo, OnFailure, Store, StoreError
from pipeline.storage.uris import is_hidden, is_s3

_DISK, _S3, _MEMBER = "hidden-disk:", "hidden-s3:", "hidden-member:"
_SUBJECT = re.compile(r"ps-[0-9a-f]{16}")
_KEY_BYTES = 32
_TELLING_LETTERS = 4  # a part of a path of so many is hidden wherever it stands
_TELLING = NO_IMAGES | IMAGE_SUFFIXES  # suffixes that tell a kind of file
Found = TypeVar("Found", bound=Entry | Problem)


class Names(Protocol):
    """How outputs name what lies in a source."""

    @property
    def key_id(self) -> str | None: ...

    def path(self, uri: str) -> str: ...
    def real_path(self, uri: str) -> str: ...
    def member(self, member: str | None) -> str | None: ...
    def real_member(self, member: str | None) -> str | None: ...
    def subject(self, subject: str | None) -> str | None: ...
    def found(self, found: Found) -> Found: ...
    def scrubbed(self, text: str, names: Sequence[str]) -> str: ...
    def reason(self, reason: str) -> str: ...


class RealNames:
    """Nothing is hidden."""

    key_id: str | None = None

    def path(self, uri: str) -> str:
        return uri

    real_path = path

    def member(self, member: str | None) -> str | None:
        return member

    real_member = member

    def subject(self, subject: str | None) -> str | None:
        return subject

    def found(self, found: Found) -> Found:
        return found

    def scrubbed(self, text: str, names: Sequence[str]) -> str:
        return text

    def reason(self, reason: str) -> str:
        return reason


@dataclass(frozen=True)
class Pseudonyms:
    """The names that one key gives. Names that are pseudonyms already stay as they are."""

    key: bytes = field(repr=False)

    @cached_property
    def _cipher(self) -> Any:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESSIV
        except ImportError as error:
            raise PlatformError("--pseudonymize needs the extra 'privacy': pip install 'leukoray[privacy]'") from error
        return AESSIV(hmac.digest(self.key, b"leukoray paths", "sha512"))

    def __getstate__(self) -> dict[str, bytes]:
        return {"key": self.key}

    @cached_property
    def key_id(self) -> str | None:
        return hmac.digest(self.key, b"leukoray key id", "sha256").hex()[:16]

    def path(self, uri: str) -> str:
        return uri if is_hidden(uri) else self._hide(_S3 if is_s3(uri) else _DISK, uri)

    def member(self, member: str | None) -> str | None:
        return member if member is None or member.startswith(_MEMBER) else self._hide(_MEMBER, member)

    def subject(self, subject: str | None) -> str | None:
        """One for all spellings of a subject, as subjects are told apart without a key."""
        if subject is None or _SUBJECT.fullmatch(subject):
            return subject
        return "ps-" + hmac.digest(self.key, b"leukoray subject\0" + folded(subject).encode(), "sha256").hex()[:16]

    def real_path(self, uri: str) -> str:
        return self._reveal(uri) if is_hidden(uri) else uri

    def real_member(self, member: str | None) -> str | None:
        return self._reveal(member) if member is not None and member.startswith(_MEMBER) else member

    def found(self, found: Found) -> Found:
        """The same under its pseudonym. Of sidecars' words only the subject stays: nobody knows what they tell."""
        uri, member = self.path(found.uri), self.member(found.member)
        changed: dict[str, Any] = {"uri": uri, "member": member}
        if isinstance(found, Problem):
            changed["message"] = self.failure(found.message, [found.member or "", found.uri])
        else:
            hidden = {"subject_id": self.subject, "path": self.member}  # 'path': how filters know an archive
            changed["meta"] = {key: str(hidden[key](text)) for key, text in found.meta.items() if key in hidden}
        return replace(found, **changed)

    def scrubbed(self, text: str, names: Sequence[str]) -> str:
        """`text` without these paths, and without their last parts."""
        for name in sorted(filter(None, names), key=len, reverse=True):
            text = text.replace(name, "(hidden)").replace(posixpath.basename(name) or name, "(hidden)")
        return text

    def failure(self, text: str, names: Sequence[str]) -> str:
        """What was said of a failure, without these paths and any part of them, however it is spelled.

        Libraries write what they failed on in their own ways: an address with percent signs, a folder alone. A word of
        the sentence that is the name of a folder too is hidden with it.
        """
        pattern = _any_part(tuple(filter(None, names)))
        return pattern.sub("(hidden)", text) if pattern is not None else text

    def reason(self, reason: str) -> str:
        """Why a file is left out, without a suffix that may be a part of its name (`findings.mueller`)."""
        return reason if not reason.startswith(".") or reason in _TELLING else "another suffix"

    def _hide(self, kind: str, name: str) -> str:
        """`FOLDER/NAME`, each hidden; what the name ends with stays where readers go by it."""
        end = "/" if name.endswith("/") else suffix(name) if _tells_nothing(name) else ""
        folder, slash, last = name.removesuffix("/").rpartition("/")
        parts = [folder, last] if slash else [last]
        secrets = (self._cipher.encrypt(part.encode("utf-8", "surrogateescape"), [kind.encode()]) for part in parts)
        return kind + "/".join(base64.urlsafe_b64encode(secret).decode().rstrip("=") for secret in secrets) + end

    def _reveal(self, token: str) -> str:
        from cryptography.exceptions import InvalidTag

        kind, _, text = token.partition(":")
        parts = text.partition(".")[0].removesuffix("/").split("/")
        try:
            secrets = (base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in parts)
            found = [self._cipher.decrypt(secret, [f"{kind}:".encode()]) for secret in secrets]
        except (InvalidTag, ValueError) as error:
            message = f"{token[:40]}…: a pseudonym of another key; give --pseudonymize the one that it was made with"
            raise InputError(message) from error
        return b"/".join(found).decode("utf-8", "surrogateescape") + ("/" if text.endswith("/") else "")


def _any_part(names: tuple[str, ...]) -> re.Pattern[str] | None:
    """What matches a path, or a part of one; short parts where a path shows them alone: 'in' is a word, too."""
    parts = {part.removesuffix("!") for name in names for part in re.split(r"[/\\]", name)} - {"", "s3:", "file:"}
    parts |= {posixpath.splitext(part)[0] for part in parts}
    long, short = set(names), set[str]()
    for part in parts:
        (long if len(part) >= _TELLING_LETTERS else short).add(part)
    spelled = [f"(?i:{re.escape(text)})" for text in sorted(_spellings(long), key=len, reverse=True)]
    spelled += [f"(?<=[/'\"]){re.escape(text)}(?=[/'\"!])" for text in sorted(_spellings(short))]
    return re.compile("|".join(spelled)) if spelled else None


def _spellings(names: Iterable[str]) -> set[str]:
    """As they are, as they are shown (bytes that are no text, as Latin-1 too), and as addresses write them."""
    found: set[str] = set()
    for name in names:
        raw = name.encode("utf-8", "surrogateescape")
        found |= {name, unquote(name), readable(name), ascii(name)[1:-1], repr(raw)[2:-1]}
        found |= {quote(raw), quote(raw, safe=""), quote_plus(raw)}
    return found - {""}


def _tells_nothing(name: str) -> bool:
    """Whether a suffix is one of all images or archives of a kind; behind a UID it is the last part of that."""
    return suffix(name) in IMAGE_SUFFIXES or is_archive(name)


def names_of(stores: Stores) -> Names:
    """How outputs name what these stores hold."""
    for _, store in stores.mounts:
        if isinstance(store, _HiddenStore):
            return store.names
    return RealNames()


def with_pseudonyms(stores: Stores, key_file: str) -> Stores:
    """Stores that hold what the tokens of a key name.

    The file holds 64 hexadecimal digits. Raises InputError where it is missing or no key.
    """
    data = stores.read_if_there(key_file)
    make = f"make one with `openssl rand -hex {_KEY_BYTES} > {key_file}`, and keep it away from what it hides"
    if data is None:
        raise InputError(f"--pseudonymize {key_file}: no such file; {make}")
    text = data.decode("ascii", "replace").strip()
    if not re.fullmatch(rf"[0-9a-fA-F]{{{2 * _KEY_BYTES}}}", text):
        raise InputError(f"--pseudonymize {key_file}: not {2 * _KEY_BYTES} hexadecimal digits; {make}")
    names = Pseudonyms(bytes.fromhex(text))
    names.path("")  # the extra is there, or said to be missing now
    hidden = tuple((kind, _HiddenStore(names, stores, kind == _S3)) for kind in (_DISK, _S3))
    return replace(stores, mounts=(*stores.mounts, *hidden))


@dataclass
class _HiddenStore:
    """Objects by their tokens: one object each, to be read. Failures name the token."""

    names: Pseudonyms
    stores: Stores
    is_remote: bool
    is_conditional = False  # nothing is written here

    @contextlib.contextmanager
    def _real(self, token: str) -> Iterator[tuple[Store, str]]:
        uri = self.names.real_path(token)
        try:
            yield self.stores.of(uri), uri
        except StoreError as error:
            raise StoreError(error.code, self.names.failure(str(error), [uri]), error.attempts) from None

    def read(self, uri: str) -> Bytes:
        with self._real(uri) as (store, real):
            return store.read(real)

    def read_range(self, uri: str, offset: int, size: int, etag: str | None = None) -> Bytes:
        with self._real(uri) as (store, real):
            return store.read_range(real, offset, size, etag)

    def open(self, uri: str, on_failure: OnFailure | None = None) -> io.BufferedReader:
        with self._real(uri) as (store, real):
            return io.BufferedReader(_HiddenFile(store.open(real, on_failure), self._real, uri), buffer_size=1 << 16)

    def head(self, uri: str) -> ObjectInfo | None:
        with self._real(uri) as (store, real):
            found = store.head(real)
            return replace(found, uri=uri) if found is not None else None

    def is_folder(self, uri: str) -> bool:
        with self._real(uri) as (store, real):
            return store.is_folder(real)

    def _refuse(self, uri: str) -> NoReturn:
        raise StoreError(Code.ACCESS_DENIED, f"{uri[:40]}…: a pseudonym names one object, to be read only")

    def levels(self, prefix: str) -> Iterator[Level]:
        self._refuse(prefix)

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        self._refuse(prefix)

    def beginning_with(self, uri: str) -> Iterator[ObjectInfo]:
        self._refuse(uri)

    def write(self, uri: str, data: bytes) -> None:
        self._refuse(uri)

    def create(self, uri: str, data: bytes) -> str | None:
        self._refuse(uri)

    def replace(self, uri: str, data: bytes, etag: str) -> str | None:
        self._refuse(uri)

    def delete(self, uri: str) -> None:
        self._refuse(uri)

    def delete_tree(self, prefix: str) -> None:
        self._refuse(prefix)


class _HiddenFile(io.RawIOBase):
    """A file whose reads fail as those of its store: with the token, not the name."""

    def __init__(
        self, file: io.BufferedReader, real: Callable[[str], contextlib.AbstractContextManager[Any]], token: str
    ) -> None:
        self._file = file
        self._naming: Callable[[], contextlib.AbstractContextManager[Any]] = functools.partial(real, token)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        with self._naming():
            return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()
