"""One configuration model a job: flags, a YAML file and environment variables all come from its fields.

Precedence: flag > `LEUKORAY_<FIELD>` in the environment > `--config FILE.yaml` > default.

Own code after a trial of pydantic-settings 2.16: it splits flags at commas (`slides,2026/` becomes two sources), does
not know `--tags x y`, wants a positional on the command line even where the file gives it, takes lists from the
environment as JSON only, passes over a --config that does not exist, and adds 0.1 s to every start.
"""

import argparse
import os
import types
import typing
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from pipeline import __version__
from pipeline.base.errors import UsageError
from pipeline.base.plain_yaml import read_yaml
from pipeline.base.secrets import holds_secret, without_secrets
from pipeline.storage.uris import absolute

if typing.TYPE_CHECKING:
    from pipeline.sources.pseudonyms import Names


class JobConfig(BaseModel):
    """Base of every job's configuration: frozen, validated, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    address: str | None = Field(
        None, description="Ray cluster to use, as for ray.init (default: $RAY_ADDRESS, else a local Ray)"
    )
    num_cpus: int | None = Field(None, ge=1, description="cores a local Ray may use (default: all)")
    s3_endpoint: str | None = Field(None, description="S3 endpoint URL (default: $AWS_ENDPOINT_URL[_S3])")
    s3_region: str | None = Field(None, description="S3 region (default: $AWS_REGION, else us-east-1)")
    s3_anonymous: bool = Field(False, description="read public buckets without credentials")
    s3_requester_pays: bool = Field(False, description="accept the transfer cost of a requester-pays bucket")
    debug: bool = Field(False, description="show the traceback of an error")
    log_format: Literal["text", "json"] = Field(
        "text", description="what is told while it works: lines to read, or one JSON object a line, on stderr"
    )

    has_results: ClassVar[bool] = False  # what it prints to stdout is data, no account of its work


class NamingConfig(JobConfig):
    """Base of those who name images."""

    pseudonymize: str | None = Field(
        None, description="file with a key: paths and subjects become pseudonyms in all that is written"
    )

    @property
    def of_sources(self) -> tuple[str, ...]:
        """Fields that name what lies in a source, or beside it, where they hold text."""
        return "source", "sources", "labels", "subjects", "classes", "contradictions"


class LineageConfig(NamingConfig):
    """Base of those who tell what they read and wrote."""

    lineage: str | None = Field(
        None,
        description="file (JSON lines) or http:// address that OpenLineage events go to (default: $OPENLINEAGE_URL)",
    )

    @field_validator("lineage")
    @classmethod
    def _is_a_place(cls, given: str | None) -> str | None:
        parts = urlsplit(given or "")
        if "://" in (given or "") and parts.scheme not in ("http", "https", "file"):
            raise ValueError("expected a file of this machine, or the http:// address of a collector")
        if parts.scheme in ("http", "https") and holds_secret(given or ""):
            raise ValueError("a password or token does not belong here: set OPENLINEAGE_API_KEY")
        return given


Config = TypeVar("Config", bound=BaseModel)


def positional(default: Any = ..., *, description: str, **options: Any) -> Any:
    """A field given without a flag, e.g. SOURCE."""
    return Field(default, description=description, json_schema_extra={"positional": True}, **options)


def effective(config: BaseModel, names: "Names | None" = None) -> dict[str, Any]:
    """The configuration as plain JSON values, to be printed and stored with the run; sources as `names` has them, URLs
    without secrets.
    """
    dumped = config.model_dump(mode="json")
    values = {name: _told(value) for name, value in dumped.items()}
    if names is not None and names.key_id is not None and isinstance(config, NamingConfig):
        for field in config.of_sources:
            found = values.get(field)
            if isinstance(found, list):
                values[field] = [names.path(absolute(uri)) for uri in found]
            elif isinstance(found, str):  # of a transfer check `subjects` is a number
                values[field] = names.path(absolute(found))
    return values


def _told(value: Any) -> Any:
    if isinstance(value, list):
        return [_told(inner) for inner in value]
    return without_secrets(value) if isinstance(value, str) else value


class Option:
    """One field as a person gives it."""

    def __init__(self, name: str, field: FieldInfo) -> None:
        extra = field.json_schema_extra
        self.name = name
        self.is_positional = isinstance(extra, dict) and bool(extra.get("positional"))
        said = name.removesuffix("_")  # a field must not be called as a method of pydantic's: `json_` is --json
        self.flag = name.upper() if self.is_positional else "--" + said.replace("_", "-")
        self.variable = "LEUKORAY_" + said.upper()
        self.kind, self.is_list = _kind(field.annotation)
        self.meaning = field.description or ""
        self._default = None if field.is_required() else field.get_default(call_default_factory=True)

    @property
    def value_name(self) -> str:
        """What stands behind the flag: INT, or {one,of,these}."""
        if typing.get_origin(self.kind) is typing.Literal:
            return "{" + ",".join(map(str, typing.get_args(self.kind))) + "}"
        if issubclass(self.kind, Enum):
            return "{" + ",".join(str(member.value) for member in self.kind) + "}"
        return str(self.kind.__name__).upper()

    @property
    def default(self) -> str:
        """As typed; empty where there is none."""
        if self._default is None:
            return ""
        return " ".join(map(str, self._default)) if self.is_list else str(self._default)

    def add_to(self, parser: argparse._ActionsContainer) -> None:
        is_told = self.default and self._default is not False
        text = (self.meaning + (f" (default: {self.default})" if is_told else "")).replace("%", "%%")
        if self.is_positional:
            nargs = "*" if self.is_list else "?"  # absence is reported by the model, with the field's own words
            parser.add_argument(self.name, metavar=self.flag, nargs=nargs, help=text)
        elif self.kind is bool:
            parser.add_argument(self.flag, dest=self.name, action=argparse.BooleanOptionalAction, help=text)
        else:
            several: dict[str, Any] = {"nargs": "+", "action": "extend"} if self.is_list else {}
            parser.add_argument(self.flag, dest=self.name, metavar=self.value_name, help=text, **several)

    def from_environment(self) -> dict[str, Any]:
        """Its name and value, or nothing. Commas part the values of a list."""
        value = os.environ.get(self.variable)
        if value is None:
            return {}
        return {self.name: value.split(",") if self.is_list else value}


def options(config_class: type[BaseModel]) -> list[Option]:
    return [Option(name, field) for name, field in config_class.model_fields.items()]


def _kind(annotation: Any) -> tuple[Any, bool]:
    """(`int`, False) for `int | None`; (`str`, True) for `list[str]` and `tuple[str, ...]`."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _kind(next(a for a in inner if a is not type(None)))
    return (inner[0], True) if origin in (list, tuple) else (annotation, False)


