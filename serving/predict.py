"""POST /predict: one image as the body, or several as multipart/form-data."""

import functools
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from pipeline.base.errors import ImageRejected
from serving.admission import Admission, Ticket
from serving.answers import prediction_response, provenance
from serving.audit.notes import sha256
from serving.clinical import (
    SUBJECT_PARAMETER,
    clinical_response,
    dicom_response,
    read_format,
    read_subject,
    refuse_other_kinds,
)
from serving.desk import Desk, Visit
from serving.engine import Engine
from serving.errors import PROBLEM, HttpError, from_rejection, outcome_response
from serving.explain import explained
from serving.formats import DICOM, FHIR_JSON, FORMATS, HL7_V2, Format
from serving.guard import admit
from serving.intake import MULTIPART, check_encoding, media_type, read_files, read_raw
from serving.interface import NO_MAP, REQUEST_ID_PARAMETER, keys, prediction_body, reference, responses
from serving.limits import at_once, in_time
from serving.model import LoadedModel
from serving.multipart import ReceivedFile
from serving.protocols.fhir.tally import Sent
from serving.schemas import BatchBody, BatchFailure, ErrorBody, FhirResource, FileAnswer, ImageAnswer, PredictionBody
from serving.settings import ServingSettings

_EXPLAIN = {
    "name": "explain",
    "in": "query",
    "required": False,
    "description": "1: with a map of where the image speaks for its class, as /explain gives",
    "schema": {"type": "integer", "enum": [0, 1]},
}
_FORMAT = {
    "name": "format",
    "in": "query",
    "required": False,
    "description": "of the answer, before what Accept says; of several files fhir, hl7 and dicom-sr make one report, "
    "as of one subject. They have no map",
    "schema": {"type": "string", "enum": list(FORMATS)},
}
_OUTCOME = {FHIR_JSON: {"schema": reference(FhirResource)}}
_FORMS = {
    **_OUTCOME,
    HL7_V2: {"schema": {"type": "string"}},
    DICOM: {"schema": {"type": "string", "format": "binary"}},
}
_NOT_HERE = "FHIR of another version, or not as JSON, is asked for and nothing else; or a DICOM SR where none is made"
_Answering = Callable[[LoadedModel, bytes], Awaitable[ImageAnswer]]


def prediction_routes(engine: Engine, desk: Desk, admission: Admission) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/predict",
        summary="Predict one image, or several",
        response_model=PredictionBody | BatchBody,
        responses=_responses(),
        openapi_extra={
            "requestBody": prediction_body(engine.settings),
            "parameters": [REQUEST_ID_PARAMETER, _EXPLAIN, _FORMAT, SUBJECT_PARAMETER],
        },
        dependencies=keys(engine.settings),
    )
    async def predict(request: Request) -> Response:
        """One image as the body gives one prediction. Its format is what the bytes say, whatever Content-Type says.

        `multipart/form-data` with one or several files gives `results`, in the order sent, each with a prediction
        or an error. Its status is 200 as soon as one file was predicted, else that of the first file's error.

        `?format=fhir` or `Accept: application/fhir+json` gives a FHIR R4 Bundle, `?format=hl7` an HL7 v2 message,
        `?format=dicom-sr` or `Accept: application/dicom` a DICOM SR of DICOM images.
        """
        visit = await admit(desk, request)
        check_encoding(request.headers)
        settings, started = engine.settings, time.perf_counter()
        form, subject = read_format(request), read_subject(request)
        answer_one = _answering(request, engine, form)

        async def answer(body: bytes | list[ReceivedFile]) -> Response:
            await visit.spend(1 if isinstance(body, bytes) else len(body))

            async def by(model: LoadedModel) -> Response:
                if form == "dicom-sr":
                    return await _answer_dicom(visit, engine, model, body)
                if form != "json":
                    return await _answer_clinical(request, visit, engine, model, answer_one, body, form, subject)
                if isinstance(body, bytes):
                    return await _answer_image(request, model, answer_one, body, started)
                return await _answer_files(request, visit, engine, model, answer_one, body, started)

            return await engine.by_share(subject or request.state.request_id, by)

        return await in_time(settings, admission, functools.partial(_read, request, settings), visit.recorded(answer))

    return router


async def _read(request: Request, settings: ServingSettings, ticket: Ticket) -> bytes | list[ReceivedFile]:
    if media_type(request.headers) == MULTIPART:
        return await read_files(request, settings, ticket)
    return await read_raw(request, settings, ticket)


def _responses() -> dict[int | str, dict[str, Any]]:
    known = responses()
    not_acceptable = {"model": ErrorBody, "description": _NOT_HERE, "headers": known[400]["headers"]}
    refused = {**known, 409: {"model": ErrorBody, "description": NO_MAP}}
    of_fhir = {status: {**answer, "content": _OUTCOME} for status, answer in refused.items() if status != 200}
    return {**of_fhir, 200: {**known[200], "content": _FORMS}, 406: not_acceptable}


