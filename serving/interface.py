"""What `/openapi.json` says of every route that takes images: statuses, headers, bodies, keys.

Described only: guard, intake and errors are what checks. OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.0).
"""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from pipeline.base.errors import Code, Stage
from serving.errors import PROBLEM, speaks_oip
from serving.intake import MULTIPART
from serving.schemas import BatchFailure, ErrorBody, OipError
from serving.settings import ServingSettings

Handler = Callable[..., Any]
ERRORS = {
    400: "empty or malformed body, or an invalid X-Request-ID",
    401: "no API key, where one is asked for",
    403: "an API key that is not accepted",
    408: "the body did not arrive in time",
    413: "too many bytes, or too many files",
    415: "no image, or one of a format that is not read; a compressed body",
    422: "a truncated or corrupt image, or one that takes too much to decode",
    429: "more requests, or images of a day, than the key may send; Retry-After tells when to try again",
    500: "an error of the service",
    503: "overloaded or not ready; Retry-After tells when to try again",
    504: "the answer took too long",
}
# Beside those of images (pipeline/base/errors.py:Code)
_CODES = {
    "audit_failed": "Answers are recorded here, and that fails now, so there is none.",
    "bad_request": "No valid request.",
    "body_timeout": "The body did not arrive in time.",
    "http_error": "Another error of the protocol.",
    "internal": "The request failed here, not by its own fault.",
    "invalid_request_id": "An X-Request-ID that cannot be copied into logs and answers.",
    "key_missing": "No key, where one is asked for.",
    "key_refused": "A key that is not accepted.",
    "limits_unknown": "What a key has left cannot be counted now.",
    "malformed_multipart": "A multipart body that does not follow RFC 7578.",
    "method_not_allowed": "The route does not know this method.",
    "model_refused": "An administrator's order that was refused.",
    "no_dicom": "A DICOM SR is asked for of what is no DICOM image, or one that a report cannot refer to.",
    "no_file": "A multipart body without a file.",
    "no_counts": "The counts of all replicas cannot be had now.",
    "no_map": "No map of where it looks is known of this model.",
    "no_filename": "A file without a filename.",
    "no_websocket": "There are no WebSockets here.",
    "not_acceptable": "A form of answer that is not spoken here.",
    "not_ready": "The model does not answer its probe.",
    "quota_spent": "A key has sent the images that it may send in a day (UTC).",
    "rate_limited": "A key sends requests faster than it may.",
    "replica_lost": "The replica that worked on the request is gone; send it again.",
    "overloaded": "No room for another request; Retry-After says when to come back.",
    "too_many_files": "More files than the limit.",
    "unsupported_encoding": "A compressed body.",
}
_REFERENCE = "#/components/schemas/{model}"
_TEXT = {"type": "string"}
_REQUEST_ID_HEADER = {"X-Request-ID": {"description": "of this request, as sent or made here", "schema": _TEXT}}
NO_MAP = "a map is asked for, and none is known of this model"
RETRY_AFTER = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
REQUEST_ID_PARAMETER = {
    "name": "X-Request-ID",
    "in": "header",
    "required": False,
    "description": "comes back in the answer",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:/+=-]{1,128}$"},
}
KEYS = [Depends(HTTPBearer(auto_error=False)), Depends(APIKeyHeader(name="X-API-Key", auto_error=False))]
# The one media type for bytes that generators of clients know. Content-Type itself is not looked at: an image under any
# other one is taken as well.
_IMAGE = {"type": "string", "format": "binary", "minLength": 1}
IMAGE_BODY = {"application/octet-stream": {"schema": _IMAGE}}


def prediction_body(settings: ServingSettings) -> dict[str, Any]:
    """One image, or several as files of a form; an empty file has an error of its own in the answer.

    How many is said in words: programs that test by a schema take 413 for no refusal of what breaks it.
    """
    binary = {"type": "string", "format": "binary"}
    limit = f"up to {settings.max_files}; more are refused with 413"
    files = {"type": "array", "items": binary, "minItems": 1, "description": limit}
    form = {
        "schema": {"type": "object", "properties": {"files": files}, "required": ["files"]},
        "encoding": {"files": {"contentType": "image/png, image/jpeg"}},
    }
    return {"required": True, "content": {**IMAGE_BODY, MULTIPART: form}}


def reference(model: type[BaseModel]) -> dict[str, Any]:
    """A schema of `/openapi.json` by its name; what FastAPI does not come upon itself is named to `describe`."""
    return {"$ref": _REFERENCE.format(model=model.__name__)}


def operation_id(route: APIRoute) -> str:
    """The name of an operation in clients that are generated: that of its handler."""
    return f"{route.name}_of_version" if "{version}" in route.path else route.name


def keys(settings: ServingSettings) -> list[Any]:
    """How a key is sent, where one is asked for; `serving.desk` is what checks."""
    return KEYS if settings.asks_key else []


def responses() -> dict[int | str, dict[str, Any]]:
    """What may come back beside 200. Of several files that all failed, the body lists each with its error."""
    of_files = (400, 413, 415, 422)
    found: dict[int | str, dict[str, Any]] = {200: {"headers": _REQUEST_ID_HEADER}}
    for status, text in ERRORS.items():
        headers = {**_REQUEST_ID_HEADER, **(RETRY_AFTER if status in (429, 503) else {})}
        model = BatchFailure | ErrorBody if status in of_files else ErrorBody
        found[status] = {"model": model, "description": text, "headers": headers}
    return found


def codes() -> dict[str, str]:
    """Every code of a problem and what it means."""
    met = {Stage.DECODE, Stage.PREDICT}
    of_images = {code.value: code.meaning for code in Code if met & set(code.stages)}
    # `not_found` and `timeout` are codes of a batch run as well, where they mean an object and a store
    here = {"not_found": "No such route.", "timeout": "The answer took too long."}
    return dict(sorted({**of_images, **_CODES, **here}.items()))


def get(router: APIRouter, path: str, **options: Any) -> Callable[[Handler], Handler]:
    """GET, and HEAD as RFC 9110 asks for; described once."""

    def add(handler: Handler) -> Handler:
        router.add_api_route(path, handler, methods=["GET"], **options)
        router.add_api_route(path, handler, methods=["HEAD"], **{**options, "include_in_schema": False})
        return handler

    return add


def describe(app: FastAPI, *models: type[BaseModel]) -> dict[str, Any]:
    """The description that FastAPI makes, with errors as problem details, what every route may answer, and `models`."""
    found = app.openapi()
    everywhere = {400: "an invalid X-Request-ID", 500: ERRORS[500], 503: ERRORS[503]}
    wanted: list[type[BaseModel]] = [OipError, *models]
    named = models_json_schema([(model, "validation") for model in wanted], ref_template=_REFERENCE)[1]
    found["components"]["schemas"].update(named["$defs"])
    for path, operations in found["paths"].items():
        for operation in operations.values():
            answers = operation["responses"]
            for status, text in everywhere.items():
                answers.setdefault(
                    str(status),
                    {"description": text, "content": {"application/json": {"schema": reference(ErrorBody)}}},
                )
            for status, answer in answers.items():
                if status < "400":
                    continue
                if speaks_oip(path):
                    answer["content"] = {"application/json": {"schema": reference(OipError)}}
                elif "application/json" in answer.get("content", {}):
                    problem = answer["content"].pop("application/json")
                    answer["content"] = {PROBLEM: problem, **answer["content"]}  # clients take the first they know
            operation["responses"] = dict(sorted(answers.items()))
    return found
