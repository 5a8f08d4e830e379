"""The applications of one service, a model each: the first at /, others below /models/NAME. What is told of them."""

import http.client
import json
import socket
import ssl
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.common import DIRECT, Clock
from pipeline.base.errors import InputError, PlatformError
from pipeline.model.bundle import Bundle
from serving import tls
from serving.front import FIRST


@dataclass(frozen=True)
class Served:
    """One application of Ray Serve."""

    application: str
    prefix: str
    model: str  # as given: a bundle, or a registry that is followed
    bundle: Bundle  # what it means now

    def url(self, service: str) -> str:
        return service + self.prefix.rstrip("/")


def applications(models: Sequence[str], bundles: Sequence[Bundle]) -> list[Served]:
    """One for each model. Raises InputError where two have the same name, by which clients tell them apart."""
    known: dict[str, str] = {}
    served: list[Served] = []
    for model, bundle in zip(models, bundles, strict=True):
        name = bundle.info.name
        if name in known:
            raise InputError(
                f"{known[name]} and {model} are both models named {name!r}, and clients tell them apart by name; serve "
                "one of them, or train one with another --name"
            )
        known[name] = model
        is_first = not served
        application, prefix = (FIRST, "/") if is_first else (f"{FIRST}-{name}", f"/models/{name}")
        served.append(Served(application, prefix, model, bundle))
    return served


def trust(files: tls.Files | None, is_local: bool, host: str, port: int) -> ssl.SSLContext | None:
    """For asking the service itself; None: without TLS. Whether a cluster's nodes have it is theirs to say."""
    if files is not None:
        return files.trusting()
    return None if is_local else tls.heard(_reached(host), port)


def _reached(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def announce(
    served: Sequence[Served], host: str, port: int, grpc_port: int | None, trusted: ssl.SSLContext | None, clock: Clock
) -> None:
    """Ask the service itself, then tell a person how to use it."""
    host = _reached(host)
    host = f"[{host}]" if ":" in host else host
    url = f"{'http' if trusted is None else 'https'}://{host}:{port}"
    for one in served:
        state, info = _ready(one.url(url), trusted), one.bundle.info
        place = f" at {one.url(url)}/" if len(served) > 1 else ""
        print(
            f"serving {info.name} {info.version} ({info.architecture}, sha256 {state['model']['sha256'][:12]}){place}"
        )
        if info.synthetic:
            print("trained on synthetic images: what it says of real cells means nothing")
    also = ""
    if grpc_port:
        if trusted is None:
            _ready_over_grpc(f"{host}:{grpc_port}")
        else:
            _speaks_h2(host.strip("[]"), grpc_port, trusted)
        also = f"   gRPC {host}:{grpc_port}"
    print(f"ready after {clock.seconds:.1f} s at {url}   page {url}/   interface {url}/docs{also}")
    print(f"try: curl --data-binary @cell.jpg {url}/predict")
    print("Research software, not a medical device. Ctrl-C stops it.", flush=True)


def _ready_over_grpc(address: str) -> None:
    import grpc

    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ServerReady")
        try:
            ask(b"", timeout=30, wait_for_ready=True)
        except grpc.RpcError as error:
            raise PlatformError(
                f"gRPC at {address} does not answer ({error.details()}); where Serve runs already, ports are its own"
            ) from error


def _speaks_h2(host: str, port: int, context: ssl.SSLContext) -> None:
    """With TLS gRPC clients insist on ALPN's h2 (RFC 7301); theirs of Python cannot be told to trust any name."""
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host, port), 30) as plain, context.wrap_socket(plain) as connection:
            is_spoken = connection.selected_alpn_protocol() == "h2"
    except OSError as error:
        raise PlatformError(f"gRPC at {host} port {port} does not answer: {error}") from error
    if not is_spoken:
        raise PlatformError(f"what listens at {host} port {port} speaks no gRPC")


def _ready(url: str, trusted: ssl.SSLContext | None) -> dict[str, Any]:
    opener = DIRECT
    if trusted is not None:
        trusting = urllib.request.HTTPSHandler(context=trusted)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), trusting)
    try:
        with opener.open(f"{url}/readyz", timeout=30) as answer:
            return dict(json.load(answer))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise PlatformError(
            f"{url}/readyz does not answer ({error}); where Serve runs already, --host and --port are its own"
        ) from error
