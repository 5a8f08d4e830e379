"""How far the figures of a page reach: for which images they hold, and what the model's decisions rest on.

A threshold is chosen on few subjects, and others would have given another one. What would be found among the images
measured here at the ends of its interval shows how much of the figures is luck of that choice.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipeline.base.errors import UsageError
from pipeline.evaluation.abstention import refuse_unpromised, review_rule
from pipeline.evaluation.calibration import (
    CONFIDENCE,
    Spread,
    called_in,
    inherited_in,
    spread_in,
    threshold_limits,
)
from pipeline.evaluation.definitions import Ints, binary_metrics
from pipeline.evaluation.intervals import called_units, known_or_none, subject_codes
from pipeline.evaluation.outcomes import Outcomes, true_class
from pipeline.evaluation.predict import is_labelled
from pipeline.model.bundle import BundleInfo
from pipeline.model.review import ReviewRule
from pipeline.sources.manifest import Manifest

_NAMED = 4  # sites or sources in a sentence
_SHOWN = {"cell": "single cells", "field": "fields of many cells", None: "images"}
_OTHERS = "for another laboratory, stain or microscope nothing was measured"


@dataclass(frozen=True)
class Chosen:
    """A number that was chosen by scores, and what is known of these."""

    spread: Spread
    rule: str
    on: str  # 'validation' or 'out-of-fold'
    images: int | None = None  # None: the bundle does not say, and there are no limits
    units: int | None = None
    called: str = "subjects"  # or 'blocks', 'images'
    confidence: float = CONFIDENCE
    is_inherited: bool = False  # of the version that this one was calibrated from; `on` says of which scores there

    @property
    def value(self) -> float:
        return self.spread.value

    def record(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "low": self.spread.low,
            "high": self.spread.high,
            "rule": self.rule,
            "on": self.on,
            "images": self.images,
            "units": self.units,
            "called": self.called,
            "confidence": self.confidence,
            "is_inherited": self.is_inherited,
        }


def temperature_of(info: BundleInfo) -> Chosen:
    return _of_bundle(info, "temperature", info.temperature, str(info.training.get("temperature_rule", "")))


def threshold_of(info: BundleInfo) -> Chosen:
    """The bundle's operating point. It means nothing where no class means disease."""
    return _of_bundle(info, "threshold", info.threshold, str(info.training.get("threshold_rule", "")))


def _of_bundle(info: BundleInfo, name: str, value: float, rule: str) -> Chosen:
    on = inherited_in(info.calibration).get(name)
    if on is not None:
        return Chosen(Spread(value, None, None), rule, on, is_inherited=True)
    spread = spread_in(info.calibration, name)
    if spread is None or spread.value != value:  # of a version that kept nothing, or set by hand
        return Chosen(Spread(value, None, None), rule or "the bundle's", info.calibrated_on)
    told = info.calibration
    images, units = told["images"], told["units"]
    return Chosen(spread, rule, info.calibrated_on, images, units, called_in(told), told["confidence"])


def refuse_without_validation(
    manifest: Manifest, info: BundleInfo, flag: str = "--target-sensitivity", review_error: float | None = None
) -> None:
    """Raise UsageError where nothing can be chosen anew, since the manifest has no images for it, or none of a side.

    `review_error`: likewise where so many subjects can promise no such error.
    """
    if manifest.info.split_rule == "test":
        raise UsageError(f"{flag} is chosen on validation images; this manifest is for testing alone")
    positive = [info.classes.index(name) for name in info.positive_classes]
    rows = [row for row in manifest.split("validation") if is_labelled(info, row)]
    sides = np.isin([true_class(info, row) for row in rows], positive).astype(np.int64)
    if positive and not 0 < sides.sum() < len(sides):
        _refuse_one_side(sides, flag)
    if review_error is not None:
        refuse_unpromised(sides, [row.subject_id for row in rows], review_error, manifest.info.units)


