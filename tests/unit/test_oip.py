"""The Open Inference Protocol over REST: its objects as the specification has them, the answers those of /predict."""

import asyncio
import base64
import hashlib
import json
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.base.errors import Code, ImageRejected
from serving.admission import overloaded
from serving.engine import Engine
from serving.errors import HttpError
from serving.model import load_model
from serving.protocols.oip.tensors import Said, read_request, write_outputs
from serving.routes import create_app
from serving.settings import ServingSettings
from tests.asgi import call, client, picture
from tests.bundles import make_bundle

SIZE = 32
NAME = "tiny-linear"
HEADER = "inference-header-content-length"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return built(make_bundle(tmp_path_factory.mktemp("bundle"), size=SIZE, task="multiclass").uri)


def built(uri: str, **settings: Any) -> Engine:
    checked = ServingSettings(**{"model": uri, **settings})
    return Engine(checked, load_model(checked.model, checked))


def packed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def infer(engine: Engine, request: dict[str, Any], binary: bytes | None = None, **headers: str) -> httpx.Response:
    text = json.dumps(request).encode()
    if binary is not None:
        headers[HEADER] = str(len(text))
    path = f"/v2/models/{NAME}/infer"
    return call(engine, "POST", path, content=text + (binary or b""), headers={"x-request-id": "r", **headers})


def encoded_input(*images: bytes, **more: Any) -> dict[str, Any]:
    data = [base64.b64encode(image).decode() for image in images]
    return {"name": "image", "datatype": "BYTES", "shape": [len(images)], "data": data, **more}


def pixels_of(engine: Engine, *images: bytes) -> NDArray[np.uint8]:
    return np.stack([engine.model.predictor.load(image).pixels for image in images])


def arrays(answer: httpx.Response) -> dict[str, Any]:
    """The outputs of an answer, JSON or binary, as flat lists."""
    assert answer.status_code == 200, answer.text
    length = int(answer.headers.get(HEADER, len(answer.content)))
    rest, found = answer.content[length:], {}
    for output in json.loads(answer.content[:length])["outputs"]:
        if "data" in output:
            found[output["name"]] = output["data"]
            continue
        size = output["parameters"]["binary_data_size"]
        data, rest = rest[:size], rest[size:]
        if output["datatype"] == "BYTES":
            texts = []
            while data:
                (count,) = struct.unpack_from("<I", data)
                texts.append(data[4 : 4 + count].decode())
                data = data[4 + count :]
            found[output["name"]] = texts
        else:
            found[output["name"]] = np.frombuffer(data, {"FP32": "<f4", "BOOL": "?"}[output["datatype"]]).tolist()
    assert rest == b""
    return found


def assert_protocol_error(answer: httpx.Response, status: int, word: str) -> None:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json"), answer.text
    assert set(answer.json()) == {"error"} and word in answer.json()["error"]
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("is_binary_out", [False, True])
@pytest.mark.parametrize("way", ["base64", "base64 [n, 1]", "bytes", "pixels", "flat pixels", "binary pixels"])
def test_every_way_of_an_image_gets_the_answer_of_predict_to_the_bit(
    engine: Engine, way: str, is_binary_out: bool
) -> None:
    images = [picture("PNG", 1), picture("JPEG", 2), picture("WEBP", 3, 32, 32)]
    pixels, binary = pixels_of(engine, *images), None
    of_pixels = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape)}
    if way.startswith("base64"):
        given = encoded_input(*images, shape=[3] if way == "base64" else [3, 1])
    elif way == "bytes":
        binary = packed(*images)
        given = {"name": "image", "datatype": "BYTES", "shape": [3], "parameters": {"binary_data_size": len(binary)}}
    elif way == "binary pixels":
        binary = pixels.tobytes()
        given = {**of_pixels, "parameters": {"binary_data_size": len(binary)}}
    else:
        given = {**of_pixels, "data": pixels.ravel().tolist() if way.startswith("flat") else pixels.tolist()}
    answer = infer(engine, {"inputs": [given], "parameters": {"binary_data_output": is_binary_out}}, binary)
    said = arrays(answer)
    wanted = [call(engine, "POST", "/predict", content=image).json() for image in images]
    assert said["probability"] == [one["probability"] for one in wanted]
    assert said["class_probabilities"] == [value for one in wanted for value in one["classes"].values()]
    assert said["class"] == [one["class_name"] for one in wanted]
    assert said["decision"] == [one["decision"] for one in wanted]
    assert (HEADER in answer.headers) is is_binary_out


