"""A local S3 server (moto) with a part of the images, and how fast the server alone can give them away."""

import contextlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import urllib3

from tests.servers import S3Server, moto_server

_THREADS = 16


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(s3:// prefix with the folder's files, environment of whoever reads it)."""
    with moto_server() as server:
        client = server.client()
        for path in sorted(folder.glob("*.jpg")):
            client.put_object(
                Bucket=server.bucket, Key=f"images/{path.name}", Body=path.read_bytes(), ACL="public-read"
            )
        yield f"s3://{server.bucket}/images", os.environ | server.env


def server_limit(endpoint: str, names: list[str]) -> float:
    """Objects/s of plain GETs from threads, with nothing done to the bytes."""
    connections = urllib3.PoolManager(maxsize=_THREADS)
    urls = [f"{endpoint}/{S3Server.bucket}/images/{name}" for name in names]
    with ThreadPoolExecutor(_THREADS) as pool:
        begin = time.perf_counter()
        sizes = list(pool.map(lambda url: len(connections.request("GET", url).data), urls))
        seconds = time.perf_counter() - begin
    if not all(sizes):
        raise RuntimeError(f"{endpoint}: {sizes.count(0)} of {len(sizes)} objects came back empty")
    return len(names) / seconds
