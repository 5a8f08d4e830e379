"""The end of a run: parts checked against shards, compacted into large files, counted again from what was written.

Every step gives the same files when it is done again, so a kill anywhere is mended by the same command: parts are
removed only after `_SUCCESS` is there.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.base.cluster import own_errors
from pipeline.base.errors import IncompleteError, UsageError
from pipeline.model.bundle import BundleInfo
from pipeline.scoring.output import OutputFile, OutputSeries, Written
from pipeline.scoring.plan.plan import MAX_META_KEYS, Plan
from pipeline.scoring.run_folder import ArchiveSummary, RunFolder
from pipeline.scoring.schemas import ARCHIVES_SCHEMA, prediction_schema, quarantine_schema
from pipeline.scoring.work.parts import part_sizes, read_part, read_summary
from pipeline.sources.rows import place_of
from pipeline.storage.parquet import read_columns
from pipeline.storage.stores import Stores

TARGET_FILE_BYTES = 128 << 20
_IN_DRIVER_BYTES = 4 << 20  # about 50,000 rows; more goes to Ray tasks, which keeps the memory of the driver level


@dataclass(frozen=True)
class Partition:
    """Hive partitioning: `key=value` folders, the value taken from the path by a pattern's first group."""

    key: str
    pattern: str

    @classmethod
    def parse(cls, text: str) -> "Partition":
        key, _, pattern = text.partition("=")
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise UsageError(f"--partition-by {text!r}: not a pattern ({error})") from error
        if not re.fullmatch(r"\w+", key) or groups != 1:
            raise UsageError(f"--partition-by {text!r}: give KEY=REGEX with one group, e.g. 'site=/site-([^/]+)/'")
        return cls(key, pattern)

    def value(self, path: str) -> str:
        found = re.search(self.pattern, path)
        text = found.group(1) if found else None  # a group may have no part in the match
        return re.sub(r"[^\w.-]", "_", text) if text else "__HIVE_DEFAULT_PARTITION__"


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


def compact(
    folder: RunFolder, group: int, shards: Sequence[int], info: BundleInfo, plan: Plan,
    partition: Partition | None, stores: Stores,
) -> list[Written]:  # fmt: skip
    """Check the parts of some shards against their listing and write them as output files number `group`.

    Raises IncompleteError naming the shard whose part does not hold exactly the listed images.
    """
    files: dict[str, OutputFile] = {}

    def add(kind: str, table: pa.Table) -> None:
        for place, piece in _partitioned(table, partition):
            if piece.num_rows:
                name = f"{kind}/{place}part-{group:05d}.parquet"
                files.setdefault(name, OutputFile(piece.schema)).add(piece)

    archives = dict(plan.archives)
    for number in shards:
        for table in read_part(folder, number, number in archives, stores):
            is_scored = pc.is_null(table["code"])
            add("predictions", _predictions(table.filter(is_scored), info, plan))
            add("quarantine", _quarantine(table.filter(pc.invert(is_scored)), info, plan))
    if group == 0:
        add("quarantine", read_columns(folder.problems, None, stores))
    return [files[name].write(folder, name, stores) for name in sorted(files)]


def _predictions(table: pa.Table, info: BundleInfo, plan: Plan) -> pa.Table:
    constants = {
        "threshold": info.threshold,
        "model_name": info.name,
        "model_version": info.version,
        "model_sha256": info.identity(),
        "preprocessing_digest": info.preprocessing_digest,
        "run_id": plan.run_id,
    }
    meta = {f"meta_{key}": key for key in plan.meta_keys}
    return _shape(table, prediction_schema(info.classes, plan.meta_keys), constants, meta)


def _quarantine(table: pa.Table, info: BundleInfo, plan: Plan) -> pa.Table:
    constants = {"model_sha256": info.identity(), "run_id": plan.run_id}
    return _shape(table, quarantine_schema(), constants, {})


