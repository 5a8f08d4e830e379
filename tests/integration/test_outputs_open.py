"""What scoring wrote opens unchanged in the tools that analysts use, with the documented types and counts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from jobs import score
from pipeline.model.bundle import Bundle
from pipeline.scoring.commit.subjects import SUBJECT_SCHEMA
from pipeline.scoring.schemas import prediction_schema, quarantine_schema
from tests.scoring_sources import mixed_files, only_run, read_run, write_files

IMAGES = 84


@dataclass(frozen=True)
class Run:
    """A finished run and how its files are named by a glob."""

    folder: Path
    counts: dict[str, Any]

    def glob(self, kind: str) -> str:
        return str(self.folder / kind / "*.parquet")


def _score(bundle: Bundle, base: Path, name: str, *flags: str) -> Run:
    source, out = base / "source", base / name
    arguments = [str(source), "--model", bundle.uri, "--out", str(out), "--workers", "1", *flags]
    assert score.command([*arguments, "--subject-pattern", r"(S\d{3})_", "--max-error-share", "0.5"]) == 0
    folder = only_run(out)
    return Run(folder, read_run(folder)["counts"])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("opens")
    write_files(base / "source", mixed_files(IMAGES))
    return base


@pytest.fixture(scope="module")
def run(ray_cluster: Any, tiny_bundle: Bundle, base: Path) -> Run:
    return _score(tiny_bundle, base, "plain")


@pytest.fixture(scope="module")
def partitioned(ray_cluster: Any, tiny_bundle: Bundle, base: Path) -> Run:
    return _score(tiny_bundle, base, "hive", "--partition-by", r"subject=(S\d{3})_")


def test_the_source_gave_both_kinds_of_rows(run: Run) -> None:
    assert run.counts["scored"] + run.counts["quarantined"] == run.counts["listed"] == IMAGES
    assert run.counts["scored"] > 0 and run.counts["quarantined"] > 0


def test_pyarrow_finds_the_documented_schema(run: Run, tiny_bundle: Bundle) -> None:
    predictions = ds.dataset(run.folder / "predictions").to_table()
    assert predictions.schema == prediction_schema(tiny_bundle.info.classes, [])
    assert predictions.num_rows == run.counts["scored"]
    assert predictions["image_id"].null_count == predictions["probability"].null_count == 0
    quarantine = ds.dataset(run.folder / "quarantine").to_table()
    assert quarantine.schema == quarantine_schema()
    assert quarantine.num_rows == run.counts["quarantined"]
    subjects = pq.read_table(run.folder / "subjects.parquet")
    assert subjects.schema == SUBJECT_SCHEMA
    assert sum(subjects["n_images"].to_pylist()) == run.counts["scored"]


def test_the_schema_carries_its_version(run: Run) -> None:
    files = list(run.folder.glob("*/*.parquet"))
    assert {file.parent.name for file in files} == {"predictions", "quarantine", "archives"}
    for file in files:
        assert pq.read_schema(file).metadata[b"leukoray.schema_version"] == b"1"


def test_duckdb_reads_the_glob_with_types(run: Run) -> None:
    rows = duckdb.sql(f"from read_parquet('{run.glob('predictions')}')")
    types = dict(zip(rows.columns, map(str, rows.types), strict=True))
    assert types["image_id"] == "BIGINT" and types["probability"] == "FLOAT" and types["width"] == "INTEGER"
    assert types["decision"] == "VARCHAR" and types["scored_at"] == "TIMESTAMP WITH TIME ZONE"
    counted = duckdb.sql(f"select count(*) from read_parquet('{run.glob('predictions')}')").fetchall()
    assert counted == [(run.counts["scored"],)]
    codes = duckdb.sql(f"select code, count(*) from read_parquet('{run.glob('quarantine')}') group by code")
    assert dict(codes.fetchall()) == run.counts["codes"]


def test_duckdb_joins_predictions_with_subjects(run: Run) -> None:
    query = f"""
        select s.subject_id, s.n_images, count(*) as n, s.n_positive,
               count(*) filter (p.decision = 'positive') as positive, s.mean_probability, avg(p.probability) as mean,
               max(p.probability) filter (p.image_id = s.top_image_ids[1]) = max(p.probability) as top_first
        from read_parquet('{run.glob("predictions")}') p
        join read_parquet('{run.folder}/subjects.parquet') s using (subject_id)
        group by all"""
    rows = duckdb.sql(query).fetchall()
    assert len(rows) == pq.read_metadata(run.folder / "subjects.parquet").num_rows > 1
    for _, n_images, n, n_positive, positive, mean_probability, mean, top_first in rows:
        assert (n_images, n_positive) == (n, positive)
        assert mean_probability == pytest.approx(mean, abs=1e-6)
        assert top_first


def test_pandas_reads_the_folder_with_types(run: Run) -> None:
    frame = pd.read_parquet(run.folder / "predictions")
    assert len(frame) == run.counts["scored"]
    assert str(frame["image_id"].dtype) == "int64" and str(frame["probability"].dtype) == "float32"
    assert isinstance(frame["scored_at"].dtype, pd.DatetimeTZDtype)
    assert frame["image_id"].is_unique and frame["probability"].between(0, 1).all()
    assert len(pd.read_parquet(run.folder / "quarantine")) == run.counts["quarantined"]
    assert pd.read_parquet(run.folder / "subjects.parquet")["n_images"].sum() == run.counts["scored"]


def test_polars_reads_and_scans_the_glob_with_types(run: Run) -> None:
    frame = pl.read_parquet(run.glob("predictions"))
    assert frame.height == run.counts["scored"]
    assert frame.schema["image_id"] == pl.Int64 and frame.schema["probability"] == pl.Float32
    assert frame.schema["scored_at"] == pl.Datetime("us", "UTC")
    assert pl.scan_parquet(run.glob("quarantine")).collect().height == run.counts["quarantined"]
    assert pl.read_parquet(run.folder / "subjects.parquet").schema["top_image_ids"] == pl.List(pl.Int64)


def test_every_tool_sees_the_same_probabilities(run: Run) -> None:
    table = ds.dataset(run.folder / "predictions").to_table(columns=["image_id", "probability"])
    expected = dict(zip(*(column.to_pylist() for column in table.columns), strict=True))
    frame = pd.read_parquet(run.folder / "predictions")
    assert dict(zip(frame["image_id"], frame["probability"], strict=True)) == expected
    assert dict(pl.read_parquet(run.glob("predictions")).select("image_id", "probability").iter_rows()) == expected
    rows = duckdb.sql(f"select image_id, probability from read_parquet('{run.glob('predictions')}')").fetchall()
    assert dict(rows) == expected


def test_hive_partitions_are_a_column_in_every_tool(partitioned: Run) -> None:
    folder = partitioned.folder / "predictions"
    names = {path.name.removeprefix("subject=") for path in folder.iterdir()}
    assert len(names) == 7
    scored = partitioned.counts["scored"]
    table = ds.dataset(folder, partitioning=ds.partitioning(pa.schema([("subject", pa.string())]), flavor="hive"))
    assert set(table.to_table()["subject"].to_pylist()) == names
    rows = duckdb.sql(
        f"select subject, subject_id from read_parquet('{folder}/**/*.parquet', hive_partitioning = true)"
    ).fetchall()
    assert len(rows) == scored and all(subject == subject_id for subject, subject_id in rows)
    frame = pl.scan_parquet(f"{folder}/**/*.parquet", hive_partitioning=True).collect()
    assert frame.height == scored and set(frame["subject"].to_list()) == names
    assert set(pd.read_parquet(folder)["subject"].astype(str)) == names
