"""Secrets that were planted, and are then looked for in all that jobs print and write, Ray's logs among it.

What the service logs is looked through by tests/unit/test_audit_log.py.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs import doctor, ingest, promote, score, train
from pipeline.model.bundle import Bundle
from tests.bundles import make_bundle
from tests.keys import make_keys
from tests.scoring_sources import only_run, picture
from tests.servers import S3Server

PLANTED = "planted-b7e1"  # in every one of them
ENVIRONMENT = {
    "AWS_SECRET_ACCESS_KEY": f"{PLANTED}/aws+key",
    "LEUKORAY_API_KEYS": f"{PLANTED}-client,{PLANTED}-other",
    "LEUKORAY_ADMIN_KEYS": f"{PLANTED}-admin",
    "MLFLOW_TRACKING_PASSWORD": f"{PLANTED}-mlflow",
    "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer {PLANTED}-traces",
}


@pytest.fixture
def planted(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment, and the address of the store with a user and a password in it."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return s3.endpoint.replace("http://", f"http://{PLANTED}-user:{PLANTED}-word@")


def text_of(path: Path) -> str:
    if path.suffix == ".parquet":
        return json.dumps(pq.read_table(path).to_pylist(), default=str)
    return path.read_text(errors="replace")


def test_no_secret_is_in_what_jobs_print_and_write(
    ray_cluster: Any, s3: S3Server, tiny_bundle: Bundle, planted: str, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    images = {f"{kind}/S{n}_{n}.jpg": picture(n) for n in range(6) for kind in ("leukemia", "healthy")}
    folder = s3.upload("planted", images)
    named = tmp_path / "named.csv"
    named.write_text(f"uri\n{folder}/healthy/S1_1.jpg\n{folder}/healthy/gone.jpg\n")
    key = make_keys(tmp_path, "locked", password=f"{PLANTED}-password".encode())
    store, out = ["--s3-endpoint", planted], tmp_path / "out"

    assert ingest.command([folder, "--out", str(out / "manifest"), *store]) == 0
    flags = ["--model", tiny_bundle.uri, "--out", str(out / "scores"), "--workers", "1", "--max-error-share", "1"]
    assert score.command([str(named), *flags, *store]) == 0
    assert doctor.command(["--source", folder, "--out", f"{folder}/results", *store]) in (0, 5)
    assert score.command([f"s3://{s3.bucket}/none", *flags, *store, "--debug"]) == 3
    assert promote.command([make_bundle(out / "v1", size=8).uri, "--sign", key.private]) == 3
    address = f"http://{PLANTED}:{PLANTED}-word@mlflow:5000"
    assert train.command([str(out / "manifest"), "--mlflow", address, "--out", str(out / "models")]) == 2

    quarantined = only_run(out / "scores") / "quarantine"
    assert "gone.jpg" in "".join(map(text_of, quarantined.glob("*.parquet"))), "what tells of the store was written"
    said = capfd.readouterr()
    logs = Path(ray_cluster._private.worker._global_node.get_logs_dir_path())
    files = [path for place in (out, logs) for path in place.rglob("*") if path.is_file()]
    assert len(files) > 10 and "s3_endpoint=http://127.0.0.1" in said.out
    found = [str(path) for path in files if PLANTED in text_of(path)]
    assert not found and PLANTED not in said.out + said.err
