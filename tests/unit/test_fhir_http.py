"""FHIR R4 over HTTP: chosen by format or Accept, the same as JSON says, errors as OperationOutcome, nothing logged."""

import base64
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fhir.resources.R4B import get_fhir_model_class

from serving.admission import overloaded
from serving.engine import Engine
from serving.model import load_model
from serving.settings import ServingSettings
from tests.asgi import call, picture
from tests.bundles import make_bundle, make_familiar_bundle
from tests.clinical import BLASTS, CELLS, checked, findings, parts
from tests.live import live

FHIR = {"accept": "application/fhir+json"}


def built(uri: str, **settings: Any) -> Engine:
    settings_ = ServingSettings(model=uri, **settings)
    return Engine(settings_, load_model(settings_.model, settings_))


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bundle")
    cells: dict[str, Any] = {"task": "multiclass", "classes": CELLS, "positive_classes": BLASTS, "unit": "cell"}
    own = [picture("PNG", seed) for seed in range(80)]
    return make_familiar_bundle(folder / "m", own, review_band=(0.45, 0.5), **cells).uri


@pytest.fixture(scope="module")
def engine(uri: str) -> Engine:
    return built(uri)


def many(*images: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", (f"Jane_Doe_{place}.png", data)) for place, data in enumerate(images)]


IMAGES = [*(picture("PNG", seed) for seed in range(5)), picture("JPEG", 7), b"no image"]


def test_a_running_service_says_the_same_in_fhir_as_in_json(uri: str) -> None:
    with live(ServingSettings(model=uri)) as url:
        plain = httpx.post(f"{url}/predict", files=many(*IMAGES), timeout=30).json()
        said = httpx.post(f"{url}/predict?subject=P-7", files=many(*IMAGES), headers=FHIR, timeout=30)
        card = httpx.get(f"{url}/model").json()
    assert (said.status_code, said.headers["content-type"]) == (200, "application/fhir+json")
    kinds = checked(said.json())
    assert "Jane" not in said.text and base64.b64encode(IMAGES[0])[:40].decode() not in said.text
    for data, result, found in zip(IMAGES, plain["results"], findings(kinds), strict=True):
        if result["error"]:
            assert found["dataAbsentReason"]["coding"][-1]["code"] == "rejected"
            continue
        told, prediction = parts(found), result["prediction"]
        assert told["decision"]["text"] == prediction["decision"]
        assert {name: told[name] for name in CELLS} == prediction["classes"]
        [document] = [
            each
            for each in kinds["DocumentReference"]
            if each["identifier"][0]["value"] == f"nih:sha-256;{hashlib.sha256(data).hexdigest()}"
        ]
        attachment = document["content"][0]["attachment"]
        assert attachment["size"] == len(data) and "data" not in attachment and "url" not in attachment
        assert attachment["contentType"] == f"image/{prediction['image']['format']}"
    [device] = kinds["Device"]
    assert device["identifier"][1]["value"] == card["sha256"] and device["version"][0]["value"] == card["version"]
    [attached] = [each for each in kinds["DocumentReference"] if each["meta"].get("profile")]
    assert base64.b64decode(attached["content"][0]["attachment"]["data"]).startswith(b"# tiny-linear")


def test_one_image_is_one_observation(engine: Engine) -> None:
    kinds = checked(call(engine, "POST", "/predict?format=fhir", content=IMAGES[0]).json())
    assert {name: len(each) for name, each in kinds.items()} == {
        "DocumentReference": 2,
        "Device": 1,
        "Observation": 1,
        "Provenance": 1,
    }


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/fhir+json", "application/fhir+json"),
        ("application/fhir+json; fhirVersion=4.0", "application/fhir+json"),
        ("application/fhir+xml;q=1.0, application/fhir+json;q=1.0, application/json;q=0.9", "application/fhir+json"),
        ("*/*;q=0.1, application/fhir+json", "application/fhir+json"),
        ("application/json, application/fhir+json", "application/json"),
        ("application/hl7-v2", "application/hl7-v2"),
        ("text/html", "application/json"),
        ("application/fhir+xml, */*", "application/json"),
        ("", "application/json"),
    ],
)
def test_accept_chooses(engine: Engine, accept: str, kind: str) -> None:
    answer = call(engine, "POST", "/predict", content=IMAGES[0], headers={"accept": accept})
    assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
    plain = call(engine, "POST", "/predict?format=json", content=IMAGES[0], headers={"accept": accept})
    assert plain.headers["content-type"] == "application/json"


@pytest.mark.parametrize("accept", ["application/fhir+xml", "application/fhir+json;fhirVersion=5.0"])
def test_other_fhir_alone_is_not_acceptable(engine: Engine, accept: str) -> None:
    answer = call(engine, "POST", "/predict", content=IMAGES[0], headers={"accept": accept})
    assert (answer.status_code, answer.json()["error"]["code"]) == (406, "not_acceptable")


