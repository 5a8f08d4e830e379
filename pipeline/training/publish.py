"""From the best weights to a bundle in the registry: calibrated, with its decision rule, its card and its history."""

import hashlib
import json
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import __version__
from pipeline.evaluation.metrics import Temperature, Threshold, binary_metrics, fit_temperature, threshold_for
from pipeline.evaluation.report.card import render_card
from pipeline.images.load import Preprocessing
from pipeline.model.architectures import build
from pipeline.model.bundle import CARD, GRAPH, WEIGHTS, Bundle, BundleInfo, write_bundle
from pipeline.model.export import to_onnx, to_safetensors
from pipeline.model.prediction import probabilities
from pipeline.model.registry import Verdict, new_version, point_if_better
from pipeline.sources.manifest import Manifest
from pipeline.storage.stores import Stores
from pipeline.storage.uris import join
from pipeline.training.fit import Trained
from pipeline.training.rows import LabelledRows
from pipeline.training.settings import Settings
from pipeline.training.validation import measure

HISTORY = "report/history.json"
_QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
_PACKAGES = ("torch", "torchvision", "ray", "onnxruntime", "numpy", "pyarrow")


@dataclass(frozen=True)
class Published:
    """A bundle in the registry; `verdict` says whether the pointer moved to it."""

    bundle: Bundle
    verdict: Verdict
    metric: str
    value: float
    temperature: Temperature
    threshold: Threshold | None


def publish(
    trained: Trained,
    settings: Settings,
    rows: LabelledRows,
    manifest: Manifest,
    model_uri: str,
    *,
    configuration: dict[str, Any],
    target_sensitivity: float | None = None,
    review_margin: float | None = None,
    stores: Stores = Stores(),
) -> Published:
    """Write `<model_uri>/<version>/` and move `best.json` when the monitored metric is not worse than what it names."""
    model = build(settings.architecture, settings.outputs)
    model.load_state_dict(trained.best.weights)
    weights, graph = to_safetensors(model), to_onnx(model, settings.input_size)
    scores = trained.best.scores
    temperature = fit_temperature(scores.logits, scores.targets)
    classes = probabilities(scores.logits, temperature.value)
    positive = [rows.classes.index(name) for name in rows.positive_classes]
    disease = classes[:, positive].sum(axis=1).clip(0.0, 1.0) if positive else None
    threshold = _threshold(disease, scores.targets, positive, target_sensitivity)
    digest = hashlib.sha256(weights).hexdigest()
    best_row = trained.state.history[trained.state.best_epoch - 1]
    info = BundleInfo(
        name=model_uri.rsplit("/", 1)[-1],
        version=new_version(digest),
        architecture=settings.architecture,
        task=settings.task,
        classes=rows.classes,
        positive_classes=rows.positive_classes,
        input_size=settings.input_size,
        preprocessing_digest=Preprocessing(settings.input_size).digest(),
        weights_sha256=digest,
        graph_sha256=hashlib.sha256(graph).hexdigest(),
        temperature=temperature.value,
        threshold=threshold.value if threshold else 0.5,
        review_band=_band(threshold, review_margin),
        synthetic=manifest.info.synthetic,
        metrics={"validation": _metrics(trained, settings, disease, positive, threshold)},
        manifest_digest=manifest.info.digest,
        split_rule=manifest.info.split_rule,
        training={
            **configuration,
            "best_epoch": trained.state.best_epoch,
            "epochs_run": trained.state.epoch,
            "monitor": settings.monitor,
            "images": {"train": rows.train.num_rows, "validation": rows.validation.num_rows},
            "rejected": trained.rejected.codes,
            "temperature_rule": temperature.reason,
            "threshold_rule": threshold.rule if threshold else "",
            "history": trained.state.history,
        },
        reference_scores=_reference(classes.max(axis=1) if disease is None else disease),
        versions=_versions(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    files = {
        WEIGHTS: weights,
        GRAPH: graph,
        CARD: render_card(info, data=_data_facts(manifest, rows)).encode(),
        HISTORY: json.dumps(trained.state.history, indent=2).encode(),
    }
    bundle = write_bundle(join(model_uri, info.version), info, files, stores)
    value = float(best_row[settings.monitor])
    metric = settings.monitor.replace("val_", "validation ").replace("auc", "roc_auc")
    return Published(bundle, point_if_better(model_uri, bundle, metric, value), metric, value, temperature, threshold)


def _threshold(
    disease: NDArray[np.float64] | None, targets: NDArray[np.int64], positive: list[int], target: float | None
) -> Threshold | None:
    if disease is None:
        return None
    return threshold_for(np.isin(targets, positive), disease, target)


def _band(threshold: Threshold | None, margin: float | None) -> tuple[float, float] | None:
    if threshold is None or not margin:
        return None
    return max(0.0, threshold.value - margin), min(1.0, threshold.value + margin)


def _metrics(
    trained: Trained,
    settings: Settings,
    disease: NDArray[np.float64] | None,
    positive: list[int],
    threshold: Threshold | None,
) -> dict[str, float | None]:
    """Validation metrics at the published operating point; null where undefined."""
    scores = trained.best.scores
    found = {name.removeprefix("val_"): value for name, value in measure(scores, settings.task).items()}
    found["roc_auc"] = found.pop("auc")
    if disease is not None and threshold is not None:
        at_threshold = binary_metrics(np.isin(scores.targets, positive), disease, threshold.value)
        if settings.task == "binary":
            found |= at_threshold
        else:
            found |= {f"disease_{name}": value for name, value in at_threshold.items()}
    return {name: value if np.isfinite(value) else None for name, value in found.items()}


def _reference(values: NDArray[np.float64]) -> dict[str, Any]:
    return {
        "split": "validation",
        "count": len(values),
        "mean": float(values.mean()),
        "quantiles": {f"{q:g}": float(np.quantile(values, q)) for q in _QUANTILES},
    }


def _data_facts(manifest: Manifest, rows: LabelledRows) -> dict[str, Any]:
    known = {
        "Source": manifest.info.source,
        "Layout": manifest.info.layout,
        "Training images": rows.train.num_rows,
        "Validation images": rows.validation.num_rows,
    }
    return {name: value for name, value in known.items() if value not in ("", [])}


def _versions() -> dict[str, str]:
    packages = {name: installed(name) for name in _PACKAGES}
    return {"leukoray": __version__, "python": platform.python_version(), **packages}
