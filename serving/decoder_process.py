"""Large images decoded in an actor of the replica's own: ended when one takes too long, its memory bounded.

A decoder that runs in a thread cannot be ended, some hold Python's lock meanwhile, and one that crashes takes its
process along. The actor starts with the first large image, on the replica's node, takes what the processor has left
(nice 5), and ends with the replica.
"""

import asyncio
import contextlib
import logging
import os
import resource
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.base.errors import Code, ImageRejected
from pipeline.images.load import Header, LoadedImage, decode_image
from serving.admission import overloaded
from serving.errors import HttpError
from serving.settings import ServingSettings

log = logging.getLogger("ray.serve")
_BYTES_A_PIXEL, _TIMES_A_FILE = 32, 4  # of memory; the costliest format takes 24 and 3
_START_S = 60.0  # a process starts in seconds, on a busy machine in some more


class _Decoder:
    """The actor."""

    def __init__(self, memory_bytes: int) -> None:
        os.nice(5)
        with contextlib.suppress(OSError):  # of systems without /proc, which bound it not
            held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_DATA, (held + memory_bytes, resource.RLIM_INFINITY))

    def pid(self) -> int:
        return os.getpid()

    def decode(self, data: bytes, header: Header, size: int, bit_depth: int | None) -> LoadedImage | ImageRejected:
        try:
            return decode_image(data, header, size, bit_depth)
        except ImageRejected as rejected:
            return rejected
        except MemoryError:
            return ImageRejected(Code.TOO_MANY_PIXELS, "not enough memory to decode it; send a smaller image")


class ProcessDecoder:
    """Calls the actor, ends it, and starts another."""

    def __init__(self, settings: ServingSettings) -> None:
        self._settings = settings
        self._timeout_s = settings.decode_timeout_s
        self._memory_bytes = _BYTES_A_PIXEL * settings.max_pixels + _TIMES_A_FILE * settings.max_bytes
        self._actor: Any = None

    async def decode(self, data: bytes, header: Header, size: int, bit_depth: int | None) -> LoadedImage:
        """Raises ImageRejected; HttpError 503 where the machine has no process or no memory for it."""
        actor = await self._started()
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await actor.decode.remote(data, header, size, bit_depth)
        except TimeoutError:
            self.end()
            message = f"decoding took longer than {self._timeout_s:g} s and was ended; send a smaller image"
            raise ImageRejected(Code.TOO_MANY_PIXELS, message) from None
        except RayTaskError:  # the process is sound
            raise
        except RayActorError:
            self.end()
            log.warning("decoding a %s of %d bytes ended its process", header.format, len(data))
            raise ImageRejected(Code.CRASHED_DECODER, "decoding it ended the decoder; save it anew") from None
        except RayError as error:
            self.end()
            raise self._unavailable(error) from error
        if isinstance(found, ImageRejected):
            raise found
        assert isinstance(found, LoadedImage)
        return found

    async def _started(self) -> Any:
        """Raises HttpError 503 where it cannot start; the next image tries anew."""
        if self._actor is None:
            try:
                self._actor = self._new()
                async with asyncio.timeout(_START_S):
                    await self._actor.pid.remote()  # so that its start is not taken for decoding
            except BaseException as error:
                self.end()
                if isinstance(error, (RayError, TimeoutError)):
                    raise self._unavailable(error) from error
                raise
        return self._actor

    def _new(self) -> Any:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_restarts": 0, "scheduling_strategy": here}
        return ray.remote(_Decoder).options(**options).remote(self._memory_bytes)

    def _unavailable(self, error: Exception) -> HttpError:
        what = "has no memory" if isinstance(error, OutOfMemoryError) else "cannot be started"
        log.warning("the process that decodes large images %s: %s: %s", what, type(error).__name__, error)
        return overloaded(self._settings, f"the process that decodes large images {what}")

    def end(self) -> None:
        """What runs in it is lost; another one starts with the next image."""
        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None
