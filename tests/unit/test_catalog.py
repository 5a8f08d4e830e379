"""`leukoray catalog`: a run is in the table once, whole or not at all, and read back by those who read tables."""

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pyiceberg.catalog import load_catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import Table
from sqlalchemy.exc import OperationalError

from jobs import catalog
from pipeline.storage import iceberg
from pipeline.storage.types import S3Settings
from tests.bundles import make_bundle
from tests.scoring_sources import contents, score_here, write_files
from tests.servers import S3Server


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("PYICEBERG")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two nights of one model, one of another model with other classes, one in hive folders."""
    folder = tmp_path_factory.mktemp("runs")
    nights = [write_files(folder / f"night{n}" / "site-a", contents(5 + n, bad=False)) for n in range(2)]
    write_files(folder / "night1" / "site-b", contents(3, bad=False))
    two, four = make_bundle(folder / "two"), make_bundle(folder / "four", task="multiclass", seed=1)
    score_here([nights[0]], two, folder / "out", "run-a")
    score_here([folder / "night1"], two, folder / "out", "run-b", partition_by=r"site=/site-(\w)/")
    score_here([nights[0]], four, folder / "out", "run-c")
    return folder / "out"


def add(run: Path | str, warehouse: Path, *more: str) -> int:
    return catalog.command([str(run), "--to", "lab.predictions", "--warehouse", str(warehouse), *more])


def table_of(warehouse: Path) -> Table:
    """As others see it, by pyiceberg's own files."""
    found = load_catalog("lab", type="sql", uri=f"sqlite:///{warehouse}/catalog.db", warehouse=str(warehouse))
    return found.load_table("leukoray.predictions")


def runs_in(warehouse: Path) -> Counter[str]:
    """Rows by run; empty where there is no table."""
    if not (warehouse / "catalog.db").exists():
        return Counter()
    found = load_catalog("lab", type="sql", uri=f"sqlite:///{warehouse}/catalog.db", warehouse=str(warehouse))
    if not found.namespace_exists("leukoray") or not found.table_exists("leukoray.predictions"):
        return Counter()
    return Counter(found.load_table("leukoray.predictions").scan().to_arrow()["run_id"].to_pylist())