def _answering(request: Request, engine: Engine, form: Format) -> _Answering:
    """What answers an image: with a map where `?explain=1` asks for one."""
    asked = ",".join(request.query_params.getlist("explain") or ["0"])
    if asked not in ("0", "1"):
        raise HttpError(400, "bad_request", f"explain={asked[:20]}: expected 0 or 1")
    if asked == "1" and form != "json":
        raise HttpError(409, "no_map", f"explain=1: an answer of format {form} has no map; leave one out")
    return engine.answer if asked == "0" else functools.partial(explained, engine)


async def _answer_image(
    request: Request, model: LoadedModel, answer_one: _Answering, data: bytes, started: float
) -> Response:
    try:
        answer = await answer_one(model, data)
    except ImageRejected as error:
        raise from_rejection(error) from error
    return prediction_response(request, model, answer, started)


async def _answer_files(
    request: Request,
    visit: Visit,
    engine: Engine,
    model: LoadedModel,
    answer_one: _Answering,
    files: list[ReceivedFile],
    started: float,
) -> Response:
    request_id = str(request.state.request_id)
    outcomes = await _outcomes(visit, engine, model, files, answer_one)
    results, errors = [], []
    for file, outcome in zip(files, outcomes, strict=True):
        if isinstance(outcome, HttpError):
            errors.append(outcome)
            results.append(FileAnswer(filename=file.filename, error=outcome.detail(request_id)))
        else:
            results.append(FileAnswer(filename=file.filename, prediction=outcome))
    said = {
        "results": results,
        "predicted": len(results) - len(errors),
        "failed": len(errors),
        **provenance(request, model, started),
    }
    if len(errors) < len(results):
        return Response(BatchBody(**said).model_dump_json(), media_type="application/json")
    request.state.error_code = errors[0].code
    failure = BatchFailure(**said, **errors[0].problem(request.scope))
    return Response(failure.model_dump_json(), errors[0].status, errors[0].headers, PROBLEM)


async def _answer_clinical(
    request: Request,
    visit: Visit,
    engine: Engine,
    model: LoadedModel,
    answer_one: _Answering,
    body: bytes | list[ReceivedFile],
    form: Format,
    subject: str | None,
) -> Response:
    """The same answers as one FHIR Bundle or one HL7 v2 message; of none predicted the errors of all.

    A file that the service failed on makes no report: it would tell of fewer cells, as if the file were no image.
    """
    files = [ReceivedFile("", len(body), body)] if isinstance(body, bytes) else body
    outcomes = await _outcomes(visit, engine, model, files, answer_one)
    errors = [outcome for outcome in outcomes if isinstance(outcome, HttpError)]
    for place, outcome in enumerate(outcomes, 1):
        if isinstance(outcome, HttpError) and outcome.status >= 500:
            outcome.message = f"image {place} of {len(files)}: {outcome.message}" if len(files) > 1 else outcome.message
            raise outcome
    if len(errors) == len(files):
        if form == "hl7":
            raise errors[0]
        request.state.error_code = errors[0].code
        return outcome_response(errors)
    sent = []
    for file, outcome in zip(files, outcomes, strict=True):
        digest = None if file.data is None else await engine.decoding(sha256, file.data)
        if isinstance(outcome, HttpError):
            sent.append(Sent(None, outcome.detail(request.state.request_id), digest))
        else:
            sent.append(Sent(outcome, None, digest))
    return clinical_response(form, request, model, sent, subject)


async def _answer_dicom(visit: Visit, engine: Engine, model: LoadedModel, body: bytes | list[ReceivedFile]) -> Response:
    """One DICOM SR of all images, which are of one study; one that has no answer refuses all."""
    files = [ReceivedFile("", len(body), body)] if isinstance(body, bytes) else body
    refuse_other_kinds(files)
    answers = await _outcomes(visit, engine, model, files, engine.answer)
    for place, answer in enumerate(answers, 1):
        if isinstance(answer, HttpError):
            answer.message = f"image {place} of {len(files)}: {answer.message}" if len(files) > 1 else answer.message
            raise answer
    return await engine.decoding(dicom_response, model, files, answers)


async def _outcomes(
    visit: Visit, engine: Engine, model: LoadedModel, files: list[ReceivedFile], answer_one: _Answering
) -> list[Any]:
    """Of each file; what failed here is not counted to the key's day."""
    outcomes = await at_once(lambda file: _answer_file(engine, model, file, answer_one), files)
    visit.came_of(outcomes)
    return outcomes


async def _answer_file(engine: Engine, model: LoadedModel, file: ReceivedFile, answer_one: _Answering) -> Any:
    """`ImageAnswer`, or the `HttpError` that this file alone would have got."""
    if file.data is None:
        engine.too_large(file.size_bytes)
        message = f"{file.size_bytes} bytes, limit {engine.settings.max_bytes}; send a smaller image"
        return HttpError(413, "too_large", message)
    try:
        return await answer_one(model, file.data)
    except ImageRejected as error:
        return from_rejection(error)
    except HttpError as error:  # no room for it
        return error
