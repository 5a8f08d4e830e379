"""Decoded images on a node's own disk, for all runs: epochs, seeds, folds and workers map the same files.

    <root>/leukoray-cache/              all that is ours; nothing beside it is ever touched
        <key>/<digest>.pixels           some hundreds of images each; `key`: of all that decides a pixel
        <key>/<digest>.features         what a network makes of them, as `features` keeps it
        <what>/<digest>.onnx, ...       what takes seconds to make, as `kept` keeps it

Which run, split or seed an image was decoded for is not in it: an image is found by its id and the version (etag) of
the object it was read from, in whichever file it lies. What is not whole is removed, never believed. Files that were
not used for longest leave when there is no more room; a run that has one mapped keeps it until it ends.
"""

import abc
import contextlib
import functools
import hashlib
import importlib.metadata
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.base.errors import PlatformError
from pipeline.images.load import Preprocessing
from pipeline.training.decoded import Decoded
from pipeline.training.pixel_file import (
    NOTE_FIELDS,
    TEMPORARY,
    Item,
    PixelFile,
    UntrustedError,
    open_pixels,
    read_header,
    write_copy,
    write_pixels,
)

# Their versions decide pixels and which formats are read; null where one is not installed.
_DECODERS = ("pillow", "simplejpeg", "pydicom", "pyjpegls", "pylibjpeg", "pylibjpeg-openjpeg", "pillow-heif")
_DISK_SHARE = 0.5  # of the disk's free bytes and those of the cache itself
_HEADER_SHARE = 1.05  # a file's bytes by those of its pixels, at most
_ABANDONED_S = 24 * 3600.0  # what was being written so long ago belongs to nobody any more
_USED_LATELY_S = 120.0  # a run that has chosen a file may not have mapped it yet
OWN = "leukoray-cache"  # `root` is whatever folder somebody gives, with files of theirs
_NAME = re.compile(  # of the files that we write
    rf"[0-9a-f]{{24,32}}(-[0-9a-f]{{12}})?\.(pixels|features|onnx|json|safetensors)"
    rf"(?P<temporary>{re.escape(TEMPORARY)}[0-9a-f]{{12}})?"
)
PLACED_SCHEMA = pa.schema([*NOTE_FIELDS, pa.field("position", pa.int32(), nullable=False)])


@dataclass(frozen=True)
class Placed:
    """Images of a run that lie in one file of one node."""

    name: str
    node_id: str
    rows: pa.Table  # PLACED_SCHEMA


