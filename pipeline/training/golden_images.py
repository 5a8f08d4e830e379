"""What golden images show: two drawn fields of cells, one with blasts, and noise. No pixels of patients."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.model.bundle import Bundle, BundleInfo
from pipeline.model.predictor import Predictor
from pipeline.samples.field import render_field
from pipeline.samples.style import draw_style

_SIDE = 96  # pixels: small, and resized as any image is
_SEED = 20


def golden_images() -> tuple[bytes, ...]:
    """PNG, the same ones for every model."""
    fields = []
    for number, positive in enumerate((False, True)):
        rng = np.random.default_rng([_SEED, number])
        fields.append(render_field(rng, draw_style(rng), positive, _SIDE, _SIDE))
    noise = np.random.default_rng(_SEED).integers(0, 256, (_SIDE, _SIDE, 3), np.uint8)
    return tuple(_png(pixels) for pixels in (*fields, noise))


def golden_file(info: BundleInfo, files: dict[str, bytes]) -> bytes:
    """`golden.json` of a model that is about to be published with these files."""
    bundle = Bundle(info.version, info, held=files)
    return Predictor(bundle, engine="onnx").golden(golden_images()).packed()


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
