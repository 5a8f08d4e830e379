"""An Enhanced SR by TID 1500, Measurement Report (PS3.16): what the model says of each image, in a group by TID 1501.

UNVERIFIED, PRELIMINARY, with the model as the observer (TID 1004) and the algorithm (TID 4019). Concepts that the
standard has no code for are of the scheme 99LEUKORAY, classes of 99LEUKOCLASS (PS3.16, section 8.2).
"""

import importlib.util
import io
import logging
import re
import uuid
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline import __version__
from serving.protocols.dicom.source import NoReport, read_source, refuse_mixed
from serving.schemas import ImageAnswer, ModelInfo

if TYPE_CHECKING:
    from highdicom.sr import CodedConcept, MeasurementsAndQualitativeEvaluations
    from pydicom import Dataset

_LOCAL, _CLASSES, _SNOMED = "99LEUKORAY", "99LEUKOCLASS", "SCT"
_SIDES = {"positive": "10828004", "negative": "260385009", "review": "82334004"}
_MEANINGS = {"positive": "Positive", "negative": "Negative", "review": "Indeterminate"}
_NOTE = "Research use only, not a medical device; nobody confirmed it"
_UNHEARD = ("ignore", None, Warning, re.compile(r"highdicom\b"), 0)
_LONGEST = 64  # characters of LO (PS3.5, section 6.2)


@dataclass(frozen=True)
class Reported:
    """One image as it was sent, DICOM, and what the model says of it."""

    data: bytes
    answer: ImageAnswer


def report(info: ModelInfo, images: Sequence[Reported]) -> bytes:
    """A DICOM file. Raises NoReport, which quotes no value of a header."""
    _silence()
    sources = [read_source(image.data) for image in images]
    refuse_mixed(sources)
    try:
        document = _document(info, sources, [image.answer for image in images])
        buffer = io.BytesIO()
        document.save_as(buffer, enforce_file_format=True)
    except Exception as error:  # of highdicom and pydicom, which quote what is in a header
        raise NoReport(f"its header cannot be repeated ({type(error).__name__})") from None
    return buffer.getvalue()


def _document(info: ModelInfo, sources: Sequence["Dataset"], answers: Sequence[ImageAnswer]) -> "Dataset":
    from highdicom import sr

    observer = sr.ObserverContext(
        observer_type=sr.CodedConcept("121007", "DCM", "Device"),
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=_uid(f"model {info.sha256}"), name=_short(info.name), manufacturer_name="leukoray",
            model_name=_short(info.name), serial_number=_short(info.version),
        ),
    )  # fmt: skip
    groups = [
        _group(info, source, answer, place)
        for place, (source, answer) in enumerate(zip(sources, answers, strict=True), 1)
    ]
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=_local("classification", "Classification of microscope images of blood cells"),
        imaging_measurements=groups,
        title=sr.CodedConcept("126000", "DCM", "Imaging Measurement Report"),
    )
    return sr.EnhancedSR(
        evidence=list(sources), content=content[0], specific_character_set="ISO_IR 192",
        series_instance_uid=f"2.25.{uuid.uuid4().int}", series_number=1,
        sop_instance_uid=f"2.25.{uuid.uuid4().int}", instance_number=1,
        is_complete=True, is_final=False, is_verified=False,
        manufacturer="leukoray", manufacturer_model_name=_short(info.name),
        software_versions=(__version__, _short(info.version)), device_serial_number=_short(info.sha256),
        series_description=_NOTE,
    )  # fmt: skip


def _group(
    info: ModelInfo, source: "Dataset", answer: ImageAnswer, place: int
) -> "MeasurementsAndQualitativeEvaluations":
    """What is said of one image, which it refers to."""
    from highdicom import sr

    unit = _concept("1", "UCUM", "no units")
    algorithm = sr.AlgorithmIdentification(
        name=_short(info.name), version=_short(info.version), manufacturer="leukoray",
        parameters=[f"sha256 {info.sha256}", f"threshold {info.threshold:g}", f"input {info.input_size}"],
    )  # fmt: skip
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=f"2.25.{uuid.uuid4().int}", identifier=f"Image {place}"),
        algorithm_id=algorithm,
        source_images=[sr.SourceImageForMeasurementGroup(source.SOPClassUID, source.SOPInstanceUID)],
        measurements=[sr.Measurement(name=name, value=value, unit=unit) for name, value in _numbers(info, answer)],
        qualitative_evaluations=[sr.QualitativeEvaluation(name=name, value=value) for name, value in _codes(answer)],
    )


def _codes(answer: ImageAnswer) -> Iterator[tuple["CodedConcept", "CodedConcept"]]:
    if answer.decision is not None:
        side = _concept(_SIDES[answer.decision], _SNOMED, _MEANINGS[answer.decision])
        yield _local("decision", "Decision at the threshold of the model"), side
    yield _local("class", "Most probable class"), _concept(answer.class_name, _CLASSES, answer.class_name)
    if answer.is_ood is not None:
        said = ("373066001", "Yes") if answer.is_ood else ("373067005", "No")
        yield _local("is-ood", "Unlike the images of training"), _concept(said[0], _SNOMED, said[1])


def _numbers(info: ModelInfo, answer: ImageAnswer) -> Iterator[tuple["CodedConcept", float]]:
    what = "of the positive classes" if info.positive_classes else "of the most probable class"
    yield _local("probability", f"Calibrated probability {what}"), answer.probability
    for place, (name, probability) in enumerate(answer.classes.items()):
        yield _local(f"class-{place}", f"Calibrated probability of {name}"), probability
    if answer.ood_score is not None:
        yield _local("ood-score", "Distance to the images of training, whose own is about 1"), answer.ood_score


def _local(code: str, meaning: str) -> "CodedConcept":
    return _concept(code, _LOCAL, meaning)


def _concept(code: str, scheme: str, meaning: str) -> "CodedConcept":
    from highdicom.sr import CodedConcept

    return CodedConcept(code.replace("\\", "/"), scheme, _short(meaning))


def _short(text: str) -> str:
    """As LO holds it: no backslash, which separates values, and at most 64 characters."""
    return text.replace("\\", "/")[:_LONGEST]


def _uid(name: str) -> str:
    """The same for the same name (PS3.5, annex B.2)."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}"


def _silence() -> None:
    """highdicom quotes names and UIDs, in warnings and in its log."""
    logging.getLogger("highdicom").setLevel(logging.CRITICAL + 1)
    if _UNHEARD not in warnings.filters:  # those who catch warnings undo it
        warnings.filterwarnings("ignore", module=r"highdicom\b")


def is_there() -> bool:
    """Whether the extra is installed."""
    return all(importlib.util.find_spec(name) for name in ("highdicom", "pydicom"))
