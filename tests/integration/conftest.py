"""One local Ray and one S3 server for all integration tests, on free ports, ended with the session."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from pipeline.base.cluster import connected
from pipeline.model.bundle import Bundle
from pipeline.storage.stores import Stores
from pipeline.storage.types import S3Settings
from tests.bundles import make_bundle
from tests.servers import CREDENTIALS, moto_server


@dataclass(frozen=True)
class S3Server:
    """An S3 that answers, with a client for preparing it."""

    endpoint: str
    bucket: str

    @property
    def stores(self) -> Stores:
        return Stores(S3Settings(endpoint=self.endpoint, region="us-east-1"))

    @property
    def flags(self) -> list[str]:
        """Flags that send a job here."""
        return ["--s3-endpoint", self.endpoint, "--s3-region", "us-east-1"]

    def client(self) -> Any:
        import boto3

        return boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1")


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    os.environ.update(CREDENTIALS)
    with moto_server() as endpoint:
        server = S3Server(endpoint, "cells")
        server.client().create_bucket(Bucket=server.bucket)
        yield server


@pytest.fixture(scope="session")
def ray_cluster(s3: S3Server) -> Iterator[Any]:
    """A local Ray with 4 logical CPUs that jobs called in this process join; its workers know the S3 credentials."""
    with connected(None, 4) as ray:
        yield ray


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small linear model in a real bundle."""
    return make_bundle(tmp_path_factory.mktemp("bundle") / "tiny")
