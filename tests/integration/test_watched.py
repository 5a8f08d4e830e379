"""A real Prometheus beside a real scoring run, a training and an endpoint: every query of every panel has an answer."""

import io
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image

from jobs import score, train
from pipeline.base.record import Record
from pipeline.model.bundle import Bundle
from pipeline.model.registry import resolve
from serving.app import build
from serving.lifecycle import line
from serving.monitoring import sharing
from tests.servers import free_port
from tests.training_data import cell_images, manifest_of

FOLDER = Path(__file__).parents[2] / "infra" / "monitoring"
PROMETHEUS = shutil.which("prometheus")
pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is missing; apt-get install prometheus")
_PATIENCE_S = 150.0


def queries() -> dict[str, str]:
    """By board and panel."""
    found = {}
    for path in sorted((FOLDER / "boards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                found[f"{path.stem}: {panel['title']} {target['refId']}"] = target["expr"]
    return found


@contextmanager
def scraping(folder: Path, targets: dict[str, tuple[str, str]]) -> Iterator[Callable[[str], list[Any]]]:
    """Prometheus by the project's own file, but for where the targets are and how often; gives what answers queries."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert {job["job_name"] for job in config["scrape_configs"]} == set(targets)
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(FOLDER / "alerts.yml")]
    config["scrape_configs"] = [
        {"job_name": name, "metrics_path": path, "static_configs": [{"targets": [address]}]}
        for name, (address, path) in targets.items()
    ]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        str(PROMETHEUS), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip

    def ask(query: str) -> list[Any]:
        try:
            answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": query}, timeout=30)
        except httpx.TransportError:  # it starts
            return []
        if answer.status_code == 503:
            return []
        assert answer.status_code == 200, answer.text
        return list(answer.json()["data"]["result"])

    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield ask
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cells")


@pytest.fixture(scope="module")
def trained(ray_cluster: Any, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    rows = cell_images(images, 90)
    for number, row in enumerate(rows):
        row["subject_id"] = f"{row['split']} {number // 6}"
    manifest = manifest_of(rows, tmp_path_factory.mktemp("manifest") / "m").uri
    out = tmp_path_factory.mktemp("models")
    settings = "--architecture cnn --input-size 32 --batch-size 16 --workers 2 --cpus-per-worker 0.5 --epochs 8"
    assert train.command([manifest, "--out", str(out), "--learning-rate", "0.003", *settings.split()]) == 0
    bundle = resolve(str(out / "leukoray"))
    record = Record.model_validate_json(Path(bundle.uri, "run.json").read_bytes())
    assert (record.job, record.status, record.exit_code) == ("train", "complete", 0)
    assert record.counts == {"train": 60, "validation": 30, "left_out": 0}
    assert record.digests == {"manifest": bundle.info.manifest_digest, "model": bundle.info.identity()}
    return bundle


def noise() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_every_query_of_every_board_is_answered(
    ray_cluster: Any, trained: Bundle, images: Path, tmp_path: Path
) -> None:
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation

    (images / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    out = tmp_path / "scores"
    assert score.command([str(images), "--model", trained.uri, "--out", str(out), "--workers", "2"]) == 0
    (run,) = (json.loads(path.read_text()) for path in out.glob("*/run.json"))
    node = ray_cluster.nodes()[0]
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    serve.start(ProxyLocation.HeadOnly, HTTPOptions(host="127.0.0.1", port=port))
    try:
        serve.run(build({"model": trained.uri, "min_replicas": 1, "cpus_per_replica": 0.1}), name="watched")
        sent = [path.read_bytes() for path in sorted(images.glob("cell_*.png"))[:30]]
        targets = {
            "leukoray": (f"127.0.0.1:{port}", "/metrics"),
            "ray": (f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}", "/metrics"),
        }
        with scraping(tmp_path, targets) as ask:
            answered, until = dict[str, list[Any]](), time.monotonic() + _PATIENCE_S
            while len(answered) < len(queries()) and time.monotonic() < until:
                for image in (*sent, noise(), b"no image"):
                    httpx.post(f"{url}/predict", content=image, timeout=60)
                for name, query in queries().items():
                    if found := ask(query):
                        answered[name] = found
                time.sleep(1.0)
            assert set(queries()) - set(answered) == set()
            check_figures(ask, run, str(out), trained)
    finally:
        serve.delete("watched")
        sharing.forget("watched")
        line.forget("watched")
        serve.shutdown()


def check_figures(ask: Callable[[str], list[Any]], run: dict[str, Any], output: str, trained: Bundle) -> None:
    """What Prometheus has is what the jobs wrote."""

    def value(query: str) -> float:
        (found,) = ask(query)
        return float(found["value"][1])

    of = f'{{output="{output}"}}'
    assert value(f"sum(ray_leukoray_score_images_total{of})") == run["counts"]["listed"] == 91
    assert value(f'sum(ray_leukoray_score_quarantined_total{{output="{output}",code="truncated"}})') == 1
    assert value(f"max(ray_leukoray_score_error_share{of})") == pytest.approx(run["error_share"])
    assert value(f"max(ray_leukoray_score_shards_left{of})") == 0
    assert 0 <= time.time() - value(f"max(ray_leukoray_score_finished_seconds{of})") < 3600
    history = trained.info.training["history"]
    assert value('max(ray_leukoray_train_epoch{model="leukoray"})') >= 1
    losses = {round(row["val_loss"], 4) for row in history}
    assert round(value('max(ray_leukoray_train_loss{split="validation"})'), 4) in losses
    assert value('sum(up{job=~"leukoray|ray"})') == 2
