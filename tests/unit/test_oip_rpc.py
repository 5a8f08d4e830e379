"""The Open Inference Protocol over gRPC, as functions of bytes: the answers, limits and errors are those of REST."""

import asyncio
import hashlib
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from serving.admission import Admission
from serving.desk import Desk
from serving.engine import Engine
from serving.errors import HttpError
from serving.front import HAS_FIRST, NO_REPLICA
from serving.protocols.oip.answering import Answering, Others
from serving.protocols.oip.elsewhere import Answered, Asked, ask
from serving.protocols.oip.rpc.messages import CLASSES, SERVICE
from serving.protocols.oip.rpc.server import _Named
from serving.protocols.oip.rpc.service import Reply, Rpc
from serving.protocols.oip.rpc.wire import names_in, without_raw
from serving.protocols.oip.schemas import IndexEntry
from serving.routes import create_app
from tests.asgi import call, picture
from tests.bundles import make_bundle
from tests.unit.test_oip import NAME, SIZE, built, packed, pixels_of

Request = CLASSES["ModelInferRequest"]
ID = ("x-request-id", "case/7")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return built(make_bundle(tmp_path_factory.mktemp("bundle"), size=SIZE, task="multiclass").uri)


def answering(engine: Engine, others: Others | None = None) -> Answering:
    return Answering(engine, Desk(engine.settings, engine.recorder), Admission(engine.settings), others)


def replied(engine: Engine, method: str, message: Any = b"", *metadata: tuple[str, str]) -> Reply:
    sent = message if isinstance(message, bytes) else message.SerializeToString()
    rpc = Rpc(answering(engine))
    return asyncio.run(rpc.call(method, sent, [ID, *metadata]))


def told(reply: Reply, name: str) -> Any:
    assert reply.status == "OK", reply
    return CLASSES[name].FromString(reply.message)


def encoded(*images: bytes, is_raw: bool = True, **more: Any) -> Any:
    request = Request(model_name=NAME, id="case 42", **more)
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=[len(images)])
    if is_raw:
        request.raw_input_contents.append(packed(*images))
    else:
        tensor.contents.bytes_contents.extend(images)
    return request


def pixels(values: Any, is_raw: bool = True) -> Any:
    request = Request(model_name=NAME)
    tensor = request.inputs.add(name="image", datatype="UINT8", shape=values.shape)
    if is_raw:
        request.raw_input_contents.append(values.tobytes())
    else:
        tensor.contents.uint_contents.extend(values.ravel().tolist())
    return request


def outputs(reply: Reply) -> dict[str, list[Any]]:
    """The outputs of an answer, raw or as values, as flat lists."""
    answer = told(reply, "ModelInferResponse")
    found: dict[str, list[Any]] = {}
    for place, output in enumerate(answer.outputs):
        if answer.raw_output_contents:
            data = answer.raw_output_contents[place]
            assert not output.contents.ByteSize()
            if output.datatype == "BYTES":
                texts = []
                while data:
                    [size] = struct.unpack_from("<I", data)
                    texts.append(data[4 : 4 + size])
                    data = data[4 + size :]
                found[output.name] = texts
            else:
                found[output.name] = np.frombuffer(data, "<f4" if output.datatype == "FP32" else "?").tolist()
        else:
            kind = {"FP32": "fp32_contents", "BYTES": "bytes_contents", "BOOL": "bool_contents"}[output.datatype]
            found[output.name] = list(getattr(output.contents, kind))
    return found


def test_messages_have_the_protocols_numbers_on_the_wire() -> None:
    """By hand from the specification's ModelInferRequest, InferInputTensor, InferTensorContents and InferParameter."""
    request = Request(model_name="m", model_version="1", id="i")
    request.parameters["p"].int64_param = 3
    tensor = request.inputs.add(name="n", datatype="UINT8", shape=[2])
    tensor.contents.uint_contents.extend([1, 2])
    request.outputs.add(name="o")
    request.raw_input_contents.append(b"r")
    fields = [b"\x0a\x01m", b"\x12\x01\x31", b"\x1a\x01i", b"\x22\x07\x0a\x01p\x12\x02\x10\x03"]
    inputs = b"\x0a\x01n" + b"\x12\x05UINT8" + b"\x1a\x01\x02" + b"\x2a\x04\x22\x02\x01\x02"
    wanted = b"".join([*fields, b"\x2a" + bytes([len(inputs)]) + inputs, b"\x32\x03\x0a\x01o", b"\x3a\x01r"])
    assert request.SerializeToString(deterministic=True) == wanted


