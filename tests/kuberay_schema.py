"""KubeRay's CRDs, reduced to what says whether a manifest is one: names, types, enumerations and required fields.

`python -m tests.kuberay_schema CRD_FOLDER` reads `ray.io_*.yaml` of a release and writes tests/data/kuberay_1_7_0.json,
a JSON Schema (draft 2020-12) for each kind. Parts that are alike, as the pod templates, are written once.
Source: https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/
"""

import functools
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

FILE = Path(__file__).parent / "data" / "kuberay_1_7_0.json"
_KEPT = ("type", "enum", "required", "minimum", "pattern")
_METADATA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


def reduced(schema: Mapping[str, Any], parts: dict[str, Any]) -> dict[str, Any]:
    """A CRD's OpenAPI schema as JSON Schema that refuses unknown fields; objects with fields go to `parts`."""
    kept: dict[str, Any] = {key: schema[key] for key in _KEPT if key in schema}
    if schema.get("x-kubernetes-int-or-string"):
        kept["type"] = ["integer", "string"]
    if isinstance(schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = reduced(schema["additionalProperties"], parts)
    if "items" in schema:
        kept["items"] = reduced(schema["items"], parts)
    if "properties" not in schema:
        return kept
    kept["properties"] = {name: reduced(inner, parts) for name, inner in sorted(schema["properties"].items())}
    kept["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    name = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]
    parts[name] = kept
    return {"$ref": f"#/$defs/{name}"}


def schemas(folder: Path) -> dict[str, Any]:
    """Of the version v1 of all kinds in a folder of CRDs: `{"kinds": {...}, "$defs": {...}}`."""
    parts: dict[str, Any] = {}
    kinds = {}
    for file in sorted(folder.glob("ray.io_*.yaml")):
        crd = yaml.safe_load(file.read_text())["spec"]
        (version,) = [each for each in crd["versions"] if each["name"] == "v1"]
        spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
        kind = crd["names"]["kind"]
        kinds[kind] = {
            "type": "object",
            "required": ["apiVersion", "kind", "metadata", "spec"],
            "additionalProperties": False,
            "properties": {
                "apiVersion": {"const": "ray.io/v1"},
                "kind": {"const": kind},
                "metadata": _METADATA,
                "spec": reduced(spec, parts),
            },
        }
    if not kinds:
        raise SystemExit(f"{folder}: holds no ray.io_*.yaml; name the folder of KubeRay's CRDs")
    return {"kinds": kinds, "$defs": parts}


@functools.cache
def _validators() -> dict[str, jsonschema.Draft202012Validator]:
    known = json.loads(FILE.read_text())
    return {
        kind: jsonschema.Draft202012Validator({**schema, "$defs": known["$defs"]})
        for kind, schema in known["kinds"].items()
    }


def problems(document: Mapping[str, Any]) -> list[str]:
    """What KubeRay's CRDs refuse of a manifest of a ray.io kind, each with its place."""
    kind = str(document.get("kind"))
    if kind not in _validators():
        return [f"kind: {kind} is none of {', '.join(_validators())}"]
    errors = _validators()[kind].iter_errors(document)
    return sorted(f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors)


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m tests.kuberay_schema CRD_FOLDER")
    FILE.write_text(json.dumps(schemas(Path(sys.argv[1])), sort_keys=True, separators=(",", ":")) + "\n")
    print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
