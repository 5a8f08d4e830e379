"""What every trainer of the comparison gets: the same synthetic JPEGs, as a manifest (ours) and as a CSV (the rivals).

A class is whether a field holds blasts; a field's variants lie on one side of the split. Cached in the work folder.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import cv2
import pyarrow as pa

from pipeline.sources.manifest import MANIFEST_SCHEMA, ManifestInfo, write_manifest
from tests.benchmarks.inputs import FIELDS, HEIGHT, QUALITY, WIDTH, file_name, pool_of_images
from tests.training_data import manifest_row

VALIDATION_EVERY = 6  # of the fields, one in so many is for validation


@dataclass(frozen=True)
class TrainingSet:
    """Where the same images are listed for each side; `train` and `validation` count them."""

    manifest: Path
    listing: Path  # CSV: path, label (0 or 1), split
    train: int
    validation: int


def training_set(work: Path, images: int, width: int, height: int) -> TrainingSet:
    """`images` JPEGs of this size for training and a fifth as many for validation, listed for both sides."""
    folder = work / f"train-{width}x{height}"
    wanted = {"train": images, "validation": max(1, images // (VALIDATION_EVERY - 1))}
    numbers: dict[str, list[int]] = {"train": [], "validation": []}
    number = 0
    while any(len(numbers[split]) < count for split, count in wanted.items()):
        split = "validation" if number % FIELDS // 2 % VALIDATION_EVERY == 0 else "train"
        if len(numbers[split]) < wanted[split]:
            numbers[split].append(number)
        number += 1
    sources = pool_of_images(work, number)
    folder.mkdir(parents=True, exist_ok=True)
    listed = [
        (_image(sources / file_name(each), folder, width, height), each % FIELDS % 2, split)
        for split in wanted
        for each in numbers[split]
    ]
    listing = folder / f"listing-{images}.csv"
    with listing.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *listed])
    rows = [manifest_row(path, label, split) for path, label, split in listed]
    info = ManifestInfo(source=["benchmark"], synthetic=True, split_rule="by drawn field")
    manifest = folder / f"manifest-{images}"
    write_manifest(str(manifest), [pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)], info)
    return TrainingSet(manifest, listing, wanted["train"], wanted["validation"])


def _image(source: Path, folder: Path, width: int, height: int) -> Path:
    """A hard link to the drawn image, or the image made smaller."""
    target = folder / source.name
    if target.exists():
        return target
    if (width, height) == (WIDTH, HEIGHT):
        target.hardlink_to(source)
        return target
    pixels = cv2.resize(cv2.imread(str(source)), (width, height), interpolation=cv2.INTER_AREA)
    temporary = folder / f".{source.name}"
    cv2.imwrite(str(temporary), pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    temporary.rename(target)
    return target
