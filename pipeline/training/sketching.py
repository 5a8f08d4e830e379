"""The sketch of the images that make a model: each is read once more, since pixels in a cache tell no bytes."""

import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from pipeline.base.errors import ImageRejected
from pipeline.base.machine import usable_cores
from pipeline.images.load import Limits, Preprocessing, load_image
from pipeline.model.sketch import PARTS, Part, Trace, key_of, make_sketch
from pipeline.sources.fetch import Fetched
from pipeline.sources.outage import fetch_while_up
from pipeline.sources.rows import ListingRow, read_rows
from pipeline.storage.stores import Stores
from pipeline.training.rows import LabelledRows

_BATCH = 256


def sketch_of(rows: LabelledRows, pixels: Preprocessing, stores: Stores) -> bytes | None:
    """The file for a bundle, of all training and validation images that can be read; None where none can.

    Says how many, and how long it took. Raises PlatformError when the store is out.
    """
    begin = time.perf_counter()
    traces = _traces(rows, pixels, stores)
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


def _traces(rows: LabelledRows, pixels: Preprocessing, stores: Stores) -> Iterator[Trace]:
    part_of = {number: part for part in PARTS for number in rows.splits[part]["image_id"].to_pylist()}
    wanted = read_rows(pa.concat_tables([rows.train, rows.validation]).drop_columns(["target"]), ListingRow)
    with ThreadPoolExecutor(usable_cores()) as pool:
        fetched = fetch_while_up(wanted, stores, Limits())
        while batch := list(itertools.islice(fetched, _BATCH)):
            yield from filter(None, pool.map(lambda item: _trace(item, part_of[item.row.image_id], pixels), batch))


def _trace(item: Fetched[ListingRow], part: Part, pixels: Preprocessing) -> Trace | None:
    if item.data is None:
        return None
    try:
        found = load_image(item.data, pixels.size, bit_depth=pixels.bit_depth)
    except ImageRejected:
        return None
    return Trace(part, item.data, key_of(found.pixels))
