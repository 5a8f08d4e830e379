"""What grows with the size of an archive, in CPU seconds, peak memory and requests: no figure here is a wall time.

    python -m tests.benchmarks.scale listing 100000 1000000      # objects of a bucket that answers at once
    python -m tests.benchmarks.scale plan 100000 1000000         # the same, frozen into shards: a first night
    python -m tests.benchmarks.scale night 1000000 100000 [day]  # known images, new ones; 'day': these alone are listed
    python -m tests.benchmarks.scale tar 100000 1000000          # members of one archive; also: zip
    python -m tests.benchmarks.scale subjects 100000 1000000     # rows of predictions, a subject each ten

Every row is a process of its own. The bucket is made up as it is asked for; what a run writes goes to the temp folder.
"""

import io
import json
import resource
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator

import pyarrow as pa

from pipeline.scoring.commit.subjects import roll_up
from pipeline.scoring.plan.freeze import make_plan
from pipeline.scoring.request import Request
from pipeline.scoring.run_folder import Output
from pipeline.sources.listing import Tally, list_sources
from pipeline.storage.ranged import RangedFile
from pipeline.storage.stores import Stores
from pipeline.storage.types import Bytes, ObjectInfo
from tests.histories import MadeUp, finished_run, request_of

ROOT = "s3://bucket/root"
_DAYS = 10
_MEMBER_BYTES = 2048
Found = dict[str, float]


def listing(count: int) -> Found:
    store = MadeUp(count)
    found = sum(1 for _ in list_sources([ROOT], Tally(), stores=store.stores))
    return {"images": found, "requests": store.requests}


def plan(count: int) -> Found:
    with tempfile.TemporaryDirectory() as out:
        return _planned(out, MadeUp(count), request_of([ROOT]))


def night(known: int, new: int, which: str = "all") -> Found:
    """`known` images were scored in ten runs, a day each; then so many are listed and `new` more, or these alone."""
    with tempfile.TemporaryDirectory() as out:
        for day in range(_DAYS):
            source = f"{ROOT}/day-{day:02d}"
            finished_run(out, f"run-{day:02d}", request_of([source]), MadeUp(known // _DAYS).infos(source))
        before = {"before_cpu_s": _cpu_s(), "before_peak_mb": _peak_mb()}
        store = MadeUp(known // _DAYS, days=_DAYS, new=new)
        source = ROOT if which == "all" else f"{ROOT}/day-{_DAYS:02d}"
        return _planned(out, store, request_of([source])) | before


def _planned(out: str, store: MadeUp, request: Request) -> Found:
    output = Output.at(out, store.stores)
    made = make_plan(output.finished(), output.run("run-now"), request, store.stores)
    skipped = sum(made.skipped.values())
    return {"images": made.rows, "skipped": skipped, "shards": made.shards, "requests": store.requests}


def tar(count: int) -> Found:
    """A tar whose bytes are made up when they are read."""
    step = tarfile.BLOCKSIZE + _MEMBER_BYTES

    def read_at(offset: int, size: int) -> bytes:
        first, last = offset // step, min(count, -(-(offset + size) // step))
        made = b"".join(map(_member, range(first, last)))[offset - first * step :]
        return made[:size].ljust(size, b"\0")

    return _members(OneArchive("members.tar", count * step + 2 * tarfile.BLOCKSIZE, read_at))


def _member(number: int) -> bytes:
    info = tarfile.TarInfo(f"{number:07d}.jpg")
    info.size = _MEMBER_BYTES
    return info.tobuf(tarfile.USTAR_FORMAT) + bytes(_MEMBER_BYTES)


def zip_(count: int) -> Found:
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w") as archive:
            for number in range(count):
                archive.writestr(f"{number:07d}.jpg", b"x" * 100)
        end = file.seek(0, io.SEEK_END)
        before = {"before_cpu_s": _cpu_s(), "before_peak_mb": _peak_mb()}

        def read_at(offset: int, size: int) -> bytes:
            file.seek(offset)
            return file.read(size)

        return _members(OneArchive("members.zip", end, read_at)) | before


def subjects(count: int) -> Found:
    step = 16 * 1024

    def batches() -> Iterator[pa.Table]:
        for start in range(0, count, step):
            numbers = range(start, min(start + step, count))
            yield pa.table({
                "subject_id": [f"subject-{number // 10:07d}" for number in numbers],
                "probability": pa.array([number % 100 / 100 for number in numbers], pa.float32()),
                "decision": ["negative"] * len(numbers),
                "image_id": pa.array(numbers, pa.int64()),
            })  # fmt: skip

    return {"images": count, "subjects": roll_up(batches(), "run-now", "cell", None).num_rows}


def _members(store: "OneArchive") -> Found:
    stores = Stores(mounts=(("s3://bucket/", store),))
    found = sum(1 for _ in list_sources([f"s3://bucket/{store.name}"], Tally(), stores=stores))
    return {"images": found, "requests": store.requests, "read_mb": store.read_bytes // 1_000_000}


class OneArchive(MadeUp):
    """A store of one object. Each range that is read counts as a GET."""

    def __init__(self, name: str, size: int, read_at: Callable[[int, int], bytes]) -> None:
        super().__init__(0)
        self.name, self._size, self._read_at = name, size, read_at
        self.read_bytes = 0

    def head(self, uri: str) -> ObjectInfo | None:
        return ObjectInfo(uri, self._size, "etag", 1.7e9) if uri.endswith(self.name) else None

    def read_range(self, uri: str, offset: int, size: int, etag: str | None = None) -> Bytes:
        self.requests += 1
        self.read_bytes += size
        return Bytes(self._read_at(offset, size), "etag", 1)

    def open(self, uri: str, on_failure: object = None) -> io.BufferedReader:
        """As S3's: a megabyte a GET at least."""
        file = RangedFile(self._size, lambda offset, size: self.read_range(uri, offset, size).data)
        return io.BufferedReader(file, buffer_size=1 << 20)


MEASURES: dict[str, Callable[..., Found]] = {
    "listing": listing, "plan": plan, "night": night, "tar": tar, "zip": zip_, "subjects": subjects,
}  # fmt: skip


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000


def _measure(name: str, values: list[str]) -> None:
    """In a process of its own, without what it did before the measure began."""
    begin = _cpu_s()
    found = MEASURES[name](*(int(value) if value.isdigit() else value for value in values))
    begin = found.pop("before_cpu_s", begin)
    print(json.dumps({"cpu_s": round(_cpu_s() - begin, 1), "peak_mb": _peak_mb(), **found}))


def main() -> int:
    name, *values = sys.argv[1:] or ["help"]
    if name == "_measure":
        _measure(values[0], values[1:])
        return 0
    if name not in MEASURES or not values:
        print(__doc__)
        return 2
    for arguments in [values] if name == "night" else [[value] for value in values]:
        command = [sys.executable, "-m", "tests.benchmarks.scale", "_measure", name, *arguments]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        print(f"{name} {' '.join(arguments)}: {done.stdout.strip()}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
