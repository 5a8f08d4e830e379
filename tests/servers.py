"""Real servers for tests: moto's S3 in a process of its own, and a proxy that makes it misbehave.

Tests take the session's S3 from the fixture `s3` (tests/conftest.py); what runs without pytest calls `moto_server`.
"""

import asyncio
import contextlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import aiohttp
import boto3
from aiohttp import web

from pipeline.storage.stores import Stores
from pipeline.storage.types import Conditions, S3Settings

REGION = "us-east-1"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": REGION}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class S3Server:
    """An S3 that answers, or a proxy in front of it: how our code, its commands and plain boto3 reach it."""

    endpoint: str
    bucket: str = "cells"  # there from the beginning
    conditions: Conditions = Conditions.QUOTED

    def at(self, endpoint: str) -> "S3Server":
        """The same store behind another address."""
        return replace(self, endpoint=endpoint)

    @property
    def stores(self) -> Stores:
        return Stores(S3Settings(endpoint=self.endpoint, region=REGION, conditions=self.conditions))

    @property
    def flags(self) -> list[str]:
        """Flags that send a job here."""
        return ["--s3-endpoint", self.endpoint, "--s3-region", REGION]

    @property
    def env(self) -> dict[str, str]:
        """Environment that sends a process here."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.endpoint}

    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        )

    def upload(self, prefix: str, files: Mapping[str, bytes]) -> str:
        """Put files (name below the prefix -> bytes) into the bucket; the URI of the prefix."""
        client = self.client()
        for name, data in files.items():
            client.put_object(Bucket=self.bucket, Key=f"{prefix}/{name}", Body=data)
        return f"s3://{self.bucket}/{prefix}"

    def download(self, uri: str, folder: Path) -> None:
        """Everything below `uri`, which may lie in any bucket, into `folder`."""
        client = self.client()
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix + "/"):
            for item in page.get("Contents", []):
                path = folder / item["Key"][len(prefix) + 1 :]
                path.parent.mkdir(parents=True, exist_ok=True)
                client.download_file(bucket, item["Key"], str(path))


@contextlib.contextmanager
def moto_server() -> Iterator[S3Server]:
    """An S3 with one empty bucket."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ})
    endpoint = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, "moto ended while starting"
                assert time.monotonic() < deadline, "moto did not start"
                time.sleep(0.1)
        server = S3Server(endpoint)
        server.client().create_bucket(Bucket=server.bucket)
        yield server
    finally:
        process.kill()
        process.wait()


@dataclass
class Faults:
    """What goes wrong, as shares of the GET requests for objects unless said otherwise."""

    share: float = 0.0  # of requests that fail, in one of `kinds`
    kinds: tuple[str, ...] = ("503", "500", "reset", "truncate", "stall")
    latency_s: float = 0.0
    stall_s: float = 30.0
    denied: frozenset[str] = frozenset()  # key suffixes that answer 403
    gone: frozenset[str] = frozenset()  # key suffixes that are listed but answer 404
    broken: frozenset[str] = frozenset()  # key suffixes that always answer 500
    expired_keys: set[str] = field(default_factory=set)  # access keys whose token has expired
    is_down: bool = False  # every request fails with 503
    conditions: Literal["heeded", "bare", "ignored", "unknown"] = "heeded"  # of PUTs; bare: ETags without quotes alone
    conflicts: int = 0  # so many PUTs more meet another one in flight
    ignores_ranges: bool = False  # whole objects come
    lost_answers: int = 0  # so many PUTs more are done, but their answers never arrive
    before_get: Callable[[str, int], None] | None = None  # (path, how many object GETs so far)
    seen: Callable[[str, Mapping[str, str]], None] | None = None  # ('GET /bucket/key?query', headers) of each request
    seed: int = 0
    gets: int = 0
    failed: int = 0
    sent_bytes: int = 0  # of objects


_SESSION = web.AppKey("session", aiohttp.ClientSession)
_SLOW_DOWN = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>test fault</Message></Error>'


@contextlib.contextmanager
def faulty_proxy(endpoint: str, faults: Faults) -> Iterator[str]:
    """Endpoint in front of another that misbehaves as `faults` says at the moment."""
    loop = asyncio.new_event_loop()
    port = free_port()
    ready = threading.Event()
    runner_box: list[web.AppRunner] = []

    async def start() -> None:
        app = web.Application(client_max_size=1 << 30)
        session = aiohttp.ClientSession(auto_decompress=False, connector=aiohttp.TCPConnector(limit=256))
        app[_SESSION] = session
        app.on_cleanup.append(lambda _: session.close())
        app.router.add_route("*", "/{path:.*}", _Handler(endpoint, faults).answer)
        runner = web.AppRunner(app, shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        runner_box.append(runner)
        ready.set()

    async def end() -> None:
        await runner_box[0].cleanup()
        stalled = asyncio.all_tasks() - {asyncio.current_task()}
        for task in stalled:
            task.cancel()
        await asyncio.gather(*stalled, return_exceptions=True)

    thread = threading.Thread(target=lambda: (loop.run_until_complete(start()), loop.run_forever()), daemon=True)
    thread.start()
    assert ready.wait(30), "the proxy did not start"
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)


