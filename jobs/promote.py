"""Point a model's best.json to another version, or list its versions."""

import re

from pydantic import Field

from jobs.common import job, job_stores, start
from jobs.config import JobConfig, positional
from pipeline.base.errors import InputError, LeukorayError, UsageError
from pipeline.model.bundle import read_bundle
from pipeline.model.chance import NOT_SHOWN
from pipeline.model.predictor import Predictor
from pipeline.model.registry import ModelFolder, version_uris
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
    stores, uri = job_stores(config), absolute(config.model)
    if config.version is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", config.version):
        raise UsageError(f"--version {config.version!r}: the name of a folder in {uri}, without slashes; see --list")
    if not config.version and not config.list:
        raise UsageError("name a --version, or see them with --list")
    if config.version:
        bundle = read_bundle(join(uri, config.version), stores).verify()
        Predictor(bundle, engine="onnx").probe()
        pointer = ModelFolder(uri, stores).point_to(bundle)
        print(f"{uri}: best is now {config.version} ({pointer.metric} {_number(pointer.value)})")
        if bundle.info.against_chance is not None and not bundle.info.against_chance.is_shown:
            print(f"warning: this version is {bundle.info.against_chance}")
    if config.list:
        _print_versions(uri, stores)


def _print_versions(uri: str, stores: Stores) -> None:
    """Of one model, or of all models of a registry."""
    found = list(version_uris(uri, stores))
    if not found:
        raise InputError(f"{uri}: no versions here; name the model's folder, REGISTRY/NAME")
    for folder, is_best in found:
        shown = f"{'*' if is_best else ' '} {folder.removeprefix(uri + '/')}"
        try:
            info = read_bundle(folder, stores).info
        except LeukorayError as error:
            print(f"{shown}  unusable: {error}")
            continue
        metric, value = info.monitored
        doubt = f"  {NOT_SHOWN}" if info.against_chance is not None and not info.against_chance.is_shown else ""
        print(f"{shown}  {info.architecture} {info.input_size} px  {metric} {_number(value)}  {info.created_at}{doubt}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


command = job("promote", PromoteConfig, main, EXAMPLES)


if __name__ == "__main__":
    start(command)
