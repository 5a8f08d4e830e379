"""The archive of promotions, `<registry>/<name>/promotions/<time>-<version>.json`: who moved best.json, when and why.

A record is written before the pointer moves, so none moves unrecorded; one that could not move is written anew.
"""

import getpass
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline import __version__
from pipeline.base.errors import InputError
from pipeline.base.text import problems
from pipeline.base.versions import check_version
from pipeline.model.bundle import Bundle
from pipeline.model.registry import ModelFolder, Pointer
from pipeline.storage.types import StoreError
from pipeline.storage.uris import absolute, join

PROMOTIONS = "promotions"
PROMOTION_VERSION = 1
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


def archive(folder: ModelFolder, promotion: Promotion) -> str:
    """Write it; its URI."""
    stamp = datetime.fromisoformat(promotion.at).strftime("%Y%m%d-%H%M%S-%f")
    uri = join(absolute(folder.uri), PROMOTIONS, f"{stamp}-{promotion.version}.json")
    text = json.dumps(promotion.model_dump(), indent=2, allow_nan=False)
    folder.stores.of(uri).write(uri, text.encode())
    return uri


def move(
    folder: ModelFolder, bundle: Bundle, promotion: Promotion, earlier: Sequence[str] | None = None
) -> tuple[Pointer, str]:
    """Archive it, then point best.json to `bundle`; the pointer and the record's URI."""
    uri = archive(folder, promotion)
    try:
        return folder.point_to(bundle, earlier), uri
    except BaseException as error:
        why = f"{promotion.why} [best.json was not moved: {error}]".strip()
        archive(folder, promotion.model_copy(update={"moved": False, "why": why}))
        raise


def promotions(folder: ModelFolder) -> list[Promotion]:
    """All records, the oldest first. Raises InputError naming one that cannot be read."""
    uri = join(absolute(folder.uri), PROMOTIONS)
    store, found = folder.stores.of(uri), []
    for item in sorted(store.walk(uri), key=lambda item: item.uri):
        if not item.uri.endswith(".json"):
            continue
        try:
            raw = json.loads(store.read(item.uri).data)
            check_version(raw.get("promotion_version"), PROMOTION_VERSION, f"{item.uri}: record", "it was altered")
            found.append(Promotion.model_validate(raw))
        except StoreError as error:
            raise error.refusal() from error
        except (ValueError, AttributeError) as error:
            why = problems(error) if isinstance(error, ValidationError) else str(error)
            raise InputError(f"{item.uri}: cannot be read as a promotion ({why}); it was altered") from error
    return found
