"""Small things that cost seconds to make, kept beside decoded images for the next run: graphs of networks, a choice,
figures of pixels.

    <home>/<what>/<digest><suffix>      SHA-256 of the rest, then the rest

Whoever makes one has it in hand already. So a cache that takes nothing costs the next run these seconds, and no run
fails for it; what is not whole is made again.
"""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import load, save

from pipeline.training.cache import PixelCache
from pipeline.training.pixel_file import write_copy

_DIGEST_BYTES = 32


def digest_of(images: pa.Table) -> str:
    """Of all columns: what something rests on that is made of these images, `image_id` and `etag` among them."""
    return sha256(json.dumps(images.to_pydict()).encode()).hexdigest()


@dataclass(frozen=True)
class Kept:
    """One such thing, as all that decides it names it. `cache` None: nothing is kept."""

    cache: PixelCache | None
    what: str  # a folder of the cache
    deciding: Sequence[str]
    suffix: str  # among those of a cache's files

    @property
    def path(self) -> Path | None:
        """Where it lies, or would."""
        if self.cache is None:
            return None
        name = sha256("\0".join(self.deciding).encode()).hexdigest()[:24]
        return self.cache.home / self.what / (name + self.suffix)

    def read(self) -> bytes | None:
        """None where it is not there, or not whole."""
        path = self.path
        if path is None:
            return None
        try:
            data = path.read_bytes()
        except OSError:
            return None
        with contextlib.suppress(OSError):  # a cache that others own tells no use
            os.utime(path)
        digest, kept = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        return kept if sha256(kept).digest() == digest else None

    def write(self, data: bytes) -> None:
        """For the next run, where the cache takes it."""
        path = self.path
        if path is None or self.cache is None or self.cache.make_room_for(len(data) + _DIGEST_BYTES) is not None:
            return
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_copy(str(path), sha256(data).digest() + data)

    def read_arrays(self) -> dict[str, NDArray[Any]] | None:
        """What `write_arrays` kept; None as `read`."""
        data = self.read()
        return None if data is None else load(data)

    def write_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """As `write`, in the safetensors format."""
        self.write(save({name: np.ascontiguousarray(values) for name, values in arrays.items()}))

    def forget(self) -> None:
        """It is not what it should be."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
