"""Every status code and every guard of the endpoint, on the real application without Ray."""

import asyncio
import hashlib
import io
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from pipeline.base.errors import UsageError
from pipeline.model.chance import AgainstChance
from serving.admission import overloaded
from serving.engine import Engine
from serving.model import load_model
from serving.routes import create_app
from serving.settings import ModelChoice, ServingSettings, read_choice
from tests.asgi import call, client, picture
from tests.bundles import make_bundle, said_of
from tests.dicoms import PATIENT, dicom
from tests.images import encoded, scene

JPEG = {"content-type": "image/jpeg"}


@pytest.fixture(scope="module")
def model_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_bundle(tmp_path_factory.mktemp("bundle"), size=32, synthetic=True).uri


@pytest.fixture
def make(model_uri: str) -> Callable[..., Engine]:
    def build(**settings: Any) -> Engine:
        checked = ServingSettings(**{"model": model_uri, **settings})
        return Engine(checked, load_model(checked.model, checked))

    return build


def assert_error(answer: httpx.Response, status: int, code: str) -> None:
    assert answer.status_code == status, answer.text
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    error = problem["error"]
    assert error["code"] == code
    assert error["message"] and error["request_id"] == answer.headers["x-request-id"]
    assert (problem["status"], problem["detail"]) == (status, error["message"])
    assert problem["type"] == f"/docs#{code}" and problem["title"]
    assert problem["instance"].endswith("#" + error["request_id"])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF"])
def test_answer_equals_the_predictor_for_every_format(make: Callable[..., Engine], kind: str) -> None:
    engine = make()
    data = picture(kind)
    (expected,) = said_of(engine.model.predictor.bundle, data)
    answer = call(engine, "POST", "/predict", content=data, headers={"content-type": f"image/{kind.lower()}"}).json()
    assert answer["probability"] == pytest.approx(expected.probability, abs=1e-5)
    assert answer["decision"] == expected.decision
    assert answer["image"] == {"format": kind.lower(), "width": 90, "height": 70, "size_bytes": len(data)}


def test_an_answer_says_what_was_noticed_about_the_image(make: Callable[..., Engine]) -> None:
    deep = encoded(Image.fromarray(np.asarray(scene().convert("L")).astype(np.uint16) * 16), "PNG")
    for data, remarks in ((picture(), []), (deep, ["depth guessed as 12 bits"])):
        assert call(make(), "POST", "/predict", content=data).json()["remarks"] == remarks


def test_a_dicom_is_answered_without_a_word_of_its_header(make: Callable[..., Engine]) -> None:
    good, refused = dicom(np.asarray(scene())), dicom(np.asarray(scene()), kind="1.2.840.10008.5.1.4.1.1.2")
    for data, status in ((good, 200), (refused, 415)):
        answer = call(make(), "POST", "/predict", content=data, headers={"content-type": "application/dicom"})
        assert answer.status_code == status and PATIENT.split("^")[0] not in answer.text


