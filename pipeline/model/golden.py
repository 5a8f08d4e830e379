"""Golden images: a few drawn pictures in a bundle with the logits that it gave at publication, to prove itself by.

`golden.json`: `{"golden_version": 1, "tolerance": T, "images": [{"png": base64, "logits": [...]}]}`. Nobody's pixels:
whoever publishes draws them.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError
from pipeline.base.text import first_line
from pipeline.base.versions import check_version

GOLDEN_VERSION = 1
# of logits, by the largest of an image where that is more than 1: engines and processors differ by less than 1e-3
TOLERANCE = 0.01


@dataclass(frozen=True)
class Golden:
    """Encoded images and the logits of each, (N, K)."""

    images: tuple[bytes, ...]  # PNG
    logits: NDArray[np.float32]
    tolerance: float = TOLERANCE

    def packed(self) -> bytes:
        """The file."""
        images = [
            {"png": base64.b64encode(data).decode(), "logits": [float(value) for value in row]}
            for data, row in zip(self.images, self.logits, strict=True)
        ]
        return json.dumps({"golden_version": GOLDEN_VERSION, "tolerance": self.tolerance, "images": images}).encode()

    @classmethod
    def unpacked(cls, data: bytes, what: str) -> "Golden":
        """Raises InputError naming `what` when it cannot be read."""
        try:
            raw = json.loads(data)
            check_version(raw.get("golden_version"), GOLDEN_VERSION, what, "publish the model again")
            images = tuple(base64.b64decode(one["png"], validate=True) for one in raw["images"])
            logits = np.array([one["logits"] for one in raw["images"]], np.float32)
            tolerance = float(raw["tolerance"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{what}: cannot be read ({first_line(error)}); publish the model again") from error
        if logits.ndim != 2 or not len(images):
            raise InputError(f"{what}: has no images, or not one row of logits each; publish the model again")
        return cls(images, logits, tolerance)

    def difference(self, found: NDArray[np.float32] | Sequence[Sequence[float]]) -> str | None:
        """In what (N, K) logits differ from those of publication; None where they are the same."""
        given = np.asarray(found, np.float32)
        if given.shape != self.logits.shape:
            return f"logits of shape {given.shape} instead of {self.logits.shape}"
        allowed = self.tolerance * np.maximum(1.0, np.abs(self.logits).max(axis=1))
        off = np.abs(given - self.logits).max(axis=1)
        worst = int(np.argmax(np.nan_to_num(off - allowed, nan=np.inf)))
        if off[worst] <= allowed[worst]:
            return None
        return f"image {worst + 1} of {len(off)}: logits are off by {off[worst]:.3g}, allowed is {allowed[worst]:.3g}"
