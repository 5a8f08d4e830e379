"""The audit log: every way to a prediction leaves a line, none holds what tells of a person, none is missing."""

import asyncio
import base64
import errno
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.responses import Response

from pipeline.base.errors import PlatformError
from serving.admission import Admission
from serving.audit.log import AuditFailed, AuditLog, check_folder
from serving.audit.notes import sha256
from serving.desk import Desk, Visit
from serving.engine import Engine
from serving.keys.records import digest
from serving.model import load_model
from serving.protocols.oip.answering import Answering
from serving.protocols.oip.rpc.messages import CLASSES, SERVICE
from serving.protocols.oip.rpc.service import Rpc
from serving.routes import create_app
from serving.settings import ServingSettings
from tests.asgi import picture
from tests.bundles import make_mapped_bundle, said_of
from tests.dicoms import dicom

TELLING = "Mustermann-Erika-1964"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_mapped_bundle(tmp_path_factory.mktemp("bundle"), size=32, synthetic=True)


@pytest.fixture
def make(bundle: Any, tmp_path: Path) -> Callable[..., Engine]:
    def build(**settings: Any) -> Engine:
        checked = ServingSettings(**{"model": bundle.uri, "audit_log": str(tmp_path / "audit"), **settings})
        return Engine(checked, load_model(checked.model, checked))

    return build


def entries(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]
    return [entry for entry in found if "event" not in entry]


def of_a_patient() -> bytes:
    uids = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.1"}
    return dicom(np.full((40, 40, 3), 90, np.uint8), PatientID=TELLING, **uids)


def v2_body(*images: bytes) -> dict[str, Any]:
    data = [base64.b64encode(image).decode() for image in images]
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(images)], "data": data}]}


def test_every_route_that_predicts_leaves_a_line_an_image(
    make: Callable[..., Engine], bundle: Any, tmp_path: Path
) -> None:
    engine = make(api_key_sha256=(digest("k"),), max_bytes=100_000)
    app = create_app(engine)
    good, cut = picture("PNG", 1), picture("PNG", 2)[:300]
    (said,) = said_of(bundle, good)
    name = bundle.info.name
    files = [("files", (f"{TELLING}.png", data)) for data in (good, cut, bytes(100_001))]
    pixels = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [7] * 3072}]}
    asked: list[tuple[str, dict[str, Any], list[tuple[int | None, str | None, bool]]]] = [
        ("/predict", {"content": good}, [(200, None, True)]),
        ("/predict", {"content": cut}, [(422, "truncated", True)]),
        ("/predict?explain=1", {"content": good}, [(200, None, True)]),
        ("/predict", {"files": files}, [(200, None, True), (200, "truncated", True), (200, "too_large", False)]),
        (f"/predict?format=fhir&subject={TELLING}", {"files": files[:1]}, [(200, None, True)]),
        (f"/predict?format=hl7&subject={TELLING}", {"content": good}, [(200, None, True)]),
        ("/predict?format=dicom-sr", {"content": of_a_patient()}, [(200, None, True)]),
        ("/explain", {"content": good}, [(200, None, True)]),
        (f"/v2/models/{name}/infer", {"json": v2_body(good)}, [(200, None, True)]),
        (f"/v2/models/{name}/infer", {"json": v2_body(good, cut)}, [(422, None, True), (422, "truncated", True)]),
        (f"/v2/models/{name}/versions/{bundle.info.version}/infer", {"json": pixels}, [(200, None, True)]),
    ]

    async def story() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers={"x-api-key": "k"}) as http:
            for number, (path, body, expected) in enumerate(asked):
                before = len(entries(tmp_path / "audit"))
                answer = await http.post(path, headers={"x-request-id": f"r{number}"}, **body)
                found = entries(tmp_path / "audit")[before:]
                told = [(one["status"], one["error_code"], one["sha256"] is not None) for one in found]
                assert told == expected, (path, answer.text)
                for one in found:
                    assert (one["key"], one["request_id"]) == (f"sha256-{digest('k')[:12]}", f"r{number}")
                    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", one["time"])
                    assert "{" in one["route"] or one["route"] in ("/predict", "/explain")
                    assert (one["probability"] is None) == (one["error_code"] is not None)
                    if one["error_code"] is None:
                        assert (one["model_sha256"], one["model_name"]) == (bundle.info.identity(), name)

    asyncio.run(story())
    first = entries(tmp_path / "audit")[0]
    assert (first["sha256"], first["size_bytes"]) == (sha256(good), len(good))
    assert first["probability"] == pytest.approx(said.probability, abs=1e-5)
    assert (first["decision"], first["class_name"], first["is_ood"]) == (said.decision, said.class_name, said.is_ood)
    assert TELLING not in "".join(file.read_text() for file in (tmp_path / "audit").iterdir())
    posts = {path for path, operations in app.openapi()["paths"].items() if "post" in operations}
    told_of = {one["route"] for one in entries(tmp_path / "audit")}
    assert posts - told_of == {"/v2/repository/index"}, "a route that takes images and is not on record"


