"""From the best weights to a bundle in the registry: calibrated, with its decision rule, its card and its history."""

import hashlib
import json
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed
from typing import Any

from pipeline import __version__
from pipeline.evaluation.calibration import Agreement, Calibration, Costs, Threshold
from pipeline.evaluation.report.card import render_card
from pipeline.evaluation.temperature import Temperature
from pipeline.model.architectures import build
from pipeline.model.bom import bill_of_materials
from pipeline.model.bundle import BOM, CARD, GOLDEN, GRAPH, HISTORY, SKETCH, WEIGHTS, Bundle, BundleInfo, write_bundle
from pipeline.model.export import ToGraph, to_onnx, to_safetensors
from pipeline.model.lora import merged
from pipeline.model.registry import ModelFolder, Verdict, new_version
from pipeline.model.subject_rules import SubjectLabel
from pipeline.model.timm_networks import PREFIX as TIMM
from pipeline.sources.manifest import Manifest
from pipeline.storage.filled_in import sealed
from pipeline.storage.uris import join
from pipeline.training.checkpoint import Best, Trained
from pipeline.training.familiar import Familiar, Own
from pipeline.training.golden_images import golden_file
from pipeline.training.judgement import HeldOut, judge
from pipeline.training.rows import LabelledRows
from pipeline.training.settings import Settings

_PACKAGES = ("torch", "torchvision", "ray", "onnxruntime", "numpy", "pyarrow")


@dataclass(frozen=True)
class Published:
    """A bundle in the registry; `verdict` says whether the pointer moved to it."""

    bundle: Bundle
    verdict: Verdict
    temperature: Temperature
    threshold: Threshold | None
    agreement: Agreement | None = None  # of the shipped weights with out-of-fold scores
    review: str = ""  # what the review band leaves to a person, and why; empty without one


def publish(
    trained: Trained,
    settings: Settings,
    rows: LabelledRows,
    manifest: Manifest,
    folder: ModelFolder,
    *,
    configuration: dict[str, Any],
    target_sensitivity: float | None = None,
    review_error: float | None = None,
    costs: Costs | None = None,
    held_out: HeldOut | None = None,
    sketch: bytes | None = None,
    to_graph: ToGraph = to_onnx,
    familiar: Familiar | None = None,
    subject_label: SubjectLabel | None = None,
) -> Published:
    """Write `<folder>/<version>/` and move `best.json` when the monitored metric is not worse than what it names.

    Temperature, threshold and metrics come from validation, or from `held_out` scores. `sketch`: a file, where wanted.
    `familiar`: where pixels are had, which tell what is unlike them; None: nothing does.
    """
    weights, graph = _exported(trained.best, settings, to_graph)
    judged = judge(
        held_out or HeldOut(trained.best.scores, _looks(trained, settings)), settings, rows, manifest,
        target_sensitivity=target_sensitivity, costs=costs, review_error=review_error, subject_label=subject_label,
    )  # fmt: skip
    own = Own(None, None) if familiar is None else familiar.fit(graph, settings, rows, manifest)
    digest = hashlib.sha256(weights).hexdigest()
    info = BundleInfo(
        name=folder.uri.rsplit("/", 1)[-1],
        version=new_version(digest),
        **_asked(settings, rows, manifest),
        **judged.fields(),
        weights_sha256=digest,
        graph_sha256=hashlib.sha256(graph).hexdigest(),
        sketch_sha256="" if sketch is None else hashlib.sha256(sketch).hexdigest(),
        ood=None if own.ood is None else own.ood.rule,
        reference_statistics=own.statistics,
        training={**configuration, **_account(trained, settings, rows, judged.rule)},
        versions=_versions(settings.architecture),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    files = {WEIGHTS: weights, GRAPH: graph, **_for_people(info, trained, manifest, rows), **own.files()}
    files |= {} if sketch is None else {SKETCH: sketch}
    files |= {GOLDEN: golden_file(info, files)}
    files |= {BOM: bill_of_materials(info, files)}
    bundle = write_bundle(join(folder.uri, info.version), info, files, folder.stores)
    moved, rule = folder.point_if_better(bundle), judged.rule
    return Published(bundle, moved, rule.temperature, rule.threshold, judged.agreement, judged.told_of_review)


def _asked(settings: Settings, rows: LabelledRows, manifest: Manifest) -> dict[str, Any]:
    """Fields of `BundleInfo` that were known before training."""
    chosen = ("architecture", "norm", "task", "input_size", "center", "bit_depth", "turns")
    return {name: getattr(settings, name) for name in chosen} | {
        "classes": rows.classes,
        "class_labels": manifest.info.positive if settings.task == "binary" else {},
        "positive_classes": rows.positive_classes,
        "preprocessing_digest": settings.pixels.digest(),
        "synthetic": manifest.info.synthetic,
        "unit": manifest.info.unit,
        "manifest_digest": manifest.info.digest,
        "split_rule": manifest.info.split_rule,
    }


def _for_people(info: BundleInfo, trained: Trained, manifest: Manifest, rows: LabelledRows) -> dict[str, bytes]:
    """The card, and the epochs by their figures."""
    card = render_card(info, data=_data_facts(manifest, rows))
    return {CARD: sealed(card).encode(), HISTORY: json.dumps(trained.state.history, indent=2).encode()}


def _looks(trained: Trained, settings: Settings) -> int:
    """Validations among which the model was chosen."""
    return max(1, len(trained.state.history)) if settings.choose == "best" else 1


def _exported(best: Best, settings: Settings, to_graph: ToGraph) -> tuple[bytes, bytes]:
    """Weights and graph."""
    model = build(settings.architecture, settings.outputs, settings.norm, settings.seen)
    model.load_state_dict(merged(best.weights))
    return to_safetensors(model), to_graph(model, settings.input_size)


def _account(trained: Trained, settings: Settings, rows: LabelledRows, rule: Calibration) -> dict[str, Any]:
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
