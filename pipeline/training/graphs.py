"""Graphs that are made once: kept beside decoded images, and the one for a bundle begun while its network trains."""

import contextlib
import os
from collections.abc import Sequence
from hashlib import sha256
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import ray

from pipeline import __version__
from pipeline.base.errors import PlatformError
from pipeline.model.cell_classifier import CellClassifier
from pipeline.model.outputs import FEATURES, LOGITS
from pipeline.training.cache import PixelCache
from pipeline.training.pixel_file import write_copy
from pipeline.training.settings import Settings

_FOLDER = "networks"
_DIGEST_BYTES = 32
_ENGINES = ("torch", "onnx", "onnxscript", "onnxruntime")
_PATIENCE_S = 60.0  # for a task that began when training did; afterwards the graph is made here


class GraphMaker:
    """Gives the graph of a trained network, whose template a task on Ray makes while workers train.

    `cache`: of pixels, beside which templates are kept; None: nowhere.
    """

    def __init__(self, settings: Settings, cache: PixelCache | None) -> None:
        self._settings, self._cache = settings, cache
        self.path = None if cache is None else graph_path(cache.root, _deciding(settings))
        self._has_begun = False
        self._kept: bytes | None = None
        self._task: Any = None

    def begin(self) -> None:
        """Look for the template, or have it made."""
        self._has_begun = True
        self._kept = None if self.path is None else read_graph(self.path)
        if self._kept is None:
            # no core: they are all the workers', and what this takes is small beside what they do
            self._task = ray.remote(num_cpus=0, max_retries=0)(_template).remote(self._settings)

    def __call__(self, model: CellClassifier, input_size: int) -> bytes:
        """ONNX of the network, proven equal to it. Raises PlatformError where the engines disagree."""
        if not self._has_begun:  # a run that was whole when the command began
            self.begin()
        template = self._kept or self._made()
        if template is not None:
            from pipeline.model.graph_template import filled

            try:
                return filled(template, model, input_size)
            except PlatformError:  # made by another state of this code, or damaged: it is not asked again
                if self.path is not None:
                    self.path.unlink(missing_ok=True)
        from pipeline.model.export import to_onnx

        return to_onnx(model, input_size)

    def _made(self) -> bytes | None:
        if self._task is None:
            return None
        try:
            template: bytes | None = ray.get(self._task, timeout=_PATIENCE_S)
        except ray.exceptions.RayError:  # too slow, or its process died: training is over, and its weights are here
            return None
        if template is not None:
            self._keep(template)
        return template

    def _keep(self, template: bytes) -> None:
        """For the next run, where the cache takes it: this one has what it needs."""
        if self.path is None or self._cache is None or self._cache.make_room_for(len(template)) is not None:
            return
        with contextlib.suppress(PlatformError):
            write_graph(self.path, template)


def _template(settings: Settings) -> bytes | None:
    import torch

    from pipeline.model.graph_template import drawn_template

    torch.set_num_threads(1)  # the workers have the cores
    return drawn_template(settings.architecture, settings.outputs, settings.norm, settings.seen, settings.input_size)


def _deciding(settings: Settings) -> list[str]:
    network = (settings.architecture, settings.outputs, settings.norm, settings.seen, settings.input_size)
    engines = [f"{name} {installed(name)}" for name in _ENGINES]
    return ["template", __version__, LOGITS, FEATURES, *map(str, network), *engines]


def graph_path(root: str, deciding: Sequence[str]) -> Path:
    """Where the graph that these decide is kept in the cache at `root`."""
    return Path(root, _FOLDER, sha256("\0".join(deciding).encode()).hexdigest()[:24] + ".onnx")


def read_graph(path: Path) -> bytes | None:
    """A kept graph, None where it is not there, or not whole."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    with contextlib.suppress(OSError):  # a cache that others own tells no use
        os.utime(path)
    digest, graph = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    return graph if sha256(graph).digest() == digest else None


def write_graph(path: Path, graph: bytes) -> None:
    """Raises PlatformError where the disk cannot take it."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_copy(str(path), sha256(graph).digest() + graph)
    except OSError as error:
        raise PlatformError(
            f"{path}: cannot be kept ({error.strerror or error}); give --cache a folder on a disk with room, or none"
        ) from error
