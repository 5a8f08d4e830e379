"""A call in a replica of Ray Serve: the method of the call's name gets the message's bytes, from `server`."""

from typing import Any

import grpc
from ray.serve.grpc_util import RayServegRPCContext

from serving.protocols.oip.rpc.messages import METHODS
from serving.protocols.oip.rpc.service import Metadata, Reply, Rpc


class _Message(bytes):
    """Serve asks an answer for its bytes as if it were a message of protobuf."""

    def SerializeToString(self) -> bytes:  # noqa: N802
        return bytes(self)


class RpcMethods:
    """Mixed into a replica: one method for each of the service, which Serve calls by name."""

    _rpc: Rpc

    async def forwarded_rpc(self, method: str, message: bytes, metadata: Metadata) -> Reply:
        """What another application of the service hands on."""
        return await self._rpc.call(method, message, metadata, is_forwarded=True)


def _replica_method(name: str) -> Any:
    async def method(self: RpcMethods, request: bytes, grpc_context: RayServegRPCContext) -> _Message:
        reply = await self._rpc.call(name, request, grpc_context.invocation_metadata())
        grpc_context.set_trailing_metadata(list(reply.trailing))
        if reply.status != "OK":
            grpc_context.set_code(grpc.StatusCode[reply.status])
            grpc_context.set_details(reply.details)
        return _Message(reply.message)

    method.__name__ = name
    return method


for _name in METHODS:
    setattr(RpcMethods, _name, _replica_method(_name))
