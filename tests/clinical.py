"""Made-up answers of made-up models, and what must hold of a FHIR answer: for tests of clinical formats."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from fhir.resources.R4B import get_fhir_model_class
from hypothesis import strategies as st

from pipeline.images.unit import Unit
from serving.protocols.fhir.resources import Context
from serving.protocols.fhir.tally import Sent
from serving.schemas import ErrorDetail, ImageAnswer, ImageInfo, ModelInfo

CELLS = ("Lymphocyte", "Monocyte", "Erythroblast", "Myeloblast", "blast")
BLASTS = ("Myeloblast", "blast")
AI = "http://hl7.org/fhir/uv/aitransparency"
PROFILES = {"Device": "AI-Device", "Provenance": "AI-Provenance"}
Resources = dict[str, list[dict[str, Any]]]
ISSUED = "2026-01-02T03:04:05.678+00:00"


def model_info(classes: Sequence[str] = CELLS, positive: Sequence[str] = BLASTS, **more: Any) -> ModelInfo:
    fields: dict[str, Any] = {
        "name": "tiny|linear",
        "version": "20260101-000000-00000000",
        "sha256": "ab" * 32,
        "architecture": "linear",
        "preprocessing_digest": "cd" * 32,
        "input_size": 32,
        "task": "binary" if len(classes) == 2 else "multiclass",
        "threshold": 0.5,
        "review_band": (0.3, 0.6) if positive else None,
        "synthetic": False,
    }
    return ModelInfo(classes=tuple(classes), positive_classes=tuple(positive), **{**fields, **more})


def context(info: ModelInfo, unit: Unit | None = "cell", **more: Any) -> Context:
    fields: dict[str, Any] = {"class_labels": {}, "card": "# Card\n", "request_id": "r-1", "issued": ISSUED}
    return Context(info=info, unit=unit, **{**fields, **more})


def answer(info: ModelInfo, shares: Sequence[float], is_ood: bool | None = False) -> ImageAnswer:
    """An answer whose decision follows from the model's own threshold and review band, as those of a model do."""
    total = sum(shares)
    classes = {name: share / total for name, share in zip(info.classes, shares, strict=True)}
    top = max(classes, key=classes.__getitem__)
    positive = sum(classes[name] for name in info.positive_classes)
    decision: Any = None
    if info.positive_classes:
        low, high = info.review_band or (info.threshold, info.threshold)
        decision = "positive" if positive >= info.threshold else "negative"
        decision = "review" if low <= positive < high else decision
    return ImageAnswer(
        decision=decision,
        probability=positive if info.positive_classes else classes[top],
        class_name=top,
        classes=classes,
        is_ood=is_ood,
        ood_score=1.25,
        image=ImageInfo(format="png", width=90, height=70, size_bytes=1234),
        remarks=("its depth was guessed",),
    )


def rejected(digest: str | None = None) -> Sent:
    return Sent(None, ErrorDetail(code="truncated", message="ends early", request_id="r-1"), digest)


def sent(info: ModelInfo) -> st.SearchStrategy[list[Sent]]:
    """One file or several: answered, unlike those of training, refused; some with the same bytes."""
    shares = st.lists(st.floats(0.01, 1), min_size=len(info.classes), max_size=len(info.classes))
    digests = st.integers(0, 30).map(lambda seed: f"{seed:064x}")
    answers = st.builds(
        lambda each, is_ood: answer(info, each, is_ood), shares, st.sampled_from([False, False, True, None])
    )
    answered = st.builds(lambda each, digest: Sent(each, None, digest), answers, digests)
    return st.lists(st.one_of(answered, answered, answered, st.builds(rejected, digests)), min_size=1, max_size=12)


def everything(part: Any) -> Iterator[tuple[str, Any]]:
    """Every (name, value) anywhere inside."""
    items = part.items() if isinstance(part, dict) else [("", each) for each in part] if isinstance(part, list) else ()
    for name, value in items:
        yield name, value
        yield from everything(value)


