"""One local Ray and one S3 server a session, and the smallest real things to run on them."""

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.bundle import CARD, GRAPH, WEIGHTS, Bundle, BundleInfo, write_bundle
from pipeline.images import Preprocessing
from pipeline.manifest import MANIFEST_SCHEMA, Manifest, image_id, write_manifest
from pipeline.storage import S3Settings, local_etag
from tests.servers import CREDENTIALS, moto_server

BUCKET = "cells"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """A local Ray with 4 logical CPUs that jobs called in this process join."""
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@dataclass(frozen=True)
class S3:
    endpoint: str
    bucket: str
    settings: S3Settings
    client: Any  # boto3's

    def uri(self, *parts: str) -> str:
        return "/".join([f"s3://{self.bucket}", *parts])


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """moto's S3 with one empty bucket; endpoint and credentials are in the environment while it runs.

    Ask for it before `ray_cluster`: Ray's workers get the environment that Ray was started with.
    """
    before = {name: os.environ.get(name) for name in (*CREDENTIALS, "AWS_ENDPOINT_URL")}
    with moto_server() as endpoint:
        os.environ.update(CREDENTIALS | {"AWS_ENDPOINT_URL": endpoint})
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket=BUCKET)
        yield S3(endpoint, BUCKET, S3Settings(endpoint, CREDENTIALS["AWS_DEFAULT_REGION"]), client)
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A real bundle without training: the seeded small network at 64 pixels, exported as training does it."""
    import torch

    from pipeline.export import to_onnx, to_safetensors
    from pipeline.models import build

    torch.manual_seed(0)
    model = build("cnn", 1).eval()
    info = BundleInfo(
        name="tiny",
        version="20260101-000000-00000000",
        architecture="cnn",
        task="binary",
        classes=("negative", "positive"),
        positive_classes=("positive",),
        input_size=64,
        preprocessing_digest=Preprocessing(64).digest(),
        weights_sha256="",
        graph_sha256="",
        synthetic=True,
    )
    files = {WEIGHTS: to_safetensors(model), GRAPH: to_onnx(model, 64), CARD: b"# tiny\n\nNot a medical device.\n"}
    return write_bundle(str(tmp_path_factory.mktemp("tiny") / info.version), info, files)


def cell_images(folder: Path, count: int, *, classes: int = 2, size: int = 48, seed: int = 0) -> list[dict[str, Any]]:
    """`count` PNG files and their manifest rows: a dark blob whose radius tells the class, every third for validation."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        label = number % classes
        path = folder / f"cell_{number:04d}.png"
        Image.fromarray(_blob(rng, size, radius=4.0 + 5.0 * label)).save(path)
        rows.append(manifest_row(path, label, ("train", "train", "validation")[number // classes % 3]))
    return rows


def _blob(rng: np.random.Generator, size: int, radius: float) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    centre = rng.uniform(size * 0.35, size * 0.65, 2)
    inside = np.hypot(x - centre[0], y - centre[1]) < radius + rng.uniform(-1, 1)
    image = rng.normal(205, 12, (size, size, 3))
    image[inside] -= (90, 110, 40)
    return image.clip(0, 255).astype(np.uint8)


def manifest_row(
    path: Path, label: int, split: str, class_names: tuple[str, ...] = ("healthy", "early", "late")
) -> dict:
    stat = path.stat()
    return {
        "image_id": image_id(str(path)),
        "uri": str(path),
        "member": None,
        "access": "file",
        "offset": None,
        "stored_bytes": None,
        "size_bytes": stat.st_size,
        "etag": local_etag(stat),
        "mtime": datetime.fromtimestamp(stat.st_mtime, UTC),
        "label": min(label, 1),
        "class_name": class_names[label],
        "subject_id": None,
        "split": split,
    }


def manifest_of(rows: list[dict[str, Any]], out: Path | str, s3: S3Settings | None = None) -> Manifest:
    table = pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)
    return write_manifest(str(out), [table], {"source": "tests", "synthetic": True, "split_rule": "every third"}, s3)
