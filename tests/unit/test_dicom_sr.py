"""DICOM SR as an answer: read back by pydicom and highdicom, about the image that was sent and the patient in it."""

import io
import logging
import warnings
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest

import serving.clinical
from pipeline.model.bundle import Bundle
from serving.engine import Engine
from serving.model import load_model
from serving.settings import ServingSettings
from tests.asgi import call, picture
from tests.bundles import make_bundle
from tests.dicoms import MICROSCOPIC, dicom

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning")  # of making such files
PATIENT = "Müller^Jörg"
STUDY = {
    "SpecificCharacterSet": "ISO_IR 100", "PatientName": PATIENT, "PatientID": "P-17", "PatientSex": "O",
    "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.1", "SOPInstanceUID": "1.2.3.1.1",
    "StudyDate": "20260102", "StudyTime": "101112", "StudyID": "S1", "AccessionNumber": "A1",
}  # fmt: skip
SECOND = {"SOPInstanceUID": "1.9"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle"), size=32, task="multiclass", classes=("Benign", "Früh", "Pro"))


@pytest.fixture
def engine(bundle: Bundle) -> Engine:
    settings = ServingSettings(model=bundle.uri)
    return Engine(settings, load_model(bundle.uri, settings))


def image(seed: int = 0, **elements: Any) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)
    return dicom(pixels, **{**STUDY, **elements})


def ask(engine: Engine, *images: bytes, **options: Any) -> Any:
    if len(images) == 1:
        return call(engine, "POST", "/predict?format=dicom-sr", content=images[0], **options)
    files = [("files", (f"{place}.dcm", data)) for place, data in enumerate(images)]
    return call(engine, "POST", "/predict?format=dicom-sr", files=files, **options)


def coded(group: Any) -> dict[str, str]:
    return {item.name.value: item.value.meaning for item in group.get_qualitative_evaluations()}


def measured(group: Any) -> dict[str, float]:
    return {item.name.value: float(item.value) for item in group.get_measurements()}


