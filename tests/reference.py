"""Makes docs/reference.md from the models: `make reference`. What is told there has its only source in the code."""

import importlib
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from jobs.cli import JOBS, module_of
from jobs.common import EXIT_CODES
from jobs.config import JobConfig, Option, options
from pipeline.base.errors import OUTAGE_CODES, TRANSIENT_CODES, Code
from pipeline.base.record import Record
from pipeline.evaluation import measured as evaluation
from pipeline.ingest import measured as ingest
from pipeline.model.bundle import BUNDLE_VERSION
from pipeline.scoring import measured as scoring
from pipeline.scoring.commit.subjects import SUBJECT_SCHEMA
from pipeline.scoring.schemas import (
    ARCHIVES_SCHEMA,
    DELETED_SCHEMA,
    SCHEMA_VERSION,
    SKIPPED_SCHEMA,
    prediction_schema,
    quarantine_schema,
)
from pipeline.scoring.summary.advice import of_code
from pipeline.sources.manifest import MANIFEST_SCHEMA, MANIFEST_VERSION
from pipeline.training import measured as training
from serving.settings import API_KEYS_VARIABLE, ServingSettings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference.md"
HEAD = """# Reference

Made from the code by `make reference`; a test compares the two. Research software, not a medical device.

- [Options](#options): [of every job](#every-job), {jobs}
- [Settings of the service](#settings-of-the-service), [exit codes](#exit-codes)
- [Parquet files](#parquet-files), [run.json](#runjson), [metrics of jobs](#metrics-of-jobs)
- [Codes of quarantine](#codes-of-quarantine)
- [Versions of records](#versions-of-records)

## Options

A value comes from its flag, else from its environment variable, else from the YAML file named by `--config`, else it is
the default. Keys of the file are the flags without their dashes in front. In a variable, commas part the values of a
list; `1` and `0` switch. What is typed in capitals has no flag: it stands by its place.

From now on an option needs a reason: who sets it to what, and why no default can know.
"""
PARQUET = """## Parquet files

Every column's meaning is in the file as well (field metadata `meaning`). Columns are nullable unless it says otherwise.
"""
FILES = {
    "A manifest's `part-*.parquet`": (MANIFEST_SCHEMA, "One row an image, written by `leukoray ingest`."),
    "`predictions/` of a run": (
        prediction_schema(["CLASS"], ["KEY"]),
        "One row a scored image. A column a class and a column a key of the sidecars take the places of the examples.",
    ),
    "`quarantine/` of a run": (quarantine_schema(), "One row an image, or an archive, that gave no probability."),
    "`skipped/` of a run": (SKIPPED_SCHEMA, "One row an image that an earlier run had done."),
    "`deleted/` of a run": (DELETED_SCHEMA, "One row an image of earlier runs that is gone from the source."),
    "`archives/` of a run": (ARCHIVES_SCHEMA, "One row a compressed archive that was read."),
    "`subjects.parquet` of a run": (SUBJECT_SCHEMA, "One row a subject, most suspicious first."),
}


def page() -> str:
    jobs = ", ".join(f"[{job}](#leukoray-{job})" for job in JOBS)
    parts = [
        HEAD.format(jobs=jobs),
        *_options(),
        _service(),
        _exit_codes(),
        PARQUET,
        *_files(),
        _record(),
        _metrics(),
        _codes(),
        _versions(),
    ]
    return "\n".join(part.strip() + "\n" for part in parts)


def config_of(job: str) -> type[JobConfig]:
    """The configuration model of a job."""
    found: type[JobConfig] = typing.get_type_hints(importlib.import_module(f"jobs.{module_of(job)}").main)["config"]
    return found


def _options() -> Iterable[str]:
    yield "### Every job"
    yield _option_table(options(JobConfig))
    for job in JOBS:
        config = config_of(job)
        yield f"### leukoray {job}\n\n{(config.__doc__ or '').strip()}"
        yield _option_table([option for option in options(config) if option.name not in JobConfig.model_fields])


def _option_table(found: Sequence[Option]) -> str:
    rows = []
    for option in found:
        rows.append([f"`{option.flag}`", f"`{option.variable}`", *_type_and_default(option), option.meaning])
    return _table(["option", "variable", "type", "default", "meaning"], rows)


