"""What a model to be published makes of its own images, and what these look like: what others are compared with.

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

from pipeline.evaluation import drift
from pipeline.evaluation.ood import MOST_TRAINING, MOST_VALIDATION, Fitted, Seen, fit
from pipeline.images.appearance import NAMES, appearances
from pipeline.model.drift import OOD_SCORE, ReferenceStatistics
from pipeline.model.outputs import FEATURES
from pipeline.model.reference import Reference, colours_seen
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
class Own:
    """What is known of a model's own images; None of either where they are too few."""

    ood: Fitted | None
    statistics: ReferenceStatistics | None


@dataclass(frozen=True)
class _Part:
    """Usable images of a split, by ascending id. `looks` float32 (N, len(NAMES))."""

    ids: NDArray[np.int64]
    seen: Seen
    looks: NDArray[np.float32]


@dataclass(frozen=True)
class Familiar:
    """Where the pixels of a run's images are had. `cache` of this node; None: none is kept."""

    stores: Stores
    cache: PixelCache | None

    def fit(self, graph: bytes, settings: Settings, rows: LabelledRows, manifest: Manifest) -> Own:
        """The reference of the model of `graph` with its limit, and the statistics of its images.

        Raises PlatformError when the store is out.
        """
        session, seen = session_of(graph, threads=0), seen_size(settings.input_size, settings.center)
        training, validation = (
            self._part(session, drawn(table, most, settings.seed), settings, seen)
            for table, most in ((rows.train, MOST_TRAINING), (rows.validation, MOST_VALIDATION))
        )
        units = manifest.info.units
        ood = fit(training.seen, validation.seen, _subjects(manifest, validation.ids), units)
        looks = np.concatenate([training.looks, validation.looks])
        values = dict(zip(NAMES, looks.T, strict=True))
        if ood is not None and len(validation.ids):  # of training the network made its features
            scores = Reference.unpacked(ood.reference).scores(validation.seen.features, validation.seen.colours)
            values[OOD_SCORE] = np.concatenate([np.full(len(training.ids), np.nan, np.float32), scores])
        subjects = _subjects(manifest, np.concatenate([training.ids, validation.ids]))
        return Own(ood, drift.fit(values, subjects, units, settings.seed))

    def _part(self, session: Any, rows: pa.Table, settings: Settings, seen: int) -> _Part:
        ids, features, colours = list[NDArray[np.int64]](), list[NDArray[np.float32]](), list[NDArray[np.float32]]()
        looks = [np.empty((0, len(NAMES)), np.float32)]
        for numbers, images in self._pixels(rows, settings):
            for start in range(0, len(numbers), _BATCH):
                batch = np.ascontiguousarray(images[start : start + _BATCH])
                features += session.run([FEATURES], {"images": batch})
                colours.append(colours_seen(batch, seen))
                looks.append(appearances(batch))
            ids.append(numbers)
        if not ids:
            nothing = np.empty((0, 0), np.float32)
            return _Part(np.empty(0, np.int64), Seen(nothing, nothing), looks[0])
        numbers, values = np.concatenate(ids), np.concatenate(features)
        order = np.argsort(numbers)  # so that sums do not depend on where pixels lay
        kept = order[np.isfinite(values[order]).all(axis=1)]
        return _Part(numbers[kept], Seen(values[kept], np.concatenate(colours)[kept]), np.concatenate(looks)[kept])

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


def _subjects(manifest: Manifest, ids: NDArray[np.int64]) -> list[str | None]:
    """Of each image, None where the manifest knows none."""
    at = pc.index_in(pa.array(ids, pa.int64()), manifest.table["image_id"].combine_chunks())
    found: list[str | None] = manifest.table["subject_id"].take(at).to_pylist()
    return found


def drawn(rows: pa.Table, most: int, seed: int) -> pa.Table:
    """At most so many of the rows, which depend on no order of theirs."""
    ordered = rows.sort_by("image_id")
    chosen = np.random.default_rng(seed).permutation(ordered.num_rows)[:most]
    return ordered.take(pa.array(np.sort(chosen)))