def parse(config_class: type[Config], argv: Sequence[str], *, prog: str, epilog: str = "") -> Config:
    """Build a job's configuration from its command line.

    Raises UsageError naming the flag, its value and what was expected. `--help` and `--version` print and
    raise SystemExit(0).
    """
    given = vars(_parser(config_class, prog, epilog).parse_args(list(argv)))
    config_file = given.pop("config", None)
    values = _from_yaml(config_class, config_file) if config_file else {}
    for option in options(config_class):
        values |= option.from_environment()
    return validated(config_class, values | given, f"see {prog} --help")


def validated(config_class: type[Config], values: dict[str, Any], hint: str) -> Config:
    """Raises UsageError naming each flag, its value and what was expected; `hint` stands behind."""
    try:
        return config_class(**values)
    except ValidationError as error:
        raise UsageError(f"{_explain(config_class, error)} ({hint})") from error


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def _parser(config_class: type[BaseModel], prog: str, epilog: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog,
        description=(config_class.__doc__ or "").strip(),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # what is not given comes from elsewhere
        allow_abbrev=False,
    )
    if "version" not in config_class.model_fields:  # a job may name a model's version by this flag
        parser.add_argument("--version", action="version", version=f"leukoray {__version__}")
    parser.add_argument("--config", metavar="FILE", help="YAML file with the same keys as the flags")
    shared = parser.add_argument_group("cluster and storage")
    for option in options(config_class):
        option.add_to(shared if option.name in LineageConfig.model_fields else parser)
    return parser


def _from_yaml(config_class: type[BaseModel], path: str) -> dict[str, Any]:
    try:
        loaded = read_yaml(Path(path).read_bytes())
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read ({error.strerror}); give a YAML file") from error
    except yaml.YAMLError as error:
        raise UsageError(f"--config {path}: not valid YAML: {error}") from error
    if not isinstance(loaded or {}, dict):
        raise UsageError(f"--config {path}: expected `key: value` lines, found a {type(loaded).__name__}")
    named = {name.removesuffix("_"): name for name in config_class.model_fields}
    values: dict[str, Any] = {}
    for written, value in (loaded or {}).items():
        plain = str(written).replace("-", "_")
        key = named.get(plain, plain)
        if key in values:
            raise UsageError(f"--config {path}: {key} is given twice, as {written!r} too; keep one")
        values[key] = value
    unknown = sorted(set(values) - set(config_class.model_fields))
    if unknown:
        known = ", ".join(config_class.model_fields)
        raise UsageError(f"--config {path}: unknown key {', '.join(unknown)}; known keys: {known}")
    return values


def _explain(config_class: type[BaseModel], error: ValidationError) -> str:
    """All that is wrong, by flag and value."""
    named, problems = {option.name: option for option in options(config_class)}, []
    for item in error.errors():
        said = item["msg"].removeprefix("Value error, ")
        if not item["loc"]:
            problems.append(said)
            continue
        option = named[str(item["loc"][0])]
        is_missing = item["type"] == "missing"
        found = without_secrets(f"{option.flag} {item['input']!r}: {said}")
        problems.append(f"{option.flag} is missing: {option.meaning}" if is_missing else found)
    return "; ".join(problems)
