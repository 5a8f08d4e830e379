"""Images that no node holds yet, by Ray Data: a block for each file of pixels, decoded and kept on whatever node has
room for the task. What goes through Ray Data are rows to decode and, out of it, what is to be known of each.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from pipeline.base.errors import LeukorayError, PlatformError
from pipeline.base.text import last_line
from pipeline.images.load import Limits
from pipeline.sources.outage import fetch_while_up
from pipeline.sources.rows import Access, ListingRow, read_rows
from pipeline.storage.stores import Stores
from pipeline.training.cache import PLACED_SCHEMA, PixelCache, Placed
from pipeline.training.decoded import decode_fetched, pixel_bytes

_FILE_BYTES, _FILE_IMAGES = 32 << 20, 512
_SMALLEST, _FEW_FILES = 32, 8  # a small set is still cut into some files, so that all cores have something to decode
_RETRIES = 3  # of a task whose process died; Ray Data's own default is for ever
_KNOWN_SCHEMA = pa.schema([pa.field("node_id", pa.string()), pa.field("name", pa.string()), *PLACED_SCHEMA])


@dataclass(frozen=True)
class Filled:
    """What has been decoded for a run."""

    placed: list[Placed]
    seconds: float


@dataclass(frozen=True)
class Lanes:
    """Room for tasks that decode: so many at a time, so much of a core each, on nodes that `labels` select."""

    count: int
    cpus: float
    labels: dict[str, str]


def telling(work: Callable[..., Any]) -> Callable[..., Any]:
    """`work` for a task that gives an error of ours as its result: of one that is raised while nobody waits any more,
    Ray would print the traceback."""

    @functools.wraps(work)
    def told(*given: Any) -> Any:
        try:
            return work(*given)
        except LeukorayError as error:
            return error

    return told


def arrived(reference: Any) -> Any:
    """What a task gave. Raises the error that it told, PlatformError where its process keeps dying."""
    try:
        result = ray.get(reference)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise _keeps_dying(error) from error
    if isinstance(result, LeukorayError):
        raise result
    return result


def _keeps_dying(error: Exception) -> PlatformError:
    return PlatformError(f"a process that decodes images keeps dying: {last_line(error)}")


def fill_caches(cache: PixelCache, missing: pa.Table, images: int, stores: Stores, lanes: Lanes) -> Filled:
    """Decode the rows, ROW_SCHEMA, into the caches of the nodes. Runs as a task.

    `images`: of the whole run. Raises PlatformError where the store is out, a disk is full, or processes keep dying.
    """
    import ray.data  # slow to load, and most that import this module keep or find images only

    begin = time.monotonic()
    blocks = chunks(missing, images, cache.pixels.size)
    with ray.data.DataContext.current(_context()):
        # not `from_arrow`, which asks for a task of a whole CPU for each block: workers may hold all of them
        known = ray.data.from_blocks(blocks).map_batches(
            fill,
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={"cache": cache, "stores": stores},
            num_cpus=lanes.cpus,
            compute=ray.data.TaskPoolStrategy(size=min(lanes.count, len(blocks))),
            label_selector=lanes.labels or None,
            ray_remote_args_fn=lambda: {"max_retries": _RETRIES},
        )
        try:
            tables = ray.get(known.to_arrow_refs())
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
            raise _keeps_dying(error) from error
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, LeukorayError):
                raise error.cause from error
            raise
    return Filled(list(_by_file(pa.concat_tables(tables).cast(_KNOWN_SCHEMA))), time.monotonic() - begin)


def _context() -> Any:
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # an error of ours comes back as it is
    context.execution_no_progress_timeout_s = -1  # of a large archive nothing is heard before its end
    # its budget is nothing until a process of its own has told it what the cluster has: one task at a time till then
    context.op_resource_reservation_enabled = False
    return context


def _by_file(known: pa.Table) -> Iterator[Placed]:
    """From _KNOWN_SCHEMA in any order."""
    known = known.sort_by([("node_id", "ascending"), ("name", "ascending"), ("image_id", "ascending")]).combine_chunks()
    files = zip(known["node_id"].to_pylist(), known["name"].to_pylist(), strict=True)
    start = 0
    for (node_id, name), rows in itertools.groupby(files):
        count = sum(1 for _ in rows)
        yield Placed(name, node_id, known.slice(start, count).select(PLACED_SCHEMA.names))
        start += count


def fill(rows: pa.Table, *, cache: PixelCache, stores: Stores) -> Iterator[pa.Table]:
    """Decode a block into files of this node's cache; _KNOWN_SCHEMA for each file.

    What is there already is not decoded again: from another run meanwhile, or from a try of this task that was killed.
    """
    node, most = ray.get_runtime_context().get_node_id(), most_images(cache.pixels.size)
    if rows.num_rows <= most:
        placed = cache.written(rows, node)
        found = [] if placed is None else [placed]
    else:
        found = cache.find(rows, node)
    for one in found:
        rows = rows.filter(pc.invert(pc.is_in(rows["image_id"], one.rows["image_id"].combine_chunks())))
        yield _known(one)
    fetched = fetch_while_up(read_rows(rows, ListingRow), stores, Limits())
    while batch := list(itertools.islice(fetched, most)):
        yield _known(cache.put(decode_fetched(batch, cache.pixels), node))


def _known(placed: Placed) -> pa.Table:
    count = placed.rows.num_rows
    where = [pa.array([value] * count, pa.string()) for value in (placed.node_id, placed.name)]
    return pa.Table.from_arrays([*where, *placed.rows.columns], schema=_KNOWN_SCHEMA)


def chunks(missing: pa.Table, images: int, size: int) -> list[pa.Table]:
    """Rows for a file each, neighbours by place: near members of an archive are read together, new images lie together.

    Members of one compressed tar stay together, however many: it is read from its front. `images`: of the whole run,
    which decides how many make a file. The largest come first, so that no task is left alone with one at the end.
    """
    most = min(most_images(size), max(_SMALLEST, -(-images // _FEW_FILES)))
    streamed = pc.equal(missing["access"], Access.STREAM.value)
    direct = missing.filter(pc.invert(streamed)).sort_by(
        [(name, "ascending") for name in ("uri", "offset", "image_id")]
    )
    behind = missing.filter(streamed)
    tars = [behind.filter(pc.equal(behind["uri"], uri)) for uri in pc.unique(behind["uri"]).to_pylist()]
    starts = range(0, direct.num_rows, most)
    parts = [direct.take(pa.array(range(at, min(at + most, direct.num_rows)))) for at in starts]
    return sorted(parts + tars, key=lambda part: -part.num_rows)


def most_images(size: int) -> int:
    """In one file, which is also what a task that decodes holds in memory."""
    return max(1, min(_FILE_BYTES // pixel_bytes(size), _FILE_IMAGES))