def test_runs_of_several_models_and_folders_are_one_table_to_pyiceberg_duckdb_and_polars(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for run in ("run-a", "run-b", "run-c"):
        assert add(runs / run, tmp_path) == 0
    told = capsys.readouterr().out
    assert "run-b added, 9 rows in 2 files" in told and "new columns of leukoray.predictions: site" in told
    assert "prob_Benign" in told
    table = table_of(tmp_path)
    assert [snapshot.summary["leukoray.run-id"] for snapshot in table.snapshots()] == ["run-a", "run-b", "run-c"]  # type: ignore[index]
    rows = table.scan().to_arrow()
    assert Counter(rows["run_id"].to_pylist()) == {"run-a": 5, "run-b": 9, "run-c": 5}
    expected = {("run-a", None): 5, ("run-b", "a"): 6, ("run-b", "b"): 3, ("run-c", None): 5}
    assert Counter(zip(rows["run_id"].to_pylist(), rows["site"].to_pylist(), strict=True)) == expected
    of_four = rows.filter(rows["prob_Benign"].is_valid())
    assert set(of_four["run_id"].to_pylist()) == {"run-c"} and of_four["prob_positive"].null_count == 5
    assert table.schema().find_field("probability").doc and table.scan("site = 'b'").to_arrow().num_rows == 3
    query = "select run_id, site, count(*) from scores group by all"
    in_duckdb = table.scan().to_duckdb("scores").sql(query).fetchall()
    assert {(run, site): count for run, site, count in in_duckdb} == expected
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")
    in_polars = pl.scan_iceberg(table).group_by("run_id", "site").len().collect().rows()
    assert {(run, site): count for run, site, count in in_polars} == expected
    sums = pl.scan_iceberg(table).select(pl.col("probability").sum()).collect().item()
    assert sums == pytest.approx(sum(rows["probability"].to_pylist()), rel=1e-4)


def test_twice_is_once_and_files_stay_where_they_are(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(runs / "run-a", tmp_path) == add(runs / "run-a", tmp_path) == 0
    assert "has run-a already" in capsys.readouterr().out
    table = table_of(tmp_path)
    assert len(table.snapshots()) == 1 and table.scan().count() == 5
    assert [task.file.file_path for task in table.scan().plan_files()] == [
        str(runs / "run-a" / "predictions" / "part-00000.parquet")
    ]
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_run_whose_snapshot_has_expired_is_known_by_its_files(runs: Path, tmp_path: Path) -> None:
    assert add(runs / "run-a", tmp_path) == add(runs / "run-b", tmp_path) == 0
    table = table_of(tmp_path)
    first = table.snapshots()[0].snapshot_id
    table.maintenance.expire_snapshots().by_id(first).commit()
    assert add(runs / "run-a", tmp_path) == 0
    assert runs_in(tmp_path) == {"run-a": 5, "run-b": 9}


def test_another_run_of_the_same_name_is_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_files(tmp_path / "other", contents(2, bad=False))
    score_here([source], make_bundle(tmp_path / "model"), tmp_path / "scores", "run-a")
    assert add(runs / "run-a", tmp_path / "w") == 0
    assert add(tmp_path / "scores" / "run-a", tmp_path / "w") == 3
    assert "holds a run named run-a already, with other contents" in capsys.readouterr().err
    assert runs_in(tmp_path / "w") == {"run-a": 5}


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda run: (run / "_SUCCESS").unlink(), "no finished scoring run"),
        (lambda run: (run / "predictions" / "part-00000.parquet").unlink(), "is missing"),
        (lambda run: (run / "predictions" / "part-00000.parquet").write_bytes(b"x"), "not the"),
    ],
)
def test_what_is_no_whole_run_is_refused_and_makes_no_table(
    runs: Path, tmp_path: Path, harm: Callable[[Path], Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(runs / "run-a", tmp_path / "run-a"))
    harm(run)
    assert add(run, tmp_path / "w") == 3
    assert told in capsys.readouterr().err and not runs_in(tmp_path / "w")


def in_child(work: Callable[[], int]) -> int:
    """The exit status of `work` in a process of its own."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            status = work()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("is_first", [True, False])
def test_killed_at_any_file_it_writes_it_is_none_and_the_same_command_makes_it_all(
    runs: Path, tmp_path: Path, is_first: bool
) -> None:
    before = {} if is_first else {"run-a": 5}
    if not is_first:
        assert add(runs / "run-a", tmp_path) == 0
    close, deaths = iceberg._Upload.close, 0
    for number in range(1, 20):
        written = 0

        def dying(upload: Any, last: int = number) -> None:
            nonlocal written
            written += 1
            if written == last:
                os.kill(os.getpid(), 9)
            close(upload)

        def attempt() -> int:
            iceberg._Upload.close = dying  # type: ignore[method-assign]
            return add(runs / "run-b", tmp_path)

        status = in_child(attempt)
        if status == 0:
            break
        assert status == -9
        deaths += 1
        assert runs_in(tmp_path) == before
    assert deaths >= 3
    assert runs_in(tmp_path) == before | {"run-b": 9}


def test_commands_at_the_same_time_add_every_run_once(runs: Path, tmp_path: Path) -> None:
    children = []
    for run in ("run-a", "run-b", "run-a", "run-c"):
        child = os.fork()
        if child == 0:
            status = 99
            try:
                status = add(runs / run, tmp_path)
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0, 0]
    assert runs_in(tmp_path) == {"run-a": 5, "run-b": 9, "run-c": 5}


def test_a_new_catalog_that_another_command_makes_meanwhile_is_taken(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_tables, real_namespace = SqlCatalog.create_tables, SqlCatalog.namespace_exists
    looked = Counter[str]()

    def tables(self: SqlCatalog) -> None:
        real_tables(self)
        looked["tables"] += 1
        if looked["tables"] == 1:
            raise OperationalError("create", {}, Exception("table iceberg_tables already exists"))

    def namespace(self: SqlCatalog, name: Any) -> bool:
        """Not there yet, at the first look; another has made it at the next moment."""
        looked["namespace"] += 1
        if looked["namespace"] == 1:
            self.create_namespace(name)
            return False
        return bool(real_namespace(self, name))

    monkeypatch.setattr(SqlCatalog, "create_tables", tables)
    monkeypatch.setattr(SqlCatalog, "namespace_exists", namespace)
    assert add(runs / "run-a", tmp_path) == 0 and looked["tables"] == 1
    assert runs_in(tmp_path) == {"run-a": 5}


def test_run_and_warehouse_on_s3(runs: Path, tmp_path: Path, s3: S3Server) -> None:
    files = [file for file in (runs / "run-b").rglob("*") if file.is_file()]
    run = s3.upload("catalog/run-b", {str(file.relative_to(runs / "run-b")): file.read_bytes() for file in files})
    uri = f"sqlite:///{tmp_path}/catalog.db"
    flags = ("--warehouse", f"s3://{s3.bucket}/catalog/tables", "--catalog-uri", uri, *s3.flags)
    for _ in range(2):
        assert catalog.command([run, "--to", "lab.predictions", *flags]) == 0
    found = load_catalog("lab", type="sql", uri=uri, **iceberg.io_properties(S3Settings(s3.endpoint)))
    rows = found.load_table("leukoray.predictions").scan().to_arrow()
    assert Counter(rows["site"].to_pylist()) == {"a": 6, "b": 3}


def test_secrets_and_sqlite_on_s3_are_refused(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--catalog-uri", "postgresql://me:planted@host/db"]
    assert add(runs / "run-a", tmp_path, *flags) == 2
    assert catalog.command([str(runs / "run-a"), "--to", "lab.predictions", "--warehouse", "s3://bucket/x"]) == 2
    told = capsys.readouterr()
    assert "planted" not in told.err + told.out and "SQLite cannot lie on S3" in told.err


def test_a_catalog_that_does_not_answer_is_the_environments_fault(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(runs / "run-a", tmp_path, "--catalog-uri", "http://127.0.0.1:9") == 5
    assert "catalog http://127.0.0.1:9" in capsys.readouterr().err