def test_server_and_model_say_what_they_say_over_rest(engine: Engine) -> None:
    assert told(replied(engine, "ServerLive"), "ServerLiveResponse").live
    assert told(replied(engine, "ServerReady"), "ServerReadyResponse").ready
    rest, server = call(engine, "GET", "/v2").json(), told(replied(engine, "ServerMetadata"), "ServerMetadataResponse")
    assert (server.name, server.version) == (rest["name"], rest["version"])
    rest = call(engine, "GET", f"/v2/models/{NAME}").json()
    asked = CLASSES["ModelMetadataRequest"](name=NAME, version=rest["versions"][0])
    model = told(replied(engine, "ModelMetadata", asked), "ModelMetadataResponse")
    assert (model.name, list(model.versions), model.platform) == (NAME, rest["versions"], rest["platform"])
    for kind in ("inputs", "outputs"):
        shown = [{"name": one.name, "datatype": one.datatype, "shape": list(one.shape)} for one in getattr(model, kind)]
        assert shown == rest[kind]
    assert told(replied(engine, "ModelReady", asked), "ModelReadyResponse").ready
    [entry] = told(replied(engine, "RepositoryIndex"), "RepositoryIndexResponse").models
    assert [(entry.name, entry.version, entry.state)] == [(NAME, rest["versions"][0], "READY")]


@pytest.mark.parametrize("is_raw", [True, False])
def test_images_get_the_answers_of_predict(engine: Engine, is_raw: bool) -> None:
    images = [picture(kind, seed) for seed, kind in enumerate(("PNG", "JPEG", "WEBP"))]
    said = [call(engine, "POST", "/predict", content=image).json() for image in images]
    reply = replied(engine, "ModelInfer", encoded(*images, is_raw=is_raw))
    found, answer = outputs(reply), told(reply, "ModelInferResponse")
    assert found["probability"] == pytest.approx([one["probability"] for one in said], abs=1e-6)
    assert found["class_probabilities"] == pytest.approx([p for one in said for p in one["classes"].values()], abs=1e-6)
    assert found["decision"] == [one["decision"].encode() for one in said]
    assert found["class"] == [one["class_name"].encode() for one in said]
    assert (answer.id, answer.model_name, answer.model_version) == ("case 42", NAME, said[0]["model"]["version"])
    assert answer.parameters["sha256"].string_param == said[0]["model"]["sha256"]
    assert reply.trailing == (ID,)
    decoded = outputs(replied(engine, "ModelInfer", pixels(pixels_of(engine, *images), is_raw)))
    assert decoded == found


def test_only_the_outputs_that_are_asked_for_come_in_that_order(engine: Engine) -> None:
    request = encoded(picture("PNG"))
    for name in ("decision", "probability"):
        request.outputs.add(name=name)
    assert list(outputs(replied(engine, "ModelInfer", request))) == ["decision", "probability"]


def wrong(change: Callable[[Any], Any]) -> Any:
    request = encoded(picture("PNG"))
    change(request)
    return request


def _both(request: Any) -> None:
    request.inputs[0].contents.bytes_contents.append(b"x")


