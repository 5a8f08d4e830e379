"""One resource each, of FHIR R4 (https://hl7.org/fhir/R4/) and the profiles of AI Transparency on FHIR.

Nothing here holds an image's bytes, a file's name or a path. Every resource is labelled as asserted by AI (AIAST) and
`preliminary` where it can be: nobody has looked yet.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import __version__
from pipeline.images.unit import Unit
from serving.protocols.fhir.codes import (
    AI,
    AI_ASSERTED,
    AI_INPUTS,
    AI_TYPE,
    LOINC,
    MODELS,
    REQUESTS,
    TERMINOLOGY,
    UCUM,
    coded,
    local,
    of_class,
)
from serving.protocols.fhir.tally import Sent, named, outcome
from serving.schemas import NOTICE, ImageAnswer, ModelInfo

RESEARCH_USE = f"Research use only. {NOTICE} Made by a model; nobody has confirmed it."
_MEDIA = {"dicom": "application/dicom", "pnm": "image/x-portable-anymap"}  # else image/...
_WHY = {
    "review": "the probability lies in the review band: for a person to decide",
    "out-of-distribution": "the image looks unlike those the model learnt from: its answer means little",
    "rejected": "the file could not be read as an image",
}
_SIDES = {"positive": ("POS", "Positive"), "negative": ("NEG", "Negative"), "review": ("IND", "Indeterminate")}
Resource = dict[str, Any]


@dataclass(frozen=True)
class Context:
    """What every resource of one answer shares. `issued` is an instant with a time zone, ISO 8601."""

    info: ModelInfo
    unit: Unit | None
    class_labels: Mapping[str, int]
    card: str  # Markdown; empty: the bundle has none
    request_id: str
    issued: str
    subject: str | None = None


def _meta(profile: str = "") -> Resource:
    return {"security": [AI_ASSERTED]} | ({"profile": [f"{AI}/StructureDefinition/{profile}"]} if profile else {})


def _notes(*texts: str) -> list[Resource]:
    return [{"text": text} for text in (*texts, RESEARCH_USE)]


def quantity(value: float, unit: str = "1") -> Resource:
    """Of UCUM; `1` is a number without a unit."""
    return {"value": value, "unit": unit, "system": UCUM, "code": unit}


def device(context: Context, card: str | None) -> Resource:
    """The model and the program that runs it: profile AI-Device. `card` refers to its model card.

    A server keeps the first of one identifier, so that covers all that is said here; the second one is the model's own.
    """
    info = context.info
    kinds = ("Deep-Learning-Models", "Medical-Image-Analysis")
    extensions: list[Resource] = [
        {"url": f"{AI}/StructureDefinition/aitransparency.AIKind", "valueCodeableConcept": coded(AI_TYPE, kind)}
        for kind in kinds
    ]
    if card:
        url = f"{AI}/StructureDefinition/aitransparency.modelCardDescription"
        extensions.append({"url": url, "valueReference": {"reference": card}})
    said: Resource = {
        "status": "active",
        "deviceName": [{"name": info.name, "type": "model-name"}],
        "modelNumber": info.architecture,
        "type": {"coding": [{"system": AI_TYPE, "code": "Artificial-Intelligence"}]},
        "version": [
            {"type": {"text": "model"}, "value": info.version},
            {"type": {"text": "leukoray"}, "value": __version__},
        ],
        "note": _notes(*(["Trained on generated images."] if info.synthetic else [])),
    }
    covered = _digest(json.dumps([said, context.card if card else ""], sort_keys=True))
    return {
        "resourceType": "Device",
        "meta": _meta("AI-Device"),
        "extension": extensions,
        "identifier": [{"system": MODELS, "value": value} for value in (f"{info.sha256}.{covered}", info.sha256)],
    } | said


def _digest(text: str) -> str:
    """Of what a resource says, beside the SHA-256 of the model that it is of: 128 bits."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def model_card(context: Context) -> Resource:
    """The bundle's card as it is: profile AI-ModelCard, Hugging Face Markdown, attached."""
    data = base64.b64encode(context.card.encode()).decode()
    return {
        "resourceType": "DocumentReference",
        "meta": _meta("AI-ModelCard"),
        "identifier": [{"system": MODELS, "value": f"{context.info.sha256}.card.{_digest(context.card)}"}],
        "status": "current",
        "type": {"coding": [{"system": AI_INPUTS, "code": "AIModelCard", "display": "AI Model-Card"}]},
        "category": [coded(AI_INPUTS, "AIModelCardMarkdownFormat", "Markdown Format")],
        "content": [{"attachment": {"contentType": "text/markdown", "data": data}}],
    }


