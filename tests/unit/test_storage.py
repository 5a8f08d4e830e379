"""Local storage: writes appear whole or not at all, reads notice a replaced file, failures carry a code."""

import errno
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote_from_bytes

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from jobs.config import JobConfig
from pipeline.base.errors import Code, PlatformError, UsageError
from pipeline.images.load import Limits
from pipeline.sources.outage import fetch_while_up
from pipeline.sources.rows import Access, ListingRow
from pipeline.storage.arrow import arrow_filesystem
from pipeline.storage.local import LocalStore, is_temporary
from pipeline.storage.parquet import to_parquet
from pipeline.storage.stores import Stores
from pipeline.storage.types import S3Settings, StoreError
from pipeline.storage.uris import absolute, is_s3, join

STORE = LocalStore()


def test_a_crash_in_the_middle_of_a_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "x.json")
    STORE.write(path, b"old")

    def crash(*_: object) -> None:
        raise OSError(5, "Input/output error")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch, pytest.raises(StoreError, match="Input/output"):
            patch.setattr(os, step, crash)
            STORE.write(path, b"new, but cut")
        assert STORE.read(path).data == b"old"
        assert os.listdir(tmp_path) == ["x.json"]


def test_a_process_killed_in_a_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "x.json")
    STORE.write(path, b"old")
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(os, "replace", lambda *_: os._exit(9))
        STORE.write(path, b"new")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert STORE.read(path).data == b"old"


def test_a_write_that_is_interrupted_leaves_nothing_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        STORE.write(str(tmp_path / "x.json"), b"new")
    assert os.listdir(tmp_path) == []


def test_a_table_that_is_being_written_is_not_read_with_those_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = to_parquet(pa.table({"x": [1, 2, 3]}))
    STORE.write(str(tmp_path / "part-00000.parquet"), table)
    rows, replaced = list[int](), os.replace

    def read(*names: str) -> None:
        assert sorted(map(is_temporary, os.listdir(tmp_path))) == [False, True]
        rows.append(ds.dataset(tmp_path, format="parquet").count_rows())
        replaced(*names)

    monkeypatch.setattr(os, "replace", read)
    STORE.write(str(tmp_path / "part-00001.parquet"), table)
    assert rows == [3] and ds.dataset(tmp_path, format="parquet").count_rows() == 6


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path, stop, seen = str(tmp_path / "x"), threading.Event(), set[bytes]()
    STORE.write(path, b"a" * 100_000)

    def look() -> None:
        while not stop.is_set():
            seen.add(STORE.read(path).data)

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(20):
        STORE.write(path, (b"b" if number % 2 else b"a") * 100_000)
    stop.set()
    reader.join()
    assert seen <= {b"a" * 100_000, b"b" * 100_000}


def test_create_has_one_winner(tmp_path: Path) -> None:
    path = str(tmp_path / "new" / "lock")
    with ThreadPoolExecutor(8) as pool:
        etags = list(pool.map(lambda number: STORE.create(path, b"%d" % number), range(16)))
    winners = [number for number, etag in enumerate(etags) if etag is not None]
    assert len(winners) == 1
    assert STORE.read(path).data == b"%d" % winners[0]
    assert os.listdir(tmp_path / "new") == ["lock"]


def test_a_range_is_read_of_the_version_that_was_listed(tmp_path: Path) -> None:
    path = str(tmp_path / "x")
    STORE.write(path, b"0123456789")
    info = STORE.head(path)
    assert info is not None
    assert STORE.read_range(path, 3, 4, info.etag).data == b"3456"
    assert STORE.read_range(path, 8, 100).data == b"89"
    STORE.write(path, b"other")
    with pytest.raises(StoreError) as failure:
        STORE.read_range(path, 0, 1, info.etag)
    assert failure.value.code == Code.CHANGED


def test_failures_carry_a_code(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path, code in (("none", Code.NOT_FOUND), ("file/below", Code.NOT_FOUND), (".", Code.NOT_FOUND)):
        with pytest.raises(StoreError) as failure:
            STORE.read(str(tmp_path / path))
        assert failure.value.code == code
    assert STORE.head(str(tmp_path / "none")) is None
    assert STORE.head(str(tmp_path)) is None


def test_a_folder_on_a_disk_that_is_gone_is_no_missing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = "file://" + quote_from_bytes(os.fsencode(tmp_path / "caf\udce9"))
    (tmp_path / "caf\udce9").mkdir()
    (tmp_path / "file").touch()
    found = {uri: STORE.is_folder(uri) for uri in (str(tmp_path), named, str(tmp_path / "file"), str(tmp_path / "no"))}
    assert list(found.values()) == [True, True, False, False] and not STORE.is_folder("a\0b")

    def stale(path: str) -> None:  # as of a network disk whose server is gone; stat answers from what it remembers
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)

    monkeypatch.setattr(os, "scandir", stale)
    with pytest.raises(StoreError, match="Stale file handle") as failed:
        STORE.is_folder(str(tmp_path))
    assert failed.value.code is Code.IO_ERROR
    rows = [
        ListingRow(n, str(tmp_path / f"{n}.jpg"), None, Access.FILE, None, None, 9, "1", None)  # type: ignore[arg-type]
        for n in range(30)
    ]

    def fail(self: LocalStore, uri: str) -> None:
        raise StoreError(Code.IO_ERROR, f"{uri}: Stale file handle")

    monkeypatch.setattr(LocalStore, "read", fail)
    with pytest.raises(PlatformError, match="does not answer"):
        list(fetch_while_up(rows, Stores(), Limits()))


def test_an_error_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(StoreError(Code.TIMEOUT, "slow", 3)))
    assert (error.code, str(error), error.attempts) == (Code.TIMEOUT, "slow", 3)


def test_deleting_what_is_gone_is_no_error(tmp_path: Path) -> None:
    STORE.write(str(tmp_path / "a" / "x"), b"1")
    STORE.delete(str(tmp_path / "none"))
    STORE.delete_tree(str(tmp_path / "a"))
    STORE.delete_tree(str(tmp_path / "a"))
    assert list(STORE.walk(str(tmp_path))) == []


def test_paths_are_made_absolute_and_foreign_schemes_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("x/../y") == f"{tmp_path}/y"
    assert absolute("file:///a/b%20c") == "/a/b c"
    assert absolute("s3://bucket/x/") == "s3://bucket/x"
    assert join("/a/", "b", "c") == "/a/b/c"
    for uri in ("gs://b/x", "https://host/x", "hdfs://x"):
        with pytest.raises(UsageError):
            absolute(uri)
    assert is_s3("s3://b")
    assert isinstance(Stores().of(str(tmp_path)), LocalStore)


def test_s3_settings_come_from_flags_then_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://general:1")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    assert S3Settings.from_config(JobConfig()).endpoint == "http://general:1"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://special:2")
    assert S3Settings.from_config(JobConfig()).endpoint == "http://special:2"
    given = S3Settings.from_config(JobConfig(s3_endpoint="http://flag:3", s3_region="us-west-2", s3_anonymous=True))
    assert (given.endpoint, given.region, given.anonymous) == ("http://flag:3", "us-west-2", True)


def test_pyarrow_reads_the_paths_that_we_write(tmp_path: Path) -> None:
    path = str(tmp_path / "x")
    STORE.write(path, b"data")
    filesystem, inside = arrow_filesystem(path)
    with filesystem.open_input_file(inside) as file:
        assert file.read() == b"data"
