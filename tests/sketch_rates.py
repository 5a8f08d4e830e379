"""How often a sketch knows a changed copy by its looks, and takes another image for one of its own:

    python -m tests.sketch_rates MANIFEST [--size 144] [--every 4]

Copies: of every so many labelled images, each change in turn, asked of a sketch of all. Others: a sketch of one half of
the images is asked of the other half, so that nothing that it knows is asked of it; printed with their paths, since a
data set may hold what was made from one photograph.
"""

import argparse
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import compress

import numpy as np
from PIL import Image

from pipeline.base.errors import ImageRejected
from pipeline.images.load import load_image
from pipeline.model.sketch import Trace, key_of, make_sketch
from pipeline.sources.fetch import fetch_rows
from pipeline.sources.manifest import SPLITS, ManifestRow, read_manifest
from pipeline.storage.stores import Stores
from tests.images import encoded

SALTS = 3


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    return encoded(image, "JPEG", quality=quality)


def scaled(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def part(image: Image.Image, share: float, place: float) -> Image.Image:
    """The share of each side, `place` 0 at the upper left, 0.5 in the middle."""
    width, height = round(image.width * share), round(image.height * share)
    left, upper = round((image.width - width) * place), round((image.height - height) * place)
    return image.crop((left, upper, left + width, upper + height))


def brighter(image: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(image) * 1.1 + 5).clip(0, 255).astype(np.uint8))


CHANGES: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG of quality 70": lambda image: jpeg(image, 70),
    "JPEG of quality 40": lambda image: jpeg(image, 40),
    "half as large": lambda image: jpeg(scaled(image, 0.5)),
    "twice as large": lambda image: jpeg(scaled(image, 2)),
    "128 x 128": lambda image: jpeg(image.resize((128, 128))),
    "10 % brighter": lambda image: jpeg(brighter(image)),
    "turned by 90 degrees": lambda image: jpeg(image.transpose(Image.Transpose.ROTATE_90)),
    "mirrored": lambda image: jpeg(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "cropped by 1 % on all sides": lambda image: jpeg(part(image, 0.98, 0.5)),
    "cropped by 2.5 % on all sides": lambda image: jpeg(part(image, 0.95, 0.5)),
    "cropped by 3 % on two sides": lambda image: jpeg(part(image, 0.97, 0.0)),
    "rotated by 5 degrees": lambda image: jpeg(image.rotate(5, Image.Resampling.BICUBIC, fillcolor=(230, 225, 225))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest")
    parser.add_argument("--size", type=int, default=144, help="pixels a side of the model's input")
    parser.add_argument("--every", type=int, default=4, help="change every so many images")
    asked = parser.parse_args()
    manifest = read_manifest(asked.manifest)
    rows = [row for split in SPLITS for row in manifest.split(split)]
    places, files = zip(*readable(rows, asked.size), strict=True)
    with ThreadPoolExecutor(2) as pool:
        traces = list(pool.map(lambda data: traced(data, asked.size), files))
    print(f"{len(files):,} images, {len(range(0, len(files), asked.every)):,} of them changed, {SALTS} salts")
    sketches = [make_sketch(traces, bytes([salt] * 16)) for salt in range(SALTS)]
    for name, change in CHANGES.items():
        known = []
        for data in files[:: asked.every]:
            pixels = load_image(change(Image.open(io.BytesIO(data)).convert("RGB")), asked.size).pixels
            known += [sketch.by_looks(pixels) is not None for sketch in sketches]
        print(f"{name:<32} known {100 * np.mean(known):6.2f} %", flush=True)
    taken = set()
    for salt in range(SALTS):
        in_first = np.random.default_rng(salt).random(len(files)) < 0.5
        for half in (in_first, ~in_first):
            sketch = make_sketch(compress(traces, half), bytes([salt] * 16))
            asked_of = compress(zip(places, files, strict=True), ~half)
            taken |= {(place, salt) for place, data in asked_of if sketch.by_looks(load_image(data, asked.size).pixels)}
    print(f"others taken for known ones: {len(taken)} of {SALTS * len(files):,} asked")
    for place, _ in sorted(taken):
        print(f"  {place}")


def readable(rows: list[ManifestRow], size: int) -> Iterator[tuple[str, bytes]]:
    for item in fetch_rows(rows, Stores()):
        if item.data is not None:
            try:
                load_image(item.data, size)
            except ImageRejected:
                continue
            yield item.row.place, item.data


def traced(data: bytes, size: int) -> Trace:
    return Trace("train", data, key_of(load_image(data, size).pixels))


if __name__ == "__main__":
    main()
