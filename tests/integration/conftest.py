"""One local Ray and one S3 server a session, on free ports, and the smallest real bundle to run on them."""

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import pytest

from pipeline.bundle import CARD, GRAPH, WEIGHTS, Bundle, BundleInfo, write_bundle
from pipeline.images import Preprocessing
from pipeline.storage import S3Settings
from tests.servers import CREDENTIALS, moto_server


@dataclass(frozen=True)
class S3:
    """An S3 that answers. `client` is boto3's, for preparing it."""

    endpoint: str
    bucket: str
    settings: S3Settings
    client: Any

    def uri(self, *parts: str) -> str:
        return "/".join([f"s3://{self.bucket}", *parts])


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ.update(CREDENTIALS)
    with moto_server() as endpoint:
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket="cells")
        yield S3(endpoint, "cells", S3Settings(endpoint, CREDENTIALS["AWS_DEFAULT_REGION"]), client)
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def ray_cluster(s3: S3) -> Iterator[Any]:
    """A local Ray that jobs called in this process join: four logical cores, so that small jobs fit on two real ones.

    It starts after S3, since its workers get the credentials from the environment that it was started in.
    """
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle without training: the seeded small network at 64 pixels, exported as training does it."""
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
