"""The promotion protocol: what a version must reach, on which images, written down before anybody looks.

YAML with the fields of `Protocol`; docs/promote.md tells each.
"""

import hashlib
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.base.errors import InputError
from pipeline.base.plain_yaml import read_yaml
from pipeline.base.text import problems
from pipeline.base.versions import check_version
from pipeline.evaluation.intervals import fewest_replicates
from pipeline.storage.stores import Stores
from pipeline.storage.types import StoreError
from pipeline.storage.uris import absolute

PROTOCOL_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MetricRule(_Part):
    """One figure. `margin`: how much worse than the best model it may be, at the lower limit of the paired difference;
    `minimum`: what the lower limit of its own interval must reach.
    """

    metric: str
    margin: float | None = Field(None, ge=0, le=1)
    minimum: float | None = Field(None, ge=0, le=1)

    @model_validator(mode="after")
    def _asks_something(self) -> "MetricRule":
        if self.margin is None and self.minimum is None:
            raise ValueError(f"{self.metric}: give a margin, a minimum, or both")
        return self


class SliceRule(_Part):
    """No group of a column (site, sex, format, ...) below a minimum, of the groups with enough subjects."""

    column: str
    minimum: float = Field(ge=0, le=1)
    metric: Literal["accuracy", "sensitivity", "specificity"] = "accuracy"
    min_subjects: int = Field(10, ge=1)


class Protocol(_Part):
    """`promotion.yaml`."""

    protocol_version: int = PROTOCOL_VERSION
    title: str = ""
    manifest: str  # of the images to be judged by
    test_digest: str = ""  # of their split; `Manifest.split_digest`
    split: Literal["test"] = "test"  # the others are of making a model
    metrics: tuple[MetricRule, ...] = Field(min_length=1)
    slices: tuple[SliceRule, ...] = ()
    latency_p95_ms: float | None = Field(None, gt=0)  # of one image on one core of the machine that promotes
    max_ood_share: float | None = Field(None, ge=0, le=1)
    max_unanswered_share: float = Field(0.0, ge=0, le=1)  # of the labelled images of the split
    confidence: float = Field(0.95, gt=0.5, lt=1)
    bootstrap: int = Field(1000, ge=100)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _has_samples_enough(self) -> "Protocol":
        if (fewest := fewest_replicates(self.confidence)) > self.bootstrap:
            raise ValueError(f"limits of confidence {self.confidence:g} need a bootstrap of {fewest:,} or more")
        return self


class WrittenProtocol(BaseModel):
    """A protocol as it was written, for the archive."""

    model_config = ConfigDict(frozen=True)

    uri: str
    text: str
    sha256: str  # of the text in UTF-8, hex


def read_protocol(uri: str, stores: Stores) -> tuple[Protocol, WrittenProtocol]:
    """Raises InputError naming the field that is wrong."""
    uri = absolute(uri)
    try:
        data = stores.of(uri).read(uri).data
        text = data.decode("utf-8")
        loaded = read_yaml(text)
    except StoreError as error:
        raise error.refusal(f"{uri}: the protocol cannot be read ({error})") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{uri}: no YAML that can be used ({error}); see docs/promote.md") from error
    if not isinstance(loaded, dict):
        raise InputError(f"{uri}: expected `key: value` lines; see docs/promote.md")
    check_version(loaded.get("protocol_version", 1), PROTOCOL_VERSION, f"{uri}: protocol", "write it anew")
    try:
        protocol = Protocol.model_validate(loaded)
    except ValidationError as error:
        raise InputError(f"{uri}: {problems(error)}; see docs/promote.md") from error
    return protocol, WrittenProtocol(uri=uri, text=text, sha256=hashlib.sha256(data).hexdigest())