def checked(found: dict[str, Any]) -> Resources:
    """The resources of a Bundle by type, after every check of the standard that is made here."""
    assert (found["resourceType"], found["type"]) == ("Bundle", "transaction")
    urls = [entry["fullUrl"] for entry in found["entry"]]
    assert len(set(urls)) == len(urls) and all(re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", url) for url in urls)
    kinds: Resources = {}
    for entry in found["entry"]:
        resource = entry["resource"]
        get_fhir_model_class(resource["resourceType"]).model_validate(resource)
        kinds.setdefault(resource["resourceType"], []).append(resource)
        assert (entry["request"]["method"], entry["request"]["url"]) == ("POST", resource["resourceType"])
        codes = [(label["system"], label["code"]) for label in resource["meta"]["security"]]
        assert codes == [("http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "AIAST")]
    for name, value in everything(found):
        assert value not in ("", [], {}, None), name
        if name == "reference":
            assert value in urls
        if name == "code" and isinstance(value, str):
            assert re.fullmatch(r"\S+( \S+)*", value)  # https://hl7.org/fhir/R4/datatypes.html#code
    check_profiles(kinds)
    for observation in kinds["Observation"]:
        assert observation["status"] == "preliminary" and observation["device"]
        has_value = any(name.startswith("value") for name in observation)
        assert not (has_value and "dataAbsentReason" in observation)  # obs-6
        assert "esearch use only" in observation["note"][-1]["text"]
    return kinds


def check_profiles(kinds: Resources) -> None:
    """What AI-Device, AI-ModelCard and AI-Provenance ask for beyond FHIR itself."""
    artificial = [{"system": f"{AI}/CodeSystem/AIdeviceTypeCS", "code": "Artificial-Intelligence"}]
    for kind, profile in PROFILES.items():
        [resource] = kinds[kind]
        assert resource["meta"]["profile"] == [f"{AI}/StructureDefinition/{profile}"]
    [device], [provenance] = kinds["Device"], kinds["Provenance"]
    assert device["type"]["coding"] == artificial
    values = {extension["url"].rpartition("/")[2]: set(extension) - {"url"} for extension in device["extension"]}
    assert values["aitransparency.AIKind"] == {"valueCodeableConcept"}
    assert "AIAST" in [coding["code"] for reason in provenance["reason"] for coding in reason["coding"]]
    [agent] = provenance["agent"]
    assert agent["role"] == [{"coding": artificial}] and agent["type"]["coding"] and agent["who"]["reference"]
    cards = [each for each in kinds.get("DocumentReference", []) if each["meta"].get("profile")]
    for card in cards:
        assert [coding["code"] for coding in card["type"]["coding"]] == ["AIModelCard"]
        assert card["category"][0]["coding"][0]["code"] == "AIModelCardMarkdownFormat"
        [content] = card["content"]
        assert content["attachment"]["contentType"] == "text/markdown" and content["attachment"]["data"]
    assert bool(cards) == ("aitransparency.modelCardDescription" in values)
    assert bool(cards) == ("derivation" in [entity["role"] for entity in provenance.get("entity", [])])


def code(resource: dict[str, Any]) -> str:
    return str(resource["code"]["coding"][0]["code"])


def parts(observation: dict[str, Any]) -> dict[str, Any]:
    """The components of an Observation by code, as plain values."""
    found = {}
    for component in observation.get("component", []):
        [value] = [component[name] for name in component if name.startswith("value")]
        found[code(component)] = value.get("value", value) if isinstance(value, dict) else value
    return found


def by_code(kinds: Resources) -> dict[str, dict[str, Any]]:
    return {code(each): each for each in kinds["Observation"] if code(each) != "image-finding"}


def findings(kinds: Resources) -> list[dict[str, Any]]:
    return [each for each in kinds["Observation"] if code(each) == "image-finding"]


def of_cells(info: ModelInfo, *names: str) -> list[Sent]:
    """An image each of a class that the model is sure of."""
    shares = [[1.0 if each == name else 0.01 for each in info.classes] for name in names]
    return [Sent(answer(info, each), None, f"{place:064x}") for place, each in enumerate(shares)]
