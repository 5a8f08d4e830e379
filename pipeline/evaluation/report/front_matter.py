"""The head of a model card as the Hugging Face Hub reads it: YAML between two lines of three dashes.

Fields after https://huggingface.co/docs/hub/model-cards (license, tags, pipeline_tag, model-index).
"""

from collections.abc import Mapping
from typing import Any

import yaml

from pipeline.evaluation.intervals import called_units
from pipeline.evaluation.names import METRIC_NAMES
from pipeline.evaluation.report import words
from pipeline.model.bundle import BundleInfo

TASK = "image-classification"
_TYPES = {"sensitivity": "recall", "f1_macro": "f1", "roc_auc_macro": "roc_auc", "brier": "brier_score"}
_TAGS = ["hematology", "leukemia", "microscopy", "blood-cells", "onnx", "ray", "not-a-medical-device"]


def front_matter(info: BundleInfo, metrics: Mapping[str, Any] | None) -> str:
    """With `metrics` of the test split, if there are any; nobody has said under which licence the weights stand."""
    synthetic = ["synthetic"] if info.synthetic else []
    shows = [f"shows-{info.unit}"] if info.unit else []
    told: dict[str, Any] = {
        "license": "unknown",
        "library_name": "leukoray",
        "pipeline_tag": TASK,
        "tags": [*_TAGS, info.architecture, *shows, *synthetic],
    }
    values = _values(metrics) if metrics else []
    if metrics and values:
        told["metrics"] = list(dict.fromkeys(value["type"] for value in values))
        digest = info.manifest_digest[:12]
        data = {"type": f"manifest-{digest}", "name": f"Manifest {digest}", "split": "test"}
        result = {"task": {"type": TASK, "name": _question(info)}, "dataset": data, "metrics": values}
        told["model-index"] = [{"name": info.name, "results": [result]}]
    return f"---\n{yaml.safe_dump(told, sort_keys=False, allow_unicode=True)}---"


def _values(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each metric that is defined, its interval in its name: the Hub has no field for it."""
    method = metrics["intervals"]
    percent, units = words.level(method["confidence"]), called_units(method["unit"], method["called"])
    found = []
    for name, metric in metrics["metrics"].items():
        if metric["value"] is None:
            continue
        limits = words.interval(metric)
        told = f" ({percent} % CI {limits}, over {units})" if limits else ""
        value = round(float(metric["value"]), 6)
        found.append({"type": _TYPES.get(name, name), "value": value, "name": METRIC_NAMES[name] + told})
    return found


def _question(info: BundleInfo) -> str:
    return f"Which of {', '.join(info.classes)}"
