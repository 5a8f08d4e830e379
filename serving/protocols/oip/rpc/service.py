"""The methods of inference.GRPCInferenceService for one engine, as functions of bytes; needs neither Ray nor a server.

Keys, admission, limits, time, ids and log lines are those of REST. Metadata is what headers are there; statuses follow
https://grpc.github.io/grpc/core/md_doc_statuscodes.html (serving/errors.py).
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.types import Scope

from serving import tracing
from serving.access import log_access, method_of, route_of, without_words
from serving.admission import Ticket
from serving.errors import HttpError, grpc_status
from serving.guard import REQUEST_ID, given_keys, invalid_id, set_request_id
from serving.limits import in_time
from serving.model import LoadedModel
from serving.protocols.oip.answering import Answering, Wanted
from serving.protocols.oip.rpc.messages import CLASSES, SERVICE
from serving.protocols.oip.rpc.tensors import parsed, read_infer, write_infer
from serving.protocols.oip.rpc.wire import names_in
from serving.protocols.oip.tensors import wanted_outputs

log = logging.getLogger("ray.serve")
Metadata = Sequence[tuple[str, str | bytes]]
FORWARDED = "forwarded_rpc"  # the replica's method that another application calls
_Answer = TypeVar("_Answer")
_OF_A_MODEL = ("ModelReady", "ModelMetadata", "ModelInfer")


@dataclass(frozen=True)
class Reply:
    """The answer to one call: a message, or a status other than OK with its details."""

    message: bytes = b""
    status: str = "OK"  # by its name in gRPC
    details: str = ""
    trailing: tuple[tuple[str, str], ...] = ()  # metadata behind the answer
    http_status: int = 200  # of the same over REST, and the code of its problem: for log and metrics
    code: str | None = None


class Rpc:
    """The service of one replica."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering
        self._engine = answering.engine
        self._methods: dict[str, Callable[[bytes, Scope], Awaitable[bytes]]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "RepositoryIndex": self._repository_index,
            "ModelInfer": self._model_infer,
        }

    async def call(self, method: str, message: bytes, metadata: Metadata, is_forwarded: bool = False) -> Reply:
        """Answer one call. `is_forwarded`: by another application of the service, so it goes no further."""
        scope, started = _scope(method, metadata), time.perf_counter()
        self._engine.recorder.request_begins()
        trace = tracing.begin(scope)
        reply: Reply | None = None
        try:
            reply = await self._answered(method, message, scope, is_forwarded)
        finally:  # without one the client left, or its deadline is over
            status, code = (0, "client_gone") if reply is None else (reply.http_status, reply.code)
            seconds = time.perf_counter() - started
            self._engine.recorder.request_ends(route_of(scope), method_of(scope), status, code, seconds)
            scope["state"]["error_code"] = code or "-"
            log_access(scope, status, seconds)
            tracing.end(trace, scope, status, code)
        return reply

    async def _answered(self, method: str, message: bytes, scope: Scope, is_forwarded: bool) -> Reply:
        has_valid_id = set_request_id(scope)
        request_id = scope["state"]["request_id"]
        try:
            if not has_valid_id:
                raise invalid_id()
            if method in _OF_A_MODEL and not is_forwarded:
                name, _ = names_in(message)
                if await self._answering.is_elsewhere(name):
                    return await self._forwarded(name, method, message, scope)
            await self._engine.gate.enter()
            return Reply(await self._methods[method](message, scope), trailing=((REQUEST_ID, request_id),))
        except HttpError as error:
            return _refused(error, request_id)
        except Exception as error:
            log.error("request %s failed:\n%s", request_id, without_words(error))
            failure = HttpError(500, "internal", "the request failed here, not by its own fault; quote its id")
            return _refused(failure, request_id)

    async def _forwarded(self, name: str, method: str, message: bytes, scope: Scope) -> Reply:
        """The answer of the application that has the model, which checks and counts as if it had come there."""
        headers = Headers(scope=scope)
        if method == "ModelInfer":
            self._answering.desk.check(given_keys(headers))  # before bytes of strangers go any further
        kept = [(key, value) for key, value in headers.items() if key != REQUEST_ID]
        metadata = [*kept, (REQUEST_ID, scope["state"]["request_id"])]

        async def ask(body: bytes) -> Reply:
            reply: Reply = await self._answering.others.ask(name, FORWARDED, method, body, metadata)
            return reply

        return await self._in_time(message, 1, ask)

    async def _in_time(self, message: bytes, times: int, answer: Callable[[bytes], Awaitable[_Answer]]) -> _Answer:
        """`answer` with a place, within the time, and the message counted as often as it is held."""
        size_bytes, limit = len(message), self._answering.limit_bytes
        if size_bytes > limit:
            raise HttpError(413, "too_large", f"{size_bytes} bytes sent, limit {limit}; send a smaller image")

        async def read(ticket: Ticket) -> bytes:
            await ticket.hold(times * size_bytes)
            return message

        return await in_time(self._engine.settings, self._answering.admission, read, answer)

    async def _server_live(self, message: bytes, scope: Scope) -> bytes:
        return _message("ServerLiveResponse", live=True)

    async def _server_ready(self, message: bytes, scope: Scope) -> bytes:
        await self._answering.engine.refuse_unready()
        return _message("ServerReadyResponse", ready=True)

    async def _model_ready(self, message: bytes, scope: Scope) -> bytes:
        self._asked_for(message)
        await self._answering.engine.refuse_unready()
        return _message("ModelReadyResponse", ready=True)

    async def _server_metadata(self, message: bytes, scope: Scope) -> bytes:
        return _message("ServerMetadataResponse", **dict(self._answering.server("model_repository")))

    async def _model_metadata(self, message: bytes, scope: Scope) -> bytes:
        said = self._answering.metadata(self._asked_for(message)).model_dump(exclude={"parameters"})
        return _message("ModelMetadataResponse", **said)

    async def _repository_index(self, message: bytes, scope: Scope) -> bytes:
        is_ready_only = parsed("RepositoryIndexRequest", message).ready
        entries = [entry.model_dump() for entry in await self._answering.index(is_ready_only)]
        return _message("RepositoryIndexResponse", models=entries)

    async def _model_infer(self, message: bytes, scope: Scope) -> bytes:
        engine = self._engine
        keys = given_keys(Headers(scope=scope))
        visit = await self._answering.desk.admit(keys, scope["state"]["request_id"], route_of(scope))
        name, version = names_in(message)
        model = self._answering.asked_for(name, version or None)

        async def answer(body: bytes) -> bytes:
            asked, images = await engine.decoding(read_infer, body, model.info, engine.settings)
            await visit.spend(len(images))
            wanted = Wanted(scope["state"]["request_id"], version or None, wanted_outputs(asked, model.info))
            return write_infer(asked, model.info, *await self._answering.answered(model, wanted, images, visit))

        with self._answering.counted.request(model):
            return await self._in_time(message, 2, visit.recorded(answer, lambda said: 200))

    def _asked_for(self, message: bytes) -> LoadedModel:
        name, version = names_in(message)
        return self._answering.asked_for(name, version or None)


def _scope(method: str, metadata: Metadata) -> Scope:
    """A call as a request over HTTP, for what looks at these."""
    path = f"/{SERVICE}/{method}"
    # gRPC reads UTF-8 where it can, so a value may hold any character
    headers = [(key.encode(), value.encode("utf-8", "replace")) for key, value in metadata if isinstance(value, str)]
    return {
        "type": "http",
        "method": "gRPC",
        "path": path,
        "headers": headers,
        "state": {},
        "route": SimpleNamespace(path=path),
    }


def _message(kind: str, /, **fields: Any) -> bytes:
    return bytes(CLASSES[kind](**fields).SerializeToString())


def _refused(error: HttpError, request_id: str) -> Reply:
    headers = ((name.lower(), value) for name, value in error.headers.items())
    trailing = ((REQUEST_ID, request_id), ("error-code", error.code), *headers)
    return Reply(b"", grpc_status(error.status), error.message, trailing, error.status, error.code)
