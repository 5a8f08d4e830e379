"""Where everything of a run lies, and which runs an output holds."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.base.errors import InputError
from pipeline.storage.stores import Stores
from pipeline.storage.types import StoreError
from pipeline.storage.uris import join


@dataclass(frozen=True)
class RunFolder:
    """Names inside one run's folder. Folders with a leading underscore are skipped by Parquet readers."""

    uri: str

    @property
    def run_id(self) -> str:
        return self.uri.rstrip("/").rsplit("/", 1)[-1]

    def shard(self, number: int) -> str:
        return join(self.uri, "_work", "shards", f"shard-{number:06d}.parquet")

    def part(self, number: int) -> str:
        return join(self.uri, "_work", "parts", f"part-{number:06d}.parquet")

    def chunk(self, number: int, index: int) -> str:
        """A piece of an archive's part; `part(number)` is the last one, and says how many came before."""
        return join(self.uri, "_work", "parts", f"part-{number:06d}-{index:05d}.parquet")

    @property
    def parts(self) -> str:
        return join(self.uri, "_work", "parts")

    @property
    def problems(self) -> str:
        return join(self.uri, "_work", "problems.parquet")

    @property
    def failed_before(self) -> str:
        """Ids that an earlier run quarantined and this one tries again."""
        return join(self.uri, "_work", "failed-before.parquet")

    @property
    def plan(self) -> str:
        return join(self.uri, "_work", "plan.json")

    @property
    def work(self) -> str:
        return join(self.uri, "_work")

    def file(self, *names: str) -> str:
        return join(self.uri, *names)


_PART = re.compile(r"part-(\d+)(-\d+)?\.parquet")


def part_number(uri: str) -> tuple[int, bool] | None:
    """(shard, whether this file completes its part) by name; None for what is no part."""
    found = _PART.fullmatch(uri.rsplit("/", 1)[-1])
    return (int(found[1]), found[2] is None) if found else None


@dataclass(frozen=True)
class ArchiveSummary:
    """What streaming one archive found, kept with the last piece of its part."""

    uri: str
    etag: str
    size_bytes: int
    chunks: int  # pieces before the last
    listed: int
    is_complete: bool
    left_out: dict[str, int]
    meta_keys: list[str]

    def metadata(self) -> dict[bytes, bytes]:
        """For the schema of the file."""
        return {_ARCHIVE_KEY: json.dumps(asdict(self)).encode()}

    @classmethod
    def read(cls, metadata: Mapping[bytes, bytes]) -> "ArchiveSummary":
        return cls(**json.loads(metadata[_ARCHIVE_KEY]))


def file_sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_run(uri: str, stores: Stores) -> dict[str, Any]:
    """run.json of a finished run. Raises InputError."""
    try:
        return dict(json.loads(stores.of(uri).read(f"{uri.rstrip('/')}/run.json").data))
    except StoreError as error:
        raise error.refusal(f"{uri}: no finished scoring run here ({error})") from error
    except ValueError as error:
        raise InputError(f"{uri}: its run.json is damaged ({error}); score again") from error


def finished_runs(out: str, stores: Stores) -> Iterator[tuple[RunFolder, dict[str, Any]]]:
    """Runs with `_SUCCESS` below an output, in the order in which they ended, with their run.json."""
    store = stores.of(out)
    found = [
        (folder, dict(json.loads(store.read(folder.file("run.json")).data)))
        for folder in run_folders(out, stores)
        if store.head(folder.file("_SUCCESS")) is not None
    ]
    yield from sorted(found, key=lambda run: (run[1]["finished_at"], run[0].uri))


def run_folders(out: str, stores: Stores) -> list[RunFolder]:
    """All runs below an output, finished or not, by name."""
    store = stores.of(out)
    found = [name.rstrip("/") for level in store.levels(out) for name in level.folders]
    runs = [uri for uri in found if store.head(join(uri, "_work", "request.json")) or store.head(join(uri, "run.json"))]
    return [RunFolder(uri) for uri in sorted(runs)]


def output_files(folder: RunFolder, kind: str, stores: Stores) -> list[str]:
    """Parquet files of a finished run, by its manifest of parts."""
    found = stores.read_if_there(folder.file("parts.json"))
    listed = json.loads(found) if found is not None else []
    return [folder.file(item["name"]) for item in listed if item["name"].startswith(f"{kind}/")]


_ARCHIVE_KEY = b"leukoray.archive"