def _shape(table: pa.Table, schema: pa.Schema, constants: dict[str, Any], meta: dict[str, str]) -> pa.Table:
    """Columns of `schema`: from the table, constant, or out of the sidecar map."""
    columns = []
    for field in schema:
        if field.name in constants:
            columns.append(pa.array([constants[field.name]] * table.num_rows, field.type))
        elif field.name in meta:
            columns.append(pc.map_lookup(table["meta"].combine_chunks(), meta[field.name], "first"))
        else:
            columns.append(table[field.name].cast(field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _partitioned(table: pa.Table, partition: Partition | None) -> list[tuple[str, pa.Table]]:
    if partition is None:
        return [("", table)]
    places = map(place_of, table["uri"].to_pylist(), table["member"].to_pylist())
    values = pa.array(map(partition.value, places), pa.string())
    return [
        (f"{partition.key}={value}/", table.filter(pc.equal(values, value)))
        for value in sorted(set(values.to_pylist()))
    ]


@dataclass(frozen=True)
class Committed:
    """All output files, and what was found in archives that workers opened."""

    written: list[Written]
    archives: list[ArchiveSummary]


def commit(
    ray: Any, folder: RunFolder, info: BundleInfo, plan: Plan, partition: Partition | None, stores: Stores,
    leave_ray: Callable[[], None] = lambda: None,
) -> Committed:  # fmt: skip
    """Write all output files; small runs in this process, large ones as Ray tasks. Raises IncompleteError.

    `ray` may be None for a small run. `leave_ray` is called once Ray is not needed any more.
    """
    if not plan.shards:
        written = compact(folder, 0, [], info, plan, partition, stores)
        return Committed([*written, *_archives(folder, plan, [], stores)], [])
    sizes = part_sizes(folder, plan, stores)
    summaries = [read_summary(folder, number, stores) for number, _ in plan.archives]
    keys = sorted({*plan.meta_keys, *(key for summary in summaries for key in summary.meta_keys)} - {"subject_id"})
    plan = replace(plan, meta_keys=keys[:MAX_META_KEYS])
    groups = group_parts(sizes, TARGET_FILE_BYTES)
    arguments = [(folder, index, group, info, plan, partition, stores) for index, group in enumerate(groups)]
    if sum(sizes) <= _IN_DRIVER_BYTES or ray is None:
        leave_ray()
        results = [compact(*each) for each in arguments]
    else:
        task = ray.remote(num_cpus=1, max_retries=3)(compact)
        with own_errors(ray):
            results = ray.get([task.remote(*each) for each in arguments])
        leave_ray()
    written = [item for result in results for item in result]
    return Committed([*written, *_archives(folder, plan, summaries, stores)], summaries)


def _archives(folder: RunFolder, plan: Plan, summaries: Sequence[ArchiveSummary], stores: Stores) -> list[Written]:
    """`archives/`: the compressed archives that are done with, so that the next run need not read them."""
    series = OutputSeries(folder, "archives", ARCHIVES_SCHEMA, stores)
    for row in plan.opened:
        series.add_row(row)
    for summary in summaries:
        series.add_row({**asdict(summary), "images": summary.listed})
    return series.finish()


def verify(
    folder: RunFolder, written: Sequence[Written], plan: Plan, archives: Sequence[ArchiveSummary], stores: Stores
) -> dict[str, Any]:
    """Count again from the footers of the files that are there, and compare with the listing.

    Returns the counts for run.json. Raises IncompleteError when they do not add up.
    """
    store = stores.of(folder.uri)
    rows = dict.fromkeys(("predictions", "quarantine", "skipped", "deleted", "archives", "subjects.parquet"), 0)
    codes: Counter[str] = Counter()
    failed_before, again = read_columns(folder.failed_before, None, stores)["image_id"], 0
    for item in written:
        kind = item.name.split("/", 1)[0]
        with store.open(folder.file(*item.name.split("/"))) as file:
            parquet = pq.ParquetFile(file)
            rows[kind] += parquet.metadata.num_rows
            if kind == "quarantine":
                table = parquet.read(columns=["code", "image_id"])
                codes.update(table["code"].to_pylist())
                again += pc.sum(pc.is_in(table["image_id"], failed_before), min_count=0).as_py()
    skipped = rows["skipped"]
    listed = plan.listed + sum(archive.listed for archive in archives)
    left_out = Counter(plan.left_out)
    for archive in archives:
        left_out.update(archive.left_out)
    counts = {
        "listed": listed,
        "scored": rows["predictions"],
        "quarantined": rows["quarantine"],
        "quarantined_again": again,  # as in an earlier run
        "skipped": skipped,
        "deleted_at_source": rows["deleted"],
        "codes": dict(codes),
        "skipped_reasons": plan.skipped,
        "left_out": dict(left_out),
    }
    if listed != rows["predictions"] + rows["quarantine"] + skipped:
        raise IncompleteError(
            f"{folder.uri}: {listed} listed, but {rows['predictions']} scored + {rows['quarantine']} quarantined "
            f"+ {skipped} skipped in the files; the run is not complete, run the same command again"
        )
    return counts


def finish(folder: RunFolder, written: Sequence[Written], run: dict[str, Any], stores: Stores) -> None:
    """parts.json, run.json, then `_SUCCESS`; then the parts go."""
    store = stores.of(folder.uri)
    listed = [item.__dict__ for item in written]
    store.write(folder.file("parts.json"), json.dumps(listed, indent=1).encode())
    store.write(folder.file("run.json"), json.dumps(run, indent=2).encode())
    store.write(folder.file("_SUCCESS"), b"")
    store.delete_tree(folder.work)
