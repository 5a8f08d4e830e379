"""The service without a socket: one request to the real application of an engine."""

import asyncio
import io
from typing import Any

import httpx
import numpy as np
from PIL import Image

from serving.engine import Engine
from serving.routes import create_app


def picture(kind: str = "JPEG", seed: int = 0, width: int = 90, height: int = 70) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def client(engine: Engine) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(engine), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def call(engine: Engine, method: str, path: str, **options: Any) -> httpx.Response:
    async def once() -> httpx.Response:
        async with client(engine) as http:
            return await http.request(method, path, **options)

    return asyncio.run(once())
