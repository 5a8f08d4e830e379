"""The pixels of a run: found in the nodes' caches, or decoded into them while the workers start.

`supply` returns at once. Ray Data decodes what no node holds, into the cache of whichever node a block comes to;
workers get the `Supply`, wait for what is still under way, and copy from other nodes what their own lacks. Where a node
that may hold workers has no room, nothing is kept, and workers stream.
"""

from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from pipeline.base.cluster import on_node
from pipeline.base.errors import InputError, PlatformError
from pipeline.base.resources import DECODE_CPUS, ClusterPlan, check
from pipeline.base.text import last_line
from pipeline.images.load import Preprocessing
from pipeline.sources.rows import Access
from pipeline.storage.stores import Stores
from pipeline.training.cache import PixelCache, Placed
from pipeline.training.decoded import Noted
from pipeline.training.filling import Filled, Lanes, arrived, fill_caches, telling

_ANSWER_S = 180.0  # a busy node may take a minute to start a process
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Supply:
    """What a worker is handed. `cache` is None where images are decoded anew whenever they are asked for."""

    cache: PixelCache | None
    pixels: Preprocessing
    stores: Stores
    tables: dict[str, Any]  # ObjectRef of each split's rows, in id order
    found: tuple[Placed, ...]
    filling: tuple[Any, ...]  # ObjectRef of Filled, where something is missing
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
    filling = _begin(cache, missing, wanted.num_rows, stores, plan, nodes)
    return Supply(cache, pixels, stores, tables, tuple(found), filling, cores)


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


def _begin(
    cache: PixelCache, missing: pa.Table, images: int, stores: Stores, plan: ClusterPlan, nodes: dict[str, Any]
) -> tuple[Any, ...]:
    """The task that has Ray Data decode what is missing; none where nothing is."""
    if not missing.num_rows:
        return ()
    own = ray.get_runtime_context().get_node_id()
    task = ray.remote(num_cpus=0, scheduling_strategy=on_node(own))(telling(fill_caches))
    return (task.remote(cache, missing, images, stores, _lanes(plan, nodes)),)


def _lanes(plan: ClusterPlan, nodes: dict[str, Any]) -> Lanes:
    """One a core; so small that the workers of the plan find room beside them, wherever Ray puts them."""
    sizes = {node: each.get("CPU", 0.0) for node, each in nodes.items()}
    free = [(size - plan.cpus) / int(size) for size in sizes.values() if size >= 1.0]
    cpus = max(0.0, min([DECODE_CPUS, *free]))
    without = [node for node, size in sizes.items() if size < 1.0]
    labels = {"ray.io/node-id": f"!in({','.join(without)})"} if without else {}
    return Lanes(max(1, sum(map(int, sizes.values()))), cpus, labels)
