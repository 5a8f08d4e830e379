"""From an error to an HTTP status and a JSON body; the only place that knows which code is which status."""

from dataclasses import dataclass, field

from starlette.responses import Response

from pipeline.base.errors import Code, ImageRejected
from serving.schemas import ErrorBody, ErrorDetail

# RFC 9110, section 15; what is not named here is our fault: 500.
_STATUS = {
    Code.EMPTY: 400,
    Code.TOO_LARGE: 413,
    Code.UNSUPPORTED_FORMAT: 415,
    Code.TOO_MANY_PIXELS: 422,
    Code.TOO_MANY_FRAMES: 422,
    Code.TRUNCATED: 422,
    Code.CORRUPT: 422,
}


@dataclass
class HttpError(Exception):
    """A request that is answered with `status` and `{"error": {"code", "message", "request_id"}}`."""

    status: int
    code: str
    message: str
    headers: dict[str, str] = field(default_factory=dict)

    def detail(self, request_id: str) -> ErrorDetail:
        return ErrorDetail(code=self.code, message=self.message, request_id=request_id)


def from_rejection(error: ImageRejected) -> HttpError:
    """The same words as in a batch run's quarantine, with the status of their code."""
    return HttpError(_STATUS.get(error.code, 500), error.code.value, error.message)


def error_response(error: HttpError, request_id: str) -> Response:
    body = ErrorBody(error=error.detail(request_id))
    return Response(
        body.model_dump_json(), status_code=error.status, headers=error.headers, media_type="application/json"
    )
