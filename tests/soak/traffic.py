"""Clients of a soak that behave: images of many formats alone and in forms, maps, /v2, FHIR, HL7, pages, refusals."""

import base64
import hashlib
import http.client
import json
import math
import random
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from pipeline.model.bundle import Bundle
from tests.bombs import BOMBS
from tests.bundles import said_of
from tests.dicoms import dicom
from tests.images import encoded, scene
from tests.soak.tally import Reply, Tally

TIMEOUT_S = 60
_CLOSE = 1e-3  # another size of a batch may round otherwise
_PNG = b"\x89PNG"


def sound_images() -> dict[str, bytes]:
    """By name; small, as cells are, up to what a field of a slide has."""
    kinds = {"jpg": "JPEG", "png": "PNG", "bmp": "BMP", "gif": "GIF", "webp": "WEBP", "tif": "TIFF"}
    sizes = ((90, 70), (320, 240), (640, 480))
    found = {f"{w}.{name}": encoded(scene(w, h), kind) for name, kind in kinds.items() for w, h in sizes}
    return found | {"320.dcm": dicom(np.asarray(scene(320, 240))), "1600.jpg": encoded(scene(1600, 1200), "JPEG")}


@dataclass(frozen=True)
class Truth:
    """What each model says of each image, by predictor without a service."""

    probabilities: Mapping[str, Mapping[str, float]]  # by SHA-256 of the model and name of the image
    versions: Mapping[str, str]  # SHA-256 by version
    model_name: str

    @classmethod
    def of(cls, bundles: list[Bundle], images: Mapping[str, bytes]) -> "Truth":
        names = list(images)
        said = {one.info.identity(): said_of(one, *images.values()) for one in bundles}
        found = {sha: {name: p.probability for name, p in zip(names, all_, strict=True)} for sha, all_ in said.items()}
        return cls(found, {one.info.version: one.info.identity() for one in bundles}, bundles[0].info.name)