def test_only_the_outputs_that_are_asked_for_come_in_that_order(engine: Engine) -> None:
    outputs = [{"name": "decision"}, {"name": "probability", "parameters": {"binary_data": True}}]
    answer = infer(engine, {"id": "case 42", "inputs": [encoded_input(picture())], "outputs": outputs})
    body = json.loads(answer.content[: int(answer.headers[HEADER])])
    assert [(one["name"], one["datatype"], one["shape"]) for one in body["outputs"]] == [
        ("decision", "BYTES", [1]),
        ("probability", "FP32", [1]),
    ]
    assert body["id"] == "case 42" and body["model_version"] == engine.model.info.version
    assert len(arrays(answer)["probability"]) == 1
    assert "id" not in infer(engine, {"inputs": [encoded_input(picture())]}).json()


def test_null_is_what_is_left_out(engine: Engine) -> None:
    given = encoded_input(picture())
    nulls = {"id": None, "parameters": None, "outputs": None, "inputs": [{**given, "parameters": None}]}
    assert arrays(infer(engine, nulls)) == arrays(infer(engine, {"inputs": [given]}))
    output = {"name": "class", "parameters": None}
    assert list(arrays(infer(engine, {"inputs": [given], "outputs": [output]}))) == ["class"]


def test_metadata_is_what_inference_then_gives(engine: Engine) -> None:
    told = call(engine, "GET", f"/v2/models/{NAME}").json()
    assert told["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]}]
    given = infer(engine, {"inputs": [encoded_input(picture(), picture())]}).json()["outputs"]
    shapes = [[2 if size == -1 else size for size in one["shape"]] for one in told["outputs"]]
    assert shapes == [one["shape"] for one in given]
    assert [one["name"] for one in told["outputs"]] == [one["name"] for one in given]
    assert told["parameters"]["classes"] == list(engine.model.info.classes)
    assert told["versions"] == [engine.model.info.version]


def test_a_model_has_the_outputs_that_it_has_rules_for(engine: Engine, tmp_path: Path) -> None:
    names = {one["name"] for one in call(engine, "GET", f"/v2/models/{NAME}").json()["outputs"]}
    assert names == {"probability", "class_probabilities", "class", "decision"}
    plain = built(make_bundle(tmp_path / "plain", size=SIZE, task="multiclass", positive_classes=()).uri)
    assert "decision" not in arrays(infer(plain, {"inputs": [encoded_input(picture())]}))
    answer = infer(plain, {"inputs": [encoded_input(picture())], "outputs": [{"name": "decision"}]})
    assert_protocol_error(answer, 400, "output 'decision': this model has probability")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v2", {"name": "leukoray", "extensions": ["binary_tensor_data", "statistics"]}),
        ("/v2/", {"name": "leukoray"}),
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"live": True, "ready": True}),
        (f"/v2/models/{NAME}/ready", {"name": NAME, "ready": True}),
        (f"/v2/models/{NAME}/versions/20260101-000000-00000000/ready", {"name": NAME, "ready": True}),
        (f"/v2/models/{NAME}/versions/20260101-000000-00000000", {"name": NAME, "platform": "onnx_onnxv1"}),
    ],
)
def test_health_and_metadata(engine: Engine, path: str, expected: dict[str, Any]) -> None:
    answer = call(engine, "GET", path)
    assert answer.status_code == 200
    assert expected.items() <= answer.json().items()


@pytest.mark.parametrize("path", ["/v2/models/other", f"/v2/models/{NAME}/versions/1", "/v2/models/other/stats"])
def test_a_model_or_version_that_is_not_there_is_404(engine: Engine, path: str) -> None:
    assert_protocol_error(call(engine, "GET", path), 404, "there is")
    assert_protocol_error(call(engine, "POST", f"{path}/infer", content=b"{}"), 404, "")