def _type_and_default(option: Option) -> list[str]:
    if option.kind is bool:
        return ["switch", {"True": "on", "False": "off"}.get(option.default, "")]
    several = " ..." if option.is_list else ""
    return [option.value_name.lower() + several, f"`{option.default}`" if option.default else ""]


def _service() -> str:
    rows = []
    for option in options(ServingSettings):
        rows.append([f"`{option.name}`", *_type_and_default(option), option.meaning])
    return (
        "## Settings of the service\n\nThe `args` of an application in a Serve configuration "
        "(infra/serve_config.yaml); `leukoray serve` sets them from its own options.\n\n"
        + _table(["key", "type", "default", "meaning"], rows)
        + f"\nKeys of clients come from `${API_KEYS_VARIABLE}`, parted by commas, where the application is built."
    )


def _exit_codes() -> str:
    return "## Exit codes\n\n" + _table(["code", "meaning"], [[str(code), text] for code, text in EXIT_CODES.items()])


def _files() -> Iterable[str]:
    for name, (schema, about) in FILES.items():
        yield f"### {name}\n\n{about}"
        yield _table(["column", "type", "meaning"], [_column(field) for field in schema])


def _column(field: pa.Field) -> list[str]:
    meaning = (field.metadata or {}).get(b"meaning", b"").decode()
    return [f"`{field.name}`", str(field.type) + ("" if field.nullable else ", never null"), meaning]


def _codes() -> str:
    rows = []
    for code in Code:
        again = (
            "yes; many of them: the store is out" if code in OUTAGE_CODES else "yes" if code in TRANSIENT_CODES else ""
        )
        rows.append([f"`{code}`", ", ".join(code.stages), again, code.meaning, of_code(code).remedy])
    return (
        "## Codes of quarantine\n\nA code that is tried again is so in every later run; the others stay until the "
        "object changes, or the limit that refused it.\n\n"
        + _table(["code", "met at", "tried again", "meaning", "what helps"], rows)
    )


_TYPES = {  # as JSON has them
    "<class 'str'>": "string",
    "<class 'bool'>": "true or false",
    "int | None": "number or null",
    "collections.abc.Mapping[str, typing.Any]": "object",
    "collections.abc.Mapping[str, str]": "object of strings",
    "collections.abc.Mapping[str, int]": "object of numbers",
}


def _record() -> str:
    rows = [
        [f"`{name}`", _TYPES[str(field.annotation)], meaning]
        for name, field in Record.model_fields.items()
        if (meaning := field.description or "")
    ]
    assert len(rows) == len(Record.model_fields), "a field without a meaning"
    return (
        "## run.json\n\nThe record of a job, in the folder of its output: of `ingest` beside the manifest, of `train` "
        "in the bundle and in the training's own folder under `.runs/`, of `tune` in that of the search under "
        "`.searches/`, of `calibrate` in the new version, of `evaluate`, `transfer-check`, `explain` and `promote "
        "--protocol` beside what they write, of `score` in the run's folder, where it has more keys. A job that ends "
        "without output tells that there too; where output of an earlier run is left, its record stays.\n\n"
        + _table(["key", "type", "meaning"], rows)
    )


def _metrics() -> str:
    rows = [
        [f"`{one.series}`", one.kind.lower(), ", ".join(one.labels), one.meaning]
        for one in (*ingest.MEASURES, *training.MEASURES, *evaluation.MEASURES, *scoring.MEASURES)
    ]
    return (
        "## Metrics of jobs\n\nAt the metrics port of every node of a Ray cluster; how they are read stands in "
        "[clusters.md](clusters.md#metrics-of-the-jobs).\n\n" + _table(["series", "kind", "labels", "meaning"], rows)
    )


def _versions() -> str:
    rows = [
        ["`bundle.json`", "`bundle_version`", str(BUNDLE_VERSION)],
        ["`manifest.json`", "`version`", str(MANIFEST_VERSION)],
        ["`run.json` and the Parquet files of a run", "`schema_version`", str(SCHEMA_VERSION)],
    ]
    return "## Versions of records\n\n" + _table(["record", "key", "version"], rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE} is made")
