"""The registry: `<registry>/<name>/<version>/` bundles and `<registry>/<name>/best.json`, which points to the best.

The pointer is one small file that is replaced whole, so a reader follows either the old or the new one.
"""

import json
from datetime import UTC, datetime
from typing import Any

from pipeline.bundle import INFO, Bundle, read_bundle
from pipeline.errors import InputError
from pipeline.storage import S3Settings, StoreError, absolute, join, store_for

POINTER = "best.json"


def new_version(digest: str = "") -> str:
    """A version name that sorts by time: `20261123-191500-1a2b3c4d`."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return f"{stamp}-{digest[:8]}" if digest else stamp


def read_pointer(model_uri: str, s3: S3Settings | None = None) -> dict[str, Any] | None:
    """`best.json` of one model name, None where there is none yet."""
    path = join(absolute(model_uri), POINTER)
    try:
        pointer = json.loads(store_for(path, s3).read(path).data)
    except StoreError:
        return None
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); point it again with `leukoray promote`") from error
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
    store_for(path, bundle.s3).write(path, json.dumps(pointer, indent=2).encode())
    return pointer


def point_if_better(model_uri: str, bundle: Bundle, metric: str, value: float | None) -> bool:
    """Move the pointer when there is none or `value` (higher is better) beats the one it names."""
    current = read_pointer(model_uri, bundle.s3)
    comparable = current is not None and current.get("metric") == metric and current.get("value") is not None
    if comparable and current is not None and (value is None or value < current["value"]):
        return False
    point_to(model_uri, bundle, metric, value)
    return True


def resolve(uri: str, s3: S3Settings | None = None) -> Bundle:
    """The bundle that `uri` means: a bundle folder, a model name's folder, or a registry with one model name.

    Raises InputError when it means none, or several.
    """
    uri = absolute(uri)
    store = store_for(uri, s3)
    if store.head(join(uri, INFO)) is not None:
        return read_bundle(uri, s3)
    pointer = read_pointer(uri, s3)
    if pointer is not None:
        return read_bundle(join(uri, str(pointer["version"])), s3)
    names = sorted(info.uri.removesuffix("/" + POINTER) for info in store.walk(uri) if info.uri.endswith("/" + POINTER))
    if len(names) == 1:
        return resolve(names[0], s3)
    if names:
        raise InputError(f"{uri}: a registry with several models; name one of {', '.join(names)}")
    raise InputError(
        f"{uri}: neither a bundle (bundle.json) nor a registry (best.json); train one with `leukoray train`"
    )