def _refuse_one_side(sides: Ints, flag: str) -> None:
    which = ("diseased ones alone" if sides.all() else "healthy ones alone") if len(sides) else "none at all"
    raise UsageError(f"{flag} is chosen on validation images, and here these are {which}; leave it out")


def refuse_without_sides(info: BundleInfo, flag: str) -> None:
    """Raise UsageError where no class, or every class, means disease: there is no decision to choose for."""
    if info.task == "multiclass" and not info.diseased_side:
        raise UsageError(f"{flag}: this model's classes do not say which mean disease; leave it out")


def threshold_here(validation: Outcomes, target_sensitivity: float, called: str) -> Chosen:
    """Chosen anew on what the model says of the manifest's validation split. Raises UsageError as `threshold_for`."""
    found = validation.threshold_for(target_sensitivity)
    assert validation.diseased is not None, "threshold_for has refused"
    if math.isnan(found.sensitivity):  # those of the other side could not be read
        _refuse_one_side(validation.diseased, "--target-sensitivity")
    spread = threshold_limits(validation.diseased, validation.probability, validation.subjects, target_sensitivity)
    codes, unit = subject_codes(validation.subjects, len(validation.truth))
    units, named = int(codes.max()) + 1, called_units(unit, called)
    return Chosen(spread, found.rule, "validation", len(validation.truth), units, named)


def review_here(validation: Outcomes, error: float, called: str) -> ReviewRule:
    """A review band's cuts, chosen likewise. Raises UsageError where nothing can be promised."""
    if validation.diseased is None:
        raise UsageError("--review-error: this model's classes do not say which mean disease; leave it out")
    refuse_unpromised(validation.diseased, validation.subjects, error, called)
    return review_rule(validation.diseased, validation.probability, validation.subjects, error, called=called)


def reach(info: BundleInfo, manifest: Manifest, split: str, outcomes: Outcomes, threshold: Chosen) -> dict[str, Any]:
    """For `metrics.json`: `holds`, a sentence; `temperature` and `threshold` as chosen, the latter with what would be
    found at the ends of its interval, null where no class means disease.
    """
    return {
        "holds": holds_for(info, manifest, split),
        "temperature": temperature_of(info).record(),
        "threshold": None if outcomes.diseased is None else _with_ends(threshold, outcomes),
    }


def _with_ends(threshold: Chosen, outcomes: Outcomes) -> dict[str, Any]:
    ends: dict[str, Any] = {}
    for name, cut in (("at_low", threshold.spread.low), ("at_high", threshold.spread.high)):
        ends[name] = None
        if cut is not None and outcomes.diseased is not None:
            found = binary_metrics(outcomes.diseased, outcomes.probability, cut)
            ends[name] = {key: known_or_none(found[key]) for key in ("sensitivity", "specificity")}
    return threshold.record() | ends


def holds_for(info: BundleInfo, manifest: Manifest, split: str) -> str:
    """For which images the figures of a split hold, a sentence: what they show, and where they come from."""
    measured, known = (_sites(manifest, name) for name in (split, "train"))
    sources = [uri.rstrip("/").rsplit("/", 1)[-1] for uri in manifest.info.source]
    named = f" ({_listed(sources)})" if any(sources) else ""
    shown = f"The figures hold for {_SHOWN[manifest.info.unit]} like these"
    if not info.manifest_digest or info.manifest_digest != manifest.info.digest:
        return f"{shown}, of another manifest than that of training{named}; {_OTHERS}."
    if measured and known and not measured & known:
        sites = _listed(sorted(measured))
        return f"{shown}, of {sites}, from where no image was trained on; for laboratories beyond nothing was measured."
    same = " and of the same patients" if manifest.info.split_rule == "images" else ""
    return f"{shown}, from the source of the training images{same}{named}; {_OTHERS}."


def _sites(manifest: Manifest, split: str) -> set[str]:
    """Where the images of a split come from; none where that is not known of one, which may come from anywhere."""
    found = set(manifest.table.filter(pc.equal(manifest.table["split"], split))["site"].to_pylist())
    return found if all(found) else set()


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
