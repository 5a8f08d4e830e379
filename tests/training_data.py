"""The smallest images that a network can learn from, and their manifest: blobs whose radius tells the class."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from pipeline.images.unit import Unit
from pipeline.sources.manifest import MANIFEST_SCHEMA, Manifest, ManifestInfo, write_manifest
from pipeline.sources.rows import image_id
from pipeline.storage.local import local_etag
from pipeline.storage.stores import Stores

CLASSES = ("healthy", "early", "late")


def cell_images(folder: Path, count: int, *, classes: int = 2, size: int = 48, seed: int = 0) -> list[dict[str, Any]]:
    """`count` PNG files and their manifest rows; of each class every third image is for validation."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        label = number % classes
        path = folder / f"cell_{number:04d}.png"
        Image.fromarray(_blob(rng, size, radius=4.0 + 5.0 * label)).save(path)
        rows.append(manifest_row(path, label, ("train", "train", "validation")[number // classes % 3]))
    return rows


def _blob(rng: np.random.Generator, size: int, radius: float) -> NDArray[np.uint8]:
    y, x = np.mgrid[:size, :size]
    centre = rng.uniform(size * 0.35, size * 0.65, 2)
    inside = np.hypot(x - centre[0], y - centre[1]) < radius + rng.uniform(-1, 1)
    image = rng.normal(205, 12, (size, size, 3))
    image[inside] -= (90, 110, 40)
    return image.clip(0, 255).astype(np.uint8)


def manifest_row(path: Path, label: int, split: str) -> dict[str, Any]:
    stat = path.stat()
    return {
        "image_id": image_id(str(path)),
        "uri": str(path),
        "member": None,
        "access": "file",
        "offset": None,
        "stored_bytes": None,
        "size_bytes": stat.st_size,
        "etag": local_etag(stat),
        "mtime": datetime.fromtimestamp(stat.st_mtime, UTC),
        "label": min(label, 1),
        "class_name": CLASSES[label],
        "subject_id": None,
        "split": split,
    }


def manifest_of(
    rows: list[dict[str, Any]],
    out: Path | str,
    stores: Stores = Stores(),
    *,
    split_rule: str = "every third",
    warnings: tuple[str, ...] = (),
    unit: Unit | None = None,
) -> Manifest:
    table = pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)
    info = ManifestInfo(source=["tests"], synthetic=True, split_rule=split_rule, warnings=list(warnings), unit=unit)
    return write_manifest(str(out), [table], info, stores)
