"""From a trained network to what a bundle holds: safetensors bytes, and an ONNX graph proven equal to it.

The graph takes uint8 NHWC `images` with a free batch size and gives `logits` and `features`, which go into the head;
normalisation is inside.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from pipeline.base.errors import PlatformError
from pipeline.model.cell_classifier import CellClassifier, WithFeatures
from pipeline.model.outputs import FEATURES, LOGITS
from pipeline.model.prediction import probabilities

MAX_DIFFERENCE = 1e-4  # of logits and of features, by the largest of them where that is more than 1
MAX_PROBABILITY_DIFFERENCE = 1e-5
# Of the largest logit, what float32 leaves open: a head that is steep, as one fitted to few images that it tells apart
# without error, makes 1e-4 of what features differ by in their last bits. Measured with such heads: up to 1.3e-5.
_ROUNDING = 2e-5
_STEEPEST = 0.25  # of the logistic function
_OPSET = 20


class ToGraph(Protocol):
    def __call__(self, model: CellClassifier, input_size: int, /) -> bytes:
        """ONNX of a network, proven equal to it."""


def to_safetensors(model: torch.nn.Module) -> bytes:
    """All weights and buffers, by the names in the network."""
    return save({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()})


def to_onnx(model: CellClassifier, input_size: int) -> bytes:
    """The graph of a bundle. Raises PlatformError when it differs from the network."""
    graph = exported(WithFeatures(model.cpu().eval()), input_size, (LOGITS, FEATURES))
    check_parity(model, graph, input_size, counts=(2,))  # that nothing follows the head
    return graph


def exported(model: torch.nn.Module, input_size: int, outputs: Sequence[str]) -> bytes:
    """Export in float32 and check against PyTorch. Raises PlatformError when the two engines disagree.

    `outputs`: what the graph calls what it gives.
    """
    model = model.cpu().eval()
    example = torch.zeros((2, input_size, input_size, 3), dtype=torch.uint8)
    with _quiet(), torch.inference_mode():
        program = torch.onnx.export(
            model,
            (example,),
            input_names=["images"],
            output_names=list(outputs),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=65536)},),
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    for node in proto.graph.node:  # where its line of code lies on this machine is nobody's business
        kept = [item for item in node.metadata_props if item.key != "pkg.torch.onnx.stack_trace"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    graph: bytes = proto.SerializeToString()
    check_parity(model, graph, input_size)
    return graph


def check_parity(
    model: torch.nn.Module, graph: bytes, input_size: int, *, seed: int = 0, counts: Sequence[int] = (1, 3)
) -> None:
    """Compare both engines on noise and on flat images, in batches of so many.

    Raises PlatformError when they disagree.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    rng, both = np.random.default_rng(seed), dict[str, list[tuple[NDArray[np.float32], NDArray[np.float32]]]]()
    for count in counts:
        noise = rng.integers(0, 256, (count, input_size, input_size, 3), dtype=np.uint8)
        flat = np.broadcast_to(rng.integers(0, 256, (count, 1, 1, 3), dtype=np.uint8), noise.shape).copy()
        for images in (noise, flat):
            with torch.inference_mode():
                given = model(torch.from_numpy(images))
            answers = given if isinstance(given, tuple) else (given,)
            names = [output.name for output in session.get_outputs()][: len(answers)]
            if len(names) < len(answers):
                raise PlatformError(f"ONNX export: the graph gives {', '.join(names)} only; it is of an older version")
            for name, here, there in zip(names, answers, session.run(names, {"images": images}), strict=True):
                if np.shape(there) != here.shape:
                    raise PlatformError(f"ONNX export: {name} of shape {np.shape(there)}, PyTorch gives {here.shape}")
                both.setdefault(name, []).append((here.numpy(), np.asarray(there)))
    for name, pairs in both.items():
        expected, found = (np.concatenate(values) for values in zip(*pairs, strict=True))
        _compare(name, expected, found)


def _compare(name: str, expected: NDArray[np.float32], found: NDArray[np.float32]) -> None:
    # what decides is the probability; logits far from 0 may differ by more in the last bits without moving it
    largest = float(np.abs(expected).max())
    values = float(np.abs(expected - found).max()) / max(1.0, largest)
    may_move = max(MAX_PROBABILITY_DIFFERENCE, _STEEPEST * _ROUNDING * largest)
    moved = np.abs(probabilities(expected) - probabilities(found)).max() if name == LOGITS else 0.0
    if not (values <= MAX_DIFFERENCE and moved <= may_move):
        raise PlatformError(
            f"ONNX export: differs from PyTorch by {values:.2g} in {name} and {moved:.2g} in probability "
            f"(limits {MAX_DIFFERENCE:g}, {may_move:.2g}); try another version of torch or onnxruntime"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its steps and warns of things that the parity check decides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
