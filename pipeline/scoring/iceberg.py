"""A finished run's predictions as entries of an Apache Iceberg table: metadata alone, no row is read or copied.

All of a run is one commit, with its id as a property of the snapshot (https://iceberg.apache.org/spec/): it is in the
table whole or not at all, and once. Columns that a model has and the table lacks are added by name.
"""

import hashlib
import json
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import (
    CommitFailedException,
    CommitStateUnknownException,
    NoSuchTableError,
    TableAlreadyExistsError,
    ValidationError,
)
from pyiceberg.io.pyarrow import (
    compute_statistics_plan,
    data_file_statistics_from_parquet_metadata,
    parquet_path_to_id_mapping,
)
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.partitioning import PartitionSpec
from pyiceberg.table import Table, TableProperties, Transaction
from pyiceberg.table.snapshots import Snapshot, ancestors_of
from pyiceberg.transforms import IdentityTransform
from pyiceberg.typedef import Record
from sqlalchemy.exc import IntegrityError, OperationalError

from pipeline import __version__
from pipeline.base.errors import InputError, PlatformError
from pipeline.base.text import first_line
from pipeline.scoring.record import RunRecord
from pipeline.scoring.run_folder import RunFolder

RUN_ID, RUN_FILES = "leukoray.run-id", "leukoray.run-files"
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_TRIES = 12  # against others who commit to the same table
_READERS = 8  # of footers, which are a request each on S3
_AGAIN = (CommitFailedException, CommitStateUnknownException, TableAlreadyExistsError, OperationalError, IntegrityError)


@dataclass(frozen=True)
class Added:
    """What became of a run: `is_new` false where the table had it already."""

    table: str
    files: int
    rows: int
    is_new: bool
    new_columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class _File:
    """One file of predictions, with its footer."""

    uri: str
    size: int
    metadata: Any  # pyarrow.parquet.FileMetaData
    schema: pa.Schema
    values: Mapping[str, str | None]  # of its hive folders


@dataclass(frozen=True)
class _Run:
    record: RunRecord
    uri: str
    files: Sequence[_File]
    digest: str  # of the contents of all files

    @property
    def keys(self) -> list[str]:
        return sorted({key for file in self.files for key in file.values})

    @property
    def rows(self) -> int:
        return sum(int(file.metadata.num_rows) for file in self.files)


def add_run(folder: RunFolder, catalog: Catalog, identifier: tuple[str, ...]) -> Added:
    """Add the predictions of a run, once, whatever else is done to the table meanwhile.

    Raises InputError where the run is not finished, or its files are not those that it wrote; where the table holds
    another run of that name, or columns that do not go together; PlatformError where others commit all the time.
    """
    run = _read(folder)
    name = ".".join(identifier)
    if not run.files:
        return Added(name, 0, 0, is_new=False)
    for attempt in range(_TRIES):
        try:
            catalog.create_namespace_if_not_exists(identifier[:-1])
            return _try(run, catalog, identifier)
        except _AGAIN as error:  # whether it landed all the same is looked up by the next try
            trouble = first_line(error)
            time.sleep(random.uniform(0, min(5.0, 0.1 * 2**attempt)))
    raise PlatformError(f"{name}: {_TRIES} commits failed ({trouble}); run the same command again")


def _try(run: _Run, catalog: Catalog, identifier: tuple[str, ...]) -> Added:
    name = ".".join(identifier)
    try:
        table = catalog.load_table(identifier)
    except NoSuchTableError:
        transaction: Transaction = catalog.create_table_transaction(identifier, _columns(run))
        known = set[str]()
    else:
        if _has(table, run):
            return Added(name, len(run.files), run.rows, is_new=False)
        known = set(table.schema().column_names)
        # pyiceberg's own tries would add the run again beside another command's: each of ours looks first
        once = table.metadata.properties | {TableProperties.COMMIT_NUM_RETRIES: "0"}
        table.metadata = table.metadata.model_copy(update={"properties": once})
        transaction = table.transaction()
    _stage(transaction, run, name)
    transaction.commit_transaction()
    new = [column for column in _columns(run).names if known and column not in known]
    return Added(name, len(run.files), run.rows, True, tuple(new))


# ---- what the table has ----------------------------------------------------------------------------------------------


def _history(table: Table) -> Iterable[Snapshot]:
    """From the current snapshot back; what was rolled back is no part of it."""
    current = table.current_snapshot()
    return ancestors_of(current, table.metadata) if current is not None else ()


def _has(table: Table, run: _Run) -> bool:
    """Raises InputError where it has another run of that name."""
    run_id = run.record.run_id
    for snapshot in _history(table):
        said = snapshot.summary.additional_properties if snapshot.summary is not None else {}
        if said.get(RUN_ID) == run_id:
            if said.get(RUN_FILES) == run.digest:
                return True
            raise InputError(f"{run.uri}: {_another(table, run_id)} ({said.get('leukoray.run-uri')})")
    if "run_id" not in table.schema().column_names:
        return False
    of_run = f"run_id = '{run_id}'"  # letters, digits, dots and dashes alone
    scan = table.scan(of_run, selected_fields=("run_id",))  # its snapshot may have expired
    paths = {task.file.file_path for task in scan.plan_files()}
    if not paths:
        return False
    if {file.uri for file in run.files} <= paths:
        return True
    if table.scan(of_run, selected_fields=("run_id",), limit=1).to_arrow().num_rows:
        raise InputError(f"{run.uri}: {_another(table, run_id)}, in files that are not those of this run")
    return False


def _another(table: Table, run_id: str) -> str:
    return f"{'.'.join(table.name())} holds a run named {run_id} already, with other contents"


