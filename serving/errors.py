"""From an error to an HTTP status and a JSON body; the only place that knows which code is which status.

Bodies are problem details (RFC 9457) with one extension member: `error`, with a code for programs and the request id.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from pipeline.base.errors import Code, ImageRejected
from serving.formats import FHIR_JSON, wants_fhir
from serving.schemas import ErrorBody, ErrorDetail

PROBLEM = "application/problem+json"
# RFC 9110, section 15; what is not named here is our fault: 500.
_STATUS = {
    Code.EMPTY: 400,
    Code.TOO_LARGE: 413,
    Code.UNSUPPORTED_FORMAT: 415,
    Code.TOO_MANY_PIXELS: 422,
    Code.TOO_MANY_FRAMES: 422,
    Code.TRUNCATED: 422,
    Code.CORRUPT: 422,
    Code.CRASHED_DECODER: 422,
}
# https://hl7.org/fhir/R4/valueset-issue-type.html; what is not named here: processing
_ISSUES = {
    400: "invalid",
    401: "login",
    403: "forbidden",
    406: "not-supported",
    408: "timeout",
    409: "conflict",
    413: "too-long",
    415: "not-supported",
    429: "throttled",
    500: "exception",
    503: "transient",
    504: "timeout",
}
# https://grpc.github.io/grpc/core/md_doc_statuscodes.html: a key that is refused does not say who asks
_GRPC = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    413: "INVALID_ARGUMENT",
    415: "INVALID_ARGUMENT",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


@dataclass
class HttpError(Exception):
    """A request that is answered with `status` and a problem whose `error` has `code` and `message`."""

    status: int
    code: str
    message: str
    headers: dict[str, str] = field(default_factory=dict)

    def detail(self, request_id: str) -> ErrorDetail:
        return ErrorDetail(code=self.code, message=self.message, request_id=request_id)

    def problem(self, scope: Scope) -> dict[str, Any]:
        """The members of RFC 9457, and `error`. `type` leads to the code's line in /docs."""
        request_id = scope["state"]["request_id"]
        return {
            "type": f"{quote(scope.get('root_path', ''))}/docs#{self.code}",
            "title": self.code.replace("_", " ").capitalize(),
            "status": self.status,
            "detail": self.message,
            "instance": f"{quote(scope['path'])}#{request_id}",
            "error": self.detail(request_id),
        }


def speaks_oip(path: str) -> bool:
    """Whether errors at this path are those of the Open Inference Protocol: `{"error": $string}` and nothing else."""
    return path == "/v2" or path.startswith("/v2/")


def grpc_status(status: int) -> str:
    """The name of gRPC's status for what is `status` over HTTP."""
    return _GRPC.get(status, "INTERNAL")


def outcome_response(errors: Sequence[HttpError]) -> Response:
    """An OperationOutcome (https://hl7.org/fhir/R4/operationoutcome.html), status and headers those of the first."""
    issues = [
        {
            "severity": "fatal" if error.status >= 500 else "error",
            "code": _ISSUES.get(error.status, "processing"),
            "details": {"coding": [{"code": error.code}], "text": error.code},
            "diagnostics": error.message,
        }
        for error in errors
    ]
    body = json.dumps({"resourceType": "OperationOutcome", "issue": issues})
    return Response(body, errors[0].status, errors[0].headers, FHIR_JSON)


def from_rejection(error: ImageRejected) -> HttpError:
    """The same words as in a batch run's quarantine, with the status of their code."""
    return HttpError(_STATUS.get(error.code, 500), error.code.value, error.message)


def error_response(error: HttpError, scope: Scope) -> Response:
    """`scope` is the request's, after the guard; its state remembers the code for the log."""
    scope["state"]["error_code"] = error.code
    if speaks_oip(scope["path"].removeprefix(scope.get("root_path", ""))):
        return JSONResponse({"error": error.message}, error.status, error.headers)
    if wants_fhir(scope):
        return outcome_response([error])
    body = ErrorBody(**error.problem(scope))
    return Response(body.model_dump_json(), status_code=error.status, headers=error.headers, media_type=PROBLEM)
