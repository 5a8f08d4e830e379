"""What a model to be published makes of its own images, and what these look like: what others are compared with.

Up to so many of the train and of the validation split, drawn by the seed, as they are: not augmented. Their
pixels come from this node's cache; what it lacks is decoded again.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import __version__
from pipeline.base.machine import usable_cores
from pipeline.evaluation import drift
from pipeline.evaluation.ood import MOST_TRAINING, MOST_VALIDATION, Fitted, Seen, fit
from pipeline.images.appearance import NAMES, appearance
from pipeline.model.drift import OOD_SCORE, ReferenceStatistics
from pipeline.model.outputs import FEATURES
from pipeline.model.reference import COLOURS, REFERENCE, Reference, colours_seen
from pipeline.model.seen import seen_size
from pipeline.sources.manifest import Manifest
from pipeline.storage.stores import Stores
from pipeline.training.cache import PixelCache
from pipeline.training.decoded import decode
from pipeline.training.features import session_of
from pipeline.training.filling import chunks
from pipeline.training.kept import Kept, digest_of
from pipeline.training.rows import LabelledRows
from pipeline.training.settings import Settings

_BATCH = 16

# Of images (N,), which are usable, and the features of these (n, D)
FeaturesOf = Callable[[NDArray[np.int64]], tuple[NDArray[np.bool_], NDArray[np.float32]]]


@dataclass(frozen=True)
class Own:
    """What is known of a model's own images; None of either where they are too few."""

    ood: Fitted | None
    statistics: ReferenceStatistics | None

    def files(self) -> dict[str, bytes]:
        """Of a bundle."""
        return {} if self.ood is None else {REFERENCE: self.ood.reference}


@dataclass(frozen=True)
class _Looks:
    """What pixels alone say of images."""

    ids: NDArray[np.int64]  # (N,)
    colours: NDArray[np.float32]  # (N, COLOURS)
    figures: NDArray[np.float32]  # (N, len(NAMES))

    def at(self, places: NDArray[np.int64]) -> "_Looks":
        return _Looks(self.ids[places], self.colours[places], self.figures[places])

    def of(self, ids: NDArray[np.int64]) -> "_Looks":
        """Of some of the images, whose ids ascend."""
        return self.at(np.searchsorted(self.ids, ids))


_NO_LOOKS = _Looks(np.empty(0, np.int64), np.empty((0, COLOURS), np.float32), np.empty((0, len(NAMES)), np.float32))


@dataclass(frozen=True)
class _Part:
    """Usable images of a split, by ascending id."""

    features: NDArray[np.float32]  # (N, D)
    looks: _Looks

    @property
    def seen(self) -> Seen:
        return Seen(self.features, self.looks.colours)


@dataclass(frozen=True)
class Familiar:
    """Where the pixels of a run's images are had, and what is known of them without.

    `cache` of this node, beside which figures of pixels are kept; None: nothing is. `features_of`: those of the graph
    that is asked of, where they are known already.
    """

    stores: Stores
    cache: PixelCache | None
    features_of: FeaturesOf | None = None

    def fit(self, graph: bytes, settings: Settings, rows: LabelledRows, manifest: Manifest) -> Own:
        """The reference of the model of `graph` with its limit, and the statistics of its images.

        Raises PlatformError when the store is out.
        """
        session = session_of(graph, threads=0) if self.features_of is None else None
        training, validation = (
            self._part(session, drawn(table, most, settings.seed), settings)
            for table, most in ((rows.train, MOST_TRAINING), (rows.validation, MOST_VALIDATION))
        )
        units, count = manifest.info.units, len(training.features)
        ood = fit(training.seen, validation.seen, _subjects(manifest, validation.looks.ids), units)
        figures = np.concatenate([training.looks.figures, validation.looks.figures])
        values = dict(zip(NAMES, figures.T, strict=True))
        if ood is not None and len(validation.features):  # of training the network made its features
            scores = Reference.unpacked(ood.reference).scores(validation.features, validation.looks.colours)
            values[OOD_SCORE] = np.concatenate([np.full(count, np.nan, np.float32), scores])
        subjects = _subjects(manifest, np.concatenate([training.looks.ids, validation.looks.ids]))
        return Own(ood, drift.fit(values, subjects, units, settings.seed))

    def _part(self, session: Any, rows: pa.Table, settings: Settings) -> _Part:
        """`session`: of the graph; None where features are known."""
        seen = seen_size(settings.input_size, settings.center)
        kept = _kept(self.cache, rows, seen)
        known = _read(kept)
        if known is not None and session is None:
            return self._with_features(known)
        looks, features, is_lasting = [_NO_LOOKS], list[NDArray[np.float32]](), True
        for ids, images, is_same_again in self._pixels(rows, settings):
            is_lasting = is_lasting and is_same_again
            for start in range(0, len(ids), _BATCH):
                numbers, batch = ids[start : start + _BATCH], np.ascontiguousarray(images[start : start + _BATCH])
                features += [] if session is None else session.run([FEATURES], {"images": batch})
                looks.append(
                    known.of(numbers) if known is not None and is_same_again else _looks_of(numbers, batch, seen)
                )
        found = _Looks(*(np.concatenate([getattr(part, name) for part in looks]) for name in _Looks.__annotations__))
        order = np.argsort(found.ids)  # so that sums do not depend on where pixels lay
        if known is None and is_lasting:
            kept.write_arrays(vars(found.at(order)))
        if session is None:
            return self._with_features(found.at(order))
        values = np.concatenate(features or [np.empty((0, 0), np.float32)])
        chosen = order[np.isfinite(values[order]).all(axis=1)]
        return _Part(values[chosen], found.at(chosen))

    def _with_features(self, looks: _Looks) -> _Part:
        assert self.features_of is not None
        usable, values = self.features_of(looks.ids)
        return _Part(values, looks.at(np.flatnonzero(usable)))

    def _pixels(
        self, rows: pa.Table, settings: Settings
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8], bool]]:
        """Ids and pixels uint8 (N, S, S, 3) of usable images, some at a time, and whether later runs see the same."""
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
            yield ids[whole & has_pixels], file.images[positions[whole & has_pixels]], True
        missing = rows.filter(pc.invert(pc.is_in(rows["image_id"], known)))
        for part in chunks(missing, missing.num_rows, settings.pixels.size):  # an archive is read once
            decoded = decode(part, settings.pixels, self.stores)
            usable = pc.is_null(decoded.notes["code"]).to_numpy(zero_copy_only=False)
            is_lasting = pc.all(decoded.notes["lasting"]).as_py()
            yield decoded.notes["image_id"].to_numpy()[usable], decoded.images[usable], is_lasting


def _looks_of(ids: NDArray[np.int64], images: NDArray[np.uint8], seen: int) -> _Looks:
    with ThreadPoolExecutor(usable_cores()) as pool:
        figures = np.array(list(pool.map(appearance, images)), np.float32).reshape(-1, len(NAMES))
    return _Looks(ids, colours_seen(images, seen), figures)


def _kept(cache: PixelCache | None, rows: pa.Table, seen: int) -> Kept:
    """What pixels alone say of these images."""
    rest = [] if cache is None else [cache.key, digest_of(rows.select(["image_id", "etag"]))]
    return Kept(cache, "looks", ["figures", __version__, np.__version__, str(NAMES), str(seen), *rest], ".safetensors")


def _read(kept: Kept) -> _Looks | None:
    arrays = kept.read_arrays()
    return None if arrays is None else _Looks(**arrays)


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
