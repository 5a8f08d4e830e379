"""Where everything of a run lies, and which runs an output holds. Both have their store, and read and write by it."""

import contextlib
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.errors import Code, InputError
from pipeline.base.text import first_line
from pipeline.base.versions import check_version
from pipeline.scoring.record import RunRecord
from pipeline.scoring.schemas import SCHEMA_VERSION
from pipeline.storage.local import is_temporary
from pipeline.storage.stores import Stores
from pipeline.storage.types import Store, StoreError
from pipeline.storage.uris import join

# Files of a run, by their names in its folder. Parquet readers skip folders with a leading underscore.
SKIPPED, DELETED = "skipped", "deleted"  # what a listing writes of outputs
SUCCESS, RECORD, PARTS_LIST, SUBJECTS = "_SUCCESS", "run.json", "parts.json", "subjects.parquet"
WORK = "_work"
REQUEST, PLAN, PARTS = f"{WORK}/request.json", f"{WORK}/plan.json", f"{WORK}/parts"
PROBLEMS = f"{WORK}/problems.parquet"  # what could not be listed
FAILED_BEFORE = f"{WORK}/failed-before.parquet"  # ids that an earlier run quarantined and this one tries again

_BATCH_ROWS = 32 * 1024
_PART = re.compile(r"part-(\d+)(-\d+)?\.parquet")


def shard_file(number: int) -> str:
    return f"{WORK}/shards/shard-{number:06d}.parquet"


def part_file(number: int) -> str:
    return f"{PARTS}/part-{number:06d}.parquet"


def chunk_file(number: int, index: int) -> str:
    """A piece of an archive's part; `part_file(number)` is the last one, and says how many came before."""
    return f"{PARTS}/part-{number:06d}-{index:05d}.parquet"


def part_number(uri: str) -> tuple[int, bool] | None:
    """(shard, whether this file completes its part) by name; None for what is no part."""
    found = _PART.fullmatch(uri.rsplit("/", 1)[-1])
    return (int(found[1]), found[2] is None) if found else None


