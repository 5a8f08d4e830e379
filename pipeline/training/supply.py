"""The pixels of a run: found in the nodes' caches, or decoded into them while the workers start.

`supply` returns at once. Tasks decode what no node holds, each into the cache of the node it runs on; workers get the
`Supply`, wait for what is still under way, and copy from other nodes what their own lacks. Where a node that may hold
workers has no room, nothing is kept, and workers stream.
"""

import functools
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.base.cluster import on_node
from pipeline.base.errors import InputError, LeukorayError, PlatformError
from pipeline.base.resources import DECODE_CPUS, ClusterPlan, check
from pipeline.base.text import last_line
from pipeline.images.load import Limits, Preprocessing
from pipeline.sources.outage import fetch_while_up
from pipeline.sources.rows import Access, ListingRow, read_rows
from pipeline.storage.stores import Stores
from pipeline.training.cache import PixelCache, Placed
from pipeline.training.decoded import Noted, decode_fetched, pixel_bytes

_FILE_BYTES, _FILE_IMAGES = 32 << 20, 512
_SMALLEST, _FEW_FILES = 32, 8  # a small set is still cut into some files, so that all cores have something to decode
_ANSWER_S = 180.0  # a busy node may take a minute to start a process
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Filled:
    """What one task has decoded."""

    placed: list[Placed]
    seconds: float


@dataclass(frozen=True)
class Supply:
    """What a worker is handed. `cache` is None where images are decoded anew whenever they are asked for."""

    cache: PixelCache | None
    pixels: Preprocessing
    stores: Stores
    tables: dict[str, Any]  # ObjectRef of each split's rows, in id order
    found: tuple[Placed, ...]
    filling: tuple[Any, ...]  # ObjectRefs of Filled
    cores: int  # of all nodes

    def rows(self, split: str) -> pa.Table:
        """ROW_SCHEMA, in id order."""
        table: pa.Table = ray.get(self.tables[split])
        return table

    def filled(self) -> list[Filled]:
        """Wait for what is being decoded. Raises PlatformError where the store is out or a disk is full."""
        return [arrived(reference) for reference in self.filling]

    def placed(self) -> list[Placed]:
        """Where every image lies, those that cannot be used with the reason."""
        return [*self.found, *(placed for filled in self.filled() for placed in filled.placed)]

    def noted(self) -> Noted:
        """Of all images; nothing is known where they are streamed."""
        return Noted.of(placed.rows for placed in self.placed())

    def told(self) -> list[str]:
        """What a person is told once all is decoded."""
        filled = self.filled()
        if self.cache is None or not filled:
            return []
        images = sum(placed.rows.num_rows for one in filled for placed in one.placed)
        seconds = max(one.seconds for one in filled)
        return [f"decoded {images:,} images in {seconds:.1f} s"]


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
        raise PlatformError(f"a process that decodes images keeps dying: {last_line(error)}") from error
    if isinstance(result, LeukorayError):
        raise result
    return result


def supply(
    splits: dict[str, pa.Table],
    pixels: Preprocessing,
    stores: Stores,
    plan: ClusterPlan,
    cache: PixelCache | None,
) -> Supply:
    """Look at the caches, and begin to decode what they lack.

    `splits`: ROW_SCHEMA by SPLITS. `cache`: of each node; None: none. Raises PlatformError when images would
    have to be streamed and the plan leaves no room for a task that decodes, InputError when they lie in archives that
    cannot be read in any order.
    """
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    cores = max(1, sum(int(node.get("CPU", 0.0)) for node in nodes.values()))
    ordered = {name: table.sort_by("image_id").combine_chunks() for name, table in splits.items()}
    tables = {name: ray.put(table) for name, table in ordered.items()}
    wanted = pa.concat_tables(list(ordered.values())).combine_chunks()
    streamed = Supply(None, pixels, stores, tables, (), (), cores)
    if cache is None:
        print("images are decoded whenever they are needed (--cache none)", flush=True)
        return _checked_stream(streamed, wanted, plan, nodes)
    found, full = _look(cache, wanted, plan, nodes)
    if full is not None:
        print(f"no cache: {full}; images are decoded whenever they are needed (--cache, --cache-bytes)", flush=True)
        return _checked_stream(streamed, wanted, plan, nodes)
    known = [placed.rows["image_id"] for placed in found]
    ids = pa.chunked_array(known) if known else pa.chunked_array([[]], pa.int64())
    missing = wanted.filter(pc.invert(pc.is_in(wanted["image_id"], ids)))
    print(f"images: {len(ids):,} of {wanted.num_rows:,} decoded already, in {cache.root}", flush=True)
    filling = _fill(cache, chunks(missing, wanted.num_rows, pixels.size), stores, plan, nodes)
    return Supply(cache, pixels, stores, tables, tuple(found), tuple(filling), cores)


def _checked_stream(streamed: Supply, wanted: pa.Table, plan: ClusterPlan, nodes: dict[str, Any]) -> Supply:
    behind = wanted.filter(pc.equal(wanted["access"], Access.STREAM.value))
    if behind.num_rows:
        raise InputError(
            f"{behind['uri'][0].as_py()}: {behind.num_rows} images lie in compressed archives, which can only be read "
            "from their front, so they must be decoded into a cache once: give --cache a folder with room, or unpack"
        )
    check(replace(plan, beside_cpus=DECODE_CPUS), list(nodes.values()))
    return streamed