def test_a_model_that_does_not_answer_is_not_ready(tmp_path: Path) -> None:
    engine = built(make_bundle(tmp_path, size=SIZE).uri)
    engine._probed_at = 0.0
    engine.model.predictor._run = lambda images: 1 / 0  # type: ignore[assignment,return-value]
    for path in ("/v2/health/ready", f"/v2/models/{NAME}/ready"):
        answer = call(engine, "GET", path)
        assert_protocol_error(answer, 503, "does not answer")
        assert answer.headers["retry-after"] == "1"
    [entry] = call(engine, "POST", "/v2/repository/index").json()
    assert entry["state"] == "UNAVAILABLE" and entry["reason"]
    assert call(engine, "POST", "/v2/repository/index", json={"ready": True}).json() == []


def test_the_index_names_the_model(engine: Engine) -> None:
    info = engine.model.info
    expected = [{"name": info.name, "version": info.version, "state": "READY", "reason": ""}]
    for options in ({}, {"json": {}}, {"json": {"ready": True}}, {"content": b""}):
        assert call(engine, "POST", "/v2/repository/index", **options).json() == expected


def test_statistics_count_requests_images_and_passes(tmp_path: Path) -> None:
    engine = built(make_bundle(tmp_path, size=SIZE).uri)
    good, bad = ({"inputs": [encoded_input(*images)]} for images in ([picture(), picture()], [b"no image"]))

    async def session() -> tuple[dict[str, Any], dict[str, Any]]:
        async with client(engine) as http:
            for request in (good, bad):
                await http.post(f"/v2/models/{NAME}/infer", json=request)
            first = dict((await http.get(f"/v2/models/{NAME}/stats")).json())
            await http.post("/predict", content=picture())
            told = dict((await http.get(f"/v2/models/{NAME}/stats")).json())
            assert (await http.get("/v2/models/stats")).json() == told
            return first, told

    [first], [told] = (stats["model_stats"] for stats in asyncio.run(session()))
    assert (told["inference_count"], told["execution_count"]) == (3, 3)  # each image alone: no batcher here
    stats = told["inference_stats"]
    assert (stats["success"]["count"], stats["fail"]["count"]) == (1, 1)
    stats = first["inference_stats"]  # its two passes lie within the one request
    assert stats["success"]["ns"] >= stats["compute_infer"]["ns"] > 0
    assert told["last_inference"] > 1_700_000_000_000


