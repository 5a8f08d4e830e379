"""Which form of answer a request asks for: JSON as ever, FHIR, HL7 v2, DICOM SR. Looks at the request, decides nothing.

`?format=` before `Accept` (RFC 9110, section 12.5.1, without weights); `fhirVersion` as
https://hl7.org/fhir/R4/http.html#version-parameter has it.
"""

from typing import Literal, cast, get_args
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.types import Scope

Format = Literal["json", "fhir", "hl7", "dicom-sr"]
FORMATS: tuple[str, ...] = get_args(Format)
FHIR_JSON, HL7_V2, DICOM = "application/fhir+json", "application/hl7-v2", "application/dicom"
FHIR_VERSIONS = frozenset({"4.0", "4.0.1"})
_PATHS = ("/predict",)  # that have more than one form
_FOREIGN = ("application/fhir+xml", "application/fhir+turtle")


class UnknownFormat(ValueError):
    """`?format=` names none that is known."""


class NotAcceptable(ValueError):
    """`Accept` asks for FHIR in a form that is not spoken here, and for nothing else."""


def asked_format(scope: Scope) -> Format:
    """Raises UnknownFormat and NotAcceptable. Other kinds in `Accept` than these get JSON, as from most services."""
    given = parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True).get("format")
    if given is not None:
        if given in ([known] for known in FORMATS):
            return cast(Format, given[0])
        raise UnknownFormat(f"format={','.join(given)[:20]}: expected one of {', '.join(FORMATS)}")
    return _accepted(",".join(Headers(scope=scope).getlist("accept")))


def _accepted(accept: str) -> Format:
    """The first kind that is spoken here; wildcards and what is not known mean JSON, the least of all."""
    is_other, refused = False, ""
    for kind in filter(None, (kind.strip() for kind in accept.lower().split(","))):
        name, *parameters = (part.strip() for part in kind.split(";"))
        versions = [part.partition("=")[2].strip('"') for part in parameters if part.startswith("fhirversion=")]
        if name == "application/json":
            return "json"
        if name in (HL7_V2, DICOM):
            return "hl7" if name == HL7_V2 else "dicom-sr"
        if name == FHIR_JSON and set(versions) <= FHIR_VERSIONS:
            return "fhir"
        if name in (FHIR_JSON, *_FOREIGN):
            refused = refused or kind
        else:
            is_other = True
    if refused and not is_other:
        raise NotAcceptable(f"Accept: {refused[:60]}: FHIR is spoken here as {FHIR_JSON} of version 4.0")
    return "json"


def wants_fhir(scope: Scope) -> bool:
    """Whether errors of this request are OperationOutcomes. Never raises."""
    if scope["path"].removeprefix(scope.get("root_path", "")) not in _PATHS:
        return False
    try:
        return asked_format(scope) == "fhir"
    except ValueError:
        return False