def image(answer: ImageAnswer, sha256: str) -> Resource:
    """The image by its SHA-256 (RFC 6920, section 7), kind and size; its bytes stay with who has them."""
    info = answer.image
    media = _MEDIA.get(info.format, f"image/{info.format}")
    title = f"{info.format}, {info.width} x {info.height} pixels"
    return {
        "resourceType": "DocumentReference",
        "meta": _meta(),
        "identifier": [{"system": "urn:ietf:rfc:3986", "value": f"nih:sha-256;{sha256}"}],
        "status": "current",
        "type": local("microscope-image", "Microscope image of blood cells"),
        "content": [{"attachment": {"contentType": media, "size": info.size_bytes, "title": title}}],
    }


def observation(context: Context, device_url: str, code: Resource, *notes: str) -> Resource:
    """What every Observation here has, without a value."""
    found: Resource = {
        "resourceType": "Observation",
        "meta": _meta(),
        "status": "preliminary",
        "category": [coded(f"{TERMINOLOGY}/observation-category", "laboratory", "Laboratory")],
        "code": code,
        "issued": context.issued,
        "method": {"text": f"Image classification, {context.info.name} {context.info.version}"},
        "device": {"reference": device_url},
        "note": _notes(*notes),
    }
    return found | subject(context)


def subject(context: Context) -> Resource:
    """Whom it is of, by an id that means nothing here: a logical reference."""
    if context.subject is None:
        return {}
    return {"subject": {"type": "Patient", "identifier": {"value": context.subject}}}


def absent(reason: str, why: str) -> Resource:
    """Why there is no value: FHIR's own code, and ours, which is finer."""
    found = local(reason, why)
    code, display = ("error", "Error") if reason == "rejected" else ("unknown", "Unknown")
    found["coding"].insert(0, {"system": f"{TERMINOLOGY}/data-absent-reason", "code": code, "display": display})
    return {"dataAbsentReason": found}


def finding(context: Context, device_url: str, image_url: str | None, sent: Sent, place: str) -> Resource:
    """What the model says of one image: profile of Observation alone. `place` is such as 'image 3 of 5'."""
    notes = [place, *(sent.answer.remarks if sent.answer else ())]
    result = outcome(sent)
    found: Resource
    if result == "counted" and sent.answer is not None:
        name = named(context.info, sent.answer)
        found = {"valueCodeableConcept": of_class(name)}
        if name != sent.answer.class_name:
            top = of_class(sent.answer.class_name)["text"]
            notes.append(f"{top} is the most probable class, the decision is of the other side")
    else:
        why = _WHY[result] + (f" ({sent.error.code})" if sent.error else "")
        found = absent(result, why)
    if sent.answer is not None:
        found |= {"component": _components(context.info, sent.answer)} | _interpretation(sent)
    code = local("image-finding", "AI finding in a microscope image of blood cells")
    derived = {"derivedFrom": [{"reference": image_url}]} if image_url else {}
    return observation(context, device_url, code, *notes) | found | derived


def _interpretation(sent: Sent) -> Resource:
    """Of the decision by the threshold; none of an image whose decision means little, or of a model without one."""
    if sent.answer is None or sent.answer.decision is None or sent.answer.is_ood:
        return {}
    code, display = _SIDES[sent.answer.decision]
    return {"interpretation": [coded(f"{TERMINOLOGY}/v3-ObservationInterpretation", code, display)]}