def broken(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{**encoded_input(b"x"), **changes}]}


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        ({}, "inputs"),
        ({"inputs": []}, "inputs none: expected one, 'image'"),
        ({"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1], "data": [1]}]}, "inputs 'x'"),
        (broken(datatype="FP32"), "expected UINT8 [n, 32, 32, 3], RGB, or BYTES [n]"),
        (broken(datatype="UINT8", shape=[1, 3, 32, 32]), "expected UINT8"),
        (broken(shape=[0]), "no image"),
        (broken(shape=[2]), "data has 1 elements, the shape 2"),
        (broken(shape=[-1]), "no image"),
        (broken(shape=[]), "expected UINT8"),
        (broken(shape=["a"]), "inputs.0.shape.0"),
        (broken(data=["%%%"]), "image 0 is no base64"),
        (broken(data=[7]), "image 0 is no base64"),
        (broken(data=None), "data has 0 elements"),
        (broken(datatype="UINT8", shape=[1, 32, 32, 3], data=[256] * 3072), "whole numbers of 0 to 255"),
        (broken(datatype="UINT8", shape=[1, 32, 32, 3], data=[-1] * 3072), "whole numbers of 0 to 255"),
        (broken(datatype="UINT8", shape=[1, 32, 32, 3], data=[0.5] * 3072), "whole numbers of 0 to 255"),
        (broken(datatype="UINT8", shape=[1, 32, 32, 3], data=[True] * 3072), "whole numbers of 0 to 255"),
        (broken(datatype="UINT8", shape=[1, 32, 32, 3], data=["1"] * 3072), "whole numbers of 0 to 255"),
        (broken(datatype="UINT8", shape=[1, 32, 32, 3], data=[10**30] * 3072), "whole numbers of 0 to 255"),
        (broken(datatype="UINT8", shape=[1, 32, 32, 3], data=[[1], [1, 2]]), "nested unevenly"),
        (broken(datatype="UINT8", shape=[1, 32, 32, 3], data=[1, [2]]), "nested unevenly"),
        (broken(datatype="UINT8", shape=[1, 32, 32, 3], data=[[[0]] * 3] * 1024), "nested as [1024, 3, 1], the shape"),
        (
            broken(datatype="UINT8", shape=[1, 32, 32, 3], data=[[[[0] * 32] * 32] * 3]),
            "nested as [1, 3, 32, 32], the shape is [1, 32, 32, 3]; give it so, or flat",
        ),
        (broken(datatype="UINT8", shape=[1, 32, 32, 3], data=[*[0] * 3071, None]), "whole numbers of 0 to 255"),
        (broken(datatype="UINT8", shape=[1, 32, 32, 3], data=[0] * 3073), "more elements than the shape, 3072"),
        (broken(data=["eA=="] * 99), "more elements than the shape, 1"),
        (broken(data=[["eA==", "eA=="]]), "image 0 is no base64"),
        (broken(datatype="UINT8", shape=[1, 32, 32, 3], data=[1]), "data has 1 elements, the shape 3072"),
        (broken(parameters={"shared_memory_region": "x"}), "shared memory"),
        (broken(parameters={"binary_data_size": 4}), "both data and binary_data_size"),
        ({**broken(), "outputs": [{"name": "nothing"}]}, "output 'nothing': this model has probability"),
        ({**broken(), "outputs": [{"name": "class", "parameters": {"classification": 2}}]}, "classification"),
    ],
)
def test_a_request_that_makes_no_sense_says_what_is_wrong(engine: Engine, request_: dict[str, Any], word: str) -> None:
    assert_protocol_error(infer(engine, request_), 400, word)


@pytest.mark.parametrize(
    ("binary", "announced", "word"),
    [
        (b"\x01", 1, "within the four bytes"),
        (struct.pack("<I", 9) + b"abc", 7, "announces 9 bytes and 3 are left"),
        (packed(b"ab"), 7, "binary_data_size 7, but 6 bytes follow"),
        (packed(b"ab"), "6", "binary_data_size 6, but"),
        (packed(b"ab"), None, "6 bytes behind the JSON, but no binary_data_size"),
        (packed(b"a", b"b"), 10, "data has 2 elements, the shape 1"),
        (b"", 0, "data has 0 elements"),
    ],
)
def test_binary_data_that_does_not_fit_is_refused(engine: Engine, binary: bytes, announced: Any, word: str) -> None:
    parameters = {} if announced is None else {"binary_data_size": announced}
    request = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "parameters": parameters}]}
    assert_protocol_error(infer(engine, request, binary), 400, word)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"nonsense",
        b"[" * 5000,
        b'{"inputs": NaN}',
        b"\xff\xfe",
        b'{"inputs":[' + b'{"a":1},' * 8000 + b"1]}",  # an error each would be told at length
        b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[' + b"1," * 8000 + b'1],"data":[]}]}',
    ],
    ids=range(8),
)
@pytest.mark.parametrize("header", [None, "0", "-1", "x", "999999999", "9" * 5000, "1 ", "\u0661".encode()])
def test_a_body_that_is_no_request_is_400(engine: Engine, body: bytes, header: Any) -> None:
    headers = {} if header is None else {HEADER: header}
    answer = call(engine, "POST", f"/v2/models/{NAME}/infer", content=body, headers=headers)
    assert_protocol_error(answer, 400, "")
    assert len(answer.content) < 500


