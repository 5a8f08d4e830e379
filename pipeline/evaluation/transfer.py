"""Images of another laboratory, without labels, beside those that a model learnt from: what each is, what all say.

Imports neither scikit-learn nor matplotlib, so that a worker starts in a fraction of a second.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import ImageRejected, InputError
from pipeline.evaluation.drawing import Drawn
from pipeline.evaluation.predict import Spread, tasks_of, tell_progress
from pipeline.evaluation.read import Seen, in_batches
from pipeline.images.appearance import NAMES, appearances
from pipeline.images.load import Limits
from pipeline.model.bundle import Bundle, BundleInfo
from pipeline.model.drift import FEWEST_IMAGES, OOD_SCORE, ReferenceStatistics, Shift, Verdict, shifts, verdict
from pipeline.model.drift import told as told_shift
from pipeline.model.prediction import Prediction
from pipeline.model.predictor import Predictor
from pipeline.sources.rows import ListingRow
from pipeline.storage.stores import Stores

_BATCH = 16


@dataclass(frozen=True)
class Inspected:
    """What came of one image. `looks`: the figures of `pipeline/images/appearance.py`, where it could be read."""

    row: ListingRow
    result: Prediction | ImageRejected
    looks: tuple[float, ...] = ()


def inspect_rows(
    predictor: Predictor, rows: Sequence[ListingRow], stores: Stores = Stores(), limits: Limits = Limits()
) -> list[Inspected]:
    """Fetch, decode, measure and predict; exactly one record a row."""

    def answered(batch: Sequence[Seen[ListingRow, None]]) -> list[Inspected]:
        return measured(predictor, [(seen.row, seen.image.pixels) for seen in batch])

    return in_batches(predictor, rows, answered, Inspected, stores=stores, limits=limits, size=_BATCH)


def measured(predictor: Predictor, images: Sequence[tuple[ListingRow, NDArray[np.uint8]]]) -> list[Inspected]:
    """Of decoded images, uint8 (S, S, 3), one record each, in order."""
    pixels = [image for _, image in images]
    looks, results = appearances(np.stack(pixels)).tolist(), predictor.predict_each(pixels)
    return [
        Inspected(row, result, tuple(figures)) for (row, _), figures, result in zip(images, looks, results, strict=True)
    ]


class InspectionWorker:
    """A predictor in a process of its own."""

    def __init__(self, bundle: Bundle, stores: Stores, on_gpu: bool) -> None:
        self._predictor = Predictor(bundle, engine="torch" if on_gpu else "onnx")
        self._stores = stores

    def inspect(self, rows: Sequence[ListingRow]) -> list[Inspected]:
        return inspect_rows(self._predictor, rows, self._stores)


def inspect(ray: Any, bundle: Bundle, rows: Sequence[ListingRow], stores: Stores) -> list[Inspected]:
    """One record a row, in the order of their ids, on as many workers as are of use and fit.

    Raises PlatformError where not one fits the nodes or a node does not see the files.
    """
    made = Spread(InspectionWorker, (bundle, stores, False), [bundle])
    tasks = [("inspect", some) for some in tasks_of(rows)]
    found: list[Inspected] = []
    for part in made.results(ray, tasks, stores, workers=None, cpus_per_worker=1.0, gpus_per_worker=0.0):
        found += part
        tell_progress("transfer-check", len(found), len(rows))
    return sorted(found, key=lambda item: item.row.image_id)


def statistics_of(bundle: Bundle) -> ReferenceStatistics:
    """Raises InputError for a bundle that does not know what its own images look like, with what to do."""
    found = bundle.info.reference_statistics
    if found is None:
        raise InputError(
            f"bundle {bundle.uri}: does not say what its own images look like, as bundles of older versions and of "
            "fewer than 40 images do not; publish it again with `leukoray train MANIFEST` (`--unfreeze head` takes a "
            "minute), or measure it on labelled images with `leukoray evaluate`"
        )
    return found


@dataclass(frozen=True)
class Transfer:
    """A source beside the images of a model. `subjects`: that its images are of, None where not known; `called`: what
    they are, 'subjects', or 'blocks' of consecutive file numbers.
    """

    info: BundleInfo
    reference: ReferenceStatistics
    drawn: Drawn
    inspected: Sequence[Inspected]
    subjects: int | None
    called: str = "subjects"

    @cached_property
    def usable(self) -> list[Inspected]:
        return [item for item in self.inspected if isinstance(item.result, Prediction)]

    @cached_property
    def predictions(self) -> list[Prediction]:
        return [item.result for item in self.usable if isinstance(item.result, Prediction)]

    @cached_property
    def values(self) -> dict[str, NDArray[np.floating]]:
        """Of each statistic, one value a usable image, NaN where it has none."""
        looks = np.array([item.looks for item in self.usable], np.float64).reshape(-1, len(NAMES))
        scores = [np.nan if said.ood_score is None else said.ood_score for said in self.predictions]
        return {**dict(zip(NAMES, looks.T, strict=True)), OOD_SCORE: np.array(scores, np.float64)}

    @cached_property
    def shifts(self) -> list[Shift]:
        return shifts(self.reference, self.values, self._subjects_at_least)

    @property
    def _subjects_at_least(self) -> int:
        """Many blocks may be of one subject; they are as many as they are where the limits are of blocks too."""
        is_alike = self.called == "subjects" or self.called == self.reference.called
        return (self.subjects or 1) if is_alike else 1

    @property
    def has_limit(self) -> bool:
        return self.info.ood is not None and self.info.ood.threshold is not None

    @property
    def flagged(self) -> int:
        return sum(bool(said.is_ood) for said in self.predictions)

    @cached_property
    def verdict(self) -> Verdict:
        images = len(self.usable)
        if 2 * images < len(self.inspected):  # those that cannot be read may be the ones that differ
            return Verdict.UNKNOWN
        return verdict(self.shifts, images, self.flagged / images if self.has_limit and images else None)

    @cached_property
    def unreadable(self) -> dict[str, int]:
        """Images that could not be listed, read or predicted, by code."""
        codes = Counter(item.result.code.value for item in self.inspected if isinstance(item.result, ImageRejected))
        return dict(codes + Counter(self.drawn.problems))

    @property
    def probabilities(self) -> tuple[float, float] | None:
        """Mean here, and of the held-out images of training; None where one is not known."""
        home = self.info.reference_scores.get("mean")
        if home is None or not self.predictions:
            return None
        return float(np.mean([said.probability for said in self.predictions])), float(home)

    def record(self) -> dict[str, Any]:
        """`transfer.json`."""
        means = self.probabilities
        return {
            "verdict": self.verdict.value,
            "said": self.verdict.said,
            "model": {"name": self.info.name, "version": self.info.version, "identity": self.info.identity()},
            "images": {"listed": self.drawn.listed, "drawn": len(self.inspected), "measured": len(self.usable)},
            "subjects": self.subjects,
            "called": self.called,
            "unreadable": self.unreadable,
            "left_out": self.drawn.left_out,
            "reference": self.reference.model_dump(include={"images", "subjects", "called", "rests_on"}),
            "statistics": [shift.record() | {"said": told_shift(shift, self.info.unit)} for shift in self.shifts],
            "ood": {"flagged": self.flagged, "images": len(self.usable)} if self.has_limit else None,
            "mean_probability": None if means is None else {"here": means[0], "at_home": means[1]},
        }


def sentences(found: Transfer) -> list[str]:
    """The result for a person: the verdict first, then what it rests on."""
    images = len(found.usable)
    lines = [_headline(found)]
    if images:
        shown = [shift for shift in found.shifts if shift.is_beyond or not shift.is_told]
        lines += [f"- {_shift_line(shift, found)}" for shift in shown]
        if found.has_limit and found.info.ood is not None:
            stated = f"{100 * (found.info.ood.false_flag_rate or 0.0):.2g} %"
            share = f"{100 * found.flagged / images:.0f} %"
            lines.append(
                f"- {found.flagged:,} of {images:,} images ({share}) look unlike those the model learnt from (is_ood); "
                f"{stated} is what its own validation images have"
            )
    means = found.probabilities
    if means is not None:
        lines.append(
            f"- mean probability {means[0]:.2f}, of held-out images of training {means[1]:.2f}; another mix of "
            "patients moves it too, so it is no part of the verdict"
        )
    if found.unreadable:
        codes = ", ".join(f"{count} {code}" for code, count in found.unreadable.items())
        lines.append(f"- {sum(found.unreadable.values()):,} images could not be read: {codes}")
    return [*lines, _basis(found)]


def _headline(found: Transfer) -> str:
    images = len(found.usable)
    if found.verdict is Verdict.UNKNOWN:
        if images < FEWEST_IMAGES:
            return f"cannot be told: {images} images could be measured, {FEWEST_IMAGES} are needed"
        return f"cannot be told: {images} of {len(found.inspected)} images could be measured, half of them are needed"
    return found.verdict.said


def _shift_line(shift: Shift, found: Transfer) -> str:
    if not shift.is_told:
        return told_shift(shift, found.info.unit)
    how = f"{shift.distance:.1f} spreads, new {found.reference.called} of the own laboratory stay within"
    return f"{told_shift(shift, found.info.unit)} ({how} {shift.limit:.1f})"


def _basis(found: Transfer) -> str:
    known = "an unknown number of" if found.subjects is None else f"{found.subjects:,}"
    return (
        f"{len(found.usable):,} images of {known} {found.called}, drawn from {found.drawn.listed:,}; compared with "
        f"{found.reference.images:,} of training and validation. Limits: {found.reference.rests_on}."
    )