def test_a_call_of_grpc_leaves_a_line_an_image(make: Callable[..., Engine], bundle: Any, tmp_path: Path) -> None:
    engine = make(api_key_sha256=(digest("k"),))
    rpc = Rpc(Answering(engine, Desk(engine.settings, engine.recorder), Admission(engine.settings)))
    request = CLASSES["ModelInferRequest"](model_name=bundle.info.name)
    request.inputs.add(name="image", datatype="BYTES", shape=[2])
    good, cut = picture("PNG", 1), picture("PNG", 2)[:300]
    for second, status in ((good, 200), (cut, 422)):
        request.inputs[0].contents.ClearField("bytes_contents")
        request.inputs[0].contents.bytes_contents.extend([good, second])
        before = len(entries(tmp_path / "audit"))
        asyncio.run(rpc.call("ModelInfer", request.SerializeToString(), [("x-api-key", "k"), ("x-request-id", "r")]))
        found = entries(tmp_path / "audit")[before:]
        assert [(one["status"], one["sha256"]) for one in found] == [(status, sha256(good)), (status, sha256(second))]
        assert {one["route"] for one in found} == {f"/{SERVICE}/ModelInfer"}
        assert {(one["key"], one["request_id"]) for one in found} == {(f"sha256-{digest('k')[:12]}", "r")}


def test_no_log_holds_what_tells_of_a_person(
    make: Callable[..., Engine], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """At the finest level, of what succeeds, is refused and fails: no file name, subject, path or key."""
    caplog.set_level(logging.DEBUG)
    app = create_app(make(api_key_sha256=(digest("k"),)))
    good = picture("PNG", 1)
    files = [("files", (f"{TELLING}.png", good)), ("files", (f"{TELLING}.txt", b"none"))]

    async def story() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            for key, path, body in (
                ("k", "/predict", {"files": files}),
                ("k", f"/predict?format=fhir&subject={TELLING}", {"files": files}),
                ("k", f"/predict?subject={TELLING}&subject={TELLING}", {"content": good}),
                ("k", f"/predict?format={TELLING}", {"content": good}),
                ("k", f"/{TELLING}", {"content": good}),
                ("k", f"/v2/models/{TELLING}/infer", {"json": v2_body(good)}),
                (TELLING, "/predict", {"content": good}),
                ("k", "/predict", {"content": TELLING.encode() * 10}),
            ):
                await http.post(path, headers={"x-api-key": key}, **body)

    asyncio.run(story())
    ours = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore", "asyncio"))]
    assert len([record for record in ours if record.name == "ray.serve.access"]) == 8
    assert not [record for record in ours if TELLING in f"{record.getMessage()} {vars(record)}"]
    assert TELLING not in "".join(file.read_text() for file in (tmp_path / "audit").iterdir())


def test_what_cannot_be_recorded_gets_no_answer_until_it_can_be(
    make: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app, folder, room = create_app(make()), tmp_path / "audit", 1_000_000
    writes = os.write

    def write(file: int, data: Any) -> int:
        """A disk that is full within a line: what is cut has to be taken back."""
        nonlocal room
        if not os.readlink(f"/proc/self/fd/{file}").startswith(str(folder)):
            return writes(file, data)
        if room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = writes(file, data[:room])
        room -= count
        return count

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr("serving.audit.log._RETRY_S", 0.0)

    async def story() -> None:
        nonlocal room
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            assert (await http.post("/predict", content=picture())).status_code == 200
            room = 50
            for _ in range(3):
                refused = await http.post("/predict", content=picture())
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "audit_failed")
                assert refused.headers["retry-after"] == "1" and "probability" not in refused.text
            assert (await http.get("/readyz")).status_code == 503
            assert (await http.get("/healthz")).status_code == 200
            room = 1_000_000
            assert (await http.get("/readyz")).status_code == 200
            assert (await http.post("/predict", content=picture())).status_code == 200
            counts = (await http.get("/metrics")).text
            assert "leukoray_probability_count 3.0" in counts, "once it is known, nothing is predicted in vain"

    asyncio.run(story())
    assert len(entries(folder)) == 2, "every line is whole, and of an answer that was given"
    assert len([record for record in caplog.records if "nothing is answered now" in record.message]) == 1
    begins = [json.loads(file.read_text().splitlines()[0]) for file in sorted(folder.iterdir())]
    assert [begin["event"] for begin in begins] == ["begin", "begin"] and begins[1]["kept_back"] >= 3


def test_files_are_rotated_by_size_and_one_that_was_removed_is_begun_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        log = AuditLog(str(tmp_path / "audit"), "r1", rotate_bytes=1000)
        other = AuditLog(str(tmp_path / "audit"), "r2", rotate_bytes=1000)
        for number in range(50):
            await log.write([json.dumps({"line": number, "text": "x" * 50})])
            await other.write([json.dumps({"line": number})])
        files = sorted((tmp_path / "audit").glob("*-r1-*"))
        assert len(files) >= 3 and all(file.stat().st_size < 1200 for file in files)
        assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
        assert [one["line"] for one in entries(tmp_path / "audit")].count(7) == 2
        shutil.rmtree(tmp_path / "audit")
        with pytest.raises(AuditFailed, match="No such file"):
            await log.write(["{}"])
        (tmp_path / "audit").mkdir()
        await asyncio.sleep(1.05)
        await log.check()
        await log.write(['{"line": 99}'])
        assert entries(tmp_path / "audit") == [{"line": 99}]

    asyncio.run(story())
    assert "was removed while it was written" in caplog.text


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PlatformError, match="cannot be written"):
        AuditLog(str(tmp_path / "file" / "audit"), "r")
    with pytest.raises(PlatformError, match="cannot be written"):
        AuditLog("/proc", "r")
    with pytest.raises(PlatformError, match="cannot be written"):
        check_folder(str(tmp_path / "file" / "audit"))
    check_folder(str(tmp_path / "audit"))
    assert (tmp_path / "audit").stat().st_mode & 0o777 == 0o700 and not list((tmp_path / "audit").iterdir())


