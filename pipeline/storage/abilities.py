"""What a store does with our requests, asked of the store itself: S3's relatives differ in what they heed.

Ceph's gateway wants the ETag of a conditional PUT without quotes; rclone's server overwrites whatever the condition.
"""

import contextlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from pipeline.base.errors import PlatformError
from pipeline.storage.stores import Stores
from pipeline.storage.types import Conditions, Store, StoreError, UnsupportedError
from pipeline.storage.uris import join

_KEY_BYTES = 1024  # what S3 allows
_ATTEMPTS = 3  # a refusal is an answer here, and some stores word it as a failure of their own


@dataclass(frozen=True)
class Abilities:
    """What the store of a folder heeds. What is False costs something; `conditions` decides whether a lock holds."""

    conditions: Conditions
    ranges: bool
    checks_digests: bool
    long_keys: bool
    deletes: bool = True  # a run removes its parts when it has ended
    tells_versions: bool = True  # by ETags; else the second of the last change has to do


def for_writing(stores: Stores, out: str, *, single_writer: bool, say: Callable[[str], None]) -> Stores:
    """`stores` with the conditions that the store of `out` heeds, for all processes of a job that locks.

    `single_writer`: the user vouches that nobody else writes there; it counts only where the store cannot lock.
    Raises PlatformError where neither the store nor the user prevents a second writer, StoreError where the store
    cannot be written to.
    """
    found = with_conditions(stores, out)
    if not found.of(out).is_conditional:
        why = f"{out}: this store (endpoint {stores.s3.named}) does not heed conditional writes"
        if not single_writer:
            raise PlatformError(
                f"{why}, so two runs could write here at once unnoticed; give --single-writer if you see to "
                "it that only one does, or choose an --out elsewhere"
            )
        say(f"{why}: no lock is held, --single-writer vouches that no other run writes here")
    return found


def with_conditions(stores: Stores, out: str) -> Stores:
    """`stores` with the conditions that the store of `out` heeds, if any. Raises StoreError as `ask` does."""
    return _with(stores, ask_conditions(stores, out)) if stores.of(out).is_remote else stores


def ask(stores: Stores, folder: str) -> Abilities:
    """Everything that is asked of S3; leaves nothing behind. Raises StoreError where it cannot be written to."""
    from pipeline.storage.s3 import s3_store

    conditions = ask_conditions(stores, folder)
    store = s3_store(replace(stores.s3, max_attempts=_ATTEMPTS))
    with _scratch(store, folder) as uri:
        store.write(uri, b"0123456789")
        long = _lengthened(f"{uri}-")
        try:
            return Abilities(
                conditions,
                ranges=_is_taken(lambda: store.read_range(uri, 2, 3)),
                checks_digests=store.checks_digests(uri),
                long_keys=_is_taken(lambda: store.write(long, b"")),
                tells_versions=store.tells_versions(uri),
                deletes=_is_taken(lambda: store.delete(uri)),
            )
        finally:
            with contextlib.suppress(StoreError):
                store.delete(long)


def ask_conditions(stores: Stores, folder: str) -> Conditions:
    """The spelling in which wrong ETags are refused and right ones taken. Raises StoreError as `ask` does."""
    for spelling in (Conditions.QUOTED, Conditions.BARE):
        store = _with(stores, spelling).of(folder)
        with _scratch(store, folder) as uri, contextlib.suppress(UnsupportedError):
            if _is_heeded(store, uri):
                return spelling
    return Conditions.NONE


def _is_heeded(store: Store, uri: str) -> bool:
    """A second create and a wrong ETag are refused, the right one is taken."""
    first = store.create(uri, _unique())
    if first is None or store.create(uri, _unique()) is not None:
        return False
    wrong = "0" * len(first)
    return store.replace(uri, _unique(), wrong) is None and store.replace(uri, _unique(), first) is not None


def _lengthened(uri: str) -> str:
    """With as long a key as S3 allows, of names that every disk takes."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return f"s3://{bucket}/" + (key + f"{'n' * 150}/" * 7)[: _KEY_BYTES - 1].rstrip("/") + "n"


def _unique() -> bytes:
    return uuid.uuid4().hex.encode()


def _is_taken(request: Callable[[], object]) -> bool:
    try:
        request()
    except StoreError:
        return False
    return True


def _with(stores: Stores, conditions: Conditions) -> Stores:
    return replace(stores, s3=replace(stores.s3, conditions=conditions))


@contextlib.contextmanager
def _scratch(store: Store, folder: str) -> Iterator[str]:
    """A name in `folder` that nobody else has; what lies there is removed."""
    uri = join(folder, f"_probe-{uuid.uuid4().hex[:12]}")
    try:
        yield uri
    finally:
        with contextlib.suppress(StoreError):
            store.delete(uri)
