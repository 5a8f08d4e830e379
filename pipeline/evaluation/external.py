"""Figures of another laboratory's images beside those that the model has of its own; what its threshold does there.

The internal figures are those that the bundle keeps: of its test split where it was measured there, else of validation.
The interval of a difference is made of the two intervals (MOVER; Zou & Donner 2008, doi:10.1002/sim.3095): the images
of the two places are independent.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.evaluation.calibration import Costs, threshold_for, threshold_limits
from pipeline.evaluation.definitions import binary_metrics
from pipeline.evaluation.intervals import known_or_none
from pipeline.evaluation.outcomes import Outcomes
from pipeline.model.bundle import BundleInfo

Metric = Mapping[str, Any]
_ENDS = ("value", "low", "high")
_SIDES = ("sensitivity", "specificity")
# What validation calls the metrics of many classes
_OF_VALIDATION = {"roc_auc_macro": "roc_auc"}


def beside(info: BundleInfo, outcomes: Outcomes, metrics: Mapping[str, Any], curve: Sequence[Any]) -> dict[str, Any]:
    """`external` of `metrics.json`, JSON-ready: both figures of each metric with their difference, `internal` says of
    which images the one is; recall of each class likewise; `threshold`; the calibration curves of both.

    `metrics`: those of the images measured; `curve`: their calibration curve. What the bundle does not keep is null, as
    are its limits where they are of another confidence (`other_confidence` of `internal`) than those beside them.
    """
    internal = internal_figures(info)
    if is_other := internal["confidence"] not in (None, metrics["intervals"]["confidence"]):
        internal = _without_limits(internal)
    disease = metrics.get("disease")
    return {
        "internal": {key: internal[key] for key in ("on", "images", "units", "called", "split_rule")}
        | {"other_confidence": internal["confidence"] if is_other else None},
        "metrics": _rows(metrics["metrics"], internal["metrics"]),
        "disease": _rows(disease["metrics"], internal["disease"]) if disease else None,
        "classes": _recalls(metrics["per_class"], internal["per_class"]),
        "absent": [name for name, count in metrics["images_per_class"].items() if not count],
        "one_side": _one_side(outcomes),
        "threshold": _threshold(info, outcomes, internal),
        "reliability": {"internal": internal["reliability"], "external": list(curve)},
    }


def internal_figures(info: BundleInfo) -> dict[str, Any]:
    """What the bundle keeps of its own images: `on` test or validation (with the images and units it rests on), the
    `confidence` of limits, `metrics`, `disease` and `per_class` as `evaluate_binary` gives them, `reliability`; empty
    or None where unknown.
    """
    test = info.metrics.get("test")
    if test is not None:
        return {
            "on": "test",
            "images": test["images"],
            "units": test["intervals"]["units"],
            "called": test["intervals"]["called"] if test["intervals"]["unit"] == "subject" else "images",
            "split_rule": info.split_rule,
            "confidence": test["intervals"]["confidence"],
            "metrics": test["metrics"],
            "disease": (test.get("disease") or {}).get("metrics", {}),
            "per_class": {row["class_name"]: row["recall"] for row in test["per_class"]},
            "reliability": test.get("reliability"),
        }
    known = info.metrics.get("validation", {})
    told = {name: {"value": value, "low": None, "high": None} for name, value in known.items()}
    told |= {name: told[theirs] for name, theirs in _OF_VALIDATION.items() if theirs in told}
    of_disease = {name.removeprefix("disease_"): of for name, of in told.items() if name.startswith("disease_")}
    return {
        "on": info.calibrated_on,
        "images": info.calibration.get("images"),
        "units": info.calibration.get("units"),
        "called": info.calibration.get("called") or "images",
        "split_rule": info.split_rule,
        "confidence": None,
        "metrics": told,
        "disease": of_disease,
        "per_class": {},
        "reliability": info.calibration.get("reliability"),
    }


def _without_limits(internal: Mapping[str, Any]) -> dict[str, Any]:
    """The values alone; of the calibration curve likewise."""
    none = {"low": None, "high": None}
    tables = {
        key: {name: {**metric, **none} for name, metric in internal[key].items()}
        for key in ("metrics", "disease", "per_class")
    }
    curve = internal["reliability"]
    return {**internal, **tables, "reliability": None if curve is None else [{**point, **none} for point in curve]}


def difference(there: Metric, here: Metric | None) -> dict[str, float | None]:
    """There minus here with limits, by MOVER; null where one of the two is not known, or has none."""
    ends: dict[str, float | None] = dict.fromkeys(_ENDS)
    if here is None or there["value"] is None or here["value"] is None:
        return ends
    apart = there["value"] - here["value"]
    ends["value"] = apart
    if None not in (there["low"], there["high"], here["low"], here["high"]):
        ends["low"] = apart - math.hypot(there["value"] - there["low"], here["high"] - here["value"])
        ends["high"] = apart + math.hypot(there["high"] - there["value"], here["value"] - here["low"])
    return ends


def _rows(there: Mapping[str, Metric], here: Mapping[str, Metric]) -> dict[str, Any]:
    """One a metric that is defined on either side."""
    return {
        name: _row(found, here.get(name))
        for name, found in there.items()
        if found["value"] is not None or (here.get(name) or {}).get("value") is not None
    }


def _row(there: Metric, here: Metric | None) -> dict[str, Any]:
    known = here or dict.fromkeys(_ENDS)
    return {
        "external": {end: there.get(end) for end in _ENDS},
        "internal": {end: known.get(end) for end in _ENDS},
        "difference": difference(there, here),
    }


def _recalls(there: Sequence[Mapping[str, Any]], here: Mapping[str, Metric]) -> list[dict[str, Any]]:
    """Of each class that is there, its share found: a comparison that no absent class shifts."""
    return [
        {"class_name": row["class_name"], "images": row["support"], **_row(row["recall"], here.get(row["class_name"]))}
        for row in there
        if row["support"]
    ]


def _one_side(outcomes: Outcomes) -> str | None:
    """'positive' or 'negative' where all images are of that side of the disease; None where both are there."""
    if outcomes.diseased is None or 0 < outcomes.diseased.sum() < len(outcomes.diseased):
        return None
    return "positive" if outcomes.diseased.all() else "negative"


def _threshold(info: BundleInfo, outcomes: Outcomes, internal: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the bundle's own threshold does there, and which one its rule would have chosen on these very images."""
    if outcomes.diseased is None:
        return None
    here = internal["disease"] or internal["metrics"]
    there = binary_metrics(outcomes.diseased, outcomes.probability, info.threshold)
    return {
        "value": info.threshold,
        "here": {name: (here.get(name) or {}).get("value") for name in _SIDES},
        "there": {name: known_or_none(there[name]) for name in _SIDES},
        "right": _right(info, outcomes),
    }


def _right(info: BundleInfo, outcomes: Outcomes) -> dict[str, Any] | None:
    truth, scores = outcomes.diseased, outcomes.probability
    if truth is None or _one_side(outcomes) is not None:
        return None
    target, costs = rule_of(info)
    found = threshold_for(truth, scores, target, costs, on="local")
    spread = threshold_limits(truth, scores, outcomes.subjects, target, costs=costs)
    return {
        "value": found.value,
        "low": spread.low,
        "high": spread.high,
        "rule": found.rule,
        "sensitivity": found.sensitivity,
        "specificity": found.specificity,
    }


def rule_of(info: BundleInfo) -> tuple[float | None, Costs | None]:
    """How the bundle's threshold was chosen: for a sensitivity, by costs, or neither (balanced accuracy)."""
    target, costs = info.training.get("target_sensitivity"), info.training.get("costs")
    if target is not None:  # versions that an older `leukoray calibrate` made for one have the parent's costs as well
        return float(target), None
    return None, None if costs is None else Costs.parse(str(costs))
