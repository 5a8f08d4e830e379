"""What a network with frozen features makes of images: computed once on Ray, kept on disk for all later runs.

    <home>/<key>/<digest>.features      float32 (N, 4, D): of some hundreds of images in four turns by quarters

`key` is of the pixels' rules and the graph, so other starting weights have other features. ONNX Runtime computes them,
three times as fast as PyTorch on a core. No torch here: the processes that compute would wait three seconds for it.
"""

import itertools
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.base.cluster import alive_nodes, refuse_dead_node
from pipeline.base.errors import Code
from pipeline.base.resources import ClusterPlan, check
from pipeline.base.text import human_time
from pipeline.images.load import Preprocessing
from pipeline.model.turns import Turns, turned
from pipeline.storage.shared import refuse_unshared, spaced
from pipeline.storage.stores import Stores
from pipeline.training.cache import ImageCache, PixelCache, Placed
from pipeline.training.decoded import DECODED_SCHEMA, Decoded, Noted, decode
from pipeline.training.filling import arrived, chunks, telling
from pipeline.training.pixel_file import Item
from pipeline.training.supply import Supply, supply

QUARTERS: Turns = 4  # turns of an image that are kept together; mirrored ones, which few ask for, in files of their own
_BATCH = 16  # images at once: larger batches are no faster on a core and leave its cache
_AHEAD = 2  # tasks a core that are handed out: results wait in Ray's memory until they are taken
_LOOK_S = 5.0
_TELL_EVERY_S = 15.0
_KNOWN_FROM = 0.05  # share of the images by which the rest is foretold


@dataclass(frozen=True)
class FeatureCache(ImageCache):
    """Features of images in four turns, mirrored first or not, by one graph."""

    root: str
    pixels: str  # key of the pixels' cache
    graph: str  # SHA-256
    width: int
    mirrored: bool
    max_bytes: int | None = None
    suffix: ClassVar[str] = ".features"

    @property
    def key(self) -> str:
        deciding = [self.pixels, self.graph, f"mirrored {self.mirrored}", f"onnxruntime {onnxruntime.__version__}"]
        return sha256("\0".join(deciding).encode()).hexdigest()[:24]

    @property
    def item(self) -> Item:
        return Item((QUARTERS, self.width), np.float32)


@dataclass(frozen=True)
class Network:
    """A graph of uint8 NHWC images -> float32 (B, width)."""

    graph: bytes
    width: int