def is_object_get(request: web.Request) -> bool:
    return request.method == "GET" and request.path.count("/") >= 2 and "list-type" not in request.query


class _Handler:
    def __init__(self, endpoint: str, faults: Faults) -> None:
        self._endpoint, self._faults, self._random = endpoint, faults, random.Random(faults.seed)
        self._one_put = asyncio.Lock()  # moto looks whether a condition holds and then writes; S3 does both at once

    async def answer(self, request: web.Request) -> web.StreamResponse:
        faults = self._faults
        if faults.seen is not None:
            faults.seen(f"{request.method} {request.path_qs}", request.headers)
        if faults.latency_s:
            await asyncio.sleep(faults.latency_s)
        if faults.is_down:
            return _error(503, "SlowDown")
        authorization = request.headers.get("Authorization", "")
        if any(f"Credential={key}/" in authorization for key in faults.expired_keys):
            return _error(400, "ExpiredToken")
        path = request.path
        kind = None
        if is_object_get(request):
            faults.gets += 1
            if faults.before_get is not None:
                await asyncio.to_thread(faults.before_get, path, faults.gets)
            if any(path.endswith(end) for end in faults.denied):
                return _error(403, "AccessDenied")
            if any(path.endswith(end) for end in faults.gone):
                return _error(404, "NoSuchKey")
            if any(path.endswith(end) for end in faults.broken):
                return _error(500, "InternalError")
            if self._random.random() < faults.share:
                kind = self._random.choice(faults.kinds)
                faults.failed += 1
        if request.method == "PUT" and faults.conflicts > 0:
            faults.conflicts -= 1
            return _error(409, "ConditionalRequestConflict")
        if request.method == "PUT" and faults.lost_answers > 0:
            faults.lost_answers -= 1
            kind = "lost"
        async with self._one_put if request.method == "PUT" else contextlib.nullcontext():
            return await self._answer(request, kind)

    async def _answer(self, request: web.Request, kind: str | None) -> web.StreamResponse:
        if kind == "503":
            return _error(503, "SlowDown")
        if kind == "500":
            return _error(500, "InternalError")
        if kind == "stall":
            await asyncio.sleep(self._faults.stall_s)
            return _error(503, "SlowDown")
        if kind == "reset":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        headers = dict(request.headers)  # with the Host, which is signed
        if self._faults.ignores_ranges:
            headers.pop("Range", None)
        if request.method == "PUT":
            refusal = _put_condition(headers, self._faults.conditions)
            if refusal is not None:
                return refusal
        async with request.app[_SESSION].request(
            request.method,
            self._endpoint + request.raw_path,
            headers=headers,
            data=await request.read(),
            skip_auto_headers=["Content-Type", "User-Agent"],
        ) as answer:
            body = await answer.read()
            if kind == "lost":
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            kept = {
                k: v
                for k, v in answer.headers.items()
                if k.lower() not in ("transfer-encoding", "connection", "content-length")
            }
            response = web.StreamResponse(status=answer.status, headers=kept)
            response.content_length = int(answer.headers.get("Content-Length", len(body)))
            await response.prepare(request)
            if kind == "truncate":
                await response.write(body[: len(body) // 2])
                assert request.transport is not None
                request.transport.abort()
                return response
            if request.method != "HEAD":
                self._faults.sent_bytes += len(body) if is_object_get(request) else 0
                await response.write(body)
            await response.write_eof()
            return response


def _put_condition(headers: dict[str, str], kind: str) -> web.Response | None:
    """Headers as they go on to a store that takes conditions as it should, or the refusal of one that does not."""
    given = {name for name in headers if name.lower() in ("if-match", "if-none-match")}
    if kind == "unknown" and given:
        return _error(501, "NotImplemented")
    if kind == "ignored":
        for name in given:
            del headers[name]
    if kind == "bare":
        for name in given:
            if name.lower() == "if-match":
                if headers[name].startswith('"'):
                    return _error(412, "PreconditionFailed")
                headers[name] = f'"{headers[name]}"'
    return None


def _error(status: int, code: str) -> web.Response:
    return web.Response(status=status, text=_SLOW_DOWN.format(code=code), content_type="application/xml")