@dataclass
class Place:
    """One client's connection, which is kept while it answers, and its notes."""

    host: str
    port: int
    tally: Tally
    images: Mapping[str, bytes]
    truth: Truth
    random: random.Random
    _connection: http.client.HTTPConnection | None = field(default=None, repr=False)

    def ask(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Reply:
        began = time.monotonic()
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_S)
            self._connection.request(method, path, body, dict(headers or {}))
            answer = self._connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            reply = Reply(answer.status, found, answer.read(), began, time.monotonic())
            if found.get("connection", "").lower() == "close":
                self.leave()
            return reply
        except BrokenPipeError:  # it was answered before all of it was sent
            return self._early(began)
        except (OSError, http.client.HTTPException) as error:
            self.leave()
            return Reply(0, {}, f"{type(error).__name__}: {error}".encode(), began, time.monotonic())

    def _early(self, began: float) -> Reply:
        assert self._connection is not None and self._connection.sock is not None
        try:
            answer = http.client.HTTPResponse(self._connection.sock)
            answer.begin()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, found, answer.read(), began, time.monotonic())
        except (OSError, http.client.HTTPException) as error:
            return Reply(0, {}, f"{type(error).__name__}: {error}".encode(), began, time.monotonic())
        finally:
            self.leave()

    def leave(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def any_image(self) -> tuple[str, bytes]:
        name = self.random.choice(list(self.images))
        return name, self.images[name]

    def check(self, kind: str, reply: Reply, sha256: str, name: str, probability: float) -> None:
        """That a model of ours said it, and what it says."""
        self.tally.saw(kind, reply, sha256)
        wanted = self.truth.probabilities.get(sha256, {}).get(name)
        if wanted is None or not math.isclose(probability, wanted, abs_tol=_CLOSE):
            self.tally.fault(f"{kind}: {probability} for {name} by {sha256[:12]}, which says {wanted}")


def image(place: Place) -> None:
    name, data = place.any_image()
    reply = place.ask("POST", "/predict", data)
    if place.tally.note("image", reply, {200}) and reply.status == 200:
        said = json.loads(reply.body)
        place.check("image", reply, said["model"]["sha256"], name, said["probability"])


def form(place: Place) -> None:
    """Several files, one of them no image."""
    chosen = [place.any_image() for _ in range(4)]
    broken = place.random.randrange(5)
    files = [*chosen[:broken], ("broken.jpg", b"\xff\xd8 no image"), *chosen[broken:]]
    body, kind = form_of(files)
    reply = place.ask("POST", "/predict", body, {"Content-Type": kind})
    if not place.tally.note("form", reply, {200}) or reply.status != 200:
        return
    said = json.loads(reply.body)
    for number, ((name, _), result) in enumerate(zip(files, said["results"], strict=True)):
        if number == broken:
            if not (result.get("error") or {}).get("code"):
                place.tally.fault(f"form: {result} for what is no image")
        elif result.get("prediction"):
            place.check("form", reply, said["model"]["sha256"], name, result["prediction"]["probability"])
        else:
            place.tally.fault(f"form: {result} for {name}")


def form_of(files: list[tuple[str, bytes]]) -> tuple[bytes, str]:
    """A body and its Content-Type (RFC 7578)."""
    line = b"--soak-boundary"
    head = '\r\nContent-Disposition: form-data; name="files"; filename="{}"\r\n\r\n'
    parts = [line + head.format(name).encode() + data + b"\r\n" for name, data in files]
    return b"".join(parts) + line + b"--\r\n", "multipart/form-data; boundary=soak-boundary"


def explain(place: Place) -> None:
    name, data = place.any_image()
    as_numbers = place.random.random() < 0.5
    headers = {"Accept": "application/json"} if as_numbers else {}
    reply = place.ask("POST", "/explain", data, headers)
    if not place.tally.note("explain", reply, {200}) or reply.status != 200:
        return
    if as_numbers:
        said = json.loads(reply.body)
        place.check("explain", reply, said["model"]["sha256"], name, said["probability"])
    elif not reply.body.startswith(_PNG):
        place.tally.fault(f"explain: {reply.body[:20]!r} is no PNG")


def infer(place: Place) -> None:
    """The Open Inference Protocol, in JSON or as binary data."""
    name, data = place.any_image()
    tensor: dict[str, object] = {"name": "image", "datatype": "BYTES", "shape": [1]}
    asked = {"outputs": [{"name": "probability"}]}
    headers, rest = {}, b""
    if place.random.random() < 0.5:
        tensor["data"] = [base64.b64encode(data).decode()]
    else:
        rest = struct.pack("<I", len(data)) + data
        tensor["parameters"] = {"binary_data_size": len(rest)}
    head = json.dumps({"inputs": [tensor], **asked}).encode()
    if rest:
        headers["Inference-Header-Content-Length"] = str(len(head))
    reply = place.ask("POST", f"/v2/models/{place.truth.model_name}/infer", head + rest, headers)
    if place.tally.note("v2", reply, {200}) and reply.status == 200:
        said = json.loads(reply.body)
        sha256 = place.truth.versions[said["model_version"]]
        place.check("v2", reply, sha256, name, said["outputs"][0]["data"][0])


def report(place: Place) -> None:
    """FHIR and HL7 of a subject's files."""
    body, kind = form_of([place.any_image() for _ in range(3)])
    path = place.random.choice(["/predict?format=fhir&subject=S-1", "/predict?format=hl7&subject=S-1"])
    reply = place.ask("POST", path, body, {"Content-Type": kind})
    if place.tally.note("report", reply, {200}) and reply.status == 200:
        begin = b"MSH|" if "hl7" in path else b"{"
        if not reply.body.lstrip().startswith(begin):
            place.tally.fault(f"report: {reply.body[:50]!r}")


def page(place: Place) -> None:
    paths = ["/", "/docs", "/openapi.json", "/model", "/readyz", "/healthz", "/metrics", "/v2", "/v2/health/ready"]
    place.tally.note("page", place.ask("GET", place.random.choice(paths)), {200})


def refused(place: Place) -> None:
    """What is to be refused, for what it is."""
    sound = place.images["320.png"]
    cases: list[tuple[str, str, bytes | None, Mapping[str, str], int, str]] = [
        ("POST", "/predict", b"", {}, 400, "empty"),
        ("POST", "/predict", sound[:500], {}, 422, "truncated"),
        ("POST", "/predict", b"no image at all", {}, 415, "unsupported_format"),
        ("POST", "/predict", sound, {"Content-Encoding": "gzip"}, 415, ""),
        ("POST", "/predict", b"--x\r\nbroken", {"Content-Type": "multipart/form-data; boundary=x"}, 400, ""),
        ("POST", "/predict/", sound, {}, 404, "not_found"),
        ("GET", "/predict", None, {}, 405, "method_not_allowed"),
        ("GET", "/nowhere", None, {}, 404, "not_found"),
        ("GET", "/healthz", None, {"X-Request-ID": "a b"}, 400, "invalid_request_id"),
        ("POST", "/v2/models/another/infer", b"{}", {}, 404, ""),
        ("POST", f"/v2/models/{place.truth.model_name}/infer", b"{]", {}, 400, ""),
        ("POST", "/admin/reload", None, {"X-API-Key": "another"}, 403, ""),
    ]
    method, path, body, headers, status, code = place.random.choice(cases)
    place.tally.note("refused", place.ask(method, path, body, headers), {status}, {code} if code else ())


class Large:
    """An image that is decoded in the process for large ones; made once."""

    def __init__(self) -> None:
        self._images = [encoded(scene(4800, 3600), "JPEG"), encoded(scene(2800, 2100), "PNG")]

    def __call__(self, place: Place) -> None:
        reply = place.ask("POST", "/predict", place.random.choice(self._images))
        if place.tally.note("large", reply, {200}) and reply.status == 200:
            place.tally.saw("large", reply, json.loads(reply.body)["model"]["sha256"])


class Bombs:
    """One after another; each is refused for what it is, or answered where it is an image after all."""

    def __init__(self) -> None:
        self._turn = 0

    def __call__(self, place: Place) -> None:
        names = list(BOMBS)
        bomb = BOMBS[names[self._turn % len(names)]]
        self._turn += 1
        reply = place.ask("POST", "/predict", bomb.make())
        statuses = {408, 415, 422} | ({200} if bomb.is_sound else set())  # 408: 60 MB take their time on a busy machine
        if not place.tally.note("bomb", reply, statuses, bomb.codes | {"body_timeout"}) and not reply.is_announced:
            place.tally.fault(f"bomb: it was the {names[(self._turn - 1) % len(names)]}")
        place.leave()


class Crowd:
    """Threads, each a client with a pause between its requests."""

    def __init__(self, make: Callable[[random.Random], Place]) -> None:
        self._make, self._stop = make, threading.Event()
        self._threads: list[threading.Thread] = []

    def add(self, work: Callable[[Place], None], pause_s: float, clients: int = 1) -> None:
        for number in range(clients):
            name = getattr(work, "__name__", type(work).__name__)
            seed = int.from_bytes(hashlib.sha256(f"{name}{number}".encode()).digest()[:4], "big")
            arguments = (work, self._make(random.Random(seed)), pause_s)
            self._threads.append(threading.Thread(target=self._run, args=arguments, name=name, daemon=True))

    def _run(self, work: Callable[[Place], None], place: Place, pause_s: float) -> None:
        while not self._stop.wait(pause_s * place.random.uniform(0.5, 1.5)):
            try:
                work(place)
            except Exception as error:  # an answer that is not of the shape that was promised
                place.tally.fault(f"{threading.current_thread().name}: {type(error).__name__}: {error}")
        place.leave()

    def __enter__(self) -> "Crowd":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self._stop.set()
        deadline = time.monotonic() + TIMEOUT_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