def _components(info: ModelInfo, answer: ImageAnswer) -> list[Resource]:
    of_what = "disease" if info.positive_classes else "the most probable class"
    found: list[Resource] = [
        {"code": local("probability", f"Probability of {of_what}"), "valueQuantity": quantity(answer.probability)},
        *(
            {"code": of_class(name), "valueQuantity": quantity(probability)}
            for name, probability in answer.classes.items()
        ),
    ]
    if answer.decision is not None:
        found.insert(
            0, {"code": local("decision", "Decision"), "valueCodeableConcept": local(answer.decision, answer.decision)}
        )
        found.append({"code": local("threshold", "Threshold"), "valueQuantity": quantity(info.threshold)})
        if info.review_band is not None:
            low, high = info.review_band
            band = {"low": quantity(low), "high": quantity(high)}
            found.append({"code": local("review-band", "Review band"), "valueRange": band})
    if answer.is_ood is not None:
        found.append({"code": local("is-ood", "Unlike the images of training"), "valueBoolean": answer.is_ood})
    if answer.ood_score is not None:
        distance = local("ood-score", "Distance to the images of training")
        found.append({"code": distance, "valueQuantity": quantity(answer.ood_score)})
    return found


def report(
    context: Context, device_url: str, results: Sequence[str], is_differential: bool, conclusion: str
) -> Resource:
    """The DiagnosticReport of several images of one subject."""
    panel = coded(LOINC, "69738-3", "Differential panel, method unspecified - Blood")
    findings = local("image-findings", "AI findings in microscope images of blood cells")
    sections = [("LAB", "Laboratory"), ("HM", "Hematology")]
    return {
        "resourceType": "DiagnosticReport",
        "meta": _meta(),
        "identifier": [{"system": REQUESTS, "value": context.request_id}],
        "status": "preliminary",
        "category": [coded(f"{TERMINOLOGY}/v2-0074", code, display) for code, display in sections],
        "code": panel if is_differential else findings,
        "issued": context.issued,
        "result": [{"reference": url} for url in results],
        "conclusion": f"{conclusion} {RESEARCH_USE}",
        "performer": [_of_device(context, device_url)],
    } | subject(context)


def _of_device(context: Context, device_url: str) -> Resource:
    """R4 has no performer of a report that is a device: HL7's extension of a Reference for what its type leaves out.

    https://hl7.org/fhir/R4/extension-alternate-reference.html
    """
    url = "http://hl7.org/fhir/StructureDefinition/alternate-reference"
    extension = {"url": url, "valueReference": {"reference": device_url}}
    return {"extension": [extension], "display": f"{context.info.name} {context.info.version}"}


def provenance(
    context: Context, device_url: str, card_url: str | None, images: Sequence[str], targets: Sequence[str]
) -> Resource:
    """That the model made `targets` out of `images`: profile AI-Provenance."""
    # the profile's pattern is of this version of the code system
    asserted = {**AI_ASSERTED, "version": "5.0.0", "display": "Artificial Intelligence asserted"}
    card = [{"role": "derivation", "what": {"reference": card_url}}] if card_url else []
    entities = [*card, *({"role": "source", "what": {"reference": url}} for url in images)]
    found: Resource = {
        "resourceType": "Provenance",
        "meta": _meta("AI-Provenance"),
        "target": [{"reference": url} for url in targets],
        "occurredDateTime": context.issued,
        "recorded": context.issued,
        "reason": [{"coding": [asserted]}],
        "activity": coded(f"{TERMINOLOGY}/v3-DataOperation", "CREATE", "create"),
        "agent": [
            {
                "type": coded(f"{TERMINOLOGY}/provenance-participant-type", "author", "Author"),
                "role": [{"coding": [{"system": AI_TYPE, "code": "Artificial-Intelligence"}]}],
                "who": {"reference": device_url},
            }
        ],
    }
    return found | ({"entity": entities} if entities else {})