REFUSED: list[tuple[str, Any, str, str]] = [
    ("no protobuf", b"\x0a\xff", "INVALID_ARGUMENT", "protobuf cannot be read"),
    ("a group", b"\x0b", "INVALID_ARGUMENT", "protobuf cannot be read"),
    ("another name", wrong(lambda r: setattr(r, "model_name", "x")), "NOT_FOUND", "no model 'x'; there is"),
    ("another version", wrong(lambda r: setattr(r, "model_version", "1")), "NOT_FOUND", "no version '1'"),
    ("another input", wrong(lambda r: setattr(r.inputs[0], "name", "x")), "INVALID_ARGUMENT", "expected one, 'image'"),
    ("no input", wrong(lambda r: r.ClearField("inputs")), "INVALID_ARGUMENT", "inputs none"),
    ("another datatype", wrong(lambda r: setattr(r.inputs[0], "datatype", "FP32")), "INVALID_ARGUMENT", "input FP32"),
    ("both", wrong(_both), "INVALID_ARGUMENT", "both contents and raw_input_contents"),
    ("two raw", wrong(lambda r: r.raw_input_contents.append(b"")), "INVALID_ARGUMENT", "2 raw_input_contents"),
    (
        "another count",
        wrong(lambda r: r.inputs[0].shape.__setitem__(0, 2)),
        "INVALID_ARGUMENT",
        "1 elements, the shape",
    ),
    ("no output", wrong(lambda r: r.outputs.add(name="x")), "INVALID_ARGUMENT", "output 'x'"),
    ("no image", encoded(picture("PNG"), b"no image"), "INVALID_ARGUMENT", "image 1: "),
    ("a cut image", encoded(picture("PNG")[:500]), "INVALID_ARGUMENT", "truncated"),
    ("too many", encoded(*[b"x"] * 33), "INVALID_ARGUMENT", "33 images, limit 32"),
    ("numbers of 5 images", pixels(np.zeros((5, SIZE, SIZE, 3), np.uint8), False), "INVALID_ARGUMENT", "more numbers"),
    ("no byte", pixels(np.full((1, SIZE, SIZE, 3), 300), False), "INVALID_ARGUMENT", "whole numbers of 0 to 255"),
]


