"""What today's pixel rules make of some encoded images: `python -m tests.data.pixels` notes it under their version.

For when a rule is changed on purpose: raise `Preprocessing.version`, then run this. Older versions stay noted.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.images.load import Preprocessing, load_image
from tests.kept import read_kept

NOTED = Path(__file__).with_name("pixels.json")
SIZES = (20, 40, 96)  # of images of 64 pixels: reduced by a whole factor first, reduced, enlarged
_CROP = slice(8, 14)


def images() -> dict[str, bytes]:
    """A JPEG of each class, and the first again as what Pillow decodes."""
    kept = read_kept("v0_1").objects
    found = {f"{name}.jpg": kept[f"cells/{name}.jpg"] for name in ("healthy/S005_0005", "leukemia/S003_0003")}
    pixels = load_image(next(iter(found.values())), 64).pixels
    alpha = np.arange(64 * 64).reshape(64, 64, 1) // 16 % 256
    shapes = {
        "rgb.png": Image.fromarray(pixels),
        "alpha.png": Image.fromarray(np.concatenate([pixels, alpha.astype(np.uint8)], axis=2)),
        "gray16.png": Image.fromarray(pixels[..., 0].astype(np.uint16) * 257),
        "gray12.png": Image.fromarray(pixels[..., 0].astype(np.uint16) * 16),
    }
    return {**found, **{name: _encoded(image) for name, image in shapes.items()}}


def _encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def crops() -> dict[str, list[Any]]:
    """A few pixels of each image at each size, (6, 6, 3) levels."""
    return {
        f"{name} {size}": load_image(data, size).pixels[_CROP, _CROP].tolist()
        for name, data in images().items()
        for size in SIZES
    }


if __name__ == "__main__":
    noted = json.loads(NOTED.read_text()) if NOTED.exists() else {}
    noted[str(Preprocessing(1).version)] = crops()
    NOTED.write_text(json.dumps(noted, separators=(",", ":")) + "\n")
