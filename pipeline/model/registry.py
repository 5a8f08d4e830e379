"""The registry: `<registry>/<name>/<version>/` bundles and `<registry>/<name>/best.json`, which points to the best.

The pointer is one small file that is replaced whole, so a reader follows either the old or the new one.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.base.errors import InputError
from pipeline.model.bundle import INFO, Bundle, read_bundle
from pipeline.storage.stores import Stores
from pipeline.storage.types import StoreError
from pipeline.storage.uris import absolute, join

POINTER = "best.json"


def new_version(digest: str = "") -> str:
    """A version name that sorts by time: `20261123-191500-1a2b3c4d`."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return f"{stamp}-{digest[:8]}" if digest else stamp


def read_pointer(model_uri: str, stores: Stores = Stores()) -> dict[str, Any] | None:
    """`best.json` of one model name, None where there is none yet."""
    path = join(absolute(model_uri), POINTER)
    try:
        found = stores.read_if_there(path)
        pointer = json.loads(found) if found is not None else None
    except StoreError as error:
        raise error.refusal() from error
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); point it again with `leukoray promote`") from error
    if found is None:
        return None
    if not isinstance(pointer, dict) or not isinstance(pointer.get("version"), str):
        raise InputError(f"{path}: names no version; point it again with `leukoray promote`")
    return pointer


def point_to(model_uri: str, bundle: Bundle, metric: str, value: float | None) -> dict[str, Any]:
    """Make `bundle` the best of its name."""
    pointer = {
        "version": bundle.info.version,
        "metric": metric,
        "value": value,
        "model_sha256": bundle.info.identity(),
        "updated_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = join(absolute(model_uri), POINTER)
    bundle.stores.of(path).write(path, json.dumps(pointer, indent=2, allow_nan=False).encode())
    return pointer


@dataclass(frozen=True)
class Verdict:
    """Whether `best.json` points to the new version now, and why, in a sentence."""

    is_best: bool
    reason: str


def point_if_better(model_uri: str, bundle: Bundle, metric: str, value: float | None) -> Verdict:
    """Move the pointer when there is none, or when `value` (higher is better) is not worse than what it names.

    A model of real images always takes the place of one of synthetic images, and never the other way round.
    """
    verdict = _judge(model_uri, bundle, metric, value)
    if verdict.is_best:
        point_to(model_uri, bundle, metric, value)
    return verdict


def _judge(model_uri: str, bundle: Bundle, metric: str, value: float | None) -> Verdict:
    pointer = read_pointer(model_uri, bundle.stores)
    if pointer is None:
        return Verdict(True, "best.json points to it, the first of its name")
    version = pointer["version"]
    current = _named_by(model_uri, pointer, bundle.stores)
    if current is None:
        return Verdict(True, f"best.json points to it: {version}, which it named, cannot be used")
    if current.info.synthetic != bundle.info.synthetic:
        if current.info.synthetic:
            return Verdict(True, f"best.json points to it: {version} had learnt from synthetic images only")
        return Verdict(False, f"best.json stays at {version}, which has learnt from real images")
    if pointer.get("metric") != metric or not _is_number(pointer.get("value")):
        return Verdict(True, f"best.json points to it: {version} was judged by another metric")
    against = f"{version}, whose {metric} is {pointer['value']:.4f}"
    if current.info.manifest_digest != bundle.info.manifest_digest:
        against += " on the validation images of another manifest, a rough comparison: evaluate both on one test split"
    if value is None or not _is_number(value) or value < pointer["value"]:
        return Verdict(False, f"best.json stays at {against}")
    return Verdict(True, f"best.json points to it, no longer to {against}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _named_by(model_uri: str, pointer: dict[str, Any], stores: Stores) -> Bundle | None:
    """The bundle that a pointer names, None where it cannot be used."""
    try:
        return read_bundle(join(absolute(model_uri), str(pointer["version"])), stores)
    except InputError:
        return None


def refuse_other_task(
    model_uri: str, task: str, classes: Sequence[str], positive_classes: Sequence[str], stores: Stores
) -> None:
    """Raise InputError when the best model of the name answers another question, which its readers rely on."""
    pointer = read_pointer(model_uri, stores)
    current = _named_by(model_uri, pointer, stores) if pointer is not None else None
    if current is None:
        return
    info = current.info
    if (info.task, info.classes, info.positive_classes) != (task, tuple(classes), tuple(positive_classes)):
        raise InputError(
            f"{model_uri}: its best model tells {', '.join(info.classes)} apart, this manifest would teach "
            f"{', '.join(classes)}; give the new model a name of its own with --name"
        )


def resolve(uri: str, stores: Stores = Stores()) -> Bundle:
    """The bundle that `uri` means: a bundle folder, a model name's folder, or a registry with one model name.

    Raises InputError when it means none, or several.
    """
    uri = absolute(uri)
    store = stores.of(uri)
    if store.head(join(uri, INFO)) is not None:
        return read_bundle(uri, stores)
    pointer = read_pointer(uri, stores)
    if pointer is not None:
        return _checked(uri, pointer, read_bundle(join(uri, str(pointer["version"])), stores))
    names = sorted(info.uri.removesuffix("/" + POINTER) for info in store.walk(uri) if info.uri.endswith("/" + POINTER))
    if len(names) == 1:
        return resolve(names[0], stores)
    if names:
        raise InputError(f"{uri}: a registry with several models; name one of {', '.join(names)}")
    raise InputError(
        f"{uri}: neither a bundle (bundle.json) nor a registry (best.json); train one with `leukoray train`"
    )


def _checked(model_uri: str, pointer: dict[str, Any], bundle: Bundle) -> Bundle:
    """Raises InputError when the pointer was written for another model than the bundle is now."""
    expected = pointer.get("model_sha256")
    if expected and expected != bundle.info.identity():
        raise InputError(
            f"{join(model_uri, POINTER)}: was written for model {str(expected)[:12]}, but {bundle.uri} is now "
            f"{bundle.info.identity()[:12]}; copy the version again, or point to it with `leukoray promote {model_uri} "
            f"--version {bundle.info.version}`"
        )
    return bundle
