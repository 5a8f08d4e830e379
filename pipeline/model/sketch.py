"""What a bundle remembers of the images that made it: hashes of their bytes and of their looks, no pixels.

Of the bytes a keyed BLAKE2b. Of the looks on which side of random planes the key of `images.likeness` lies (Charikar
2002, 'Similarity estimation techniques from rounding algorithms'): similar images differ in few bits. Key and planes
come from a salt that lies in the file, so hashes of two bundles cannot be compared as they are; but whoever has the
bundle and an image can ask whether it was among those of training. That is what it is for.
"""

import hashlib
import io
import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.base.errors import InputError
from pipeline.base.text import first_line
from pipeline.base.versions import check_version
from pipeline.images.likeness import KEY_LENGTH, Floats, keys, small_picture
from pipeline.model.bundle import SKETCH, Bundle
from pipeline.storage.parquet import to_parquet
from pipeline.storage.uris import join

SKETCH_VERSION = 1
Part = Literal["train", "validation"]  # learned from; chosen by: epoch, temperature, threshold
PARTS: tuple[Part, ...] = ("train", "validation")
How = Literal["bytes", "looks"]
BITS = 256  # of a hash of looks
# Bits in which images of one look may differ. Copies that were saved anew, resized or turned differ in 15 at most,
# different cells of the sets tried in 44 and more: docs/evaluate.md has the shares.
ALIKE = 30
_HASH_BYTES = 8
# Bytes at each end of a file whose hash is compared first: to hash all of every file takes 3 % of the time of scoring
_END_BYTES = 2048
_METADATA = b"leukoray.sketch"
_SCHEMA = pa.schema(
    [
        pa.field("part", pa.string(), nullable=False),
        pa.field("ends", pa.binary(_HASH_BYTES), nullable=False),
        pa.field("bytes", pa.binary(_HASH_BYTES), nullable=False),
        pa.field("looks", pa.binary(BITS // 8)),  # null for a plain sheet, which looks like any other
    ]
)
# A few images have no mean and spread of their own to speak of: so many of usual spread count beside them.
_BESIDE, _USUAL_SPREAD = 10, 0.05
_ONES = np.array([number.bit_count() for number in range(1 << 16)], np.uint8)


@dataclass(frozen=True, slots=True)
class Met:
    """An image that took part in making the model, and how that is known."""

    part: Part
    how: How  # its bytes are the same, or it looks the same


Entry = tuple[bytes, bytes, bytes | None]  # hashes of a file's ends, of its bytes, of its looks


@dataclass(frozen=True)
class Trace:
    """What a sketch is made of, of one image."""

    part: Part
    data: bytes
    key: Floats  # (KEY_LENGTH,), of `likeness.keys`


def key_of(pixels: NDArray[np.uint8]) -> Floats:
    """Of decoded pixels, uint8 (S, S, 3), RGB, the key of their looks: float32 (KEY_LENGTH,), NaN for a plain sheet."""
    found: Floats = keys(small_picture(pixels)[None])[0]
    return found


class Sketch:
    """Asked of an image, says whether it was among those that made the model."""

    def __init__(
        self, salt: bytes, centre: Floats, spread: Floats, parts: Sequence[Part], ends: Sequence[bytes],
        hashes: Sequence[bytes], looks: Sequence[bytes | None],
    ) -> None:  # fmt: skip
        self._salt, self._centre, self._spread = salt, centre, spread
        self._planes = _planes(salt)
        self._rows = list(zip(parts, ends, hashes, looks, strict=True))
        self._ends = frozenset(ends)
        self._by_bytes = {value: part for part, value in sorted(zip(parts, hashes, strict=True), reverse=True)}
        seen = [(part, code) for part, code in zip(parts, looks, strict=True) if code is not None]
        self._looking = [part for part, _ in seen]
        packed = b"".join(code for _, code in seen)
        self._codes = np.frombuffer(packed, np.uint16).reshape(len(seen), BITS // 16)

    def __len__(self) -> int:
        return len(self._rows)

    def count(self, part: Part) -> int:
        """Images of a part."""
        return sum(row[0] == part for row in self._rows)

    def by_bytes(self, data: bytes) -> Met | None:
        """By encoded bytes alone; where an image is in both parts, train."""
        if _hash_of_ends(data, self._salt) not in self._ends:
            return None
        part = self._by_bytes.get(_hash(data, self._salt))
        return None if part is None else Met(part, "bytes")

    def by_looks(self, pixels: NDArray[np.uint8]) -> Met | None:
        """By decoded pixels, uint8 (S, S, 3), RGB, of the model's size; of those that look alike the nearest."""
        if not len(self._codes):
            return None
        code = _coded(key_of(pixels)[None], self._centre, self._spread, self._planes)[0]
        if code is None:
            return None
        differ = _ONES[self._codes ^ np.frombuffer(code, np.uint16)].sum(axis=1, dtype=np.int64)  # (N,)
        nearest = int(differ.argmin())
        return Met(self._looking[nearest], "looks") if differ[nearest] <= ALIKE else None

    def entry(self, data: bytes, pixels: NDArray[np.uint8]) -> Entry:
        """What would be kept of an image: encoded bytes, and pixels of the model's size."""
        code = _coded(key_of(pixels)[None], self._centre, self._spread, self._planes)[0]
        return _hash_of_ends(data, self._salt), _hash(data, self._salt), code

    def extended(self, part: Part, entries: Sequence[Entry]) -> "Sketch":
        """With further images, under the same salt."""
        rows = [*self._rows, *((part, *entry) for entry in entries)]
        parts, ends, hashes, looks = zip(*rows, strict=True)
        return Sketch(self._salt, self._centre, self._spread, parts, ends, hashes, looks)

    def packed(self) -> bytes:
        """The file; rows in the order of their hashes, which says nothing of the order of the images."""
        said = {
            "version": SKETCH_VERSION,
            "salt": self._salt.hex(),
            "centre": self._centre.tolist(),
            "spread": self._spread.tolist(),
        }
        rows = zip(*sorted(self._rows, key=lambda row: row[2]), strict=True)
        columns = [pa.array(values, field.type) for values, field in zip(rows, _SCHEMA, strict=True)]
        schema = _SCHEMA.with_metadata({_METADATA: json.dumps(said).encode()})
        return to_parquet(pa.Table.from_arrays(columns, schema=schema))


def make_sketch(traces: Iterable[Trace], salt: bytes | None = None) -> Sketch:
    """A sketch of images; `salt`: 16 random bytes where none are given. Raises ValueError where there is no image."""
    salt = salt or secrets.token_bytes(16)
    parts, ends, hashes, found = [], [], [], []
    for trace in traces:
        parts.append(trace.part)
        ends.append(_hash_of_ends(trace.data, salt))
        hashes.append(_hash(trace.data, salt))
        found.append(trace.key)
    of_all = np.stack(found)  # (N, KEY_LENGTH)
    known = of_all[np.isfinite(of_all).all(axis=1)].astype(np.float64)
    centre = known.sum(axis=0) / (len(known) + _BESIDE)
    squares = ((known - centre) ** 2).sum(axis=0) + _BESIDE * _USUAL_SPREAD**2
    spread = np.sqrt(squares / (len(known) + _BESIDE))
    centre32, spread32 = centre.astype(np.float32), spread.astype(np.float32)
    looks = _coded(of_all, centre32, spread32, _planes(salt))
    return Sketch(salt, centre32, spread32, parts, ends, hashes, looks)


def read_sketch(bundle: Bundle) -> Sketch | None:
    """The sketch of a bundle; None where it has none. Raises InputError where it is damaged or of a newer version."""
    if not bundle.has_sketch:
        return None
    path = join(bundle.uri, SKETCH)
    data = bundle.file(SKETCH)
    try:
        table = pq.read_table(io.BytesIO(data))
        said = json.loads(table.schema.metadata[_METADATA])
        check_version(said["version"], SKETCH_VERSION, f"{path}: sketch", "publish the model again")
        centre, spread = (np.array(said[name], np.float32) for name in ("centre", "spread"))
        if centre.shape != (KEY_LENGTH,) or spread.shape != (KEY_LENGTH,):
            raise ValueError(f"keys of {centre.size} and {spread.size} numbers, not {KEY_LENGTH}")
        columns = (table.select(_SCHEMA.names).cast(_SCHEMA)[name].to_pylist() for name in _SCHEMA.names)
        return Sketch(bytes.fromhex(said["salt"]), centre, spread, *columns)
    except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
        message = f"{path}: damaged ({first_line(error)}); copy the bundle again, or remove the file to go without it"
        raise InputError(message) from error


def _hash(data: bytes, salt: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_HASH_BYTES, key=salt).digest()


def _hash_of_ends(data: bytes, salt: bytes) -> bytes:
    """Of a file's length and both of its ends, where images of one camera differ."""
    return _hash(b"%d %b%b" % (len(data), data[:_END_BYTES], data[-_END_BYTES:]), salt)


def _planes(salt: bytes) -> Floats:
    """Normals of random planes, +1 or -1 (Achlioptas 2003): float32 (KEY_LENGTH, BITS)."""
    drawn = hashlib.shake_256(salt).digest(KEY_LENGTH * BITS // 8)
    signs = np.unpackbits(np.frombuffer(drawn, np.uint8)).reshape(KEY_LENGTH, BITS)
    return signs.astype(np.float32) * 2 - 1


def _coded(of_images: Floats, centre: Floats, spread: Floats, planes: Floats) -> list[bytes | None]:
    """Keys (n, KEY_LENGTH) to the sides of the planes that they lie on, BITS bits each; None for NaN."""
    packed = np.packbits((of_images - centre) / spread @ planes > 0, axis=1)  # uint8 (n, BITS / 8)
    return [code.tobytes() if np.isfinite(key).all() else None for code, key in zip(packed, of_images, strict=True)]
