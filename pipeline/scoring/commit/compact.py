"""Parts to output files: rows of some shards checked against their listing and written in the documented schemas."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.model.bundle import BundleInfo
from pipeline.scoring.commit.partition import Partition
from pipeline.scoring.output import OutputFile, Written
from pipeline.scoring.plan.plan import Plan
from pipeline.scoring.run_folder import PROBLEMS, RunFolder
from pipeline.scoring.schemas import IS_UNCOUNTED, meta_columns, prediction_schema, quarantine_schema
from pipeline.scoring.work.parts import read_part
from pipeline.sources.archives import holds_many


@dataclass(frozen=True)
class Compactor:
    """Makes the output files of a run. Travels to Ray tasks."""

    folder: RunFolder
    plan: Plan
    info: BundleInfo
    partition: Partition | None

    def write(self, group: int, shards: Sequence[int]) -> list[Written]:
        """Output files number `group`, of these shards.

        Raises IncompleteError naming the shard whose part does not hold exactly the listed images.
        """
        files: dict[str, OutputFile] = {}

        def add(kind: str, table: pa.Table) -> None:
            for place, piece in self.partition.split(table) if self.partition is not None else [("", table)]:
                if piece.num_rows:
                    name = f"{kind}/{place}part-{group:05d}.parquet"
                    files.setdefault(name, OutputFile(piece.schema)).add(piece)

        archives = dict(self.plan.archives)
        for number in shards:
            for table in read_part(self.folder, number, number in archives):
                is_scored = pc.is_null(table["code"])
                add("predictions", self._predictions(table.filter(is_scored)))
                add("quarantine", self._quarantine(table.filter(pc.invert(is_scored))))
        if group == 0:
            add("quarantine", self._quarantine(self.folder.table(PROBLEMS)))
        return [files[name].write(self.folder, name) for name in sorted(files)]

    def _predictions(self, table: pa.Table) -> pa.Table:
        info, keys = self.info, self.plan.meta_keys
        constants = {
            "threshold": info.threshold,
            "model_name": info.name,
            "model_version": info.version,
            "model_sha256": info.identity(),
            "preprocessing_digest": info.preprocessing_digest,
            "run_id": self.plan.run_id,
        }
        return _shape(table, prediction_schema(info.classes, keys), constants, meta_columns(keys))

    def _quarantine(self, table: pa.Table) -> pa.Table:
        constants = {"model_sha256": self.info.identity(), "run_id": self.plan.run_id}
        many = pa.array(map(holds_many, table["uri"].to_pylist(), table["member"].to_pylist()), pa.bool_())
        table = table.select([name for name in table.column_names if name != IS_UNCOUNTED])
        return _shape(table.append_column(IS_UNCOUNTED, many), quarantine_schema(), constants, {})


def _shape(table: pa.Table, schema: pa.Schema, constants: dict[str, Any], meta: dict[str, str]) -> pa.Table:
    """Columns of `schema`: from the table, constant, or out of the map of what was said of the image."""
    columns = []
    for field in schema:
        if field.name in constants:
            columns.append(pa.array([constants[field.name]] * table.num_rows, field.type))
        elif field.name in meta:
            columns.append(pc.map_lookup(table["meta"].combine_chunks(), meta[field.name], "first"))
        elif field.name in table.column_names:
            columns.append(table[field.name].cast(field.type))
        else:  # of a part that an older version wrote
            columns.append(pa.nulls(table.num_rows, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def group_parts(sizes: Sequence[int], target: int) -> list[list[int]]:
    """Consecutive shard numbers whose parts together make one output file of about `target` bytes."""
    groups: list[list[int]] = []
    total = 0
    for number, size in enumerate(sizes):
        if not groups or total + size > target:
            groups.append([])
            total = 0
        groups[-1].append(number)
        total += size
    return groups