def test_answer_carries_its_provenance(make: Callable[..., Engine]) -> None:
    engine = make()
    answer = call(engine, "POST", "/predict", content=picture(), headers=JPEG | {"x-request-id": "case-17/a"}).json()
    assert answer["model"]["sha256"] == engine.model.predictor.bundle.info.identity()
    assert answer["model"]["synthetic"] is True
    assert answer["model"]["preprocessing_digest"] == engine.model.predictor.info.preprocessing_digest
    assert answer["request_id"] == "case-17/a"
    assert answer["threshold"] == 0.5 and answer["elapsed_ms"] > 0
    assert sum(answer["classes"].values()) == pytest.approx(1, abs=1e-6)
    assert "not a medical device" in answer["notice"]


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "binary/octet-stream", "text/plain", "application/json", "", None]
)
def test_the_format_is_what_the_bytes_say(make: Callable[..., Engine], kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}  # the first is what `curl --data-binary` sends
    answer = call(make(), "POST", "/predict", content=picture(), headers=headers)
    assert (answer.status_code, answer.json()["image"]["format"]) == (200, "jpeg")


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"", JPEG, 400, "empty"),
        (b"hello", JPEG, 415, "unsupported_format"),
        (b"<svg/>", {"content-type": "image/svg+xml"}, 415, "unsupported_format"),
        (b"a=1&b=2", {"content-type": "application/x-www-form-urlencoded"}, 415, "unsupported_format"),
        (b'{"image": "..."}', {"content-type": "application/json"}, 415, "unsupported_format"),
        (picture(), JPEG | {"content-encoding": "gzip"}, 415, "unsupported_encoding"),
        (picture("PNG")[:400], JPEG, 422, "truncated"),
        (picture("JPEG")[:900], JPEG, 422, "truncated"),
        (picture("BMP", width=200, height=200), JPEG, 413, "too_large"),
        (picture("PNG", width=9, height=900), JPEG, 422, "too_many_pixels"),
        (b"--x", {"content-type": "multipart/form-data"}, 400, "malformed_multipart"),
        (b"garbage", {"content-type": "multipart/form-data; boundary=x"}, 400, "malformed_multipart"),
    ],
)
def test_bad_body_has_its_exact_status(
    make: Callable[..., Engine], content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    engine = make(max_bytes=100_000, max_pixels=8000)
    assert_error(call(engine, "POST", "/predict", content=content, headers=headers), status, code)


def test_corrupt_png_is_422(make: Callable[..., Engine]) -> None:
    data = bytearray(picture("PNG"))
    data[200] ^= 0xFF
    assert_error(call(make(), "POST", "/predict", content=bytes(data), headers=JPEG), 422, "corrupt")


def test_unknown_route_and_method_are_json(make: Callable[..., Engine]) -> None:
    engine = make()
    assert_error(call(engine, "GET", "/nowhere"), 404, "not_found")
    answer = call(engine, "GET", "/predict")
    assert_error(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "a\tb", "<script>", b"caf\xe9"])
def test_invalid_request_id_is_refused(make: Callable[..., Engine], given: str | bytes) -> None:
    answer = call(make(), "GET", "/healthz", headers=[(b"x-request-id", given)])
    assert_error(answer, 400, "invalid_request_id")
    assert answer.headers["x-request-id"] != given


def test_two_request_ids_are_none(make: Callable[..., Engine]) -> None:
    answer = call(make(), "GET", "/healthz", headers=[(b"x-request-id", b"good"), (b"x-request-id", b'"},x')])
    assert_error(answer, 400, "invalid_request_id")
    assert answer.headers["x-request-id"] == answer.json()["error"]["request_id"] not in ("good", '"},x')


@pytest.mark.parametrize("path", ["/predict/", "/healthz/", "/docs/"])
def test_nothing_is_redirected_to_what_the_host_header_says(make: Callable[..., Engine], path: str) -> None:
    for method in ("GET", "POST"):
        answer = call(make(), method, path, headers={"host": "elsewhere.example"})
        assert_error(answer, 404, "not_found")
        assert "location" not in answer.headers


@pytest.mark.parametrize("has_extension", [True, False])
@pytest.mark.parametrize("given", [None, b"case-7", b"a b"])
def test_a_websocket_is_refused_at_once(make: Callable[..., Engine], has_extension: bool, given: bytes | None) -> None:
    sent: list[Any] = []
    scope = {
        "type": "websocket",
        "path": "/predict",
        "headers": [(b"x-request-id", given)] if given else [],
        "extensions": {"websocket.http.response": {}} if has_extension else {},
    }

    async def never() -> Any:
        raise AssertionError("nothing has to be read for it")

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(create_app(make())(scope, never, send))
    if not has_extension:
        assert sent == [{"type": "websocket.close", "code": 1008}]
        return
    start, body = sent
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 400)
    error = json.loads(body["body"])["error"]
    assert error["code"] == ("invalid_request_id" if given == b"a b" else "no_websocket")
    assert dict(start["headers"])[b"x-request-id"].decode() == error["request_id"] != "a b"


