"""Images in this node's cache, mapped: any row at any time, checked when first taken."""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from pipeline.base.cluster import on_node
from pipeline.base.errors import PlatformError
from pipeline.training.batch import Batch, batch_of, read_ahead
from pipeline.training.cache import PixelCache, Placed
from pipeline.training.decoded import Noted, decode
from pipeline.training.pixel_file import PixelFile
from pipeline.training.supply import SPLITS, Supply


class HeldShard:
    """A split's usable images in id order, on every worker alike; `once` walks this worker's share of them."""

    def __init__(self, supply: Supply, split: str, here: "OwnFiles", rank: int, world: int) -> None:
        rows = supply.rows(split)
        ids = rows["image_id"].to_numpy()
        file, position, usable = here.find(ids)
        self._rows = rows.take(pa.array(np.flatnonzero(usable)))
        self._file, self._position = file[usable], position[usable]
        self.image_ids, self.targets = ids[usable], rows["target"].to_numpy()[usable]
        self._rank, self._world = rank, world
        self._here, self._supply = here, supply
        self._is_sound = np.zeros(len(self.image_ids), bool)
        self._mended: dict[int, NDArray[np.uint8]] = {}
        self._noted = here.noted(ids)

    def noted(self) -> Noted:
        return self._noted

    def batches(self, steps: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        return read_ahead(self._batch(rows) for rows in steps)

    def once(self, batch_size: int) -> Iterator[Batch]:
        own = np.arange(self._rank, len(self.image_ids), self._world)
        return self.batches([own[start : start + batch_size] for start in range(0, len(own), batch_size)])

    def _batch(self, rows: NDArray[np.int64]) -> Batch:
        def fill(images: NDArray[np.uint8]) -> None:
            for number, row in enumerate(rows.tolist()):
                images[number] = self._pixels(row)

        return batch_of(self._supply.pixels.size, self.targets[rows], self.image_ids[rows], fill)

    def _pixels(self, row: int) -> NDArray[np.uint8]:
        if row in self._mended:
            return self._mended[row]
        file, position = self._here.files[self._file[row]], int(self._position[row])
        if not self._is_sound[row]:
            if not file.is_sound(position):
                return self._mend(row, file)
            self._is_sound[row] = True
        pixels: NDArray[np.uint8] = file.images[position]
        return pixels

    def _mend(self, row: int, file: PixelFile) -> NDArray[np.uint8]:
        """Decode an image again whose pixels are not what was written. The next run decodes the whole file again."""
        self._here.cache.discard(os.path.basename(file.path))
        again = decode(self._rows.slice(row, 1), self._supply.pixels, self._supply.stores)
        _refuse_loss(again.notes, file.path)
        self._mended[row] = again.images[0]
        return self._mended[row]


@dataclass(frozen=True)
class OwnFiles:
    """What of a supply lies on this node: files, and for each image the number of its file and its place in it."""

    cache: PixelCache
    files: list[PixelFile]
    image_ids: NDArray[np.int64]  # (N,), ascending
    file: NDArray[np.int32]  # (N,)
    position: NDArray[np.int32]  # (N,)
    notes: pa.Table  # NOTE_FIELDS, (N,)

    @classmethod
    def gather(cls, supply: Supply) -> "OwnFiles":
        """Have every file of a supply on this node, copied from another or decoded anew where it is not to be had.

        Raises PlatformError where neither is possible.
        """
        assert supply.cache is not None, "a supply that is streamed has no files"
        placed = supply.placed()
        files, tables = list[PixelFile](), list[pa.Table]()
        for one, file, rows in _opened(supply, placed):
            tables.append(
                one.rows.set_column(
                    one.rows.column_names.index("position"), "position", pa.array(rows, pa.int32())
                ).append_column("file", pa.array(np.full(len(rows), len(files)), pa.int32()))
            )
            files.append(file)
        table = pa.concat_tables(tables).sort_by("image_id")
        ids, file, position = (table[name].to_numpy() for name in ("image_id", "file", "position"))
        return cls(supply.cache, files, ids, file, position, table)

    def find(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]:
        """File, position and whether it is usable, of each of these images."""
        at = np.searchsorted(self.image_ids, ids)
        usable = pc.is_null(self.notes["code"]).to_numpy()[at]
        return self.file[at], self.position[at], usable

    def noted(self, ids: NDArray[np.int64]) -> Noted:
        return Noted.of([self.notes.take(pa.array(np.searchsorted(self.image_ids, ids)))])


def _opened(supply: Supply, placed: Sequence[Placed]) -> Iterator[tuple[Placed, PixelFile, NDArray[np.int32]]]:
    """Each with its file on this node, and where in it its rows lie."""
    cache, own = supply.cache, ray.get_runtime_context().get_node_id()
    assert cache is not None
    for one in placed:
        found = cache.held(one)
        if found is None:
            with _alone(cache):  # one worker of a node copies, the others find it
                found = cache.held(one)
                if found is None and one.node_id != own and _copied(cache, one):
                    found = cache.held(one)
                if found is None:
                    found = _again(supply, one)
        yield one, *found


@contextlib.contextmanager
def _alone(cache: PixelCache) -> Iterator[None]:
    """One process of this node at a time; the kernel frees the lock of one that was killed.

    Raises PlatformError where the cache is not to be written to.
    """
    with contextlib.ExitStack() as opened:
        try:
            cache.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = opened.enter_context(open(cache.folder / "lock", "ab"))
        except OSError as error:
            raise PlatformError(
                f"{cache.folder}: a file is missing or not whole, and cannot be made anew ({error.strerror or error}); "
                "give --cache a folder of your own"
            ) from error
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _copied(cache: PixelCache, one: Placed) -> bool:
    """Copy a file from the node it lies on; False where that node, or the file, is gone."""
    read: Any = ray.remote(num_cpus=0, scheduling_strategy=on_node(one.node_id))(_bytes_of)
    try:
        data = ray.get(read.remote(cache.path(one.name)))
    except ray.exceptions.RayError:
        return False
    if data is not None:
        cache.copy(one.name, data)
    return data is not None


def _bytes_of(path: str) -> bytes | None:
    """Runs on another node."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def _again(supply: Supply, one: Placed) -> tuple[PixelFile, NDArray[np.int32]]:
    """Decode the usable images of a file that is nowhere to be had, into another file.

    What all workers took for usable must stay so, or their steps would differ.
    """
    assert supply.cache is not None
    supply.cache.discard(one.name)
    usable = one.rows.filter(pc.is_null(one.rows["code"]))["image_id"]
    tables = [table.filter(pc.is_in(table["image_id"], usable.combine_chunks())) for table in map(supply.rows, SPLITS)]
    again = decode(pa.concat_tables(tables), supply.pixels, supply.stores)
    _refuse_loss(again.notes, supply.cache.path(one.name))
    made = supply.cache.put(again, one.node_id)
    ids = made.rows["image_id"].to_numpy()
    return supply.cache.open(made.name), np.searchsorted(ids, one.rows["image_id"].to_numpy()).astype(np.int32)


def _refuse_loss(notes: pa.Table, path: str) -> None:
    bad = notes.filter(pc.is_valid(notes["code"]))
    if bad.num_rows:
        raise PlatformError(
            f"{path}: was damaged while the run used it, and its images can no longer be read from their source "
            f"({bad['message'][0].as_py()}); run the same command again"
        )
