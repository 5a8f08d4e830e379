"""Memory that is not to be had, in a sentence: workers that start again would ask for as much."""

import contextlib
from collections.abc import Iterator

import torch

from pipeline.base.errors import PlatformError
from pipeline.base.text import first_line

_OF_TORCH = "can't allocate memory"  # torch has no class of its own for the memory of the machine


@contextlib.contextmanager
def refusing_for_memory() -> Iterator[None]:
    """Raise PlatformError where what is done within asks a GPU, or this machine, for more memory than it gives."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_gpu = isinstance(error, torch.OutOfMemoryError)
        if not (is_gpu or isinstance(error, MemoryError) or _OF_TORCH in str(error)):
            raise
        raise PlatformError(
            f"the {'GPU' if is_gpu else 'machine'} has not the memory for it ({first_line(error)}); lower --batch-size "
            "or --input-size, raise --accumulate, or take more workers"
        ) from error