def _look(
    cache: PixelCache, wanted: pa.Table, plan: ClusterPlan, nodes: dict[str, Any]
) -> tuple[list[Placed], str | None]:
    """Each wanted image that lies on a node, once, own node first; and why a node has no room for the rest."""
    own = ray.get_runtime_context().get_node_id()
    keys = wanted.select(["image_id", "etag"])
    by_node = {own: survey(cache, keys, own)}
    others = [node for node in nodes if node != own]
    if others:
        reference = ray.put(keys)
        asked = {
            node: ray.remote(num_cpus=0, scheduling_strategy=on_node(node))(survey).remote(cache, reference, node)
            for node in others
        }
        for node, answer in asked.items():
            try:
                by_node[node] = ray.get(answer, timeout=_ANSWER_S)
            except (ray.exceptions.NodeDiedError, ray.exceptions.TaskUnschedulableError):
                continue
            except ray.exceptions.RayError as error:
                raise PlatformError(f"node {nodes[node]} cannot look into {cache.root}: {last_line(error)}") from error
    holds = [node for node in by_node if nodes[node].get("CPU", 0.0) >= plan.cpus_per_worker]
    full = next((why for node in holds if (why := by_node[node][1]) is not None), None)
    return _each_once([placed for found, _ in by_node.values() for placed in found]), full


def survey(cache: PixelCache, keys: pa.Table, node_id: str) -> tuple[list[Placed], str | None]:
    """What of the wanted images lies on this node, and why there is no room for the others. Runs on each node."""
    found = cache.find(keys, node_id)
    missing = keys.num_rows - sum(placed.rows.num_rows for placed in found)
    return found, cache.make_room(missing, [placed.name for placed in found])


def _each_once(placed: list[Placed]) -> list[Placed]:
    known = pa.array([], pa.int64())
    kept = []
    for one in placed:
        rows = one.rows.filter(pc.invert(pc.is_in(one.rows["image_id"], known)))
        if rows.num_rows:
            kept.append(Placed(one.name, one.node_id, rows))
            known = pa.concat_arrays([known, rows["image_id"].combine_chunks()])
    return kept


def chunks(missing: pa.Table, images: int, size: int) -> list[pa.Table]:
    """Rows for a file each, neighbours by place: near members of an archive are read together, new images lie together.

    Members of one compressed tar stay together, however many: it is read from its front. `images`: of the whole run,
    which decides how many make a file.
    """
    most = min(_most_images(size), max(_SMALLEST, -(-images // _FEW_FILES)))
    streamed = pc.equal(missing["access"], Access.STREAM.value)
    direct = missing.filter(pc.invert(streamed)).sort_by(
        [(name, "ascending") for name in ("uri", "offset", "image_id")]
    )
    behind = missing.filter(streamed)
    starts = range(0, direct.num_rows, most)
    parts = [direct.take(pa.array(range(at, min(at + most, direct.num_rows)))) for at in starts]
    return parts + [behind.filter(pc.equal(behind["uri"], uri)) for uri in pc.unique(behind["uri"]).to_pylist()]


def _most_images(size: int) -> int:
    """In one file, which is also what a task that decodes holds in memory."""
    return max(1, min(_FILE_BYTES // pixel_bytes(size), _FILE_IMAGES))


def _fill(
    cache: PixelCache, parts: Sequence[pa.Table], stores: Stores, plan: ClusterPlan, nodes: dict[str, Any]
) -> list[Any]:
    """Tasks that decode all parts, a lane a core; so small that the workers of the plan find room beside them."""
    lanes = [
        (node, max(0.0, min(DECODE_CPUS, (each["CPU"] - plan.cpus) / int(each["CPU"]))))
        for node, each in sorted(nodes.items())
        for _ in range(int(each.get("CPU", 0.0)))
    ]
    work: list[list[pa.Table]] = [[] for _ in lanes[: len(parts)]]
    for part in sorted(parts, key=lambda part: -part.num_rows):
        min(work, key=lambda given: sum(table.num_rows for table in given)).append(part)
    return [
        ray.remote(num_cpus=cpus, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True))(
            telling(fill)
        ).remote(cache, given, stores)
        for given, (node, cpus) in zip(work, _interleaved(lanes), strict=False)
    ]


def _interleaved(lanes: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """A lane of each node, then another of each: few parts are spread over the nodes too."""
    turns = {node: itertools.count() for node, _ in lanes}
    return sorted(lanes, key=lambda lane: (next(turns[lane[0]]), lane[0]))


def fill(cache: PixelCache, parts: Sequence[pa.Table], stores: Stores) -> Filled:
    """Decode rows into files of this node's cache. Runs as a task.

    What is there already is not decoded again: from another run meanwhile, or from a try of this task that was killed.
    """
    begin, node = time.monotonic(), ray.get_runtime_context().get_node_id()
    keys = ["image_id", "etag"]
    placed = cache.find(pa.concat_tables([part.select(keys) for part in parts]), node)
    known = pa.concat_arrays([pa.array([], pa.int64()), *(one.rows["image_id"].combine_chunks() for one in placed)])
    for part in parts:
        rest = part.filter(pc.invert(pc.is_in(part["image_id"], known)))
        fetched = fetch_while_up(read_rows(rest, ListingRow), stores, Limits())
        while batch := list(itertools.islice(fetched, _most_images(cache.pixels.size))):
            placed.append(cache.put(decode_fetched(batch, cache.pixels), node))
    return Filled(placed, time.monotonic() - begin)
