"""What a model to be published makes of its own images, which its reference and the limit of it are fitted to.

Up to so many of the train and of the validation split, drawn by the seed, as they are: not augmented. Their
pixels come from this node's cache; what it lacks is decoded again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.evaluation.ood import MOST_TRAINING, MOST_VALIDATION, Fitted, Seen, fit
from pipeline.model.outputs import FEATURES
from pipeline.model.reference import colours_seen
from pipeline.model.seen import seen_size
from pipeline.sources.manifest import Manifest
from pipeline.storage.stores import Stores
from pipeline.training.cache import PixelCache
from pipeline.training.decoded import decode
from pipeline.training.features import session_of
from pipeline.training.filling import chunks
from pipeline.training.rows import LabelledRows
from pipeline.training.settings import Settings

_BATCH = 16


@dataclass(frozen=True)
class Familiar:
    """Where the pixels of a run's images are had. `cache` of this node; None: none is kept."""

    stores: Stores
    cache: PixelCache | None

    def fit(self, graph: bytes, settings: Settings, rows: LabelledRows, manifest: Manifest) -> Fitted | None:
        """The reference of the model of `graph`, and its limit; None where too few training images can be used.

        Raises PlatformError when the store is out.
        """
        session, seen = session_of(graph, threads=0), seen_size(settings.input_size, settings.center)
        (_, training), (ids, validation) = (
            self._seen(session, drawn(table, most, settings.seed), settings, seen)
            for table, most in ((rows.train, MOST_TRAINING), (rows.validation, MOST_VALIDATION))
        )
        subjects = manifest.table["subject_id"].take(
            pc.index_in(pa.array(ids, pa.int64()), manifest.table["image_id"].combine_chunks())
        )
        return fit(training, validation, subjects.to_pylist(), manifest.info.units)

    def _seen(self, session: Any, rows: pa.Table, settings: Settings, seen: int) -> tuple[NDArray[np.int64], Seen]:
        """Ids of the usable images, ascending, and what is seen of them."""
        ids, features, colours = list[NDArray[np.int64]](), list[NDArray[np.float32]](), list[NDArray[np.float32]]()
        for numbers, images in self._pixels(rows, settings):
            for start in range(0, len(numbers), _BATCH):
                batch = np.ascontiguousarray(images[start : start + _BATCH])
                features += session.run([FEATURES], {"images": batch})
                colours.append(colours_seen(batch, seen))
            ids.append(numbers)
        if not ids:
            nothing = np.empty((0, 0), np.float32)
            return np.empty(0, np.int64), Seen(nothing, nothing)
        numbers, values = np.concatenate(ids), np.concatenate(features)
        order = np.argsort(numbers)  # so that sums do not depend on where pixels lay
        kept = order[np.isfinite(values[order]).all(axis=1)]
        return numbers[kept], Seen(values[kept], np.concatenate(colours)[kept])

    def _pixels(self, rows: pa.Table, settings: Settings) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """Ids and pixels uint8 (N, S, S, 3) of the usable images, some at a time."""
        known = pa.array([], pa.int64())
        for placed in [] if self.cache is None else self.cache.find(rows, ""):
            held = self.cache.held(placed) if self.cache is not None else None
            if held is None:
                continue
            file, positions = held
            whole = np.array([file.is_sound(position) for position in positions.tolist()], bool)
            has_pixels = pc.is_null(placed.rows["code"]).to_numpy(zero_copy_only=False)
            ids = placed.rows["image_id"].to_numpy()
            known = pa.concat_arrays([known, pa.array(ids[whole])])
            if (whole & has_pixels).any():
                yield ids[whole & has_pixels], file.images[positions[whole & has_pixels]]
        missing = rows.filter(pc.invert(pc.is_in(rows["image_id"], known)))
        for part in chunks(missing, missing.num_rows, settings.pixels.size):  # an archive is read once
            decoded = decode(part, settings.pixels, self.stores)
            usable = pc.is_null(decoded.notes["code"]).to_numpy(zero_copy_only=False)
            if usable.any():
                yield decoded.notes["image_id"].to_numpy()[usable], decoded.images[usable]


def drawn(rows: pa.Table, most: int, seed: int) -> pa.Table:
    """At most so many of the rows, which depend on no order of theirs."""
    ordered = rows.sort_by("image_id")
    chosen = np.random.default_rng(seed).permutation(ordered.num_rows)[:most]
    return ordered.take(pa.array(np.sort(chosen)))
