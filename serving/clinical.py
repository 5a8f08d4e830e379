"""The answer to /predict as clinical systems take it: FHIR R4, or an HL7 v2 message, both of what JSON says."""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime

from fastapi import Request
from starlette.responses import Response

from serving.errors import HttpError
from serving.formats import FHIR_JSON, HL7_V2, Format, NotAcceptable, UnknownFormat, asked_format
from serving.model import LoadedModel
from serving.protocols.fhir.bundle import bundle
from serving.protocols.fhir.resources import Context
from serving.protocols.fhir.tally import Sent
from serving.protocols.hl7.message import message

SUBJECT = r"^[A-Za-z0-9._:/+=-]{1,64}$"


def read_format(request: Request) -> Format:
    """Raises HttpError 400 and 406."""
    try:
        return asked_format(request.scope)
    except UnknownFormat as error:
        raise HttpError(400, "bad_request", str(error)) from error
    except NotAcceptable as error:
        raise HttpError(406, "not_acceptable", str(error)) from error


def read_subject(request: Request) -> str | None:
    """The id that the images' subject goes by elsewhere; never logged, not in errors. Raises HttpError 400."""
    given = request.query_params.getlist("subject")
    if not given:
        return None
    if len(given) > 1 or not re.fullmatch(SUBJECT, given[0]):
        raise HttpError(400, "bad_request", "subject: expected one, 1 to 64 of A-Z a-z 0-9 . _ : / + = -")
    return given[0]


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