def test_the_report_says_what_json_says_of_the_patients_own_image(engine: Engine) -> None:
    said = call(engine, "POST", "/predict", content=image()).json()
    answer = call(engine, "POST", "/predict", content=image(), headers={"accept": "application/dicom"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/dicom")
    report = highdicom.sr.srread(io.BytesIO(answer.content))
    assert isinstance(report, highdicom.sr.EnhancedSR) and report.Modality == "SR"
    assert (report.VerificationFlag, report.PreliminaryFlag, report.CompletionFlag) == (
        "UNVERIFIED", "PRELIMINARY", "COMPLETE",
    )  # fmt: skip
    assert (str(report.PatientName), report.PatientID, report.StudyInstanceUID) == (PATIENT, "P-17", "1.2.3")
    assert (report.StudyDate, report.StudyID, report.AccessionNumber) == ("20260102", "S1", "A1")
    assert report.SeriesInstanceUID != "1.2.3.1" and report.DeviceSerialNumber == said["model"]["sha256"]
    [series] = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.3.1.1"
    [group] = report.content.get_image_measurement_groups()
    [source] = group.source_images
    assert (source.referenced_sop_class_uid, source.referenced_sop_instance_uid) == (MICROSCOPIC, "1.2.3.1.1")
    assert coded(group) == {"decision": said["decision"].capitalize(), "class": said["class_name"]}
    wanted = [said["probability"], *said["classes"].values()]
    assert list(measured(group).values()) == pytest.approx(wanted, abs=1e-6)
    texts = {item.name.meaning: item.value for item in group[0].ContentSequence if item.ValueType == "TEXT"}
    assert (texts["Algorithm Name"], texts["Algorithm Version"]) == (said["model"]["name"], said["model"]["version"])
    assert report.content.get_observer_contexts()[0].observer_type.meaning == "Device"


def test_images_of_one_study_share_a_report(engine: Engine) -> None:
    lacking: list[dict[str, str]] = [{}, {"AccessionNumber": "", "PatientSex": ""}, {"IssuerOfPatientID": "A"}]
    images = [image(seed, SOPInstanceUID=f"1.2.3.1.{seed}", **more) for seed, more in enumerate(lacking, 1)]
    report = highdicom.sr.srread(io.BytesIO(ask(engine, *images).content))
    groups = report.content.get_image_measurement_groups()
    single = [call(engine, "POST", "/predict", content=data).json()["probability"] for data in images]
    assert [measured(group)["probability"] for group in groups] == pytest.approx(single, abs=1e-6)
    assert [group.source_images[0].referenced_sop_instance_uid for group in groups] == [
        "1.2.3.1.1", "1.2.3.1.2", "1.2.3.1.3",
    ]  # fmt: skip


def test_elements_that_the_image_lacks_are_there_and_empty(engine: Engine) -> None:
    bare = pydicom.dcmread(io.BytesIO(image()))
    for keyword in ("PatientSex", "StudyID", "StudyDate", "StudyTime", "AccessionNumber", "PatientBirthDate"):
        if keyword in bare:
            delattr(bare, keyword)
    buffer = io.BytesIO()
    bare.save_as(buffer, enforce_file_format=True)
    report = pydicom.dcmread(io.BytesIO(ask(engine, buffer.getvalue()).content))
    for keyword in ("PatientSex", "StudyID", "StudyDate", "AccessionNumber", "ReferringPhysicianName"):
        assert keyword in report and not report[keyword].value


@pytest.mark.parametrize(
    ("images", "status", "code", "word"),
    [
        ([picture("PNG")], 415, "no_dicom", "DICOM"),
        ([image(), picture("PNG")], 415, "no_dicom", "image 2 of 2"),
        ([image(StudyInstanceUID="")], 422, "no_dicom", "StudyInstanceUID"),
        ([image().replace(b"1.2.3.1\0", b"1.02.3\0\0")], 422, "no_dicom", "SeriesInstanceUID"),
        ([image(), image(1, **SECOND, PatientID="P-18")], 422, "no_dicom", "PatientID"),
        ([image(), image(1)], 422, "no_dicom", "SOPInstanceUID"),
        ([image(), image(1, **SECOND, PatientBirthDate="19510101")], 422, "no_dicom", "PatientBirthDate"),
        ([image(), image(1, **SECOND, PatientSex="F")], 422, "no_dicom", "PatientSex"),
        ([image(), image(1, **SECOND, AccessionNumber="A2")], 422, "no_dicom", "AccessionNumber"),
        (
            [image(IssuerOfPatientID="A"), image(1, **SECOND, IssuerOfPatientID="B")],
            422,
            "no_dicom",
            "IssuerOfPatientID",
        ),
        ([image()[:1500]], 422, "truncated", ""),
    ],
)
def test_what_no_report_can_be_of_is_refused(
    engine: Engine, images: list[bytes], status: int, code: str, word: str
) -> None:
    answer = ask(engine, *images)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert word in answer.json()["error"]["message"] and answer.headers["content-type"] == "application/problem+json"


def test_without_the_extra_it_is_not_acceptable(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.clinical, "is_there", lambda: False)
    answer = ask(engine, image())
    assert answer.status_code == 406 and "leukoray[dicom-sr]" in answer.json()["error"]["message"]
    assert call(engine, "POST", "/predict", content=image()).status_code == 200


@pytest.mark.parametrize(
    "elements",
    [{}, {"PatientBirthDate": PATIENT}, {"StudyTime": PATIENT}, {"PatientSex": PATIENT}, {"StudyInstanceUID": PATIENT}],
)
def test_nothing_of_the_patient_is_logged_or_in_an_error(
    engine: Engine, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], elements: dict[str, str]
) -> None:
    sent = image(PatientName="Mustermann", **elements)
    caplog.set_level(logging.DEBUG)
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as warned:
        answer = ask(engine, sent)
    seen = caplog.text + "".join(capfd.readouterr()) + " ".join(str(one.message) for one in warned)
    if answer.status_code != 200:
        seen += answer.text
        assert answer.json()["error"]["code"] == "no_dicom"
    assert not any(word in seen for word in ("Mustermann", "Müller", "Jörg", "P-17", "1.2.3.1"))
