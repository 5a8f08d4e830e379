"""The process that decodes large images: the same pixels, and whatever it meets, the next image is decoded."""

import asyncio
import os
import signal
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.base.errors import Code, ImageRejected
from pipeline.images.load import Header, decode_image, read_header
from serving.decoder_process import ProcessDecoder
from serving.settings import ServingSettings
from tests.images import encoded, scene

pytestmark = pytest.mark.usefixtures("ray_cluster")
KINDS: dict[str, dict[str, Any]] = {
    "JPEG": {},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "JPEG2000": {},
    "GIF": {},
}


def decoder(**settings: Any) -> ProcessDecoder:
    return ProcessDecoder(ServingSettings(model="m", **settings))


async def pixels(process: ProcessDecoder, data: bytes) -> np.ndarray[Any, Any]:
    return (await process.decode(data, read_header(data), 64, None)).pixels


def test_pixels_are_those_of_scoring_and_one_process_does_them_all() -> None:
    async def run() -> None:
        process = decoder()
        pids = set()
        for kind, options in KINDS.items():
            image = scene(900, 700)
            data = encoded(image.quantize(64) if kind == "GIF" else image, kind, **options)
            assert (await pixels(process, data) == decode_image(data, read_header(data), 64).pixels).all()
            pids.add(await process._actor.pid.remote())
        assert len(pids) == 1 and os.getpid() not in pids
        process.end()

    asyncio.run(run())


def test_an_image_that_takes_too_long_is_ended_and_the_next_one_decoded() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
    slow, fine = encoded(Image.fromarray(noise), "JPEG2000"), encoded(scene(), "PNG")

    async def run() -> None:
        process = decoder(decode_timeout_s=0.25)
        await process._started()
        before = await process._actor.pid.remote()
        begin = time.monotonic()
        with pytest.raises(ImageRejected, match=r"longer than 0\.25 s") as refused:
            await pixels(process, slow)
        assert refused.value.code is Code.TOO_MANY_PIXELS and time.monotonic() - begin < 5
        process._timeout_s = 20.0
        await pixels(process, fine)
        assert await process._actor.pid.remote() != before
        process.end()

    asyncio.run(run())


def test_a_process_that_dies_costs_one_image() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2500, 2500, 3), np.uint8)
    slow, fine = encoded(Image.fromarray(noise), "JPEG2000"), encoded(scene(), "PNG")

    async def run() -> None:
        process = decoder()
        await process._started()
        pid = await process._actor.pid.remote()
        task = asyncio.create_task(pixels(process, slow))
        await asyncio.sleep(0.3)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ImageRejected) as refused:
            await task
        assert refused.value.code is Code.CRASHED_DECODER
        await pixels(process, fine)
        process.end()

    asyncio.run(run())


def test_more_memory_than_the_limits_ask_for_is_not_had() -> None:
    data = encoded(Image.new("RGB", (6000, 6000)), "WEBP", lossless=True, method=0)

    async def run() -> None:
        process = decoder(max_pixels=1_000_000, max_bytes=1_000_000)  # whose header was read by someone else
        with pytest.raises(ImageRejected) as refused:
            await process.decode(data, Header("webp", 6000, 6000), 64, None)
        assert refused.value.code in (Code.TOO_MANY_PIXELS, Code.CORRUPT, Code.CRASHED_DECODER)
        await pixels(process, encoded(scene(), "PNG"))
        process.end()

    asyncio.run(run())