def test_a_client_that_leaves_takes_no_line_along(make: Callable[..., Engine], tmp_path: Path) -> None:
    engine = make(request_timeout_s=0.2)
    app, works = create_app(engine), engine._predict

    async def slow(waiting: Any) -> Any:
        answer = await works(waiting)
        await asyncio.sleep(5)
        return answer

    engine._predict = slow

    async def story() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
            assert (await http.post("/predict", content=picture())).status_code == 504
            for _ in range(500):
                if entries(tmp_path / "audit"):
                    break
                await asyncio.sleep(0.02)

    asyncio.run(story())
    (one,) = entries(tmp_path / "audit")
    assert one["status"] is None and one["sha256"] == sha256(picture())


def test_an_answer_whose_time_is_up_while_its_line_is_written_is_on_record_as_none(
    make: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text(f"lab {digest('k')} images=1/day\n")
    engine, at_disk, disk, writes = (
        make(keys_file=str(tmp_path / "keys")),
        threading.Event(),
        threading.Event(),
        os.write,
    )
    desk = Desk(engine.settings, engine.recorder)

    def write(file: int, data: Any) -> int:
        if b"request_id" in bytes(data):
            at_disk.set()
            assert disk.wait(60)
        return writes(file, data)

    monkeypatch.setattr(os, "write", write)

    async def story() -> None:
        for request_id in ("slow", "next"):
            visit = await desk.admit(["k"], request_id, "/predict")

            async def answer(body: bytes, visit: Visit = visit) -> Response:
                await visit.spend(1)
                await engine.answer(engine.model, body)
                return Response()

            asked = asyncio.create_task(visit.recorded(answer)(picture()))
            if request_id == "slow":
                await asyncio.to_thread(at_disk.wait, 60)
                asked.cancel()
                await asyncio.wait([asked])
                disk.set()
            assert asked.cancelled() or (await asked).status_code == 200

    asyncio.run(story())
    desk.keys.close()
    told = [(one["request_id"], one["status"]) for one in entries(tmp_path / "audit")]
    assert told == [("slow", 200), ("slow", None), ("next", 200)]


def test_a_disk_that_is_slow_to_force_keeps_no_answer_back_and_one_that_fails_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_disk, disk = threading.Event(), threading.Event()

    def force(file: int) -> None:
        at_disk.set()
        assert disk.wait(60)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", force)
    monkeypatch.setattr("serving.audit.log._SYNC_S", 0.0)

    async def story() -> None:
        log = AuditLog(str(tmp_path / "audit"), "r", rotate_bytes=100)
        await log.write(['{"line": 1}'])
        await asyncio.to_thread(at_disk.wait, 60)
        for line in (2, 3, 4):  # the file is changed meanwhile
            await asyncio.wait_for(log.write([json.dumps({"line": line, "text": "x" * 100})]), 60)
        assert [one["line"] for one in entries(tmp_path / "audit")] == [1, 2, 3, 4]
        disk.set()
        with pytest.raises(AuditFailed, match="fsync: Input/output error"):
            for _ in range(3000):
                await log.check()
                await asyncio.sleep(0.02)

    asyncio.run(story())


def test_without_an_audit_log_nothing_is_written_and_no_digest_is_taken(
    make: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.audit.notes.sha256", lambda data: pytest.fail("a digest nobody asked for"))
    app = create_app(make(audit_log=None))

    async def once() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
            return (await http.post("/predict", content=picture())).status_code

    assert asyncio.run(once()) == 200
    assert not (tmp_path / "audit").exists()