@dataclass(frozen=True)
class RunFolder:
    """One run's folder and the store that holds it. Travels to other processes. Failures are StoreErrors."""

    uri: str
    store: Store = field(compare=False, repr=False)

    @classmethod
    def at(cls, uri: str, stores: Stores) -> "RunFolder":
        return cls(uri.rstrip("/"), stores.of(uri))

    @property
    def run_id(self) -> str:
        return self.uri.rsplit("/", 1)[-1]

    @property
    def is_finished(self) -> bool:
        return self.has(SUCCESS)

    def file(self, name: str) -> str:
        """The URI of a file of the run."""
        return join(self.uri, name)

    def has(self, name: str) -> bool:
        return self.store.head(self.file(name)) is not None

    def read(self, name: str) -> bytes:
        return self.store.read(self.file(name)).data

    def write(self, name: str, data: bytes) -> None:
        self.store.write(self.file(name), data)

    def open(self, name: str) -> io.BufferedReader:
        return self.store.open(self.file(name))

    def delete(self, name: str) -> None:
        """A folder of the run with all that is in it; no error where there is none."""
        self.store.delete_tree(self.file(name))

    def is_free(self) -> bool:
        """Nothing lies here but what a run that was killed at its very start had begun to write."""
        return self.store.head(self.uri) is None and all(map(is_temporary, self._files()))

    def sweep(self) -> None:
        """Remove what killed writers left half written: other programs read all files of a folder."""
        if not self.store.is_remote:  # an object appears whole
            for uri in filter(is_temporary, self._files()):
                self.store.delete(uri)

    def _files(self) -> Iterator[str]:
        return (item.uri for item in self.store.walk(self.uri))

    def discard_listing(self) -> None:
        """Remove what a listing wrote, and the folder where nothing else is in it."""
        for name in (WORK, SKIPPED, DELETED):
            self.delete(name)
        if not self.store.is_remote:
            with contextlib.suppress(OSError):  # files of others
                os.rmdir(self.uri)

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        with self.sound(name), self.open(name) as file:
            return pq.ParquetFile(file).read(columns=columns)

    def batches(self, name: str, columns: Sequence[str], below: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows of one file piece by piece, so that memory does not grow with the file.

        `below`: where rows of other URIs are of no use; row groups without any such URI are not read.
        """
        with self.sound(name), self.open(name) as file:
            parquet = pq.ParquetFile(file)
            groups = _groups(parquet.metadata, below)
            for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=groups, columns=columns):
                yield pa.Table.from_batches([batch])

    def outputs(self, kind: str) -> list[str]:
        """Names of the Parquet files of one kind, of a finished run; none of one that is not."""
        return [item["name"] for item in self.listed(kind)]

    def listed(self, kind: str) -> list[dict[str, Any]]:
        """The same as parts.json has them: name, rows, bytes, sha256."""
        try:
            listed = json.loads(self.read(PARTS_LIST))
        except StoreError as error:
            if error.code is Code.NOT_FOUND:
                return []
            raise
        except ValueError as error:
            raise self._damaged(PARTS_LIST, error) from error
        try:
            return [item for item in listed if item["name"].startswith(f"{kind}/")]
        except (TypeError, KeyError, AttributeError) as error:
            raise self._damaged(PARTS_LIST, error) from error

    @contextlib.contextmanager
    def sound(self, name: str) -> Iterator[None]:
        """What Arrow finds wrong in a file is one line with its name; failures of the disk are left as they are."""
        try:
            yield
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise self._damaged(name, error) from error

    def _damaged(self, name: str, error: Exception) -> InputError:
        advice = "bring it back from a copy, or delete the folder of this run and score again"
        return InputError(f"{self.file(name)}: damaged ({first_line(error)}); {advice}")

    def rows(self, kind: str, columns: Sequence[str], below: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """All rows of one kind, piece by piece; `below` as in `batches`."""
        for name in self.outputs(kind):
            yield from self.batches(name, columns, below)

    def record(self) -> RunRecord:
        """run.json of a finished run. Raises InputError, PlatformError where the store is out."""
        try:
            found = json.loads(self.read(RECORD))
            check_version(found.get("schema_version", 1), SCHEMA_VERSION, f"{self.uri}: run", "score again")
            return RunRecord.model_validate(found)
        except StoreError as error:
            raise error.refusal(f"{self.uri}: no finished scoring run here ({error})") from error
        except (ValueError, AttributeError) as error:
            raise InputError(f"{self.uri}: its run.json is damaged ({first_line(error)}); score again") from error


def _groups(metadata: Any, below: Sequence[str] | None) -> list[int]:
    """Row groups that may hold a URI which begins with one of `below`, by the least and the greatest in each."""
    count = metadata.num_row_groups
    if below is None or "uri" not in metadata.schema.names:
        return list(range(count))
    column, found = metadata.schema.names.index("uri"), []
    for number in range(count):
        told = metadata.row_group(number).column(column).statistics
        is_told = told is not None and told.has_min_max
        if not is_told or any(told.min[: len(beginning)] <= beginning <= told.max for beginning in below):
            found.append(number)
    return found


@dataclass(frozen=True)
class Output:
    """The folder or prefix of `--out`, which holds a folder a run."""

    uri: str
    store: Store = field(compare=False, repr=False)

    @classmethod
    def at(cls, uri: str, stores: Stores) -> "Output":
        return cls(uri, stores.of(uri))

    def run(self, run_id: str) -> RunFolder:
        return RunFolder(join(self.uri, run_id), self.store)

    def runs(self) -> list[RunFolder]:
        """All runs, finished or not, by name."""
        found = [
            RunFolder(uri.rstrip("/"), self.store) for level in self.store.levels(self.uri) for uri in level.folders
        ]
        return sorted((run for run in found if run.has(REQUEST) or run.has(RECORD)), key=lambda run: run.uri)

    def finished(self) -> "Finished":
        """Runs with `_SUCCESS`, in the order in which they ended: by number, those of 0.1, which have none, by time."""
        found = [(run, run.record()) for run in self.runs() if run.is_finished]
        return sorted(found, key=lambda item: (item[1].number, item[1].finished_at, item[0].uri))


Finished = list[tuple[RunFolder, RunRecord]]  # as `Output.finished` gives them: requests for every run there is


def next_number(finished: Finished) -> int:
    """Of a run that ends after all these. Asked under the lock of the output."""
    return 1 + max((record.number for _, record in finished), default=0)
