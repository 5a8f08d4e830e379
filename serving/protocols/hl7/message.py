"""OUL^R22 of HL7 v2.5.1 (chapter 7, unsolicited specimen oriented observation) in ER7, segments ended by CR.

Takes what `serving.protocols.fhir` takes. OBX-4 holds together what is said of one image or of one count, OBX-11 is P
(preliminary), OBX-18 the model with its version.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from pipeline import __version__
from serving.protocols.fhir.bundle import bundle
from serving.protocols.fhir.codes import CLASSES, LOINC
from serving.protocols.fhir.resources import RESEARCH_USE, Context, Resource
from serving.protocols.fhir.tally import Sent

# Control characters end segments, and frames of MLLP (0x1C)
_CONTROLS = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029), " ")
_ESCAPES = {ord(sign): f"\\{letter}\\" for sign, letter in zip("\\|^&~", "EFSTR", strict=True)} | _CONTROLS
_SYSTEMS = {LOINC: "LN", CLASSES: "99LEUKOCLASS"}  # else _LOCAL
_LOCAL = "99LEUKORAY"
_US = "leukoray"  # namespace of identifiers


def message(context: Context, files: Sequence[Sent]) -> str:
    """One message for one request: one order, its observations, each with its numbers."""
    found = {entry["fullUrl"]: entry["resource"] for entry in bundle(context, files)["entry"]}
    reports = [resource for resource in found.values() if resource["resourceType"] == "DiagnosticReport"]
    observations = [resource for resource in found.values() if resource["resourceType"] == "Observation"]
    if reports:  # shares first
        observations = [found[result["reference"]] for result in reports[0]["result"]]
    head = (reports or observations)[0]
    time, order = _time(context.issued), _escaped(context.request_id)
    control = uuid.uuid5(uuid.NAMESPACE_OID, f"{context.request_id} {context.issued}").hex[:20]
    segments = [
        f"MSH|^~\\&|{_US}||||{time}||OUL^R22^OUL_R22|{control}|P|2.5.1||||||UNICODE UTF-8",
        f"SFT|{_US}|{_escaped(__version__)}|{_US}|{_escaped(__version__)}",
        *_notes(reports[0]["conclusion"] if reports else RESEARCH_USE),
        *([f"PID|1||{_escaped(context.subject)}||^^^^^^U"] if context.subject else []),
        f"SPM|1|||IMG^Microscope image of blood cells^{_LOCAL}",
        _segment({0: "OBR", 1: "1", 3: f"{order}^{_US}", 4: _term(head["code"]), 22: time, 24: "HM", 25: "P"}),
    ]
    model = f"{_escaped(f'{context.info.name} {context.info.version}')}^{_US}"
    number = 0
    for sub, observation in enumerate(observations, 1):
        notes = _notes(*(note["text"] for note in observation["note"][:-1]))  # the last is of all
        for fields in _lines(observation, sub, found):
            number += 1
            segments.append(_segment({0: "OBX", 1: str(number), **fields, 11: "P", 18: model, 19: time}))
            segments += notes
            notes = []
    return "".join(f"{segment}\r" for segment in segments)


def _lines(observation: Resource, sub: int, found: Mapping[str, Resource]) -> Iterator[dict[int, str]]:
    """Fields 2 to 8 of the OBX segments of one Observation: its value, or why there is none, and its components."""
    flags = [coding["code"] for each in observation.get("interpretation", []) for coding in each["coding"]]
    absent = observation.get("dataAbsentReason")
    if absent is not None:
        own = absent["coding"][-1]  # ours, the finer
        value = {2: "CWE", 5: f"{own['code']}^{_escaped(absent['text'])}^{_LOCAL}"}
    else:
        value = _value(observation)
    if value:
        yield {3: _term(observation["code"]), 4: str(sub), **value, 8: "~".join(flags)}
    for component in observation.get("component", []):
        yield {3: _term(component["code"]), 4: str(sub), **_value(component)}
    for source in observation.get("derivedFrom", []):
        if found[source["reference"]]["resourceType"] == "DocumentReference":
            digest = found[source["reference"]]["identifier"][0]["value"]
            yield {2: "ST", 3: f"image-sha256^Image by its SHA-256^{_LOCAL}", 4: str(sub), 5: _escaped(digest)}


def _value(of: Resource) -> dict[int, str]:
    """OBX-2, 5 and 6; empty where there is no value."""
    match of:
        case {"valueQuantity": {"value": value, "code": unit}}:
            return {2: "NM", 5: _number(value), 6: f"{_escaped(unit)}^^UCUM"}
        case {"valueInteger": int(value)}:
            return {2: "NM", 5: str(value)}
        case {"valueRange": {"low": low, "high": high}}:
            return {2: "SN", 5: f"^{_number(low['value'])}^-^{_number(high['value'])}"}
        case {"valueBoolean": bool(value)}:
            return {2: "ID", 5: "Y" if value else "N"}
        case {"valueCodeableConcept": value}:
            return {2: "CWE", 5: _term(value)}
    return {}


def _number(value: float) -> str:
    """NM: digits and a point, never an exponent (chapter 2A)."""
    return f"{value:.10f}".rstrip("0").rstrip(".")


def _term(concept: Resource) -> str:
    """CWE: code, text, coding system."""
    coding = concept["coding"][0]
    return f"{_escaped(coding['code'])}^{_escaped(concept['text'])}^{_SYSTEMS.get(coding['system'], _LOCAL)}"


def _notes(*texts: str) -> list[str]:
    return [f"NTE|{number}||{_escaped(text)}" for number, text in enumerate(filter(None, texts), 1)]


def _segment(fields: dict[int, str]) -> str:
    return "|".join(fields.get(place, "") for place in range(max(fields) + 1))


def _escaped(text: str) -> str:
    return text.translate(_ESCAPES)


def _time(issued: str) -> str:
    return datetime.fromisoformat(issued).strftime("%Y%m%d%H%M%S%z")