# ---- what is added ---------------------------------------------------------------------------------------------------


def _stage(transaction: Transaction, run: _Run, name: str) -> None:
    """Columns, partitions, names and files, all to be committed at once."""
    columns = _columns(run)
    _refuse_other_case(transaction, columns, run, name)
    try:
        with transaction.update_schema() as update:
            update.union_by_name(columns)
    except (ValidationError, ValueError, TypeError) as error:
        message = f"{run.uri}: its columns do not go with those of {name} ({first_line(error)})"
        raise InputError(f"{message}; add it to another table") from error
    _partition(transaction, run.keys)
    metadata = transaction.table_metadata
    if metadata.name_mapping() is None:  # our files have no field ids
        mapping = metadata.schema().name_mapping.model_dump_json()
        transaction.set_properties({TableProperties.DEFAULT_NAME_MAPPING: mapping})
    with transaction.update_snapshot(snapshot_properties=_properties(run)).fast_append() as append:
        for file in run.files:
            append.append_data_file(_entry(transaction, file, name))


def _refuse_other_case(transaction: Transaction, columns: pa.Schema, run: _Run, name: str) -> None:
    """Most engines do not tell case apart."""
    known = {column.casefold(): column for column in transaction.table_metadata.schema().column_names}
    for column in columns.names:
        if (other := known.get(column.casefold(), column)) != column:
            raise InputError(f"{run.uri}: its column {column} is called {other} in {name}; add it to another table")


def _partition(transaction: Transaction, keys: Sequence[str]) -> None:
    metadata = transaction.table_metadata
    schema, spec = metadata.schema(), metadata.spec()
    by = {schema.find_column_name(field.source_id) for field in spec.fields}
    if new := [key for key in keys if key not in by]:
        with transaction.update_spec() as update:
            for key in new:
                update.add_identity(key)


def _entry(transaction: Transaction, file: _File, name: str) -> DataFile:
    """The file with its statistics; its partition is that of its hive folder, which no column of it repeats."""
    metadata = transaction.table_metadata
    schema, spec = metadata.schema(), metadata.spec()
    statistics = data_file_statistics_from_parquet_metadata(
        parquet_metadata=file.metadata,
        stats_columns=compute_statistics_plan(schema, metadata.properties),
        parquet_column_mapping=parquet_path_to_id_mapping(schema),
    )

    def value(field: Any) -> Any:
        column = schema.find_column_name(field.source_id)
        if column is not None and column in file.values and isinstance(field.transform, IdentityTransform):
            return file.values[column]
        try:
            return statistics.partition(PartitionSpec(field), schema)[0]
        except ValueError as error:
            raise InputError(
                f"{file.uri}: {name} is partitioned by {field.name}, of which this file holds several values; add the "
                "run to another table"
            ) from error

    return DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=file.uri,
        file_format=FileFormat.PARQUET,
        partition=Record(*map(value, spec.fields)),
        file_size_in_bytes=file.size,
        sort_order_id=None,
        spec_id=metadata.default_spec_id,
        equality_ids=None,
        key_metadata=None,
        **statistics.to_serialized_dict(),
    )


def _properties(run: _Run) -> dict[str, str]:
    record, model = run.record, run.record.model
    said = {
        RUN_ID: record.run_id,
        RUN_FILES: run.digest,
        "leukoray.run-uri": run.uri,
        "leukoray.status": record.status,
        "leukoray.model": f"{model.name}/{model.version}",
        "leukoray.model-sha256": model.sha256,
        "leukoray.version": __version__,
    }
    return said | ({"leukoray.synthetic": "true"} if model.synthetic else {})


# ---- what the run has ------------------------------------------------------------------------------------------------


def _read(folder: RunFolder) -> _Run:
    if not folder.is_finished:
        raise InputError(f"{folder.uri}: no finished scoring run (no _SUCCESS); run leukoray score again, then this")
    listed = folder.listed("predictions")
    contents = json.dumps(sorted((item["name"], item["sha256"]) for item in listed))
    with ThreadPoolExecutor(_READERS) as readers:
        files = list(readers.map(lambda item: _file(folder, item), listed))
    return _Run(folder.record(), folder.uri, files, hashlib.sha256(contents.encode()).hexdigest())


def _file(folder: RunFolder, item: Mapping[str, Any]) -> _File:
    uri = folder.file(item["name"])
    found = folder.store.head(uri)
    if found is None or found.size != item["bytes"]:
        state = "is missing" if found is None else f"has {found.size} bytes, not the {item['bytes']} that were written"
        raise InputError(f"{uri}: {state}; bring it back from a copy, or delete the run and score again")
    with folder.sound(item["name"]), folder.open(item["name"]) as file:
        parquet = pq.ParquetFile(file)
        metadata, schema = parquet.metadata, parquet.schema_arrow
    pairs = (part.partition("=") for part in item["name"].split("/")[1:-1])
    return _File(uri, found.size, metadata, schema, {key: None if to == _NO_VALUE else to for key, _, to in pairs})


def _columns(run: _Run) -> pa.Schema:
    """Of all files, each nullable: another model's files have none of `prob_...`. Then the keys of hive folders."""
    found: dict[str, pa.Field] = {}
    for file in run.files:
        for one in file.schema:
            doc = (one.metadata or {}).get(b"meaning")
            found.setdefault(one.name, pa.field(one.name, one.type, True, {"doc": doc} if doc else None))
    for key in run.keys:
        found[key] = pa.field(key, pa.string(), True, {"doc": "from the folder of the file"})
    return pa.schema(list(found.values()))