@pytest.mark.parametrize(("message", "status", "details"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_is_wrong_is_told_as_over_rest(engine: Engine, message: Any, status: str, details: str) -> None:
    reply = replied(engine, "ModelInfer", message)
    assert (reply.status, reply.message) == (status, b"") and details in reply.details
    assert ID in reply.trailing and ("error-code", reply.code) in reply.trailing


def test_keys_come_as_metadata(tmp_path: Path) -> None:
    guarded = built(
        make_bundle(tmp_path, size=SIZE, task="multiclass").uri, api_key_sha256=[hashlib.sha256(b"k").hexdigest()]
    )
    request = encoded(picture("PNG"))
    for metadata in ([], [("authorization", "Bearer other")], [("x-api-key", "other")]):
        assert replied(guarded, "ModelInfer", request, *metadata).status == "UNAUTHENTICATED"
    for key in (("authorization", "Bearer k"), ("x-api-key", "k")):
        assert len(outputs(replied(guarded, "ModelInfer", request, key))["probability"]) == 1
    assert replied(guarded, "ModelMetadata", CLASSES["ModelMetadataRequest"](name=NAME)).status == "OK"


def test_a_full_replica_and_a_slow_model_say_when_to_come_back(engine: Engine) -> None:
    async def busy() -> tuple[Reply, Reply, int]:
        mine = answering(engine)
        rpc, message = Rpc(mine), encoded(picture("PNG")).SerializeToString()
        mine.admission.working = engine.settings.max_in_flight
        full = await rpc.call("ModelInfer", message, [])
        mine.admission.working = 0
        mine.admission.held_bytes = engine.settings.max_in_flight_bytes - 2 * len(message) + 1
        return full, await rpc.call("ModelInfer", message, []), mine.admission.held_bytes

    full, crowded, held = asyncio.run(busy())
    for reply in (full, crowded):
        assert reply.status == "UNAVAILABLE" and ("retry-after", "1") in reply.trailing and reply.code == "overloaded"
    assert held < engine.settings.max_in_flight_bytes


def test_what_takes_too_long_is_a_deadline(tmp_path: Path) -> None:
    slow = built(make_bundle(tmp_path, size=SIZE, task="multiclass").uri, request_timeout_s=0.01)

    async def never(*_: Any) -> Any:
        await asyncio.sleep(60)

    slow.answer = never  # type: ignore[method-assign]
    assert replied(slow, "ModelInfer", encoded(picture("PNG"))).status == "DEADLINE_EXCEEDED"


def test_a_message_beyond_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    small = built(make_bundle(tmp_path, size=SIZE, task="multiclass").uri, max_request_bytes=1000, max_bytes=1000)
    reply = replied(small, "ModelInfer", encoded(bytes(2000)))
    assert (reply.status, reply.code) == ("INVALID_ARGUMENT", "too_large") and "limit 1000" in reply.details


def test_calls_are_counted_and_ids_that_are_none_refused(tmp_path: Path) -> None:
    own = built(make_bundle(tmp_path, size=SIZE, task="multiclass").uri)
    replied(own, "ModelInfer", encoded(b"no image"))
    for wrong in ("a b", "\u20ac", "\xe9", "\ud800"):
        bad = asyncio.run(Rpc(answering(own)).call("ServerLive", b"", [("x-request-id", wrong)]))
        assert (bad.status, bad.code) == ("INVALID_ARGUMENT", "invalid_request_id") and bad.trailing[0][1] != wrong
    odd = [("x-api-key", "\u20ac"), ("user-agent", "\u20ac\udcff")]
    assert asyncio.run(Rpc(answering(own)).call("ServerLive", b"", odd)).status == "OK"
    text = call(own, "GET", "/metrics").text
    [requests] = [one for one in text_string_to_metric_families(text) if one.name == "leukoray_requests"]
    counted = {
        (s.labels["route"], s.labels["status"]): s.value for s in requests.samples if s.labels["method"] == "gRPC"
    }
    live = f"/{SERVICE}/ServerLive"
    assert counted == {(f"/{SERVICE}/ModelInfer", "415"): 1, (live, "400"): 4, (live, "200"): 1}


def test_a_call_that_is_ended_gives_back_its_place(engine: Engine) -> None:
    async def left() -> tuple[int, int]:
        mine = answering(engine)
        task = asyncio.create_task(Rpc(mine).call("ModelInfer", encoded(picture("PNG")).SerializeToString(), []))
        while not mine.admission.working:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        return mine.admission.working, mine.admission.held_bytes

    assert asyncio.run(left()) == (0, 0)


def varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


@pytest.mark.parametrize(
    "inputs",
    [
        field(5, field(3, bytes(1 << 20))),  # numbers of int64 by a byte each
        field(5, field(3, bytes(1 << 20)) * 2) * 3,
        field(4, bytes(1 << 20)),
        field(6, field(2, b"") * 600_000),
    ],
    ids=["contents", "repeated", "a parameter", "an output's parameters"],
)
def test_small_things_that_are_large_are_refused_before_they_are_parsed(inputs: bytes) -> None:
    with pytest.raises(HttpError, match="more numbers"):
        without_raw(field(1, b"m") + field(5, inputs), 100_000)


def test_elements_without_end_are_refused_before_they_are_parsed() -> None:
    for message in (field(7, b"") * 5000, field(5, field(5, field(8, b"") * 5000)), b"\x08\x01" * 5000):
        with pytest.raises(HttpError, match="more than 4096 fields"):
            without_raw(message, 1 << 30)


@given(st.binary(max_size=60))
def test_whatever_the_bytes_they_are_read_as_protobuf_reads_them_or_refused(data: bytes) -> None:
    try:
        name, _ = names_in(data)
        small, raw = without_raw(data, 1 << 20)
    except HttpError as error:
        assert error.status == 400
        return
    try:
        whole, rest = Request.FromString(data), Request.FromString(small)
    except (DecodeError, UnicodeDecodeError):
        return
    assert whole.model_name == name
    assert list(whole.raw_input_contents) == [bytes(part) for part in raw] and not rest.raw_input_contents
    whole.ClearField("raw_input_contents")
    assert whole.SerializeToString(deterministic=True) == rest.SerializeToString(deterministic=True)


class Neighbour:
    """Another application, as Serve's handles reach it, without Serve."""

    def __init__(self, engine: Engine) -> None:
        self.mine = answering(engine)
        self.rpc, self.app = Rpc(self.mine), create_app(engine, answering=self.mine)

    async def entries(self) -> list[IndexEntry]:
        return [await self.mine.entry()]

    async def have(self, name: str) -> bool:
        return name == self.mine.engine.model.info.name

    async def ask(self, name: str, method: str, *arguments: Any) -> Any:
        known: dict[str, Callable[..., Awaitable[Reply | Answered]]] = {
            "forwarded_rpc": lambda *call: self.rpc.call(*call, is_forwarded=True),
            "forwarded_http": lambda asked: ask(self.app, asked),
        }
        return await known[method](*arguments)


@pytest.fixture
def several(engine: Engine, tmp_path: Path) -> Answering:
    """The engine's application beside one with the model 'other'."""
    other = built(make_bundle(tmp_path, size=SIZE, seed=5, name="other").uri)
    return answering(engine, Neighbour(other))


def test_models_of_other_applications_answer_by_name_over_grpc(several: Answering) -> None:
    request = encoded(picture("PNG"))
    own = asyncio.run(Rpc(several).call("ModelInfer", request.SerializeToString(), [ID]))
    request.model_name = "other"
    other = asyncio.run(Rpc(several).call("ModelInfer", request.SerializeToString(), [ID]))
    assert told(other, "ModelInferResponse").model_name == "other" and other.trailing == (ID,)
    assert outputs(own)["probability"] != outputs(other)["probability"]
    request.model_version = "1"
    wrong_version = asyncio.run(Rpc(several).call("ModelInfer", request.SerializeToString(), []))
    assert (wrong_version.status, wrong_version.http_status) == ("NOT_FOUND", 404)
    index = told(asyncio.run(Rpc(several).call("RepositoryIndex", b"", [])), "RepositoryIndexResponse")
    assert [one.name for one in index.models] == [NAME, "other"]


def test_models_of_other_applications_answer_by_name_over_rest(several: Answering) -> None:
    async def answers() -> list[httpx.Response]:
        transport = httpx.ASGITransport(create_app(several.engine, answering=several))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            image = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {}}
            text = f'{{"inputs": [{image | {"parameters": {"binary_data_size": 0}}!s}]}}'
            data = packed(picture("PNG"))
            text = text.replace("'", '"').replace('"binary_data_size": 0', f'"binary_data_size": {len(data)}')
            headers = {"inference-header-content-length": str(len(text)), "x-request-id": "case/7"}
            return [
                await http.post("/v2/models/other/infer", content=text.encode() + data, headers=headers),
                await http.get("/v2/models/other"),
                await http.post("/v2/repository/index"),
                await http.get("/v2/models/nobody"),
                await http.post("/v2/models/other/infer", content=b"x"),
            ]

    infer, metadata, index, nobody, bad = asyncio.run(answers())
    assert infer.json()["model_name"] == "other" and infer.headers["x-request-id"] == "case/7"
    assert metadata.json()["name"] == "other"
    assert [one["name"] for one in index.json()] == [NAME, "other"]
    assert (nobody.status_code, bad.status_code) == (404, 400) and "no inference request" in bad.json()["error"]


def test_a_request_is_handed_on_once(several: Answering) -> None:
    """What another application hands on is answered here, or is unknown."""
    reply = asyncio.run(
        Rpc(several).call("ModelReady", CLASSES["ModelReadyRequest"](name="other").SerializeToString(), [], True)
    )
    assert reply.status == "NOT_FOUND"
    app = create_app(several.engine, answering=several)
    answer = asyncio.run(ask(app, Asked("GET", "/v2/models/other", b"", [], b"")))
    assert answer.status == 404


class _Context:
    """What Serve's gRPC proxy is given of a call."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def set_code(self, code: Any) -> None:
        self.said.append(code)

    def set_details(self, details: str) -> None:
        self.said.append(details)


@pytest.mark.parametrize("has_first", ["1", ""])
def test_an_application_that_comes_or_goes_is_unavailable_and_a_model_that_is_not_there_not_found(
    has_first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HAS_FIRST, has_first)
    unknown = (
        "Application 'leukoray' not found. Ping /ray.serve.RayServeAPIService/ListApplications for available ones."
    )
    for details in (unknown, "no model 'x'"):
        context = _Context()
        named = _Named(context)
        named.set_code(grpc.StatusCode.NOT_FOUND)
        named.set_details(details)
        changed = [grpc.StatusCode.UNAVAILABLE, NO_REPLICA] if has_first and details == unknown else [details]
        assert context.said == [grpc.StatusCode.NOT_FOUND, *changed]
