"""The answer to /predict as clinical systems take it: FHIR R4, HL7 v2 or a DICOM SR, each of what JSON says."""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime

from fastapi import Request
from starlette.responses import Response

from pipeline.images.formats.sniff import DICOM_HEAD_BYTES, is_dicom
from serving.errors import HttpError
from serving.formats import DICOM, FHIR_JSON, HL7_V2, Format, NotAcceptable, UnknownFormat, asked_format
from serving.model import LoadedModel
from serving.multipart import ReceivedFile
from serving.protocols.dicom.report import Reported, is_there, report
from serving.protocols.dicom.source import NoReport
from serving.protocols.fhir.bundle import bundle
from serving.protocols.fhir.resources import Context
from serving.protocols.fhir.tally import Sent
from serving.protocols.hl7.message import message
from serving.schemas import ImageAnswer

SUBJECT = r"^[A-Za-z0-9._:/+=-]{1,64}$"
SUBJECT_PARAMETER = {
    "name": "subject",
    "in": "query",
    "required": False,
    "description": "an opaque id of whom the images are of: all of them get one model where two are on trial; with "
    "fhir and hl7 it comes back in the answer; never logged",
    "schema": {"type": "string", "pattern": SUBJECT},
}


def read_format(request: Request) -> Format:
    """Raises HttpError 400 and 406."""
    try:
        form = asked_format(request.scope)
    except UnknownFormat as error:
        raise HttpError(400, "bad_request", str(error)) from error
    except NotAcceptable as error:
        raise HttpError(406, "not_acceptable", str(error)) from error
    if form == "dicom-sr" and not is_there():
        message = "this service makes no DICOM SR; who runs it: pip install 'leukoray[dicom-sr]'"
        raise HttpError(406, "not_acceptable", message)
    return form


def read_subject(request: Request) -> str | None:
    """The id that the images' subject goes by elsewhere; never logged, not in errors. Raises HttpError 400."""
    given = request.query_params.getlist("subject")
    if not given:
        return None
    if len(given) > 1 or not re.fullmatch(SUBJECT, given[0]):
        raise HttpError(400, "bad_request", "subject: expected one, 1 to 64 of A-Z a-z 0-9 . _ : / + = -")
    return given[0]


def refuse_other_kinds(files: Sequence[ReceivedFile]) -> None:
    """Raises HttpError 415 where an image has no SOP instance that a report could refer to."""
    for place, file in enumerate(files, 1):
        if file.data is not None and not is_dicom(file.data[:DICOM_HEAD_BYTES]):
            raise HttpError(415, "no_dicom", f"{_which(place, files)}a DICOM SR is of DICOM images, and this is none")


def dicom_response(model: LoadedModel, files: Sequence[ReceivedFile], answers: Sequence[ImageAnswer]) -> Response:
    """In a thread: it takes some ten milliseconds. Raises HttpError 422."""
    images = [Reported(file.data or b"", answer) for file, answer in zip(files, answers, strict=True)]
    try:
        return Response(report(model.info, images), media_type=DICOM)
    except NoReport as error:
        raise HttpError(422, "no_dicom", f"no DICOM SR can be made of this: {error}") from None


def _which(place: int, files: Sequence[ReceivedFile]) -> str:
    return f"image {place} of {len(files)}: " if len(files) > 1 else ""


def clinical_response(
    form: Format, request: Request, model: LoadedModel, files: Sequence[Sent], subject: str | None
) -> Response:
    bundled = model.predictor.info
    context = Context(
        info=model.info,
        unit=bundled.unit,
        class_labels=bundled.class_labels,
        card=model.card,
        request_id=str(request.state.request_id),
        issued=datetime.now(UTC).isoformat(timespec="milliseconds"),
        subject=subject,
    )
    if form == "hl7":
        return Response(message(context, files), media_type=HL7_V2)
    return Response(json.dumps(bundle(context, files), allow_nan=False), media_type=FHIR_JSON)