@pytest.mark.parametrize(
    "head",
    [
        b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[%d,32,32,3],"data":[]}]}',
        b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1,32,32,3],"data":[%d]}]}',
        b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[1],"data":[%d]}]}',
        b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":%d}}]}',
        b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":[%d]}}]}',
    ],
    ids=["shape", "pixel", "text", "size", "list of sizes"],
)
@pytest.mark.parametrize("digits", [b"9" * 5000, b"-" + b"9" * 5000, b"9" * 4000])
def test_numbers_of_very_many_digits_are_refused(engine: Engine, head: bytes, digits: bytes) -> None:
    text = head.replace(b"%d", digits)
    headers = {HEADER: str(len(text))} if b"size" in head else {}
    answer = call(engine, "POST", f"/v2/models/{NAME}/infer", content=text + b"xx"[: 2 * len(headers)], headers=headers)
    assert_protocol_error(answer, 400, "")
    assert len(answer.content) < 500


def test_texts_among_numbers_take_no_room(engine: Engine) -> None:
    data = ["a" * 100_000, *[""] * 3071]  # as an array 1.2 GB: each element as long as the longest
    given = {"name": "image", "datatype": "UINT8", "shape": [1, SIZE, SIZE, 3], "data": data}
    text = json.dumps({"inputs": [given]}).encode()
    tracemalloc.start()
    try:
        with pytest.raises(HttpError, match="whole numbers of 0 to 255"):
            read_request(text, None, engine.model.info, engine.settings)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_request_that_is_read_holds_its_images_once(engine: Engine) -> None:
    request, images = read_request(json.dumps(broken()).encode(), None, engine.model.info, engine.settings)
    assert images == [b"x"] and request.inputs == []


def test_numbers_in_json_are_of_four_images_at_most_flat_or_nested(engine: Engine) -> None:
    for count in (4, 5):
        zeros = np.zeros((count, SIZE, SIZE, 3), np.uint8)
        for data in (zeros.tolist(), zeros.ravel().tolist()):
            given = {"name": "image", "datatype": "UINT8", "shape": list(zeros.shape), "data": data}
            answer = infer(engine, {"inputs": [given]})
            assert answer.status_code == (200 if count == 4 else 413), answer.text


def test_a_body_that_can_never_be_held_twice_is_413_at_once(tmp_path: Path) -> None:
    room = {"max_bytes": 50_000, "max_request_bytes": 60_000, "max_in_flight_bytes": 60_000}
    engine = built(make_bundle(tmp_path, size=SIZE).uri, **room)
    assert_protocol_error(infer(engine, {"inputs": [encoded_input(bytes(30_000))]}), 413, "limit 30000")
    assert infer(engine, {"inputs": [encoded_input(picture())]}).status_code == 200


