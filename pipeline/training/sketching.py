"""The sketch of the images that make a model: each is read once more, since pixels in a cache tell no bytes.

What tells their looks is kept beside decoded images, for an object that is still the version that was decoded.
"""

import itertools
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from pipeline import __version__
from pipeline.base.errors import ImageRejected
from pipeline.base.machine import usable_cores
from pipeline.images.likeness import Floats
from pipeline.images.load import Limits, Preprocessing, load_image
from pipeline.model.sketch import PARTS, Trace, key_of, make_sketch
from pipeline.sources.fetch import Fetched
from pipeline.sources.outage import fetch_while_up
from pipeline.sources.rows import ListingRow, read_rows
from pipeline.storage.stores import Stores
from pipeline.training.cache import PixelCache
from pipeline.training.kept import Kept, digest_of
from pipeline.training.rows import LabelledRows

_BATCH = 256


def sketch_of(
    rows: LabelledRows, pixels: Preprocessing, stores: Stores, cache: PixelCache | None = None
) -> bytes | None:
    """The file for a bundle, of all training and validation images that can be read; None where none can.

    Says how many, and how long it took. `cache`: beside whose pixels keys are kept. Raises PlatformError when the store
    is out.
    """
    begin = time.perf_counter()
    traces = _traces(rows, pixels, stores, cache)
    first = next(traces, None)
    if first is None:
        print("no sketch of training images: none can be read any more", flush=True)
        return None
    sketch = make_sketch(itertools.chain([first], traces))
    lost = rows.train.num_rows + rows.validation.num_rows - len(sketch)
    without = f"; {lost:,} could not be read and will not be known again" if lost else ""
    took = time.perf_counter() - begin
    print(f"sketch of {len(sketch):,} training and validation images, no pixels, in {took:.1f} s{without}", flush=True)
    return sketch.packed()


def _traces(rows: LabelledRows, pixels: Preprocessing, stores: Stores, cache: PixelCache | None) -> Iterator[Trace]:
    part_of = {number: part for part in PARTS for number in rows.splits[part]["image_id"].to_pylist()}
    images = pa.concat_tables([rows.train, rows.validation]).drop_columns(["target"])
    kept = _kept(images, cache)
    known, found = _known(kept), dict[int, Floats]()
    with ThreadPoolExecutor(usable_cores()) as pool:
        fetched = fetch_while_up(read_rows(images, ListingRow), stores, Limits())
        while batch := list(itertools.islice(fetched, _BATCH)):
            keys = list(pool.map(lambda item: _key(item, known, pixels), batch))
            for item, key in zip(batch, keys, strict=True):
                if item.data is not None and key is not None:
                    if item.etag == item.row.etag:
                        found[item.row.image_id] = key
                    yield Trace(part_of[item.row.image_id], item.data, key)
    if found.keys() - known.keys():
        found |= known
        kept.write_arrays({"image_id": np.array(list(found), np.int64), "key": np.stack(list(found.values()))})


def _key(item: Fetched[ListingRow], known: Mapping[int, Floats], pixels: Preprocessing) -> Floats | None:
    """Of its looks; None for what cannot be read."""
    if item.data is None:
        return None
    if item.etag == item.row.etag and item.row.image_id in known:
        return known[item.row.image_id]
    try:
        return key_of(load_image(item.data, pixels.size, bit_depth=pixels.bit_depth).pixels)
    except ImageRejected:
        return None


def _kept(images: pa.Table, cache: PixelCache | None) -> Kept:
    rest = [] if cache is None else [cache.key, digest_of(images.select(["image_id", "etag"]).sort_by("image_id"))]
    return Kept(cache, "looks", ["keys", __version__, np.__version__, *rest], ".safetensors")


def _known(kept: Kept) -> dict[int, Floats]:
    arrays = kept.read_arrays()
    return {} if arrays is None else dict(zip(arrays["image_id"].tolist(), arrays["key"], strict=True))
