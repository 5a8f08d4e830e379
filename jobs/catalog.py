"""`leukoray catalog`: the predictions of a finished run as a part of an Apache Iceberg table, by metadata alone."""

import importlib.util
import os
import random
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from jobs.common import job, job_stores, start
from jobs.config import JobConfig, positional
from pipeline.base.errors import PlatformError, UsageError
from pipeline.base.record import COMPLETE
from pipeline.base.secrets import holds_secret, without_secrets
from pipeline.base.text import first_line
from pipeline.scoring.run_folder import RunFolder
from pipeline.storage.uris import absolute, is_s3, join

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog

    from pipeline.scoring.iceberg import Added

EXAMPLES = """examples:
  leukoray catalog scores/run-20261122-210000-123 --to lab.predictions            warehouse/catalog.db, made if need be
  leukoray catalog s3://results/scores/run-1 --to lab.cells.predictions --catalog-uri https://catalog:8181
  PYICEBERG_CATALOG__LAB__URI=... leukoray catalog scores/run-1 --to lab.predictions

Twice is once, and a run is in the table whole or not at all. Research software, not a medical device."""
_NAMESPACE = "leukoray"  # where the table's name has none
_TRIES = 4  # to open a catalog whose tables others make


class CatalogConfig(JobConfig):
    """Add the predictions of a finished scoring run to an Iceberg table, which grows by the columns it lacks."""

    run: str = positional(description="folder of a finished run of `leukoray score`, local or s3://")
    to: str = Field(
        pattern=r"^\w+(\.\w+){1,3}$",
        description="CATALOG.TABLE or CATALOG.NAMESPACE.TABLE; the catalog as pyiceberg's configuration names it",
    )
    catalog_uri: str | None = Field(
        None, description="address of the catalog: https:// (REST), postgresql://, sqlite:/// (default: as configured)"
    )
    warehouse: str | None = Field(
        None, description="folder or s3:// prefix of new tables (default: warehouse, with catalog.db, or the catalog's)"
    )

    @field_validator("catalog_uri")
    @classmethod
    def _has_no_secret(cls, given: str | None) -> str | None:
        if given is not None and holds_secret(given):
            raise ValueError("a password does not belong here: set PYICEBERG_CATALOG__<NAME>__URI or ~/.pyiceberg.yaml")
        return given


def main(config: CatalogConfig) -> None:
    if importlib.util.find_spec("pyiceberg") is None:
        raise PlatformError("leukoray catalog needs the extra 'catalog': pip install 'leukoray[catalog]'")
    from pipeline.scoring.iceberg import add_run

    name, *rest = config.to.split(".")
    identifier = tuple(rest) if len(rest) > 1 else (_NAMESPACE, *rest)
    folder = RunFolder.at(absolute(config.run), job_stores(config))
    added = _asked(config, name, lambda: add_run(folder, _catalog(config, name), identifier))
    if not added.files:
        print(f"{folder.run_id}: holds no predictions; nothing to add to {added.table}", flush=True)
        return
    if not added.is_new:
        print(f"{added.table}: has {folder.run_id} already; nothing was changed", flush=True)
        return
    if (status := folder.record().status) != COMPLETE:
        print(f"note: the run's status is {status}; what it scored is in the table", flush=True)
    if added.new_columns:
        print(f"new columns of {added.table}: {', '.join(added.new_columns)}", flush=True)
    print(f"{added.table}: {folder.run_id} added, {added.rows:,} rows in {added.files} files", flush=True)


def _asked(config: CatalogConfig, name: str, ask: Callable[[], "Added"]) -> "Added":
    """Turn what a catalog says into one of ours."""
    import requests
    from pyiceberg.exceptions import RESTError
    from sqlalchemy.exc import SQLAlchemyError

    where = without_secrets(config.catalog_uri or name)
    try:
        return ask()
    except ModuleNotFoundError as error:
        raise PlatformError(f"catalog {where}: its driver {error.name} is not installed; pip install it") from error
    except (RESTError, SQLAlchemyError, requests.RequestException) as error:
        said = without_secrets(first_line(error))
        raise PlatformError(f"catalog {where}: {type(error).__name__}: {said}; nothing was added") from error


def _catalog(config: CatalogConfig, name: str) -> "Catalog":
    """As --catalog-uri says, else as pyiceberg is configured, else SQLite in the warehouse."""
    from pyiceberg.catalog import list_catalogs, load_catalog

    from pipeline.storage.iceberg import io_properties

    files = io_properties(job_stores(config).s3)
    if config.catalog_uri is not None or name in list_catalogs():
        uri = {"uri": config.catalog_uri} if config.catalog_uri is not None else {}
        return _opened(lambda: load_catalog(name, **files | uri | _warehouse(config)))
    folder = absolute(config.warehouse or "warehouse")
    if is_s3(folder):
        raise UsageError(f"--warehouse {folder}: SQLite cannot lie on S3; name a catalog with --catalog-uri")
    os.makedirs(folder, exist_ok=True)
    own = {"type": "sql", "uri": f"sqlite:///{join(folder, 'catalog.db')}", "warehouse": folder}
    return _opened(lambda: load_catalog(name, **files | own))


def _opened(load: "Callable[[], Catalog]") -> "Catalog":
    """Where two commands make the tables of a new SQL catalog at the same time, one finds them when it looks again."""
    from sqlalchemy.exc import DatabaseError, IntegrityError

    for _ in range(_TRIES - 1):
        try:
            return load()
        except DatabaseError as error:  # each database has its own; one that is away is not asked again
            said = str(error)
            if not isinstance(error, IntegrityError) and "already exists" not in said and "locked" not in said:
                raise
        time.sleep(random.uniform(0, 0.3))
    return load()


def _warehouse(config: CatalogConfig) -> dict[str, str]:
    """A REST catalog has names for its own."""
    if config.warehouse is None:
        return {}
    is_place = re.match(r"sqlite|postgresql|mysql", config.catalog_uri or "") or "/" in config.warehouse
    return {"warehouse": absolute(config.warehouse) if is_place else config.warehouse}


command = job("catalog", CatalogConfig, main, EXAMPLES)


if __name__ == "__main__":
    start(command)