def test_an_image_for_which_there_is_no_room_is_503_and_named(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    at_work: list[str] = []

    async def answered(model: Any, data: bytes) -> Any:
        if data == b"full":
            await asyncio.sleep(0)
            raise overloaded(engine.settings, "full")
        at_work.append("began")
        await asyncio.sleep(0.05)
        at_work.append("ended")
        raise ImageRejected(Code.CORRUPT, "damaged")

    monkeypatch.setattr(engine, "answer", answered)
    answer = infer(engine, {"inputs": [encoded_input(b"full", b"other")]})
    assert_protocol_error(answer, 503, "image 0: full, no room")
    assert answer.headers["retry-after"] == "1"
    assert at_work == ["began", "ended"]  # within the request, whose place and time it takes


def test_limits_and_keys_are_those_of_predict(tmp_path: Path) -> None:
    uri = make_bundle(tmp_path, size=SIZE).uri
    image = picture("PNG")
    tight = built(uri, max_files=2, max_bytes=len(image), max_request_bytes=8 * len(image), max_in_flight=1)
    assert infer(tight, {"inputs": [encoded_input(image, image)]}).status_code == 200
    assert_protocol_error(infer(tight, {"inputs": [encoded_input(image, image, image)]}), 413, "3 images, limit 2")
    assert_protocol_error(infer(tight, {"inputs": [encoded_input(image + b"0")]}), 413, f"limit {len(image)}")
    assert_protocol_error(infer(tight, {"inputs": [encoded_input(bytes(9 * len(image)))]}), 413, "limit")
    values = {"name": "image", "datatype": "UINT8", "shape": [20, 32, 32, 3], "data": [0] * (20 * 3072)}
    assert_protocol_error(infer(built(uri), {"inputs": [values]}), 413, "more numbers than 4 images have;")
    compressed = infer(tight, {"inputs": [encoded_input(image)]}, **{"content-encoding": "gzip"})
    assert_protocol_error(compressed, 415, "Content-Encoding")
    guarded = built(uri, api_key_sha256=(hashlib.sha256(b"k").hexdigest(),))
    assert_protocol_error(infer(guarded, {"inputs": [encoded_input(image)]}), 401, "asks for a key")
    assert infer(guarded, {"inputs": [encoded_input(image)]}, **{"x-api-key": "k"}).status_code == 200
    slow = built(uri, request_timeout_s=0.2)
    slow.model.predictor._run = lambda images: time.sleep(1)  # type: ignore[assignment,return-value]
    assert_protocol_error(infer(slow, {"inputs": [encoded_input(image)]}), 504, "no answer within")


def test_an_image_that_is_refused_is_named_by_its_place(engine: Engine) -> None:
    answer = infer(engine, {"inputs": [encoded_input(picture(), picture("PNG")[:300])]})
    assert_protocol_error(answer, 422, "image 1: ")
    assert_protocol_error(infer(engine, {"inputs": [encoded_input(b"text")]}), 415, "")


def test_what_is_not_there_is_told_as_the_protocol_tells_it(engine: Engine) -> None:
    assert_protocol_error(call(engine, "GET", f"/v2/models/{NAME}/config"), 404, "Not Found")
    assert_protocol_error(call(engine, "GET", f"/v2/models/{NAME}/infer"), 405, "Method Not Allowed")
    assert_protocol_error(call(engine, "GET", "/v2", headers={"x-request-id": "a b"}), 400, "X-Request-ID")
    assert call(engine, "GET", "/v2x").json()["error"]["code"] == "not_found"


def test_errors_are_the_protocols_below_a_prefix_too(engine: Engine) -> None:
    async def once(path: str) -> httpx.Response:
        transport = httpx.ASGITransport(create_app(engine), root_path="/tight")
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.get(path)

    assert_protocol_error(asyncio.run(once("/tight/v2/models/other")), 404, "no model 'other'")
    assert asyncio.run(once("/tight/v2/models/tiny-linear")).json()["name"] == NAME
    problem = asyncio.run(once("/tight/nowhere")).json()
    assert problem["type"] == "/tight/docs#not_found" and problem["error"]["code"] == "not_found"


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5), st.booleans())
def test_elements_come_out_as_they_went_in(engine: Engine, elements: list[bytes], is_binary: bool) -> None:
    given = encoded_input(*elements)
    binary = packed(*elements) if is_binary else b""
    if is_binary:
        given = {**given, "data": None, "parameters": {"binary_data_size": len(binary)}}
    text = json.dumps({"inputs": [given]}).encode()
    length = str(len(text)) if is_binary else None
    _, found = read_request(text + binary, length, engine.model.info, engine.settings)
    assert found == elements


def test_a_score_that_is_no_number_is_none_in_binary_and_null_in_json(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.model.reference import OodRule

    rule = OodRule(reference_sha256="0" * 64, training_images=9, threshold=3.0)
    info = engine.model.info.model_copy(update={"ood": rule})
    said = [Said(0.5, (0.5, 0.5), "a", "negative", True, None), Said(0.5, (0.5, 0.5), "a", "negative", False, 1.5)]
    wanted = [{"name": "ood_score"}, {"name": "is_ood"}, {"name": "ood_score", "parameters": {"binary_data": True}}]
    text = json.dumps({"inputs": [encoded_input(b"x")], "outputs": wanted[:2]}).encode()
    request, _ = read_request(text, None, info, engine.settings)
    outputs, _ = write_outputs(request, info, said)
    assert [one["data"] for one in outputs] == [[None, 1.5], [True, False]]
    text = json.dumps({"inputs": [encoded_input(b"x")], "outputs": wanted[2:]}).encode()
    request, _ = read_request(text, None, info, engine.settings)
    _, [blob] = write_outputs(request, info, said)
    assert np.isnan(np.frombuffer(blob, "<f4")).tolist() == [True, False]
