"""From the best weights to a bundle in the registry: calibrated, with its decision rule, its card and its history."""

import hashlib
import json
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import __version__
from pipeline.evaluation.chance import against_chance
from pipeline.evaluation.definitions import binary_metrics
from pipeline.evaluation.metrics import Temperature, Threshold, fit_temperature, threshold_for
from pipeline.evaluation.report.card import render_card
from pipeline.model.architectures import build
from pipeline.model.bundle import CARD, GRAPH, HISTORY, WEIGHTS, Bundle, BundleInfo, write_bundle
from pipeline.model.chance import AgainstChance
from pipeline.model.export import to_onnx, to_safetensors
from pipeline.model.lora import merged
from pipeline.model.prediction import probabilities
from pipeline.model.registry import ModelFolder, Verdict, new_version
from pipeline.model.timm_networks import PREFIX as TIMM
from pipeline.sources.manifest import Manifest
from pipeline.storage.uris import join
from pipeline.training.checkpoint import Best
from pipeline.training.fit import Trained
from pipeline.training.rows import LabelledRows
from pipeline.training.settings import Settings
from pipeline.training.validation import Scores, measure

_QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
_PACKAGES = ("torch", "torchvision", "ray", "onnxruntime", "numpy", "pyarrow")


@dataclass(frozen=True)
class Published:
    """A bundle in the registry; `verdict` says whether the pointer moved to it."""

    bundle: Bundle
    verdict: Verdict
    temperature: Temperature
    threshold: Threshold | None


@dataclass(frozen=True)
class _Rule:
    """How validation scores become decisions, and what they are then; all None where no class means disease."""

    temperature: Temperature
    threshold: Threshold | None
    band: tuple[float, float] | None  # [low, high): decision 'review'
    diseased: NDArray[np.bool_] | None  # (N,) the truth
    values: NDArray[np.float64]  # (N,) calibrated probability of disease; of the top class where none means disease


def publish(
    trained: Trained,
    settings: Settings,
    rows: LabelledRows,
    manifest: Manifest,
    folder: ModelFolder,
    *,
    configuration: dict[str, Any],
    target_sensitivity: float | None = None,
    review_margin: float | None = None,
) -> Published:
    """Write `<folder>/<version>/` and move `best.json` when the monitored metric is not worse than what it names."""
    weights, graph = _exported(trained.best, settings)
    scores = trained.best.scores
    rule = _fit_rule(scores, rows, target_sensitivity, review_margin)
    digest = hashlib.sha256(weights).hexdigest()
    info = BundleInfo(
        name=folder.uri.rsplit("/", 1)[-1],
        version=new_version(digest),
        architecture=settings.architecture,
        norm=settings.norm,
        task=settings.task,
        classes=rows.classes,
        positive_classes=rows.positive_classes,
        input_size=settings.input_size,
        bit_depth=settings.bit_depth,
        preprocessing_digest=settings.pixels.digest(),
        weights_sha256=digest,
        graph_sha256=hashlib.sha256(graph).hexdigest(),
        turns=settings.turns,
        temperature=rule.temperature.value,
        threshold=rule.threshold.value if rule.threshold else 0.5,
        review_band=rule.band,
        synthetic=manifest.info.synthetic,
        unit=manifest.info.unit,
        metrics={"validation": _metrics(scores, settings.task, rule)},
        against_chance=_judged(scores, trained, settings, manifest),
        manifest_digest=manifest.info.digest,
        split_rule=manifest.info.split_rule,
        training={**configuration, **_account(trained, settings, rows, rule)},
        reference_scores=_reference(rule.values),
        versions=_versions(settings.architecture),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    card, history = render_card(info, data=_data_facts(manifest, rows)), json.dumps(trained.state.history, indent=2)
    files = {WEIGHTS: weights, GRAPH: graph, CARD: card.encode(), HISTORY: history.encode()}
    bundle = write_bundle(join(folder.uri, info.version), info, files, folder.stores)
    return Published(bundle, folder.point_if_better(bundle), rule.temperature, rule.threshold)


def _exported(best: Best, settings: Settings) -> tuple[bytes, bytes]:
    """Weights and graph."""
    model = build(settings.architecture, settings.outputs, settings.norm)
    model.load_state_dict(merged(best.weights))
    return to_safetensors(model), to_onnx(model, settings.input_size)


def _judged(scores: Scores, trained: Trained, settings: Settings, manifest: Manifest) -> AgainstChance:
    """Whether these scores, the best of all validations of the run, are better than chance."""
    subjects, looks = subjects_of(scores, manifest), max(1, len(trained.state.history))
    classes = probabilities(scores.logits)
    return against_chance(
        scores.targets, classes, subjects, task=settings.task, looks=looks, called=manifest.info.units
    )


def subjects_of(scores: Scores, manifest: Manifest) -> list[str | None]:
    """The subject of each score, None where the manifest knows none."""
    ids = manifest.table["image_id"].combine_chunks()
    rows = pc.index_in(pa.array(scores.image_ids, pa.int64()), ids)
    found: list[str | None] = manifest.table["subject_id"].take(rows).to_pylist()
    return found


def _fit_rule(scores: Scores, rows: LabelledRows, target_sensitivity: float | None, margin: float | None) -> _Rule:
    temperature = fit_temperature(scores.logits, scores.targets)
    classes = probabilities(scores.logits, temperature.value)
    if not rows.positive_classes:
        return _Rule(temperature, None, None, None, classes.max(axis=1))
    positive = [rows.classes.index(name) for name in rows.positive_classes]
    disease = classes[:, positive].sum(axis=1).clip(0.0, 1.0)
    diseased = np.isin(scores.targets, positive)
    threshold = threshold_for(diseased, disease, target_sensitivity)
    band = (max(0.0, threshold.value - margin), min(1.0, threshold.value + margin)) if margin else None
    return _Rule(temperature, threshold, band, diseased, disease)


def _account(trained: Trained, settings: Settings, rows: LabelledRows, rule: _Rule) -> dict[str, Any]:
    """How training went, for the bundle."""
    return {
        "best_epoch": trained.state.best_epoch,
        "epochs_run": trained.state.epoch,
        "monitor": settings.monitor,
        "images": {"train": rows.train.num_rows, "validation": rows.validation.num_rows},
        "rejected": trained.rejected.codes,
        "remarks": trained.rejected.remarks,
        "temperature_rule": rule.temperature.reason,
        "threshold_rule": rule.threshold.rule if rule.threshold else "",
        "history": trained.state.history,
    }


def _metrics(scores: Scores, task: str, rule: _Rule) -> dict[str, float | None]:
    """Validation metrics at the published operating point; null where undefined."""
    found = {name.removeprefix("val_"): value for name, value in measure(scores, task).items()}
    found["roc_auc"] = found.pop("auc")
    if rule.diseased is not None and rule.threshold is not None:
        prefix = "" if task == "binary" else "disease_"
        at_threshold = binary_metrics(rule.diseased, rule.values, rule.threshold.value)
        found |= {prefix + name: value for name, value in at_threshold.items()}
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
        "Source": ", ".join(manifest.info.source),
        "Layout": manifest.info.layout,
        "Training images": rows.train.num_rows,
        "Validation images": rows.validation.num_rows,
    }
    return {name: value for name, value in known.items() if value != ""}


def _versions(architecture: str) -> dict[str, str]:
    whose = ("timm",) if architecture.startswith(TIMM) else ()
    packages = {name: installed(name) for name in (*_PACKAGES, *whose)}
    return {"leukoray": __version__, "python": platform.python_version(), **packages}