def default_root() -> str:
    """`$XDG_CACHE_HOME/leukoray/pixels`, by the XDG Base Directory Specification 0.8."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return str((Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "leukoray" / "pixels")


class ImageCache(abc.ABC):
    """Something of each image on one node, at the same path on each.

    `max_bytes` of all our files below `root`, whatever their key; None: half of what is free.
    """

    root: str
    max_bytes: int | None
    suffix: ClassVar[str]

    @property
    @abc.abstractmethod
    def key(self) -> str:
        """Of all that decides what is kept of an image with its bytes."""

    @property
    @abc.abstractmethod
    def item(self) -> Item: ...

    @property
    def home(self) -> Path:
        """Below the root, of all that is ours."""
        return Path(self.root) / OWN

    @property
    def folder(self) -> Path:
        return self.home / self.key

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def open(self, name: str) -> PixelFile:
        """Raises UntrustedError for a file that is not whole, OSError for one that is not there."""
        return open_pixels(self.path(name), self.key, self.item)

    def held(self, one: Placed) -> tuple[PixelFile, NDArray[np.int32]] | None:
        """The file of `one` and where in it its rows lie, where it holds what was promised; None where it does not."""
        try:
            file = self.open(one.name)
        except (UntrustedError, OSError, pa.ArrowInvalid):
            return None
        positions: NDArray[np.int32] = one.rows["position"].to_numpy()
        if len(positions) and positions.max() >= file.header.num_rows:
            return None
        promised, there = one.rows, file.header.take(one.rows["position"].combine_chunks())
        if not all(promised[name].equals(there[name]) for name in ("image_id", "code")):
            return None
        return file, positions

    def find(self, wanted: pa.Table, node_id: str) -> list[Placed]:
        """Those of the wanted images, `image_id` and `etag`, that lie here, each once; their files count as used now.

        Files that are not whole are removed on the way.
        """
        if not self.folder.is_dir():
            return []
        names, tables = list[str](), list[pa.Table]()
        for name, header in self._headers():
            names.append(name)
            positions = pa.array(np.arange(header.num_rows), pa.int32())
            number = pa.array(np.full(header.num_rows, len(tables)), pa.int32())
            table = header.append_column("position", positions).append_column("file", number)
            tables.append(table.filter(table["lasting"]))
        if not tables:
            return []
        keys = ["image_id", "etag"]
        found = pa.concat_tables(tables).join(wanted.select(keys).combine_chunks(), keys, join_type="left semi")
        found = found.sort_by([("image_id", "ascending"), ("file", "ascending"), ("position", "ascending")])
        found = found.take(pa.array(np.unique(found["image_id"].to_numpy(), return_index=True)[1]))
        placed = []
        for number in pc.unique(found["file"]).to_pylist():
            rows = (
                found.filter(pc.equal(found["file"], number))
                .select(PLACED_SCHEMA.names)
                .cast(PLACED_SCHEMA)
                .combine_chunks()
            )
            placed.append(Placed(names[number], node_id, rows))
            self._touch(names[number])
        return placed

    def written(self, images: pa.Table, node_id: str) -> Placed | None:
        """The file that `put` made here of just these images, `image_id` and `etag`; it counts as used now."""
        ordered = images.sort_by("image_id")
        name = _name(ordered["image_id"].to_pylist(), ordered["etag"].to_pylist()) + self.suffix
        header = self._header(name)
        if header is None:
            return None
        self._touch(name)
        return self._placed(name, node_id, header)

    def _headers(self) -> Iterator[tuple[str, pa.Table]]:
        for file in sorted(self.folder.glob(f"*{self.suffix}")):
            if (header := self._header(file.name)) is not None:
                yield file.name, header

    def _header(self, name: str) -> pa.Table | None:
        """None where there is no such file, or none that can be read; one that is not whole is removed."""
        try:
            return read_header(self.path(name), self.key, self.item)
        except (UntrustedError, pa.ArrowInvalid):
            self.discard(name)
        except OSError:
            pass  # evicted meanwhile, or not to be read: as good as not there
        return None

    def _touch(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.utime(self.path(name))

    def _placed(self, name: str, node_id: str, notes: pa.Table) -> Placed:
        """Of all images of a file, NOTE_FIELDS among the columns."""
        table = notes.append_column("position", pa.array(np.arange(notes.num_rows), pa.int32()))
        return Placed(name, node_id, table.select(PLACED_SCHEMA.names).cast(PLACED_SCHEMA))

    def keep(self, notes: pa.Table, images: NDArray[Any], node_id: str) -> Placed:
        """Write a file of `images`, an `item` each, and `notes` of them, DECODED_SCHEMA.

        Raises PlatformError where the disk does not take it.
        """
        name = _name(notes["image_id"].to_pylist(), notes["etag"].to_pylist())
        if not pc.all(notes["lasting"]).as_py():  # another run may see other images of it: the files must not meet
            name = f"{name}-{os.urandom(6).hex()}"
        name += self.suffix
        with self._writing(name):
            write_pixels(self.path(name), self.key, notes, images)
        return self._placed(name, node_id, notes)

    def copy(self, name: str, data: bytes) -> None:
        """Keep the bytes of a file of another node. Raises PlatformError where the disk does not take it."""
        with self._writing(name):
            write_copy(self.path(name), data)

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise PlatformError(
                f"{self.path(name)}: cannot be kept ({error.strerror or error}); give --cache a folder "
                "on a disk with room, or none"
            ) from error

    def discard(self, name: str) -> None:
        """Remove a file; who has it mapped keeps what is mapped."""
        with contextlib.suppress(OSError):
            os.unlink(self.path(name))

    def make_room(self, images: int, kept: Collection[str]) -> str | None:
        """Have room for so many images beside the files `kept`, by removing what was not used for longest.

        None when there is; else why there is not, for a person, and then nothing is removed.
        """
        return self.make_room_for(int(images * self.item.size_bytes * _HEADER_SHARE), kept)

    def make_room_for(self, need: int, kept: Collection[str] = ()) -> str | None:
        """As `make_room`, for so many bytes."""
        if need == 0:
            return None
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK | os.X_OK):
                return f"{self.folder} is not to be written to"
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            return f"{self.folder} cannot be made ({error.strerror or error})"
        files = sorted(_files(self.home), key=lambda file: file.used)
        held = sum(file.size for file in files)
        limit = self.max_bytes if self.max_bytes is not None else int((free + held) * _DISK_SHARE)
        mine = {self.path(name) for name in kept}
        lately = time.time() - _USED_LATELY_S
        leaving = [file for file in files if file.path not in mine and file.used < lately]
        spare = sum(file.size for file in leaving)
        if held - spare + need > limit or need > free + spare:
            return f"{need / 1e6:,.1f} MB of decoded images, room for {max(0, limit - held + spare) / 1e6:,.1f} MB"
        for file in leaving:
            if held + need <= limit and need <= free:
                break
            with contextlib.suppress(OSError):
                os.unlink(file.path)
            held, free = held - file.size, free + file.size
        return None


@dataclass(frozen=True)
class PixelCache(ImageCache):
    """Decoded images."""

    root: str
    pixels: Preprocessing
    max_bytes: int | None = None
    suffix: ClassVar[str] = ".pixels"

    @property
    def key(self) -> str:
        versions = [f"{name} {_version(name)}" for name in _DECODERS]
        deciding = [self.pixels.digest(), f"opencv {cv2.__version__}", *versions]
        return hashlib.sha256("\0".join(deciding).encode()).hexdigest()[:24]

    @property
    def item(self) -> Item:
        return Item.pixels(self.pixels.size)

    def put(self, decoded: Decoded, node_id: str) -> Placed:
        """Write a file of decoded images. Raises PlatformError where the disk does not take it."""
        return self.keep(decoded.notes, decoded.images, node_id)


@dataclass(frozen=True)
class _File:
    path: str
    size: int
    used: float  # seconds since 1970


def _files(home: Path) -> Iterator[_File]:
    """All that we wrote, whatever its key. What was left half-written long ago is removed."""
    for path in home.glob("*/*"):
        named = _NAME.fullmatch(path.name)
        if named is None:
            continue
        try:
            stat = path.stat()
            if named["temporary"] is None:
                yield _File(str(path), stat.st_size, stat.st_mtime)
            elif stat.st_mtime < time.time() - _ABANDONED_S:
                path.unlink()
        except OSError:
            continue


def _name(image_ids: Sequence[int], etags: Sequence[str]) -> str:
    lines = (f"{number} {etag}" for number, etag in zip(image_ids, etags, strict=True))
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


@functools.cache  # the key is asked for with every file, and each of these reads a file of its own
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
