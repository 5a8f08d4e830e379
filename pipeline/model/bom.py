"""`bom.cdx.json`: what a bundle is made of, as a bill of materials for machine learning (ML-BOM).

CycloneDX 1.6, https://cyclonedx.org/docs/1.6/json/: the model with its card, its files by SHA-256, the manifest that it
learnt from by its digest, and the packages that trained it. Written at publication, before anybody measures the model.
"""

import hashlib
import json
import uuid
from collections.abc import Mapping
from typing import Any

from pipeline import __version__
from pipeline.model.bundle import BundleInfo, Parent

SPEC_VERSION = "1.6"
_MODEL, _DATASET = "model", "dataset"
_NOT_A_DEVICE = "Research software, not a medical device: no diagnosis, no treatment decision."
_MEANING = {
    "model.safetensors": "weights",
    "model.onnx": "graph that answers on CPUs",
    "reference.safetensors": "what images of training look like to the network, to tell others from them",
    "golden.json": "drawn images and what the model said of them at publication",
    "sketch.parquet": "fingerprints of the images of training",
}


def bill_of_materials(info: BundleInfo, files: Mapping[str, bytes]) -> bytes:
    """The file, JSON. `files`: those of the bundle that decide an answer, by their names there."""
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items()) if name in _MEANING}
    identity = json.dumps([info.name, info.version, digests], sort_keys=True)
    packages = [_package(name, version) for name, version in sorted(info.versions.items()) if name != "python"]
    components = [*(_file(name, digest) for name, digest in digests.items()), *packages]
    parts = [str(part["bom-ref"]) for part in components]
    told = {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, identity)}",
        "version": 1,
        "metadata": _metadata(info),
        "components": [*components, _dataset(info)],
        "dependencies": [{"ref": _MODEL, "dependsOn": [*parts, _DATASET]}],
    }
    return json.dumps(told, indent=2, allow_nan=False).encode()


def _metadata(info: BundleInfo) -> dict[str, Any]:
    tool = {"type": "application", "name": "leukoray", "version": __version__}
    stamp = {"timestamp": info.created_at} if info.created_at else {}
    return stamp | {"tools": {"components": [tool]}, "component": _model(info)}


def _model(info: BundleInfo) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": info.name,
        "version": info.version,
        "description": f"Tells {', '.join(info.classes)} apart in microscope images of blood cells. {_NOT_A_DEVICE}",
        "hashes": _sha256(info.weights_sha256),
        "modelCard": _card(info),
        "properties": _properties(
            identity=info.identity(), preprocessing_digest=info.preprocessing_digest, calibrated_on=info.calibrated_on,
            threshold=info.threshold, temperature=info.temperature, synthetic=info.synthetic,
            starting_weights=info.training.get("weights"),
        ),
    }  # fmt: skip
    if info.parent is not None:
        found["pedigree"] = {"ancestors": [_ancestor(info.parent)]}
    return found


def _ancestor(parent: Parent) -> dict[str, Any]:
    return {
        "type": "machine-learning-model",
        "name": parent.name,
        "version": parent.version,
        "hashes": _sha256(parent.weights_sha256),
    }


def _card(info: BundleInfo) -> dict[str, Any]:
    size, logits = info.input_size, f"{info.outputs} logit{'s' if info.outputs > 1 else ''}"
    limits = [_NOT_A_DEVICE]
    if info.synthetic:
        limits.append("Trained on synthetic images: what it says of real cells means nothing.")
    if info.ood is None:
        limits.append("Nothing tells images unlike those of training.")
    return {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "image-classification",
            "modelArchitecture": info.architecture,
            "datasets": [{"ref": _DATASET}],
            "inputs": [{"format": f"RGB image, {size} x {size} pixels, uint8"}],
            "outputs": [{"format": f"{logits} ({', '.join(info.classes)})"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": _metrics(info)},
        "considerations": {
            "users": ["Researchers in hematology and laboratory medicine"],
            "useCases": ["Research on leukemia in microscope images of blood cells"],
            "technicalLimitations": limits,
        },
    }


def _metrics(info: BundleInfo) -> list[dict[str, Any]]:
    """Of validation, the only ones at publication; the interval of the one that was held against chance."""
    found, judged = [], info.against_chance
    for name, value in (info.metrics.get("validation") or {}).items():
        if not isinstance(value, int | float) or value != value:
            continue
        metric: dict[str, Any] = {"type": name, "value": f"{value:.6g}", "slice": "validation"}
        if judged is not None and judged.metric == name and judged.low is not None and judged.high is not None:
            metric["confidenceInterval"] = {"lowerBound": f"{judged.low:.6g}", "upperBound": f"{judged.high:.6g}"}
        found.append(metric)
    return found


def _file(name: str, digest: str) -> dict[str, Any]:
    what = {"description": _MEANING[name], "hashes": _sha256(digest)}
    return {"type": "file", "bom-ref": f"file:{name}", "name": name} | what


def _package(name: str, version: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _dataset(info: BundleInfo) -> dict[str, Any]:
    """The manifest of training, by its digest: where its images lie is nobody else's business."""
    images = info.training.get("images") or {}
    counts = _properties(split_rule=info.split_rule, shows=info.unit, **{f"images_{k}": v for k, v in images.items()})
    contents = {"type": "dataset", "name": "manifest", "contents": {"properties": counts}}
    of_digest = {"hashes": _sha256(info.manifest_digest)} if info.manifest_digest else {}
    return {"type": "data", "bom-ref": _DATASET, "name": "manifest of training", "data": [contents]} | of_digest


def _sha256(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest}] if digest else []


def _properties(**values: Any) -> list[dict[str, str]]:
    return [
        {"name": f"leukoray:{name}", "value": str(value)} for name, value in values.items() if value not in (None, "")
    ]
