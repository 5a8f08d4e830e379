"""What `/openapi.json` says of every route that takes images: statuses, headers, bodies, keys.

Described only: guard, intake and errors are what checks. OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.0).
"""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.security import APIKeyHeader, HTTPBearer

from serving.intake import MULTIPART
from serving.schemas import BatchBody, ErrorBody

Handler = Callable[..., Any]
ERRORS = {
    400: "empty or malformed body, or an invalid X-Request-ID",
    401: "no API key, where one is asked for",
    403: "an API key that is not accepted",
    408: "the body did not arrive in time",
    413: "too many bytes, or too many files",
    415: "a Content-Type or an image format that is not read here",
    422: "a truncated or corrupt image, or one with too many pixels",
    500: "an error of the service",
    503: "overloaded or not ready; Retry-After tells when to try again",
    504: "the answer took too long",
}
_TEXT = {"type": "string"}
_REQUEST_ID_HEADER = {"X-Request-ID": {"description": "of this request, as sent or made here", "schema": _TEXT}}
RETRY_AFTER = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
REQUEST_ID_PARAMETER = {
    "name": "X-Request-ID",
    "in": "header",
    "required": False,
    "description": "comes back in the answer",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:/+=-]{1,128}$"},
}
# Described only: `check_key` is what checks, and `needs_api_key` in /readyz tells whether it does.
KEYS = [Depends(HTTPBearer(auto_error=False)), Depends(APIKeyHeader(name="X-API-Key", auto_error=False))]
_BINARY = {"schema": {"type": "string", "format": "binary"}}
BODIES = ("application/dicom", "application/octet-stream")  # beside image/*
REQUEST_BODY = {
    "required": True,
    "content": {
        "image/*": _BINARY,
        **dict.fromkeys(BODIES, _BINARY),
        MULTIPART: {
            "schema": {
                "type": "object",
                "properties": {"files": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        },
    },
}


def responses() -> dict[int | str, dict[str, Any]]:
    """What may come back beside 200. Of several files that all failed, the body lists each with its error."""
    of_files = (400, 413, 415, 422)
    found: dict[int | str, dict[str, Any]] = {200: {"headers": _REQUEST_ID_HEADER}}
    for status, text in ERRORS.items():
        headers = {**_REQUEST_ID_HEADER, **(RETRY_AFTER if status == 503 else {})}
        model = ErrorBody | BatchBody if status in of_files else ErrorBody
        found[status] = {"model": model, "description": text, "headers": headers}
    return found


def get(router: APIRouter, path: str, **options: Any) -> Callable[[Handler], Handler]:
    """GET, and HEAD as RFC 9110 asks for; described once."""

    def add(handler: Handler) -> Handler:
        router.add_api_route(path, handler, methods=["GET"], **options)
        router.add_api_route(path, handler, methods=["HEAD"], **{**options, "include_in_schema": False})
        return handler

    return add
