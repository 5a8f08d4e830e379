"""Changed copies of a few images as a person sees them: what the network sees of each, small."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import ImageRejected
from pipeline.evaluation.changes import Copies
from pipeline.images.load import load_image
from pipeline.model.bundle import BundleInfo
from pipeline.model.seen import middle_of
from pipeline.sources.fetch import fetch_rows
from pipeline.sources.manifest import ManifestRow
from pipeline.storage.stores import Stores

SIDE = 96  # pixels of a picture, square
Examples = dict[tuple[str, int], NDArray[np.uint8]]  # by `Copies.keys`, uint8 (SIDE, SIDE, 3), RGB


def examples_of(rows: Sequence[ManifestRow], copies: Copies, info: BundleInfo, stores: Stores) -> list[Examples]:
    """Of each row its copies; an image that is gone or another since it was measured is left out."""
    found = {fetched.row.image_id: fetched.data for fetched in fetch_rows(sorted(rows, key=lambda r: r.uri), stores)}
    pictures = []
    for row in rows:
        data = found.get(row.image_id)
        if data is not None:
            try:
                pixels = load_image(data, info.input_size, bit_depth=info.bit_depth).pixels[None]
            except ImageRejected:
                continue
            made = copies.made(pixels, info.seen_size, [int(row.image_id)])
            pictures.append({key: _small(some[0], info.seen_size) for key, some in zip(copies.keys, made, strict=True)})
    return pictures


def _small(pixels: NDArray[np.uint8], seen: int) -> NDArray[np.uint8]:
    middle = middle_of(len(pixels), seen)
    return np.asarray(cv2.resize(pixels[middle, middle], (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)
