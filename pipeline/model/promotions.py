"""The archive of promotions, `<registry>/<name>/promotions/<time>-<version>.json`: who moved best.json, when and why.

A record is written before the pointer moves, as one that was not finished, so none moves unrecorded; then anew, with
what came of it.
"""

import contextlib
import getpass
import json
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline import __version__
from pipeline.base.errors import InputError, PlatformError
from pipeline.base.text import problems
from pipeline.base.versions import check_version
from pipeline.model.bundle import Bundle
from pipeline.model.registry import ModelFolder, Pointer
from pipeline.storage.types import StoreError
from pipeline.storage.uris import absolute, join

PROMOTIONS = "promotions"
PROMOTION_VERSION = 1
UNFINISHED = "[not finished: best.json itself tells whether it moved]"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
Action = Literal["pointed", "promoted", "forced", "refused", "rolled back"]


class Promotion(BaseModel):
    """One record of the archive."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    promotion_version: int = PROMOTION_VERSION
    action: Action  # pointed: without a protocol
    moved: bool  # whether best.json names `version` now
    version: str  # asked for
    model_sha256: str  # `BundleInfo.identity()`
    before: str | None  # what best.json named
    by: str
    at: str  # ISO 8601, UTC
    why: str = ""
    leukoray: str = __version__
    protocol: dict[str, Any] | None = None  # uri, text, sha256
    test_digest: str = ""
    criteria: list[dict[str, Any]] = []  # asked, state, found
    figures: dict[str, Any] = {}  # `comparison.json`


def user_name() -> str:
    """Of the environment, or of the system; empty where neither tells."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        return ""


def record(action: Action, bundle: Bundle, before: str | None, by: str, **more: Any) -> Promotion:
    return Promotion(
        action=action,
        moved=action != "refused",
        version=bundle.info.version,
        model_sha256=bundle.info.identity(),
        before=before,
        by=by,
        at=datetime.now(UTC).isoformat(timespec="microseconds"),
        **more,
    )


def is_version_name(version: str) -> bool:
    """Whether it is the name of one folder or file, which leads nowhere else."""
    return _NAME.fullmatch(version) is not None


def version_named(folder: ModelFolder) -> str | None:
    """What best.json names; None where there is none, or a damaged one, which is then replaced."""
    try:
        pointer = folder.pointer()
    except InputError:
        return None
    return None if pointer is None else pointer.version


def archive(folder: ModelFolder, promotion: Promotion) -> str:
    """Write it; its URI. Raises InputError where its version is no name of a file."""
    if not is_version_name(promotion.version):
        raise InputError(f"{folder.uri}: version {promotion.version!r} is no name of a folder; bundle.json was altered")
    stamp = datetime.fromisoformat(promotion.at).strftime("%Y%m%d-%H%M%S-%f")
    uri = join(absolute(folder.uri), PROMOTIONS, f"{stamp}-{promotion.version}.json")
    text = json.dumps(promotion.model_dump(), indent=2, allow_nan=False)
    folder.stores.of(uri).write(uri, text.encode())
    return uri


def move(
    folder: ModelFolder, bundle: Bundle, promotion: Promotion, earlier: Sequence[str] | None = None
) -> tuple[Pointer, str]:
    """Archive it, then point best.json to `bundle`; the pointer and the record's URI. For who holds `folder.moving`.

    Raises what the store raised, PlatformError where best.json moved and its record could not be finished.
    """
    uri = archive(folder, _noted(promotion, False, UNFINISHED))
    try:
        pointer = folder.point_to(bundle, earlier)
    except BaseException as error:
        with contextlib.suppress(StoreError, OSError, InputError):  # the record stays as not finished
            _archive_what_came(folder, bundle, promotion, error)
        raise
    try:
        return pointer, archive(folder, promotion)
    except (StoreError, OSError) as error:
        raise PlatformError(
            f"{folder.uri}: best.json names {pointer.version} now, but {uri} could not be finished ({error})"
        ) from error


def move_by_hand(folder: ModelFolder, bundle: Bundle, by: str, why: str) -> tuple[Pointer, str]:
    """`move` without a protocol, under the lock; the pointer and the record's URI. Raises PlatformError as `moving`."""
    with folder.moving() as check_lock:
        promotion = record("pointed", bundle, version_named(folder), by, why=why)
        check_lock()
        return move(folder, bundle, promotion)


def _archive_what_came(folder: ModelFolder, bundle: Bundle, promotion: Promotion, error: BaseException) -> None:
    """A write whose answer never came may have been carried out all the same: the pointer itself tells."""
    pointer = folder.pointer()
    has_moved = pointer is not None and (pointer.version, pointer.model_sha256) == (
        bundle.info.version,
        bundle.info.identity(),
    )
    told = "names it, though writing it failed" if has_moved else "was not moved"
    archive(folder, _noted(promotion, has_moved, f"[best.json {told}: {error}]"))


def _noted(promotion: Promotion, moved: bool, note: str) -> Promotion:
    return promotion.model_copy(update={"moved": moved, "why": f"{promotion.why} {note}".strip()})


def promotions(folder: ModelFolder) -> list[Promotion]:
    """All records that can be read, the oldest first."""
    return [found for found in archived(folder) if isinstance(found, Promotion)]


def archived(folder: ModelFolder) -> Iterator[Promotion | InputError]:
    """All records, the oldest first; in place of one that cannot be read, what names it and says why."""
    uri = join(absolute(folder.uri), PROMOTIONS)
    store = folder.stores.of(uri)
    for item in sorted(store.walk(uri), key=lambda item: item.uri):
        if not item.uri.endswith(".json"):
            continue
        try:
            raw = json.loads(store.read(item.uri).data)
            check_version(raw.get("promotion_version"), PROMOTION_VERSION, f"{item.uri}: record", "it was altered")
            yield Promotion.model_validate(raw)
        except StoreError as error:
            raise error.refusal() from error
        except InputError as error:
            yield error
        except (ValueError, AttributeError) as error:
            why = problems(error) if isinstance(error, ValidationError) else str(error)
            yield InputError(f"{item.uri}: cannot be read as a promotion ({why}); it was altered")
