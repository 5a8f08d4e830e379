"""Point a model's best.json to another version, or list its versions."""

import re
from typing import Any

from pydantic import Field

from jobs.common import job, job_stores, start
from jobs.config import JobConfig, positional
from pipeline.base.errors import InputError, LeukorayError, UsageError
from pipeline.model.bundle import INFO, Bundle, read_bundle
from pipeline.model.predictor import Predictor
from pipeline.model.registry import point_to, read_pointer
from pipeline.storage.stores import Stores
from pipeline.storage.uris import absolute, join

EXAMPLES = """examples:
  leukoray promote models/leukoray --list
  leukoray promote models/leukoray --version 20261123-191500-1a2b3c4d
  leukoray promote s3://bucket/models/leukoray --version 20261123-191500-1a2b3c4d

Research software, not a medical device."""


class PromoteConfig(JobConfig):
    """Point best.json, which scoring and serving follow, to another version of a model."""

    model: str = positional(description="a model's folder in the registry, REGISTRY/NAME")
    version: str | None = Field(None, description="version to point to; its files are checked first")
    list: bool = Field(False, description="list the versions with their validation metrics")


def main(config: PromoteConfig) -> None:
    stores = job_stores(config)
    uri = absolute(config.model)
    if config.version is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", config.version):
        raise UsageError(f"--version {config.version!r}: the name of a folder in {uri}, without slashes; see --list")
    if not config.version and not config.list:
        raise UsageError("name a --version, or see them with --list")
    if config.version:
        bundle = _checked(join(uri, config.version), stores)
        metric, value = _monitored(bundle)
        point_to(uri, bundle, metric, value)
        print(f"{uri}: best is now {config.version} ({metric} {_number(value)})")
    if config.list:
        _print_versions(uri, stores)


def _checked(uri: str, stores: Stores) -> Bundle:
    """The bundle, after its files were compared with their digests and the graph answered the probe."""
    bundle = read_bundle(uri, stores).verify()
    Predictor(bundle, engine="onnx").probe()
    return bundle


def _monitored(bundle: Bundle) -> tuple[str, float | None]:
    """The metric that training chose the best epoch by, in the words of the pointer."""
    monitor = str(bundle.info.training.get("monitor", "val_auc"))
    name = "roc_auc" if monitor == "val_auc" else monitor.removeprefix("val_")
    value: Any = bundle.info.metrics.get("validation", {}).get(name)
    return f"validation {name}", None if value is None else float(value)


def _print_versions(uri: str, stores: Stores) -> None:
    """Of one model, or of all models of a registry."""
    found = sorted(
        item.uri.removesuffix("/" + INFO) for item in stores.of(uri).walk(uri) if item.uri.endswith("/" + INFO)
    )
    if not found:
        raise InputError(f"{uri}: no versions here; name the model's folder, REGISTRY/NAME")
    best: dict[str, str | None] = {}
    for folder in found:
        model, _, version = folder.rpartition("/")
        if model not in best:
            pointer = read_pointer(model, stores)
            best[model] = pointer["version"] if pointer else None
        mark, shown = "*" if version == best[model] else " ", folder.removeprefix(uri + "/")
        try:
            bundle = read_bundle(folder, stores)
        except LeukorayError as error:
            print(f"{mark} {shown}  unusable: {error}")
            continue
        metric, value = _monitored(bundle)
        info = bundle.info
        print(f"{mark} {shown}  {info.architecture} {info.input_size} px  {metric} {_number(value)}  {info.created_at}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


command = job("promote", PromoteConfig, main, EXAMPLES)


if __name__ == "__main__":
    start(command)
