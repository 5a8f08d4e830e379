"""Terms: LOINC where a class name means exactly that, our own codes for the rest, and the systems they are of.

LOINC codes and displays are members of panel 69738-3, as the value set of the CIBMTR reporting guide lists them
(http://fhir.nmdp.org/ig/cibmtr-reporting/ValueSet/differential-unspecified-blood-vs), and 38518-7. LOINC is (c)
Regenstrief Institute, https://loinc.org/license.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

LOINC = "http://loinc.org"
UCUM = "http://unitsofmeasure.org"
# Below a UUID that was drawn for it (a84a4361-e658-4f82-9b51-e7c83425fcc9), as ITU-T X.667 lets anyone: .1 findings,
# .2 class names, .3 models by SHA-256, .4 request ids
_ROOT = "urn:oid:2.25.223695899937260965645166304749393673417"
LOCAL, CLASSES, MODELS, REQUESTS = (f"{_ROOT}.{arc}" for arc in (1, 2, 3, 4))
TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
AI = "http://hl7.org/fhir/uv/aitransparency"
AI_TYPE, AI_INPUTS = f"{AI}/CodeSystem/AIdeviceTypeCS", f"{AI}/CodeSystem/AIinputsCS"
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
AI_ASSERTED = {"system": f"{TERMINOLOGY}/v3-ObservationValue", "code": "AIAST"}

Role = Literal["leukocyte", "blast", "beside"]  # beside: on the slide, but no leukocyte


@dataclass(frozen=True)
class Kind:
    """What cells of a class are. `code` of LOINC, per 100 leukocytes of blood; None: it has no exact one here."""

    role: Role
    code: str | None
    display: str


def _kinds() -> dict[str, Kind]:
    named: list[tuple[Role, str | None, str, tuple[str, ...]]] = [
        ("leukocyte", "26511-6", "Neutrophils", ("neutrophil",)),
        ("leukocyte", "26505-8", "Segmented neutrophils", ("segmented neutrophil", "neutrophil segmented")),
        (
            "leukocyte",
            "26508-2",
            "Band form neutrophils",
            ("band neutrophil", "neutrophil band", "band form neutrophil", "band cell"),
        ),
        ("leukocyte", "26450-7", "Eosinophils", ("eosinophil",)),
        ("leukocyte", "30180-4", "Basophils", ("basophil",)),
        ("leukocyte", "26478-8", "Lymphocytes", ("lymphocyte",)),
        ("leukocyte", "13046-8", "Variant lymphocytes", ("variant lymphocyte", "lymphocyte variant")),
        ("leukocyte", "26485-3", "Monocytes", ("monocyte",)),
        ("leukocyte", "30465-9", "Prolymphocytes", ("prolymphocyte",)),
        ("leukocyte", "30466-7", "Promonocytes", ("promonocyte",)),
        ("leukocyte", "26524-9", "Promyelocytes", ("promyelocyte",)),
        ("leukocyte", "26498-6", "Myelocytes", ("myelocyte",)),
        ("leukocyte", "28541-1", "Metamyelocytes", ("metamyelocyte",)),
        ("leukocyte", "38518-7", "Immature granulocytes", ("immature granulocyte",)),
        ("leukocyte", "13047-6", "Plasma cells", ("plasma cell",)),
        ("leukocyte", "35058-7", "Hairy cells", ("hairy cell",)),
        ("blast", "26446-5", "Blasts", ("blast", "blast cell", "blast no lineage spec")),
        ("blast", "30445-1", "Myeloblasts", ("myeloblast",)),
        ("blast", "34922-5", "Lymphoblasts", ("lymphoblast",)),
        ("blast", "34923-3", "Monoblasts", ("monoblast",)),
        ("beside", "34992-8", "Smudge cells", ("smudge cell",)),
        ("beside", None, "Erythroblasts", ("erythroblast", "normoblast")),
        ("beside", None, "Platelets", ("platelet", "thrombocyte", "giant thrombocyte")),
        ("beside", None, "Artefacts", ("artefact", "artifact")),
    ]
    return {name: Kind(role, code, display) for role, code, display, names in named for name in names}


KINDS = _kinds()
BLASTS = KINDS["blast"]
# Codes of a whole group of cells, with its parts: a class of that name beside classes of parts is only the rest.
GROUPS = {
    KINDS["neutrophil"]: (KINDS["segmented neutrophil"], KINDS["band neutrophil"]),
    KINDS["immature granulocyte"]: (KINDS["promyelocyte"], KINDS["myelocyte"], KINDS["metamyelocyte"]),
}
OTHER_LEUKOCYTES = Kind("leukocyte", None, "Leukocytes other than blasts")


def kind_of(class_name: str) -> Kind | None:
    """What cells of a class are by its name, whole: 'Band_neutrophils', not 'immature blast?'. None: not known."""
    name = re.sub(r"[\s_\-]+", " ", class_name).strip().casefold()
    return KINDS.get(name) or (KINDS.get(name[:-1]) if name.endswith("s") else None)


def coded(system: str, code: str, display: str = "") -> dict[str, Any]:
    """A CodeableConcept of one code."""
    coding = {"system": system, "code": code} | ({"display": display} if display else {})
    return {"coding": [coding], "text": display or code}


def local(code: str, display: str) -> dict[str, Any]:
    return coded(LOCAL, code, display)


def of_class(class_name: str) -> dict[str, Any]:
    """A class of the model by its name, as a code without the white space that FHIR codes must not have.

    Nor has either a control character: no text of FHIR has one (https://hl7.org/fhir/R4/datatypes.html#string).
    """
    name = _CONTROLS.sub(" ", class_name).strip() or "_"
    return coded(CLASSES, re.sub(r"\s+", "_", name), name)


def per_leukocytes(kind: Kind) -> dict[str, Any]:
    """What is observed where cells of a kind are counted."""
    if kind.code is not None:
        return coded(LOINC, kind.code, f"{kind.display}/100 leukocytes in Blood")
    code = re.sub(r"\W+", "-", kind.display.casefold())
    return local(f"{code}-per-100-leukocytes", f"{kind.display}/100 leukocytes")