@pytest.mark.parametrize("query", ["format=xml", "format=", "format=fhir&format=json", "format=FHIR"])
def test_unknown_formats_are_refused(engine: Engine, query: str) -> None:
    answer = call(engine, "POST", f"/predict?{query}", content=IMAGES[0])
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")


@pytest.mark.parametrize(
    ("query", "content", "status", "codes"),
    [
        ("", b"", 400, ["empty"]),
        ("", b"no image", 415, ["unsupported_format"]),
        ("", many(b"no image", IMAGES[0][:200]), 415, ["unsupported_format", "truncated"]),
        ("&subject=a%20b", IMAGES[0], 400, ["bad_request"]),
        ("&subject=a&subject=b", IMAGES[0], 400, ["bad_request"]),
        ("&explain=1", IMAGES[0], 409, ["no_map"]),
    ],
)
def test_refusals_are_operation_outcomes(
    engine: Engine, query: str, content: Any, status: int, codes: Sequence[str]
) -> None:
    body = {"files": content} if isinstance(content, list) else {"content": content}
    answer = call(engine, "POST", f"/predict?format=fhir{query}", **body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/fhir+json")
    outcome = answer.json()
    get_fhir_model_class("OperationOutcome").model_validate(outcome)
    assert [issue["details"]["coding"][0]["code"] for issue in outcome["issue"]] == codes
    assert "a b" not in answer.text


def test_a_missing_key_is_an_operation_outcome(uri: str) -> None:
    engine = built(uri, api_key_sha256=(hashlib.sha256(b"k").hexdigest(),))
    answer = call(engine, "POST", "/predict", content=IMAGES[0], headers=FHIR)
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["issue"][0]["code"] == "login"
    elsewhere = call(engine, "POST", "/explain", content=IMAGES[0], headers=FHIR)
    assert elsewhere.headers["content-type"] == "application/problem+json"


def test_subjects_and_file_names_are_not_logged(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        for files in (many(*IMAGES), many(b"no image")):
            call(engine, "POST", "/predict?format=fhir&subject=Subject-7", files=files)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("ray")]
    assert any("route=/predict" in line for line in ours)
    assert not any("Subject-7" in line or "Jane" in line for line in ours)


@pytest.mark.parametrize("form", ["fhir", "hl7"])
@pytest.mark.parametrize("content", [b"full", many(IMAGES[0], b"full"), many(b"no image", IMAGES[1], b"full")])
def test_what_the_service_could_not_do_makes_no_report(
    uri: str, monkeypatch: pytest.MonkeyPatch, form: str, content: Any
) -> None:
    engine = built(uri, retry_after_s=7)
    answered = engine.answer

    async def answer(model: Any, data: bytes) -> Any:
        if data == b"full":
            raise overloaded(engine.settings, "full")
        return await answered(model, data)

    monkeypatch.setattr(engine, "answer", answer)
    body = {"files": content} if isinstance(content, list) else {"content": content}
    said = call(engine, "POST", f"/predict?format={form}", **body)
    assert (said.status_code, said.headers["retry-after"]) == (503, "7")
    places = len(content) if isinstance(content, list) else 1
    message = f"image {places} of {places}: full, no room" if places > 1 else "full, no room"
    told = said.json()["issue"][0]["diagnostics"] if form == "fhir" else said.json()["error"]["message"]
    assert told.startswith(message)


def test_a_model_that_fails_on_an_image_makes_no_report(uri: str) -> None:
    engine = built(uri)
    engine.model.predictor._run = lambda images: 1 / 0  # type: ignore[assignment,return-value]
    said = call(engine, "POST", "/predict?format=fhir", files=many(b"no image", IMAGES[0]))
    assert said.status_code == 500 and [each["details"]["text"] for each in said.json()["issue"]] == ["predict_failed"]
    assert said.json()["issue"][0]["diagnostics"].startswith("image 2 of 2: ")


@pytest.mark.parametrize(("threshold", "cards"), [(None, 1), (0.25, 0)])
def test_a_card_goes_along_only_where_the_model_decides_as_it_says(
    uri: str, threshold: float | None, cards: int
) -> None:
    settings = ServingSettings(model=uri)
    engine = Engine(settings, load_model(uri, settings, threshold))
    kinds = checked(call(engine, "POST", "/predict?format=fhir", content=IMAGES[0]).json())
    assert len([each for each in kinds["DocumentReference"] if each["meta"].get("profile")]) == cards


def test_a_bundle_without_its_card_answers_without_one(tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "m", 32)
    (tmp_path / "m" / "MODEL_CARD.md").unlink()
    kinds = checked(call(built(made.uri), "POST", "/predict?format=fhir", content=IMAGES[0]).json())
    assert len(kinds["DocumentReference"]) == 1
    assert json.dumps(kinds).count("modelCardDescription") == 0
