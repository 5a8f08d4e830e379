"""Graphs that are made once: kept beside decoded images, and the one for a bundle begun while its network trains."""

from collections.abc import Sequence
from importlib.metadata import version as installed
from typing import Any

import ray

from pipeline import __version__
from pipeline.base.errors import PlatformError
from pipeline.model.cell_classifier import CellClassifier
from pipeline.model.outputs import FEATURES, LOGITS
from pipeline.training.cache import PixelCache
from pipeline.training.kept import Kept
from pipeline.training.settings import Settings

_ENGINES = ("torch", "onnx", "onnxscript", "onnxruntime")
_PATIENCE_S = 60.0  # for a task that began when training did; afterwards the graph is made here


class GraphMaker:
    """Gives the graph of a trained network, whose template a task on Ray makes while workers train.

    `cache`: of pixels, beside which templates are kept; None: nowhere.
    """

    def __init__(self, settings: Settings, cache: PixelCache | None) -> None:
        self._settings = settings
        self.kept = kept_graph(cache, _deciding(settings))
        self._has_begun = False
        self._template: bytes | None = None
        self._task: Any = None

    def begin(self) -> None:
        """Look for the template, or have it made."""
        self._has_begun = True
        self._template = self.kept.read()
        if self._template is None:
            # no core: they are all the workers', and what this takes is small beside what they do
            self._task = ray.remote(num_cpus=0, max_retries=0)(_template).remote(self._settings)

    def __call__(self, model: CellClassifier, input_size: int) -> bytes:
        """ONNX of the network, proven equal to it. Raises PlatformError where the engines disagree."""
        if not self._has_begun:  # a run that was whole when the command began
            self.begin()
        template = self._template or self._made()
        if template is not None:
            from pipeline.model.graph_template import filled

            try:
                return filled(template, model, input_size)
            except PlatformError:  # made by another state of this code, or damaged: it is not asked again
                self.kept.forget()
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
            self.kept.write(template)
        return template


def kept_graph(cache: PixelCache | None, deciding: Sequence[str]) -> Kept:
    """The graph that these decide, beside the pixels of `cache`."""
    return Kept(cache, "networks", deciding, ".onnx")


def _template(settings: Settings) -> bytes | None:
    import torch

    from pipeline.model.graph_template import drawn_template

    torch.set_num_threads(1)  # the workers have the cores
    return drawn_template(settings.architecture, settings.outputs, settings.norm, settings.seen, settings.input_size)


def _deciding(settings: Settings) -> list[str]:
    network = (settings.architecture, settings.outputs, settings.norm, settings.seen, settings.input_size)
    engines = [f"{name} {installed(name)}" for name in _ENGINES]
    return ["template", __version__, LOGITS, FEATURES, *map(str, network), *engines]
