"""`leukoray predict` against the real application, and against servers that misbehave."""

import contextlib
import csv
import hashlib
import http.server
import io
import itertools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import predict
from jobs.predict_client import Reply, Service
from jobs.predict_rows import Row, answered, table_line
from pipeline.base.csv_text import unguarded
from pipeline.base.errors import UsageError
from serving.schemas import ModelInfo, PredictionBody
from serving.settings import ServingSettings
from tests.asgi import picture
from tests.bundles import make_bundle, make_mapped_bundle, said_of
from tests.live import live, on_trial

ROOT = Path(__file__).resolve().parents[2]
KEY = "lab-key-1"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_bundle(tmp_path_factory.mktemp("bundle"), size=32, synthetic=True)


@pytest.fixture(scope="module")
def url(bundle: Any) -> Iterator[str]:
    with live(ServingSettings(model=bundle.uri, max_bytes=200_000)) as at:
        yield at


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LEUKORAY_URL", "LEUKORAY_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):  # what a laptop of a hospital has: leads nowhere
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)


def rows_of(out: Path) -> list[dict[str, Any]]:
    return json.loads(out.read_text())  # type: ignore[no-any-return]


# ---- the real service ------------------------------------------------------------------------------------------------


def test_rows_hold_what_the_predictor_says_in_the_order_given(
    url: str, bundle: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {f"{number}.png": picture("PNG", number) for number in (3, 1, 2)}
    for name, data in images.items():
        (tmp_path / name).write_bytes(data)
    files = [str(tmp_path / name) for name in images]
    out = tmp_path / "rows.json"
    assert predict.command([*files, "--url", url, "--out", str(out)]) == 0
    rows = rows_of(out)
    assert [row["file"] for row in rows] == files
    for row, data in zip(rows, images.values(), strict=True):
        (said,) = said_of(bundle, data)
        assert row["probability"] == pytest.approx(said.probability, abs=1e-5)
        assert (row["decision"], row["class_name"]) == (said.decision, said.class_name)
        assert (row["model_sha256"], row["model_version"]) == (bundle.info.identity(), bundle.info.version)
        assert row["request_id"] and row["attempts"] == 1 and row["error_code"] is None
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "3 of 3 files answered" in printed.err and "synthetic" in printed.err and "not a medical" in printed.err


def test_each_file_has_a_row_whatever_it_is(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, cut = picture("PNG"), picture("PNG")[:900]
    contents = {"good.png": good, "cut.png": cut, "empty.png": b"", "text.png": b"hello", "big.png": b"x" * 200_001}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "pipe.png")
    files = [*(str(tmp_path / name) for name in contents), str(tmp_path / "pipe.png"), str(tmp_path / "gone.png")]
    out = tmp_path / "rows.json"
    assert predict.command([*files, "--url", url, "--out", str(out), "--concurrency", "1"]) == 4
    rows = rows_of(out)
    assert [row["file"] for row in rows] == files
    codes = [None, "truncated", "empty", "unsupported_format", "too_large", "unsupported_format", "not_found"]
    assert [row["error_code"] for row in rows] == codes
    assert all((row["error_code"] is None) == (row["probability"] is not None) for row in rows)
    assert [row["attempts"] for row in rows] == [1, 1, 1, 1, 0, 0, 0]
    assert "6 of 7 files have no answer" in capsys.readouterr().err


def test_a_folder_gives_its_images_in_the_order_of_their_paths(url: str, tmp_path: Path) -> None:
    top, data = tmp_path / "slides", picture("PNG")
    kept = ["a/1.png", "a/10.png", "b/c/2.jpg", "z.png"]
    left = ["a/._1.png", "@eaDir/1.png", "notes.txt", "a/1_mask.png"]
    for name in [*kept, *left]:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(data)
    (top / "night.TAR").write_bytes(b"not looked into")
    out = tmp_path / "rows.json"
    again = str(top / "z.png")
    assert predict.command([str(top), again, "--url", url, "--out", str(out)]) == 0
    assert [row["file"] for row in rows_of(out)] == [str(top / name) for name in kept]


ODD = ["=1+1.png", 'a,b"c.png', "line\nbreak.png", "car\rriage.png", "-dash.png", "ümlaut.png"]


def odd_files(folder: Path) -> list[bytes]:
    """Names that break tables; the last is no UTF-8."""
    names = [*(os.fsencode(name) for name in ODD), b"\xe9.png"]
    for name in names:
        Path(os.fsdecode(os.path.join(os.fsencode(folder), name))).write_bytes(picture("PNG"))
    return names


@pytest.mark.parametrize("ending", [".csv", ".json", ".jsonl", ".parquet"])
def test_odd_names_come_back_from_every_format(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.chdir(tmp_path)
    names = odd_files(tmp_path)
    typed = io.TextIOWrapper(io.BytesIO(b"\0".join(names) + b"\0"))
    monkeypatch.setattr(sys, "stdin", typed)
    assert predict.command(["-", "--url", url, "--out", "rows" + ending]) == 0
    out = tmp_path / ("rows" + ending)
    if ending == ".csv":
        found = list(csv.DictReader(io.StringIO(out.read_bytes().decode(), newline="")))
        assert all(row["file"][0] not in "=-" for row in found)
        rows = [{name: unguarded(value) for name, value in row.items()} for row in found]
    elif ending == ".parquet":
        rows = pq.read_table(out).to_pylist()
    elif ending == ".json":
        rows = rows_of(out)
    else:
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["file"] for row in rows] == [*ODD, f"file://{tmp_path}/%E9.png"]
    assert list(rows[0]) == [field.name for field in fields(Row)]
    assert all(float(row["probability"]) > 0 for row in rows)


def test_without_out_a_pipe_gets_json_lines(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd_files(tmp_path)
    assert predict.command([str(tmp_path), "--url", url]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == len({row["file"] for row in rows}) == len(ODD) + 1


def test_a_line_of_the_table_is_one_line() -> None:
    row = Row("a\nb\x1b[2J.png", error_code="no_answer", error_message="two\nlines")
    assert table_line(row, 8).isprintable() and "a\\nb" in table_line(row, 8)


def test_a_row_takes_what_the_service_says_it_gives() -> None:
    row = {field.name for field in fields(Row)}
    assert {name.removeprefix("model_") for name in row if name.startswith("model_")} <= set(ModelInfo.model_fields)
    taken = {name for name in row if not name.startswith(("model_", "error_"))} - {"file", "attempts", "overlay"}
    assert taken <= set(PredictionBody.model_fields)


@pytest.mark.parametrize(
    "change", [{"probability": None}, {"probability": 1.5}, {"decision": "maybe"}, {"model": {}}, {"is_ood": "no"}]
)
def test_a_body_that_is_no_prediction_makes_no_row(change: dict[str, Any]) -> None:
    model = {"name": "m", "version": "1", "sha256": "0" * 64}
    body = {"probability": 0.5, "class_name": "a", "decision": "positive", "model": model}
    assert answered("f", body, "id", 1) is not None
    assert answered("f", body | change, "id", 1) is None


def test_pictures_of_where_images_speak_are_written(tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(picture("PNG", 1))
    (tmp_path / "c.png").write_bytes(picture("PNG", 2))
    (tmp_path / "text.png").write_bytes(b"hello")
    maps, out = tmp_path / "maps", tmp_path / "rows.json"
    files = [str(tmp_path / name) for name in ("a b.png", "c.png", "text.png")]
    with live(ServingSettings(model=make_mapped_bundle(tmp_path / "bundle", 64).uri)) as at:
        assert predict.command([*files, "--url", at, "--out", str(out), "--explain", str(maps)]) == 4
        assert predict.command([*files, "--url", at, "--out", str(out), "--explain", str(maps)]) == 3  # not empty
    overlays = [row["overlay"] for row in rows_of(out)]
    assert overlays == [str(maps / "000001_a_b.png"), str(maps / "000002_c.png"), None]
    for overlay in overlays[:2]:
        with Image.open(overlay) as shown:
            assert shown.size == (512, 512)


def test_with_a_model_on_trial_each_picture_is_of_the_one_that_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = itertools.count(1)  # which of the two answers goes by the request's id
    monkeypatch.setattr("jobs.predict_client.uuid.uuid4", lambda: uuid.UUID(int=next(numbers)))
    bundle, other = (make_mapped_bundle(tmp_path / name, 64, version=name, bias=len(name)) for name in ("v1", "v.2"))
    for seed in range(8):
        (tmp_path / f"{seed}.png").write_bytes(picture("PNG", seed))
    files, out = [str(path) for path in sorted(tmp_path.glob("*.png"))], tmp_path / "rows.json"
    with live(ServingSettings(model=bundle.uri), on_trial(other, share=0.5)) as at:
        asked = [*files, "--url", at, "--out", str(out), "--explain", str(tmp_path / "maps"), "--concurrency", "1"]
        assert predict.command(asked) == 0, "a picture was of the other model"
    assert {row["model_version"] for row in rows_of(out)} == {"v1", "v.2"}
    assert all(row["overlay"] for row in rows_of(out))


def test_a_model_without_a_map_is_said(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(picture("PNG"))
    out = tmp_path / "rows.json"
    arguments = [str(tmp_path / "a.png"), "--url", url, "--out", str(out), "--explain", str(tmp_path / "maps")]
    assert predict.command(arguments) == 4
    assert "no picture (1 no_map)" in capsys.readouterr().err
    assert rows_of(out)[0]["probability"] is not None


def test_a_key_comes_from_the_environment(
    bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(picture("PNG"))
    out = tmp_path / "rows.json"
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    with live(ServingSettings(model=bundle.uri, api_key_sha256=(digest,))) as at:
        arguments = [str(tmp_path / "a.png"), "--url", at, "--out", str(out)]
        for key, code, words in ((None, 5, "set $LEUKORAY_API_KEY"), ("other", 5, "is not accepted"), (KEY, 0, "1 of")):
            if key is not None:
                monkeypatch.setenv("LEUKORAY_API_KEY", key)
            assert predict.command(arguments) == code
            printed = capsys.readouterr()
            assert words in printed.err and "other" not in printed.err.replace("another", "")
            assert out.exists() == (code == 0)
    assert len(rows_of(out)) == 1


# ---- servers that misbehave ------------------------------------------------------------------------------------------

MODEL = {"name": "m", "version": "1", "sha256": "a" * 64, "classes": ["negative", "positive"]}
Said = tuple[int, dict[str, str], bytes]
_STATE = {"status": "ready", "model": MODEL, "max_bytes": 1000, "needs_api_key": False}
READY: Said = (200, {"Content-Type": "application/json"}, json.dumps(_STATE).encode())


def prediction(**model: str) -> Said:
    body = {"probability": 0.25, "class_name": "negative", "decision": "negative", "model": MODEL | model}
    return 200, {"Content-Type": "application/json"}, json.dumps(body | {"threshold": 0.5}).encode()


class Odd(http.server.BaseHTTPRequestHandler):
    """Answers what `script` says for the file's bytes at its nth attempt; a function gets the handler itself."""

    protocol_version = "HTTP/1.1"
    script: Callable[[bytes, int], Said | Callable[["Odd"], None]]
    ready: Callable[[], Said]
    asked: dict[bytes, list[float]]

    def do_GET(self) -> None:
        self.answer(type(self).ready())

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        times = self.asked.setdefault(data, [])
        times.append(time.monotonic())
        said = type(self).script(data, len(times))
        if callable(said):
            said(self)
        else:
            self.answer(said)

    def answer(self, said: Said) -> None:
        status, headers, body = said
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def reset(self) -> None:
        """End the connection in the middle of an answer, by RST."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()
        self.close_connection = True

    def end_early(self) -> None:
        """End the connection in the middle of an answer, by FIN, behind what looks whole."""
        status, _, body = prediction()
        head = f"HTTP/1.1 {status} OK\r\nContent-Type: application/json\r\nContent-Length: {len(body) + 7}\r\n\r\n"
        self.wfile.write(head.encode() + body)
        self.close_connection = True

    def trickle(self) -> None:
        """A byte now and then, for ever: no single read takes long."""
        with contextlib.suppress(OSError):
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
            for _ in range(200):
                self.wfile.write(b" ")
                time.sleep(0.05)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def odd(script: Any, ready: Callable[[], Said] = lambda: READY) -> Iterator[tuple[str, dict[bytes, list[float]]]]:
    asked: dict[bytes, list[float]] = {}
    handler = type("Handler", (Odd,), {"script": staticmethod(script), "ready": staticmethod(ready), "asked": asked})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # what is reset is told on stderr
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    return [str(tmp_path / f"{name}.png") for name in ("a", "b", "c")]


def run(url: str, files: list[str], tmp_path: Path, *more: str) -> tuple[int, list[dict[str, Any]]]:
    out = tmp_path / "rows.json"
    code = predict.command([*files, "--url", url, "--out", str(out), *more])
    return code, rows_of(out) if out.exists() else []


def test_what_is_transient_is_tried_again_and_retry_after_is_heeded(files: list[str], tmp_path: Path) -> None:
    refusals = {
        b"a": (503, {"Retry-After": "1"}, b"busy"),
        b"b": (429, {}, b""),
        b"c": (504, {}, b"<html>late</html>"),
    }
    with odd(lambda data, attempt: refusals[data] if attempt == 1 else prediction()) as (url, asked):
        code, rows = run(url, files, tmp_path)
    assert code == 0 and [row["file"] for row in rows] == files
    assert [row["attempts"] for row in rows] == [2, 2, 2]
    waited = {data: times[1] - times[0] for data, times in asked.items()}
    assert waited[b"a"] >= 1.0 and 0.1 <= waited[b"b"] < 1.0


def test_a_connection_that_breaks_in_the_middle_is_tried_again(files: list[str], tmp_path: Path) -> None:
    with odd(lambda data, attempt: Odd.reset if attempt < 3 else prediction()) as (url, _):
        code, rows = run(url, files, tmp_path)
    assert code == 0 and [row["attempts"] for row in rows] == [3, 3, 3]


def test_an_answer_that_ends_before_its_length_is_none(files: list[str], tmp_path: Path) -> None:
    with odd(lambda data, attempt: Odd.end_early if attempt < 3 or data == b"c" else prediction()) as (url, _):
        code, rows = run(url, files, tmp_path, "--patience-s", "4")
    assert code == 4 and [row["attempts"] for row in rows[:2]] == [3, 3]
    assert [row["error_code"] for row in rows] == [None, None, "no_answer"]
    assert "IncompleteRead" in rows[2]["error_message"]


def test_an_answer_that_trickles_in_is_given_up_in_time(files: list[str], tmp_path: Path) -> None:
    start = time.monotonic()
    with odd(lambda data, _: Odd.trickle if data == b"b" else prediction()) as (url, _):
        code, rows = run(url, files, tmp_path, "--timeout-s", "0.3", "--patience-s", "1")
    assert code == 4 and [row["error_code"] for row in rows] == [None, "timeout", None]
    assert time.monotonic() - start < 4


def test_what_the_client_did_wrong_is_not_tried_again(files: list[str], tmp_path: Path) -> None:
    problem = {"error": {"code": "corrupt", "message": "damaged", "request_id": "theirs"}}
    refused = (422, {"Content-Type": "application/problem+json"}, json.dumps(problem).encode())
    page = (200, {"Content-Type": "text/html"}, b"<html>log in first</html>")
    said = {b"a": refused, b"b": page, b"c": (500, {}, b"oh")}
    with odd(lambda data, _: said[data]) as (url, asked):
        code, rows = run(url, files, tmp_path)
    assert code == 4 and [row["error_code"] for row in rows] == ["corrupt", "bad_answer", "http_500"]
    assert (rows[0]["error_message"], rows[0]["request_id"]) == ("damaged", "theirs")
    assert all(len(times) == 1 for times in asked.values())


def test_a_file_waits_no_longer_than_its_patience_and_others_go_on(files: list[str], tmp_path: Path) -> None:
    said = {b"a": (503, {"Retry-After": "3600"}, b""), b"b": (503, {}, b"")}
    start = time.monotonic()
    with odd(lambda data, _: said.get(data) or prediction()) as (url, asked):
        code, rows = run(url, files, tmp_path, "--patience-s", "2")
    assert code == 4 and [row["error_code"] for row in rows] == ["http_503", "http_503", None]
    assert len(asked[b"a"]) == 1 and 2 <= len(asked[b"b"]) <= 6
    assert time.monotonic() - start < 5


def test_a_service_that_goes_away_ends_the_command_with_a_row_for_each_file(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone: Said = (503, {}, b"down")
    is_gone = threading.Event()

    def script(data: bytes, _: int) -> Said:
        if data != b"a":
            is_gone.set()
        return gone if is_gone.is_set() else prediction()

    with odd(script, lambda: gone if is_gone.is_set() else READY) as (url, _):
        code, rows = run(url, files, tmp_path, "--patience-s", "1", "--concurrency", "1")
    assert code == 5 and [row["file"] for row in rows] == files
    assert [row["error_code"] for row in rows] == [None, "not_sent", "not_sent"]
    assert "1 of 3 files have an answer" in capsys.readouterr().err


def test_a_model_that_changes_in_between_is_told(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with odd(lambda data, _: prediction(sha256="b" * 64) if data == b"c" else prediction()) as (url, _):
        code, rows = run(url, files, tmp_path)
    said = capsys.readouterr().err
    assert code == 0 and [row["model_sha256"][0] for row in rows] == ["a", "a", "b"]
    assert "model changed in between" in said and "aaaaaaaaaaaa): 2 files" in said and "bbbbbbbbbbbb): 1 files" in said


@pytest.mark.parametrize(
    ("ready", "words"),
    [
        ((200, {"Content-Type": "text/html"}, b"<html>"), "no leukoray service"),
        ((200, {"Content-Type": "application/json"}, b'{"status": "ready"}'), "no leukoray service"),
        ((404, {}, b"no"), "no leukoray service"),
        ((401, {}, b"who"), "set $LEUKORAY_API_KEY"),
        ((302, {"Location": "https://elsewhere.example/"}, b""), "sends on to https://elsewhere.example/"),
    ],
)
def test_what_is_no_service_is_said_at_once(
    ready: Said, words: str, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with odd(lambda *_: prediction(), lambda: ready) as (url, asked):
        code, rows = run(url, files, tmp_path)
    assert (code, rows, asked) == (5, [], {})
    assert words in capsys.readouterr().err


def test_nobody_there_is_said_at_once(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at = f"http://127.0.0.1:{free.getsockname()[1]}"
        start = time.monotonic()
        assert run(at, files, tmp_path) == (5, [])
    assert time.monotonic() - start < 2 and "nothing answers there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "FILES is missing"),
        (["{}", "--url", "127.0.0.1:8000"], 2, "expected http://"),
        (["{}", "--url", "http://me:secret@127.0.0.1"], 2, "LEUKORAY_API_KEY"),
        (["{}", "--url", "http://127.0.0.1/a b"], 2, "expected http://"),
        (["{}", "--timeout-s", "inf"], 2, "--timeout-s"),
        (["{}", "--timeout-s", "1e12"], 2, "--timeout-s"),
        (["{}", "--out", "rows.xlsx"], 2, ".parquet"),
        (["{}", "--out", "{}"], 2, ".parquet"),
        (["s3://bucket/a.png", "--url", "{url}"], 2, "leukoray score reads buckets"),
        (["{}", "--url", "{url}"], 3, "no image"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    arguments: list[str], code: int, words: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict.command([item.format(tmp_path, url=url) for item in arguments]) == code
    said = capsys.readouterr().err
    assert words in said and "secret" not in said


def test_a_key_that_no_header_carries_is_refused_without_being_shown() -> None:
    with pytest.raises(UsageError) as refused:
        Service("http://127.0.0.1", "hidden\nkey", 1, 1)
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize(("said", "seconds"), [("3", 3), ("", 0), ("soon", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)])
def test_retry_after_is_read_in_both_forms(said: str, seconds: float) -> None:
    assert Reply(503, {"Retry-After": said}, b"", "id").retry_after_s() == seconds  # type: ignore[arg-type]


def test_a_proxy_of_the_environment_is_asked_for_what_lies_elsewhere(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: list[str] = []

    def remembered(handler: Odd) -> None:
        paths.append(handler.path)
        handler.answer(prediction())

    with odd(lambda *_: remembered) as (url, _):
        monkeypatch.setenv("http_proxy", url)
        code, rows = run("http://lab.invalid:81/blood", files, tmp_path)
    assert code == 0 and len(rows) == 3
    assert paths == ["http://lab.invalid:81/blood/predict"] * 3


def test_a_connection_closed_while_it_was_idle_costs_no_attempt(files: list[str], tmp_path: Path) -> None:
    def closes(handler: Odd) -> None:
        handler.answer(prediction())
        handler.close_connection = True

    with odd(lambda *_: closes) as (url, _):
        code, rows = run(url, files, tmp_path, "--concurrency", "1")
    assert code == 0 and [row["attempts"] for row in rows] == [1, 1, 1]


def test_tls_that_fails_is_said_at_once(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with odd(lambda *_: prediction()) as (url, _):
        assert run(url.replace("http:", "https:"), files, tmp_path) == (5, [])
    assert "TLS fails" in capsys.readouterr().err


def test_ctrl_c_leaves_the_rows_so_far_in_a_whole_file(files: list[str], tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    with odd(lambda data, _: prediction() if data == b"a" else (503, {}, b"")) as (url, asked):
        command = [sys.executable, "-m", "jobs.cli", "predict", *files, "--url", url, "--out", str(out)]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 30
            while len(asked) < 3 or len(asked[b"c"]) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and "1 of 3 rows are in" in said
    rows = list(csv.DictReader(io.StringIO(out.read_bytes().decode(), newline="")))
    assert [row["file"] for row in rows] == files[:1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png", "c.png", "rows.csv"]


def test_help_needs_nothing_heavy() -> None:
    heavy = {"numpy", "pyarrow", "ray", "torch", "boto3", "fastapi", "onnxruntime", "PIL"}
    program = f"import jobs.predict, sys; sys.exit(' '.join(set(sys.modules) & {heavy!r}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == ""