@dataclass(frozen=True)
class Features:
    """Of the usable images among those asked for, in id order."""

    asked: NDArray[np.int64]  # ids, ascending
    image_ids: NDArray[np.int64]  # (N,)
    values: NDArray[np.float32]  # (N, turns, D), turns in the order of `turned`
    noted: Noted  # of all that were asked for

    def of(self, image_ids: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Which of these images are usable, and the features of those."""
        at = np.searchsorted(self.image_ids, image_ids)
        usable = np.isin(image_ids, self.image_ids)
        return usable, self.values[at[usable]]


@dataclass(frozen=True)
class FeatureSource:
    """Where features come from. `cache`: of pixels, beside which they are kept; None: nothing is kept.

    `connect`: joins Ray, which is asked for only where something is not there yet.
    """

    network: Network
    pixels: Preprocessing
    stores: Stores
    cache: PixelCache | None
    connect: Callable[[], AbstractContextManager[Any]]

    def take(self, rows: pa.Table, turns: int) -> Features:
        """Features of rows (ROW_SCHEMA) in at least so many turns, at most eight.

        Raises PlatformError where the store is out, a disk is full or processes keep dying, InputError where images
        lie in archives that cannot be read in any order and there is no cache to decode them into.
        """
        ordered = rows.sort_by("image_id").combine_chunks()
        taken = _Taken.empty(ordered, -(-turns // QUARTERS), self.network.width)
        caches = [self._cache(half == 1) for half in range(taken.halves)]
        for half, cache in enumerate(caches):
            if cache is not None:
                taken.find(half, cache)
        lacking = [half for half in range(taken.halves) if not taken.done[half].all()]
        count = ordered.num_rows
        print(f"features: {int(taken.done.all(axis=0).sum()):,} of {count:,} images kept from before", flush=True)
        if lacking:
            missing = ordered.filter(pa.array(~taken.done.all(axis=0)))
            keep = [(half, cache) for half in lacking if (cache := _with_room(caches[half], missing.num_rows, taken))]
            with self.connect() as joined:
                for part in _told(_computed(joined, missing, self, lacking), missing.num_rows):
                    for number, half in enumerate(lacking):
                        taken.add(half, part.notes, part.values[:, number])
                    for half, cache in keep:
                        cache.keep(part.notes, part.values[:, lacking.index(half)], "")
        return taken.features()

    def _cache(self, mirrored: bool) -> FeatureCache | None:
        if self.cache is None:
            return None
        graph = sha256(self.network.graph).hexdigest()
        return FeatureCache(self.cache.root, self.cache.key, graph, self.network.width, mirrored, self.cache.max_bytes)


@dataclass
class _Taken:
    """Features that are being gathered, of `halves` times four turns."""

    keys: pa.Table  # image_id and etag, in id order
    image_ids: NDArray[np.int64]
    values: NDArray[np.float32]  # (N, halves * 4, D)
    done: NDArray[np.bool_]  # (halves, N)
    notes: list[pa.Table]
    files: list[str]  # of caches, in use

    @classmethod
    def empty(cls, rows: pa.Table, halves: int, width: int) -> "_Taken":
        ids = rows["image_id"].to_numpy()
        values = np.zeros((len(ids), halves * QUARTERS, width), np.float32)
        return cls(rows.select(["image_id", "etag"]), ids, values, np.zeros((halves, len(ids)), bool), [], [])

    @property
    def halves(self) -> int:
        return len(self.done)

    def find(self, half: int, cache: FeatureCache) -> None:
        """Take what the cache has. A file with any array that is not what was written is removed."""
        for placed in cache.find(self.keys, ""):
            found = cache.held(placed)
            if found is not None and all(found[0].is_sound(position) for position in found[1].tolist()):
                file, positions = found
                self.add(half, placed.rows, file.images[positions])
                self.files.append(placed.name)
            else:
                cache.discard(placed.name)

    def add(self, half: int, notes: pa.Table, values: NDArray[np.float32]) -> None:
        """Values (n, 4, D) with NOTE_FIELDS of them."""
        at = np.searchsorted(self.image_ids, notes["image_id"].to_numpy())
        self.values[at, half * QUARTERS : (half + 1) * QUARTERS] = values
        self.done[half, at] = True
        self.notes.append(notes)

    def features(self) -> Features:
        noted = Noted.union(len(self.image_ids), [Noted.of([table]) for table in self.notes])
        lost = [number for number, note in noted.notes.items() if note.code is not None]
        if not lost:  # a copy of all would be as large again
            return Features(self.image_ids, self.image_ids, self.values, noted)
        usable = ~np.isin(self.image_ids, np.array(lost, np.int64))
        return Features(self.image_ids, self.image_ids[usable], self.values[usable], noted)


def _with_room(cache: FeatureCache | None, images: int, taken: _Taken) -> FeatureCache | None:
    if cache is None:
        return None
    full = cache.make_room(images, taken.files)
    if full is not None:
        print(f"features are not kept: {full} (--cache, --cache-bytes)", flush=True)
    return cache if full is None else None


@dataclass(frozen=True)
class Extracted:
    """What one task computed."""

    notes: pa.Table  # DECODED_SCHEMA
    values: NDArray[np.float32]  # (N, halves, 4, D); zeros where there is nothing to be had


def _computed(joined: Any, missing: pa.Table, source: FeatureSource, halves: Sequence[int]) -> Iterator[Extracted]:
    """Each missing image once, as tasks give them."""
    nodes = alive_nodes(joined)
    plan = ClusterPlan("features", 1, 1.0, remedy="give --num-cpus 1 or more")
    check(plan, nodes)
    refuse_unshared(ray, source.stores, (missing["uri"][index].as_py() for index in spaced(missing.num_rows)))
    nothing = missing.slice(0, 0)
    made = supply({"train": missing, "validation": nothing}, source.pixels, source.stores, plan, source.cache)
    network, task = ray.put(source.network), ray.remote(num_cpus=1)(telling(extract))
    filling, running = list(made.filling), list[Any]()
    waiting = deque(_parts(missing, made))
    while waiting or running or filling:
        while waiting and len(running) < _AHEAD * made.cores:
            rows, placed = waiting.popleft()
            where = task if placed is None else task.options(scheduling_strategy=_near(placed))
            running.append(where.remote(network, rows, placed, made.cache, source.pixels, source.stores, halves))
        ready, _ = ray.wait([*running, *filling], num_returns=1, timeout=_LOOK_S)
        if not ready:
            refuse_dead_node(ray)
        for reference in ready:
            result = arrived(reference)
            if reference in filling:
                filling.remove(reference)
                waiting.extend((_only(missing, placed), placed) for placed in result.placed)
            else:
                running.remove(reference)
                yield result


def _parts(missing: pa.Table, made: Supply) -> list[tuple[pa.Table, Placed | None]]:
    """What can be computed at once: files that are there, or rows where nothing is kept."""
    if made.cache is None:
        return [(part, None) for part in chunks(missing, missing.num_rows, made.pixels.size)]
    return [(_only(missing, placed), placed) for placed in made.found]


def _only(rows: pa.Table, placed: Placed) -> pa.Table:
    return rows.filter(pc.is_in(rows["image_id"], placed.rows["image_id"].combine_chunks()))


def _near(placed: Placed) -> Any:
    return NodeAffinitySchedulingStrategy(placed.node_id, soft=True)


def extract(
    network: Network,
    rows: pa.Table,
    placed: Placed | None,
    cache: PixelCache | None,
    pixels: Preprocessing,
    stores: Stores,
    halves: Collection[int],
) -> Extracted:
    """Features of rows, whose pixels lie in `placed`; where that is not to be had here, they are decoded. A task."""
    decoded = _decoded(rows, placed, cache, pixels, stores)
    usable = np.flatnonzero(pc.is_null(decoded.notes["code"]).to_numpy(zero_copy_only=False))
    values = np.zeros((len(decoded.images), len(halves), QUARTERS, network.width), np.float32)
    session = session_of(network.graph)
    for start, (number, half) in itertools.product(range(0, len(usable), _BATCH), enumerate(halves)):
        chosen = usable[start : start + _BATCH]
        images = decoded.images[chosen]
        for turn, seen in enumerate(turned(images[:, :, ::-1] if half else images, QUARTERS)):
            values[chosen, number, turn] = session.run(None, {"images": seen})[0]
    return Extracted(_without_odd(decoded.notes, values), values)


def kept_turns(turns: int) -> int:
    """How many turns `FeatureSource.take` gives of an image that is asked for in so many."""
    return -(-turns // QUARTERS) * QUARTERS


def seconds_an_image(network: Network, size: int, turns: int) -> float:
    """Of one core, on black images of `size` pixels."""
    session, images = session_of(network.graph), np.zeros((_BATCH, size, size, 3), np.uint8)
    began = time.perf_counter()
    for _ in range(2):  # the first is warm-up
        began = time.perf_counter()
        session.run(None, {"images": images})
    return (time.perf_counter() - began) / _BATCH * turns


def session_of(graph: bytes, threads: int = 1) -> Any:
    """ONNX Runtime on CPUs; `threads` 0: all cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _decoded(
    rows: pa.Table, placed: Placed | None, cache: PixelCache | None, pixels: Preprocessing, stores: Stores
) -> Decoded:
    found = cache.held(placed) if cache is not None and placed is not None else None
    if found is None:
        return decode(rows, pixels, stores)
    file, positions = found
    if not all(file.is_sound(position) for position in positions.tolist()):
        assert cache is not None and placed is not None
        cache.discard(placed.name)
        return decode(rows, pixels, stores)
    notes = file.header.take(pa.array(positions)).select(DECODED_SCHEMA.names).cast(DECODED_SCHEMA)
    return Decoded(notes, file.images[positions])


def _without_odd(notes: pa.Table, values: NDArray[np.float32]) -> pa.Table:
    """Notes in which images are not usable of which the network makes what is no number; their values become zeros."""
    odd = ~np.isfinite(values).all(axis=(1, 2, 3))
    if not odd.any():
        return notes
    values[odd] = 0.0
    changed = notes
    for name, said in (("code", Code.PREDICT_FAILED.value), ("message", "its features are not finite")):
        column = pc.if_else(pa.array(odd), pa.scalar(said), notes[name].combine_chunks())
        changed = changed.set_column(changed.column_names.index(name), DECODED_SCHEMA.field(name), column)
    return changed


def _told(parts: Iterator[Extracted], images: int) -> Iterator[Extracted]:
    """The parts; a person is told how far they are."""
    began = next_at = time.monotonic()
    next_at += _TELL_EVERY_S
    done = 0
    for part in parts:
        yield part
        done += part.notes.num_rows
        seconds = time.monotonic() - began
        if done < images and time.monotonic() >= next_at:
            next_at = time.monotonic() + _TELL_EVERY_S
            told = f"features of {done:,} of {images:,} images, {done / seconds:.0f} images/s"
            is_known = done >= _KNOWN_FROM * images  # decoding comes before the first
            print(f"{told}  left {human_time(seconds * (images - done) / done)}" if is_known else told, flush=True)
    print(f"features of {images:,} images in {human_time(time.monotonic() - began)}", flush=True)
