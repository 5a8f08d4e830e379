"""The bill of materials of a bundle: valid by CycloneDX 1.6, and true of the files beside it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from pipeline.model.bom import bill_of_materials
from pipeline.model.bundle import BOM, GRAPH, WEIGHTS, Bundle, Parent
from pipeline.model.chance import AgainstChance
from pipeline.model.migration import Change, publish
from pipeline.model.signature import sign
from tests.bundles import make_bundle
from tests.keys import make_keys


@pytest.fixture(scope="module")
def validator() -> JsonStrictValidator:
    return JsonStrictValidator(SchemaVersion.V1_6)


def bom_of(bundle: Bundle) -> dict[str, Any]:
    files = {name: bundle.file(name) for name in (WEIGHTS, GRAPH)}
    found: dict[str, Any] = json.loads(bill_of_materials(bundle.info, files))
    return found


def facts() -> dict[str, Any]:
    """Of a bundle about which everything is known."""
    return {
        "version": "v2",
        "metrics": {"validation": {"roc_auc": 0.9, "loss": float("nan"), "accuracy": 0.8}},
        "against_chance": AgainstChance(
            metric="roc_auc", value=0.9, chance=0.5, low=0.7, high=0.95, confidence=0.95, unit="subject", units=12
        ),
        "manifest_digest": "ab" * 32,
        "split_rule": "subjects",
        "training": {"images": {"train": 80, "validation": 20}, "weights": "imagenet", "manifest": "/data/of/patients"},
        "versions": {"python": "3.11.7", "torch": "2.15.0+cu132", "ray": "2.60.0"},
        "parent": Parent(name="tiny-linear", version="v1", weights_sha256="cd" * 32, model_sha256="ef" * 32),
    }


@pytest.mark.parametrize("task", ["binary", "multiclass"])
@pytest.mark.parametrize("is_known", [True, False])
def test_it_is_valid_whatever_is_known_of_the_model(
    tmp_path: Path, validator: JsonStrictValidator, task: Any, is_known: bool
) -> None:
    known = facts() if is_known else {"created_at": "", "synthetic": True}
    bundle = make_bundle(tmp_path / "v", size=8, task=task, **known)
    assert validator.validate_str(json.dumps(bom_of(bundle))) is None


def test_it_says_what_the_bundle_is_made_of(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "v", size=8, **facts())
    bom = bom_of(bundle)
    model, parts = bom["metadata"]["component"], {part["name"]: part for part in bom["components"]}
    assert (model["type"], model["name"], model["version"]) == ("machine-learning-model", "tiny-linear", "v2")
    for name in (WEIGHTS, GRAPH):
        digest = hashlib.sha256(Path(bundle.uri, name).read_bytes()).hexdigest()
        assert parts[name]["hashes"] == [{"alg": "SHA-256", "content": digest}]
    assert parts["manifest of training"]["hashes"][0]["content"] == "ab" * 32
    assert parts["torch"]["purl"] == "pkg:pypi/torch@2.15.0%2Bcu132"
    assert model["pedigree"]["ancestors"][0]["version"] == "v1"
    figures = {metric["type"]: metric for metric in model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]}
    assert figures["roc_auc"]["confidenceInterval"] == {"lowerBound": "0.7", "upperBound": "0.95"}
    assert "loss" not in figures, "what is not defined is not told"
    assert "/data/of/patients" not in json.dumps(bom)
    assert {one["name"]: one["value"] for one in model["properties"]}["leukoray:identity"] == bundle.info.identity()


def test_a_version_for_other_pixel_rules_has_its_own_and_no_signature_of_another(
    tmp_path: Path, validator: JsonStrictValidator
) -> None:
    bundle = make_bundle(tmp_path / "v1", size=8, version="v1")
    sign(bundle, make_keys(tmp_path).private)  # which writes the bill of a bundle that has none
    first = json.loads(Path(bundle.uri, BOM).read_text())
    assert validator.validate_str(json.dumps(first)) is None
    of_older_rules = bundle.info.model_copy(update={"preprocessing_digest": "0" * 64})
    new = publish(Bundle(bundle.uri, of_older_rules), Change(10, 0.01, 0.1, 0))
    second = json.loads(Path(new.uri, BOM).read_text())
    assert second["metadata"]["component"]["version"] == new.info.version != "v1"
    assert second["serialNumber"] != first["serialNumber"] and not Path(new.uri, "model.sig").exists()