def test_every_request_is_one_line_of_the_log_without_what_it_sent(
    make: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    engine, secret = make(), "doe_john_1950"
    with caplog.at_level("INFO", "ray.serve.access"):
        call(engine, "POST", "/predict", content=picture(), headers={"x-request-id": "r1"})
        call(engine, "POST", "/predict", files=[("files", (f"{secret}.png", b"no"))], headers={"x-request-id": "r2"})
        call(engine, "GET", f"/{secret}", headers={"x-request-id": "r3"})
        call(engine, "GET", "/healthz", headers={"x-request-id": f"{secret} {secret}"})
    lines = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "ray.serve.access"]
    without_time = [(level, re.sub(r"ms=[\d.]+", "ms", line)) for level, line in lines]
    assert without_time[:3] == [
        ("INFO", "method=POST route=/predict status=200 ms code=- request=r1"),
        ("WARNING", "method=POST route=/predict status=415 ms code=unsupported_format request=r2"),
        ("WARNING", "method=GET route=- status=404 ms code=not_found request=r3"),
    ]
    assert len(lines) == 4 and secret not in caplog.text


def test_a_fault_of_the_service_is_logged_as_an_error(
    make: Callable[..., Engine], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make()

    async def explode(*_: Any) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(engine, "answer", explode)
    call(engine, "POST", "/predict", content=picture())
    [line] = [record for record in caplog.records if record.name == "ray.serve.access"]
    assert line.levelname == "ERROR" and "status=500" in line.getMessage() and "code=internal" in line.getMessage()


def test_pages_of_other_origins_may_ask_only_where_they_are_listed(make: Callable[..., Engine]) -> None:
    asked = {"origin": "https://lab.example", "access-control-request-method": "POST"}
    closed, listed = make(), make(cors_origins=["https://lab.example"])
    assert call(closed, "OPTIONS", "/predict", headers=asked).status_code == 405
    assert "access-control-allow-origin" not in call(closed, "GET", "/readyz", headers=asked).headers
    preflight = call(listed, "OPTIONS", "/predict", headers=asked | {"access-control-request-headers": "x-api-key"})
    assert preflight.status_code == 200
    for answer in (preflight, call(listed, "GET", "/readyz", headers=asked), call(listed, "GET", "/no", headers=asked)):
        assert answer.headers["access-control-allow-origin"] == "https://lab.example"
        assert "access-control-allow-credentials" not in answer.headers
    other = call(listed, "GET", "/readyz", headers={"origin": "https://elsewhere.example"})
    assert "access-control-allow-origin" not in other.headers


def test_body_without_length_is_stopped_at_the_limit(make: Callable[..., Engine]) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1000
            yield bytes(1000)

    assert_error(call(make(max_bytes=10_000), "POST", "/predict", content=endless(), headers=JPEG), 413, "too_large")
    assert sent <= 12_000, "no more was read than needed to see that it is too much"


def test_length_announced_over_the_limit_is_refused_before_reading(make: Callable[..., Engine]) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    headers = JPEG | {"content-length": "99999999"}
    answer = call(make(max_bytes=10_000), "POST", "/predict", content=never(), headers=headers)
    assert_error(answer, 413, "too_large")


@pytest.mark.parametrize("given", ["9" * 5000, "\u0663".encode(), "1e3", "-1", "+1", "1, 1"])
def test_a_length_that_is_none_is_refused(make: Callable[..., Engine], given: str | bytes) -> None:
    headers: Any = {**JPEG, "content-length": given}
    answer = call(make(), "POST", "/predict", content=picture(), headers=headers)
    assert_error(answer, 400, "bad_request")


def test_an_image_of_just_the_limit_is_taken(make: Callable[..., Engine]) -> None:
    data = picture("PNG")
    limits = {"max_bytes": len(data), "max_request_bytes": len(data), "max_in_flight_bytes": len(data)}
    assert call(make(**limits), "POST", "/predict", content=data, headers=JPEG).status_code == 200
    assert_error(call(make(**limits), "POST", "/predict", content=data + b"0", headers=JPEG), 413, "too_large")


@pytest.mark.parametrize(
    ("kind", "body"),
    [("multipart/form-data", b""), ("multipart/form-data; boundary=b", b"--b\r\nno header\r\n\r\n--b--\r\n")],
    ids=["no boundary", "no header"],
)
def test_a_multipart_body_that_cannot_be_parsed_is_refused(make: Callable[..., Engine], kind: str, body: bytes) -> None:
    answer = call(make(), "POST", "/predict", content=body, headers={"content-type": kind})
    assert_error(answer, 400, "malformed_multipart")


def test_multipart_answers_each_file_in_order(make: Callable[..., Engine]) -> None:
    engine = make(max_bytes=30_000)
    files = [
        ("files", ("a.png", picture("PNG", 1))),
        ("files", ("cut.png", picture("PNG", 2)[:300])),
        ("other", ("b.jpg", picture("JPEG", 3))),
        ("files", ("large.bmp", picture("BMP", 4, 200, 200))),
        ("files", ("empty.jpg", b"")),
    ]
    answer = call(engine, "POST", "/predict", files=files)
    body = answer.json()
    assert answer.status_code == 200 and (body["predicted"], body["failed"]) == (2, 3)
    assert [item["filename"] for item in body["results"]] == [name for _, (name, _) in files]
    codes = [item["error"] and item["error"]["code"] for item in body["results"]]
    assert codes == [None, "truncated", None, "too_large", "empty"]
    single = call(engine, "POST", "/predict", content=picture("JPEG", 3), headers=JPEG).json()
    assert body["results"][2]["prediction"]["probability"] == single["probability"]


def test_multipart_with_no_good_file_has_the_status_of_the_first(make: Callable[..., Engine]) -> None:
    answer = call(make(), "POST", "/predict", files=[("f", ("a.txt", b"text")), ("f", ("b.jpg", b""))])
    assert_error(answer, 415, "unsupported_format")
    assert [item["error"]["code"] for item in answer.json()["results"]] == ["unsupported_format", "empty"]


def test_multipart_for_which_there_is_no_room_says_when_to_come_back(
    make: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(retry_after_s=7)

    async def full(model: Any, data: bytes) -> Any:
        raise overloaded(engine.settings, "full")

    monkeypatch.setattr(engine, "answer", full)
    answer = call(engine, "POST", "/predict", files=[("f", ("a", b"1")), ("f", ("b", b"2"))])
    assert_error(answer, 503, "overloaded")
    assert answer.headers["retry-after"] == "7" and len(answer.json()["results"]) == 2


def test_multipart_without_files_or_with_too_many_is_refused(make: Callable[..., Engine]) -> None:
    engine = make(max_files=2)
    fields = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert_error(call(engine, "POST", "/predict", content=fields, headers=headers), 400, "no_file")
    many = [("f", (f"{index}.png", picture("PNG"))) for index in range(3)]
    assert_error(call(engine, "POST", "/predict", files=many), 413, "too_many_files")


def test_keys_are_asked_for_only_where_images_go(make: Callable[..., Engine]) -> None:
    engine = make(api_key_sha256=tuple(hashlib.sha256(key).hexdigest() for key in (b"one", b"two")))
    missing = call(engine, "POST", "/predict", content=picture(), headers=JPEG)
    assert_error(missing, 401, "key_missing")
    assert missing.headers["www-authenticate"] == "Bearer"
    assert_error(
        call(engine, "POST", "/predict", content=picture(), headers={"x-api-key": "three"}), 403, "key_refused"
    )
    both = {"x-api-key": "one", "authorization": "Bearer three"}
    assert_error(call(engine, "POST", "/predict", content=picture(), headers=both), 403, "key_refused")
    for headers in ({"x-api-key": "one"}, {"authorization": "Bearer two"}, {"authorization": "bearer  two"}):
        assert call(engine, "POST", "/predict", content=picture(), headers=headers).status_code == 200
    for path in ("/", "/docs", "/healthz", "/readyz", "/model"):
        assert call(engine, "GET", path).status_code == 200
    assert call(engine, "GET", "/readyz").json()["needs_api_key"] is True


def test_full_service_answers_503_with_retry_after_and_recovers(make: Callable[..., Engine]) -> None:
    engine = make(max_in_flight=2, retry_after_s=3)
    gate = threading.Event()
    run = engine.model.predictor._run
    engine.model.predictor._run = lambda images: (gate.wait(20), run(images))[1]  # type: ignore[func-returns-value]

    async def crowd() -> tuple[list[httpx.Response], httpx.Response, httpx.Response]:
        async with client(engine) as http:
            tasks = [asyncio.create_task(http.post("/predict", content=picture(), headers=JPEG)) for _ in range(6)]
            while sum(task.done() for task in tasks) < 4:
                await asyncio.sleep(0.01)
            alive = await http.get("/healthz")
            gate.set()
            answers = await asyncio.gather(*tasks)
            return answers, alive, await http.post("/predict", content=picture(), headers=JPEG)

    answers, alive, after = asyncio.run(crowd())
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(refused) == 4 and sum(answer.status_code == 200 for answer in answers) == 2
    for answer in refused:
        assert_error(answer, 503, "overloaded")
        assert answer.headers["retry-after"] == "3"
    assert alive.status_code == 200 and after.status_code == 200


def test_bytes_held_are_bounded_too(make: Callable[..., Engine]) -> None:
    engine = make(max_bytes=50_000, max_request_bytes=60_000, max_in_flight_bytes=60_000)

    async def two() -> tuple[httpx.Response, httpx.Response]:
        reached = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield picture("PNG", width=100, height=120)[:34_000]
            reached.set()
            await asyncio.sleep(0.5)
            yield b""

        async with client(engine) as http:
            first = asyncio.create_task(http.post("/predict", content=slow(), headers=JPEG))
            await reached.wait()
            second = await http.post("/predict", content=bytes(40_000), headers=JPEG)
            return await first, second

    first, second = asyncio.run(two())
    assert_error(first, 422, "truncated")
    assert_error(second, 503, "overloaded")


def test_slow_model_is_504_and_slow_client_is_408(make: Callable[..., Engine]) -> None:
    engine = make(request_timeout_s=0.2)
    engine.model.predictor._run = lambda images: time.sleep(1)  # type: ignore[assignment,return-value]
    assert_error(call(engine, "POST", "/predict", content=picture(), headers=JPEG), 504, "timeout")

    async def drip() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0.05)
            yield b"x"

    assert_error(
        call(make(request_timeout_s=0.2), "POST", "/predict", content=drip(), headers=JPEG), 408, "body_timeout"
    )


def test_bug_is_500_without_internals_and_a_log_that_quotes_nothing(
    make: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine, names = make(), ["secret doe_john_1950", "secret path /srv/keys"]

    async def explode(*_: Any) -> None:
        try:
            raise KeyError(names[0])
        except KeyError as error:
            raise RuntimeError(names[1]) from error

    monkeypatch.setattr(engine, "answer", explode)
    answer = call(engine, "POST", "/predict", content=picture(), headers=JPEG)
    assert_error(answer, 500, "internal")
    assert "secret" not in answer.text and "RuntimeError" not in answer.text
    assert "in explode" in caplog.text and "builtins.KeyError" in caplog.text and "builtins.RuntimeError" in caplog.text
    assert "secret" not in caplog.text


def test_image_that_breaks_the_model_spares_its_neighbours(make: Callable[..., Engine]) -> None:
    engine = make()
    run = engine.model.predictor._run

    def poisoned(images: Any) -> Any:
        said = run(images)
        said.logits[(images == 7).all(axis=(1, 2, 3))] = np.nan
        return said

    engine.model.predictor._run = poisoned
    flat = io.BytesIO()
    Image.new("RGB", (32, 32), (7, 7, 7)).save(flat, "PNG")
    files = [("f", ("a", picture())), ("f", ("bad", flat.getvalue())), ("f", ("b", picture()))]
    results = call(engine, "POST", "/predict", files=files).json()["results"]
    assert [bool(item["prediction"]) for item in results] == [True, False, True]
    assert results[1]["error"]["code"] == "predict_failed"


def test_pages_forbid_everything_from_elsewhere(make: Callable[..., Engine]) -> None:
    engine = make()
    for path in ("/", "/docs"):
        answer = call(engine, "GET", path)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy
        assert "http://" not in answer.text.replace("http://www.w3.org", "").replace("http://HOST", "")
        assert "https://" not in answer.text
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_openapi_names_every_status(make: Callable[..., Engine]) -> None:
    description = call(make(), "GET", "/openapi.json").json()
    statuses = set(description["paths"]["/predict"]["post"]["responses"])
    assert {
        "200",
        "400",
        "401",
        "403",
        "406",
        "408",
        "409",
        "413",
        "415",
        "422",
        "429",
        "500",
        "503",
        "504",
    } == statuses


def test_openapi_tells_of_keys_where_they_are_asked_for(make: Callable[..., Engine]) -> None:
    digest = hashlib.sha256(b"one").hexdigest()
    for settings, expected in (({}, None), ({"api_key_sha256": (digest,)}, [{"HTTPBearer": []}, {"APIKeyHeader": []}])):
        description = call(make(**settings), "GET", "/openapi.json").json()
        assert description["paths"]["/predict"]["post"].get("security") == expected
        assert "securitySchemes" in description["components"] if expected else "securitySchemes" not in str(description)


def test_openapi_tells_of_ids_files_and_waiting(make: Callable[..., Engine]) -> None:
    description = call(make(max_files=3), "GET", "/openapi.json").json()
    post = description["paths"]["/predict"]["post"]
    assert [item["name"] for item in post["parameters"]] == ["X-Request-ID", "explain", "format", "subject"]
    assert set(post["responses"]["503"]["headers"]) == {"X-Request-ID", "Retry-After"}
    schema = post["responses"]["422"]["content"]["application/problem+json"]["schema"]
    assert {one["$ref"].rsplit("/", 1)[-1] for one in schema["anyOf"]} == {"ErrorBody", "BatchFailure"}
    form = post["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["files"]
    files = form["properties"]["files"]
    assert files["minItems"] == 1 and "up to 3" in files["description"]
    assert "X-API-Key" in call(make(), "GET", "/docs").text


def test_openapi_names_everything_once(make: Callable[..., Engine]) -> None:
    """For clients that are generated: operations by plain names, every type in one place, the larger of two first."""
    description = call(make(), "GET", "/openapi.json").json()
    operations = [operation for path in description["paths"].values() for operation in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names) and {"predict", "explain", "model", "model_infer"} <= set(names)
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", name) for name in names)
    known = description["components"]["schemas"]
    used = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(description)))
    assert used <= set(known) and "$defs" not in json.dumps(description)
    assert known["PredictionBody"]["properties"]["decision"]["anyOf"][0] == {"$ref": "#/components/schemas/Decision"}
    errors = description["paths"]["/predict"]["post"]["responses"]["415"]["content"]
    assert list(errors) == ["application/problem+json", "application/fhir+json"]


def test_every_problem_leads_to_its_line_in_the_documentation(make: Callable[..., Engine]) -> None:
    engine = make(max_files=1, max_bytes=5000)
    many = [("f", (f"{index}.png", b"x")) for index in range(2)]
    answers = [
        call(engine, "GET", "/nowhere"),
        call(engine, "GET", "/predict"),
        call(engine, "POST", "/predict"),
        call(engine, "POST", "/predict", content=b"no"),
        call(engine, "POST", "/predict", content=bytes(6000)),
        call(engine, "POST", "/predict", files=many),
        call(engine, "POST", "/predict", content=b"--", headers={"content-type": "multipart/form-data"}),
        call(engine, "GET", "/healthz", headers={"x-request-id": "a b"}),
    ]
    page = call(engine, "GET", "/docs").text
    codes = [answer.json()["type"].removeprefix("/docs#") for answer in answers]
    assert len(set(codes)) == len(codes)
    for code in codes:
        assert f'id="{code}"' in page


@pytest.mark.parametrize("path", ["/", "/docs", "/healthz", "/readyz", "/model"])
def test_head_answers_as_get_does_without_a_body(make: Callable[..., Engine], path: str) -> None:
    engine = make()
    head, get = call(engine, "HEAD", path), call(engine, "GET", path)
    assert (head.status_code, head.headers["content-type"]) == (200, get.headers["content-type"])


def test_multipart_that_ends_before_its_boundary_is_refused(make: Callable[..., Engine]) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="%d.jpg"\r\n\r\n%b\r\n'
    body = part % (1, picture()) + part % (2, picture())
    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert_error(call(make(), "POST", "/predict", content=body, headers=headers), 400, "malformed_multipart")
    whole = call(make(), "POST", "/predict", content=body + b"--b--\r\n", headers=headers)
    assert whole.status_code == 200 and whole.json()["predicted"] == 2


def test_image_part_without_a_filename_is_not_dropped(make: Callable[..., Engine]) -> None:
    files = [("files", ("a.jpg", picture())), ("files", (None, picture()))]
    assert_error(call(make(), "POST", "/predict", files=files), 400, "no_filename")
    for comment in ((None, b"first visit"), (None, b"{}", "application/json"), (None, b"x", "text/plain")):
        files = [("files", ("a.jpg", picture())), ("comment", comment)]
        assert call(make(), "POST", "/predict", files=files).json()["predicted"] == 1


@pytest.mark.parametrize(
    "head",
    [
        b"; filename*=UTF-8''%c3%a4.jpg",
        b";FILENAME* = \"utf-8''a.jpg\"",
        b"\r\nContent-Type: image/jpeg",
        b"\r\ncontent-type:  Application/Octet-Stream; x=y",
        b"\r\nContent-Type: application/dicom",
    ],
)
def test_a_part_that_is_a_file_by_its_header_is_not_passed_over(make: Callable[..., Engine], head: bytes) -> None:
    first = b'--b\r\nContent-Disposition: form-data; name="x"; filename="a.jpg"\r\n\r\n%b\r\n' % picture()
    other = b'--b\r\nContent-Disposition: form-data; name="y"%b\r\n\r\n%b\r\n--b--\r\n' % (head, picture())
    headers = {"content-type": "multipart/form-data; boundary=b"}
    response = call(make(), "POST", "/predict", content=first + other, headers=headers)
    assert_error(response, 400, "no_filename")
    assert "'y'" in response.json()["error"]["message"]


def test_no_byte_of_a_body_that_is_no_multipart_is_logged(
    make: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    for content in (picture(), b'--b\r\nContent-Disp\xe9: form-data; name="Smith"\r\n\r\n', b"--b\r\nx\r\n"):
        headers = {"content-type": "multipart/form-data; boundary=b"}
        refused = call(make(), "POST", "/predict", content=content, headers=headers)
        assert_error(refused, 400, "malformed_multipart")
    assert not [record for record in caplog.records if record.name.startswith("python_multipart")]


def test_connections_that_announce_much_and_send_nothing_lock_nobody_out(make: Callable[..., Engine]) -> None:
    engine = make(max_bytes=1_000_000, max_in_flight_bytes=2_000_000, max_request_bytes=1_000_000)
    done = asyncio.Event()

    async def idle() -> AsyncIterator[bytes]:
        await done.wait()
        yield b""

    async def crowd() -> httpx.Response:
        async with client(engine) as http:
            headers = {**JPEG, "content-length": "999999"}
            slow = [asyncio.create_task(http.post("/predict", content=idle(), headers=headers)) for _ in range(8)]
            await asyncio.sleep(0.1)
            answer = await http.post("/predict", content=picture(), headers=JPEG)
            done.set()
            await asyncio.gather(*slow)
            return answer

    assert asyncio.run(crowd()).status_code == 200


@pytest.mark.parametrize(
    "user_config", [{"threshold": 1.5}, {"threshold": -1}, {"threshold": "abc"}, {"treshold": 0.9}, {"model": ""}]
)
def test_user_config_that_makes_no_sense_is_refused_by_its_key(user_config: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"user_config: {next(iter(user_config))}"):
        read_choice(user_config)
    assert read_choice(None) == read_choice({}) == ModelChoice()


def test_another_threshold_takes_the_review_band_along(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "m", threshold=0.5, review_band=(0.4, 0.7))
    assert bundle.with_threshold(0.9).info.review_band == pytest.approx((0.8, 1.0))
    with pytest.raises(UsageError, match=r"0\.\.1"):
        bundle.with_threshold(40)


def test_the_model_tells_whether_it_was_shown_to_be_better_than_chance(
    make: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = make()
    told = call(engine, "GET", "/model").json()
    assert (told["better_than_chance"], told["against_chance"]) == (None, None)  # of an older bundle
    judged = AgainstChance(
        metric="roc_auc", value=0.6, chance=0.5, low=0.4, high=0.8, confidence=0.95, unit="subject", units=9
    )
    guesses = make_bundle(tmp_path / "guesses", size=48, against_chance=judged)
    engine.take(load_model(guesses.uri, engine.settings))
    told = call(engine, "GET", "/model").json()
    assert told["sha256"] == guesses.info.identity() and told["against_chance"] == judged.model_dump()
    assert told["against_chance_text"].startswith("not shown to be better than chance (0.5): validation roc_auc 0.600")
    answer = call(engine, "POST", "/predict", content=picture(), headers=JPEG).json()
    assert answer["model"]["better_than_chance"] is False
