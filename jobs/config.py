"""One configuration model a job: flags, a YAML file and environment variables all come from its fields.

Precedence: flag > `LEUKORAY_<FIELD>` in the environment > `--config FILE.yaml` > default.
"""

import argparse
import os
import types
import typing
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from pipeline import __version__
from pipeline.base.errors import UsageError


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


Config = TypeVar("Config", bound=BaseModel)


def positional(default: Any = ..., *, description: str, **options: Any) -> Any:
    """A field given without a flag, e.g. SOURCE."""
    return Field(default, description=description, json_schema_extra={"positional": True}, **options)


def effective(config: BaseModel) -> dict[str, Any]:
    """The configuration as plain JSON values, to be printed and stored with the run."""
    return config.model_dump(mode="json")


def parse(config_class: type[Config], argv: Sequence[str], *, prog: str, epilog: str = "") -> Config:
    """Build a job's configuration from its command line.

    Raises UsageError naming the flag, its value and what was expected. `--help` and `--version` print and
    raise SystemExit(0).
    """
    parser = _parser(config_class, prog, epilog)
    given = vars(parser.parse_args(list(argv)))
    config_file = given.pop("config", None)
    values = _from_yaml(config_class, config_file) if config_file else {}
    values.update(_from_environment(config_class))
    values.update({name: value for name, value in given.items() if value is not None and value != []})
    try:
        return config_class(**values)
    except ValidationError as error:
        raise UsageError(_explain(config_class, error, prog)) from error


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def _parser(config_class: type[BaseModel], prog: str, epilog: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog,
        description=(config_class.__doc__ or "").strip(),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if "version" not in config_class.model_fields:  # a job may name a model's version by this flag
        parser.add_argument("--version", action="version", version=f"leukoray {__version__}")
    parser.add_argument("--config", metavar="FILE", help="YAML file with the same keys as the flags")
    shared = parser.add_argument_group("cluster and storage")
    for name, field in config_class.model_fields.items():
        _add(shared if name in JobConfig.model_fields else parser, name, field)
    return parser


def _is_positional(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("positional"))


def _base_type(annotation: Any) -> tuple[Any, bool]:
    """(`int`, False) for `int | None`; (`str`, True) for `list[str]` and `tuple[str, ...]`."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(annotation) if a is not type(None)]
        return _base_type(inner[0])
    if origin in (list, tuple):
        return _base_type(typing.get_args(annotation)[0])[0], True
    return annotation, False


def _choices(kind: Any) -> list[str] | None:
    if typing.get_origin(kind) is typing.Literal:
        return [str(value) for value in typing.get_args(kind)]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [str(member.value) for member in kind]
    return None


def _add(parser: argparse._ActionsContainer, name: str, field: FieldInfo) -> None:
    kind, is_list = _base_type(field.annotation)
    default = field.get_default(call_default_factory=True) if not field.is_required() else None
    text = (field.description or "").replace("%", "%%")
    if default not in (None, False, [], ()):
        shown = " ".join(map(str, default)) if is_list else default
        text += f" (default: {shown})"
    if _is_positional(field):
        nargs = "*" if is_list else "?"  # absence is reported by the model, with the field's own words
        parser.add_argument(name, metavar=name.upper(), nargs=nargs, help=text)
        return
    flag = "--" + name.replace("_", "-")
    if kind is bool:
        parser.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, default=None, help=text)
        return
    choices = _choices(kind)
    metavar = "{" + ",".join(choices) + "}" if choices else getattr(kind, "__name__", "value").upper()
    if is_list:
        parser.add_argument(flag, dest=name, metavar=metavar, nargs="+", action="extend", default=None, help=text)
    else:
        parser.add_argument(flag, dest=name, metavar=metavar, default=None, help=text)


def _from_yaml(config_class: type[BaseModel], path: str) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read ({error.strerror}); give a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: not valid YAML: {error}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UsageError(f"--config {path}: expected `key: value` lines, found a {type(loaded).__name__}")
    values = {str(key).replace("-", "_"): value for key, value in loaded.items()}
    unknown = sorted(set(values) - set(config_class.model_fields))
    if unknown:
        known = ", ".join(config_class.model_fields)
        raise UsageError(f"--config {path}: unknown key {', '.join(unknown)}; known keys: {known}")
    return values


def _from_environment(config_class: type[BaseModel]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, field in config_class.model_fields.items():
        value = os.environ.get("LEUKORAY_" + name.upper())
        if value is not None:
            _, is_list = _base_type(field.annotation)
            values[name] = value.split(",") if is_list else value
    return values


def _explain(config_class: type[BaseModel], error: ValidationError, prog: str) -> str:
    problems = []
    for item in error.errors():
        name = str(item["loc"][0]) if item["loc"] else ""
        field = config_class.model_fields.get(name)
        label = name.upper() if field is not None and _is_positional(field) else "--" + name.replace("_", "-")
        if not name:
            problems.append(item["msg"].removeprefix("Value error, "))
        elif item["type"] == "missing":
            about = f": {field.description}" if field is not None else ""
            problems.append(f"{label} is missing{about}")
        else:
            problems.append(f"{label} {item['input']!r}: {item['msg'].removeprefix('Value error, ')}")
    return "; ".join(problems) + f" (see {prog} --help)"
