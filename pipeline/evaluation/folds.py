"""How the model's recipe did in cross-validation: what each fold's model said of the images that it did not see.

Of a bundle that was trained with folds, on the manifest that it was trained on: the table in OUT_OF_FOLD, judged at the
bundle's threshold. These are images of training and validation by other models than the one for use.
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.base.errors import InputError
from pipeline.evaluation.intervals import Resampling
from pipeline.evaluation.metrics import evaluate_binary, evaluate_multiclass
from pipeline.model.bundle import OUT_OF_FOLD, Bundle, class_columns
from pipeline.sources.manifest import Manifest
from pipeline.storage.uris import join


def cross_validation(bundle: Bundle, manifest: Manifest, resampling: Resampling) -> dict[str, Any] | None:
    """For `metrics.json`: `metrics` of all folds together with intervals over subjects, a row a fold in `folds`.

    None where the bundle has no folds, or the manifest is another one than that of training. Raises InputError where
    the table is not that of these images.
    """
    info, path = bundle.info, join(bundle.uri, OUT_OF_FOLD)
    if info.calibrated_on != "out-of-fold" or info.manifest_digest != manifest.info.digest:
        return None
    data = bundle.stores.read_if_there(path)
    if data is None:
        return None
    table = pq.read_table(io.BytesIO(data))
    if doubled := table.num_rows - pc.count_distinct(table["image_id"]).as_py():
        raise InputError(f"{path}: {doubled} rows are of images that other rows name; copy the bundle again")
    at = pc.index_in(table["image_id"], manifest.table["image_id"].combine_chunks())
    if at.null_count:
        raise InputError(f"{path}: names {at.null_count} images that the manifest does not have; copy the bundle again")
    rows = manifest.table.take(at.combine_chunks())
    measured = _measured(table, rows, info.classes, info.threshold, info.task, manifest.info.units, resampling)
    kept = ("task", "images", "subjects", "metrics", "intervals", "threshold")
    in_order = sorted(measured["slices"].get("fold", []), key=lambda row: int(row["value"].split(":")[0]))
    return {name: measured[name] for name in kept} | {
        "by": str(info.training.get("group_by") or "subject"),
        "folds": in_order,
        "fold_intervals": measured["slice_intervals"].get("fold", {}).get("method", ""),
    }


def _measured(
    table: pa.Table, rows: pa.Table, classes: tuple[str, ...], threshold: float, task: str, units: str,
    resampling: Resampling,
) -> Mapping[str, Any]:  # fmt: skip
    """The dictionary of `evaluate_binary` or `evaluate_multiclass`, with a slice `fold`."""
    scores = np.stack([table[name].to_numpy() for name in class_columns(classes)], axis=1)
    truth = pc.index_in(table["class"], pa.array(classes)).to_numpy()
    folds, sites = table["fold"].to_pylist(), rows["site"].to_pylist()
    held_out: dict[int, set[str]] = {}
    for fold, site in zip(folds, sites, strict=True):
        held_out.setdefault(fold, set()).add(site or "")
    alone = all(len(names) == 1 and "" not in names for names in held_out.values())
    named = {fold: f"{fold}: {next(iter(names))}" if alone else str(fold) for fold, names in held_out.items()}
    options: dict[str, Any] = {
        "subjects": rows["subject_id"].to_pylist(),
        "slices": {"fold": [named[fold] for fold in folds]},
        "resampling": resampling,
        "units": units,
    }
    if task == "binary":
        return evaluate_binary(truth, scores[:, 1], threshold=threshold, class_names=classes, **options)
    return evaluate_multiclass(truth, scores, class_names=classes, **options)
