"""One local Ray for all integration tests, ended with the session."""

from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.base.cluster import connected
from pipeline.model.bundle import Bundle
from tests.bundles import make_bundle
from tests.servers import S3Server


@pytest.fixture(scope="session")
def ray_cluster(s3: S3Server) -> Iterator[Any]:
    """A local Ray with 4 logical CPUs that jobs called in this process join; its workers know the S3 credentials."""
    with connected(None, 4) as ray:
        yield ray


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small linear model in a real bundle."""
    return make_bundle(tmp_path_factory.mktemp("bundle") / "tiny")
