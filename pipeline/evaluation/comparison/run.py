"""From bundles and a manifest to a comparison: all models predict the split on Ray, and are timed afterwards."""

from collections.abc import Sequence
from typing import Any

from pipeline.evaluation.comparison.predict import predict_side_by_side
from pipeline.evaluation.comparison.result import Comparison, comparison
from pipeline.evaluation.comparison.speed import speeds
from pipeline.evaluation.intervals import Resampling
from pipeline.evaluation.outcomes import Outcomes
from pipeline.evaluation.reach import threshold_here, threshold_of
from pipeline.model.bundle import Bundle
from pipeline.sources.manifest import Manifest
from pipeline.storage.stores import Stores


def compare_on(
    ray: Any, bundles: Sequence[Bundle], manifest: Manifest, split: str, stores: Stores, resampling: Resampling, *,
    workers: int | None, cpus_per_worker: float, gpus_per_worker: float, target_sensitivity: float | None = None,
) -> Comparison:  # fmt: skip
    """Compare models that answer one question (`refuse_incomparable`) on a split.

    Each at its bundle's threshold, or at one chosen on the validation split for `target_sensitivity`. Whoever calls has
    refused what these images cannot tell (`refuse_contradictions`, `refuse_without_validation`), before it joined Ray.
    """
    places: dict[str, Any] = {
        "workers": workers, "cpus_per_worker": cpus_per_worker, "gpus_per_worker": gpus_per_worker
    }  # fmt: skip
    thresholds = [threshold_of(bundle.info) for bundle in bundles]
    if target_sensitivity is not None:
        found = predict_side_by_side(ray, bundles, manifest, "validation", stores, **places)
        thresholds = [
            threshold_here(Outcomes(bundle.info, said), target_sensitivity, manifest.info.units)
            for bundle, said in zip(bundles, found, strict=True)
        ]
        bundles = [of.with_threshold(chosen.value) for of, chosen in zip(bundles, thresholds, strict=True)]
    outcomes = predict_side_by_side(ray, bundles, manifest, split, stores, **places)
    return comparison(bundles, manifest, split, outcomes, thresholds, resampling, speeds(bundles))
