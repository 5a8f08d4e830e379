"""A local S3 server (moto) with a part of the images, and how fast the server alone can give them away."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import urllib3

BUCKET = "bench"
_THREADS = 16


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(s3:// prefix with the folder's files, environment of whoever reads it)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    environment = os.environ | {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        _wait_for(endpoint, server)
        keys = {"aws_access_key_id": "bench", "aws_secret_access_key": "bench", "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=endpoint, **keys)
        client.create_bucket(Bucket=BUCKET)
        for path in sorted(folder.glob("*.jpg")):
            client.put_object(Bucket=BUCKET, Key=f"images/{path.name}", Body=path.read_bytes(), ACL="public-read")
        yield f"s3://{BUCKET}/images", environment
    finally:
        server.terminate()
        server.wait()


def _wait_for(endpoint: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 90
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(endpoint, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"moto server at {endpoint} did not start; is moto[server] installed?")


def server_limit(endpoint: str, names: list[str]) -> float:
    """Objects/s of plain GETs from threads, with nothing done to the bytes."""
    connections = urllib3.PoolManager(maxsize=_THREADS)
    urls = [f"{endpoint}/{BUCKET}/images/{name}" for name in names]
    with ThreadPoolExecutor(_THREADS) as pool:
        begin = time.perf_counter()
        sizes = list(pool.map(lambda url: len(connections.request("GET", url).data), urls))
        seconds = time.perf_counter() - begin
    if not all(sizes):
        raise RuntimeError(f"{endpoint}: {sizes.count(0)} of {len(sizes)} objects came back empty")
    return len(names) / seconds
