"""Clients that nobody here wrote, run unchanged against the service: what they call a standard has to be one."""

import base64
import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from pipeline.model.bundle import Bundle
from serving.protocols.oip.rpc.messages import described
from serving.settings import ServingSettings
from tests.asgi import picture
from tests.bundles import make_bundle, make_mapped_bundle, said_of
from tests.clients import ROOT, client_python, run_client
from tests.live import live
from tests.servers import free_port
from tests.system.test_serve_faults import started, until

KEY = "k1"
# That data has as many elements as shape says, and is base64 of an image, is more than a JSON schema can say.
PLACES = """[parameters]
"path.{}" = "tiny-linear"
"path.{}" = "20260101-000000-00000000"
[[operations]]
include-path-regex = "/infer$"
checks.positive_data_acceptance.enabled = false
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def model_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_mapped_bundle(tmp_path_factory.mktemp("bundle"), size=64, synthetic=True).uri


@pytest.fixture(scope="module")
def url(model_uri: str) -> Iterator[str]:
    with live(ServingSettings(model=model_uri)) as address:
        yield address


@pytest.fixture(scope="module")
def guarded_url(model_uri: str) -> Iterator[str]:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    with live(ServingSettings(model=model_uri, api_key_sha256=(digest,))) as address:
        yield address


def schemathesis(folder: Path, config: str, examples: int, *described: str) -> str:
    """Every check that it has, on every route of a description of OpenAPI."""
    (folder / "schemathesis.toml").write_text(config)
    hooks = {
        "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
        "PYTHONPATH": str(ROOT / "tests" / "clients"),
        "MOST_FILES": str(ServingSettings.model_fields["max_files"].default),
    }
    command = ["-m", "schemathesis.cli", "run", *described, "--no-color", "--max-examples", str(examples)]
    return run_client("schemathesis", *command, cwd=folder, env=hooks)


@pytest.mark.parametrize("key", [None, KEY])
def test_schemathesis_finds_nothing_without_keys_and_with_them(
    url: str, guarded_url: str, tmp_path: Path, key: str | None
) -> None:
    config = PLACES.format("name", "version")
    if key:
        config += f'[auth.openapi.APIKeyHeader]\napi_key = "{key}"\n'
    said = schemathesis(tmp_path, config, 60, f"{guarded_url if key else url}/openapi.json")
    assert_all_tested(said, 17)


def assert_all_tested(said: str, least: int) -> None:
    assert "FAILURES" not in said and "ERRORS" not in said, said
    [(tested, total)] = re.findall(r"Operations: +(\d+) selected / (\d+) total", said)
    assert tested == total and int(total) >= least


def test_schemathesis_finds_the_protocols_own_shape(url: str, tmp_path: Path) -> None:
    described = (ROOT / "tests" / "data" / "open_inference_rest.yaml").read_text()
    (tmp_path / "oip.yaml").write_text(
        described.replace("IMAGE", base64.b64encode(picture("PNG", width=8, height=8)).decode())
    )
    said = schemathesis(tmp_path, PLACES.format("MODEL_NAME", "MODEL_VERSION"), 20, "oip.yaml", "--url", url)
    assert_all_tested(said, 6)


@dataclass
class Sent:
    """Images in files, and what /predict says of them."""

    files: list[str]
    probability: list[float]
    decision: list[str]
    model: dict[str, Any]


@pytest.fixture(scope="module")
def sent(url: str, tmp_path_factory: pytest.TempPathFactory) -> Sent:
    folder, files, said = tmp_path_factory.mktemp("images"), [], []
    for seed, kind in enumerate(("PNG", "JPEG", "WEBP")):
        file = folder / f"{seed}.{kind}"
        file.write_bytes(picture(kind, seed))
        said.append(httpx.post(f"{url}/predict", content=file.read_bytes(), timeout=30).json())
        files.append(str(file))
    return Sent(files, [one["probability"] for one in said], [one["decision"] for one in said], said[0]["model"])


def close(probability: list[float]) -> Any:
    """The same but for rounding: which images are in a batch together is a matter of moments."""
    return pytest.approx(probability, rel=1e-5)


def run(name: str, script: str, *arguments: str, cwd: Path) -> dict[str, Any]:
    """What a script of tests/clients prints last, as JSON."""
    said = run_client(name, str(ROOT / "tests" / "clients" / script), *arguments, cwd=cwd)
    return dict(json.loads(said.strip().splitlines()[-1]))


def assert_triton(url: str, sent: Sent, folder: Path) -> None:
    told = run("tritonclient", "triton_client.py", url, *sent.files, cwd=folder)
    assert told["probability"] == close(sent.probability) and told["decision"] == sent.decision
    status, message = told["refused"]
    assert status == "415" and "no image" in message
    assert told["answered"] == 4 and told["extensions"] == ["binary_tensor_data", "statistics"]


def test_tritonclient(url: str, sent: Sent, tmp_path: Path) -> None:
    assert_triton(url, sent, tmp_path)


def test_kserves_client(url: str, sent: Sent, tmp_path: Path) -> None:
    told = run("kserve", "kserve_client.py", url, sent.model["name"], *sent.files, cwd=tmp_path)
    assert told["True"] == close(sent.probability) and told["False"] == close(sent.probability)
    assert "inputs none: expected one, 'image', '400 Bad Request'" in told["refused"]


def test_the_client_made_from_the_protocols_openapi_file(url: str, sent: Sent, tmp_path: Path) -> None:
    names = [sent.model["name"], sent.model["version"]]
    told = run("open-inference-openapi", "open_inference_client.py", url, *names, *sent.files, cwd=tmp_path)
    assert told["server"] == "leukoray" and told["probability"] == [[close(sent.probability)]] * 2
    assert told["refused"][0] == 404 and "no model 'another'" in told["refused"][1]


def test_mlservers_types(url: str, sent: Sent, tmp_path: Path) -> None:
    told = run("mlserver", "mlserver_types.py", url, sent.model["name"], *sent.files, cwd=tmp_path)
    assert told["server"] == "leukoray" and told["probability"] == close(sent.probability) and len(told["class"]) == 3


def assert_generated(told: dict[str, Any], sent: Sent) -> None:
    assert told["probability"] == close(sent.probability) and told["decision"] == sent.decision
    assert told["of files"] == close(sent.probability) and told["errors"] == ["unsupported_format"]
    assert told["refused"] == [415, "unsupported_format"] and told["all refused"] == ["unsupported_format", "empty"]
    assert told["model"] == sent.model["sha256"] and told["inputs"] == ["image"]


def test_a_typed_python_client_made_from_openapi(url: str, sent: Sent, tmp_path: Path) -> None:
    """Made without a warning, a program with it passes mypy --strict, and the service answers it."""
    name, program = "openapi-python-client", "python_client.py"
    shutil.copy(ROOT / "tests" / "clients" / program, tmp_path)
    made = ["generate", "--url", f"{url}/openapi.json", "--meta", "none", "--output-path", "leukoray_client"]
    run_client(name, *made, "--fail-on-warning", cwd=tmp_path, program=name)
    checks = ["--strict", "--follow-imports", "silent", "--cache-dir", "/dev/null"]
    run_client(name, *checks, program, cwd=tmp_path, program="mypy")
    told = json.loads(run_client(name, program, url, *sent.files, cwd=tmp_path))
    assert_generated(told, sent)
    assert told["map"] == [64] * 64


def test_a_typed_typescript_client_made_from_openapi(url: str, sent: Sent, tmp_path: Path) -> None:
    """A program with the types passes tsc --strict, and the service answers it."""
    name = "openapi-typescript"
    (tmp_path / "node_modules").symlink_to(Path(client_python(name)).parents[1] / "node_modules")
    shutil.copy(ROOT / "tests" / "clients" / "typescript_client.ts", tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    generator, compiler = "node_modules/openapi-typescript/bin/cli.js", "node_modules/typescript/bin/tsc"
    run_client(name, generator, f"{url}/openapi.json", "-o", "leukoray.d.ts", cwd=tmp_path, program="node")
    checks = ["--strict", "--noUncheckedIndexedAccess", "--skipLibCheck", "--module", "nodenext", "--target", "es2022"]
    run_client(name, compiler, *checks, "typescript_client.ts", cwd=tmp_path, program="node")
    said = run_client(name, "typescript_client.js", url, *sent.files, cwd=tmp_path, program="node")
    assert_generated(json.loads(said), sent)


def listeners(process: subprocess.Popen[bytes], port: int) -> set[str]:
    """Where what the command started listens at `port`."""
    tree = psutil.Process(process.pid).children(recursive=True)
    found = [place for child in tree for place in child.net_connections("tcp") if place.status == "LISTEN"]
    return {place.laddr.ip.removeprefix("::ffff:") for place in found if place.laddr.port == port}


def raw(url: str, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """An answer on a plain socket; clients refuse to send what is sent here."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(request.replace(b"\n", b"\r\n"))
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(65536)
        head, _, body = received.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        while len(body) < int(headers.get("content-length", 0)):
            body += connection.recv(65536)
    return int(lines[0].split()[1]), headers, body


_KEY = b"Sec-WebSocket-Version: 13\nSec-WebSocket-Key: a2V5a2V5a2V5a2V5a2V5a2==\n"
_UPGRADE = b"Host: x\nConnection: Upgrade\nUpgrade: websocket\n" + _KEY


def assert_triton_over_grpc(address: str, sent: Sent, other: Bundle, folder: Path) -> None:
    names, messages = f"{sent.model['name']},{other.info.name}", folder / "messages"
    messages.write_bytes(described().SerializeToString())
    told = run("tritonclient", "triton_grpc_client.py", address, names, str(messages), *sent.files, cwd=folder)
    assert told["probability"] == close(sent.probability) == told["typed"] and told["decision"] == sent.decision
    said = said_of(other, *(Path(file).read_bytes() for file in sent.files))
    assert told["others"] == {other.info.name: close([one.probability for one in said])}
    assert told["index"] == sorted(names.split(","))
    assert told["trailing"]["x-request-id"] == "case/7"
    for what, (status, message) in {
        "image": ("INVALID_ARGUMENT", "no image"),
        "name": ("NOT_FOUND", "no model 'another'"),
        "version": ("NOT_FOUND", "no version '1'"),
    }.items():
        assert told["refused"][what][0] == f"StatusCode.{status}" and message in told["refused"][what][1]


def test_behind_serves_own_proxy(model_uri: str, sent: Sent, tmp_path: Path) -> None:
    """One start of two models: the clients' answers over REST and gRPC, ids that are none, handshakes of WebSockets."""
    port, rpc_port, log = free_port(), free_port(), tmp_path / "serve.log"
    address = f"http://127.0.0.1:{port}"
    other = make_bundle(tmp_path / "other", size=32, seed=7, name="other")
    command = [sys.executable, "-m", "jobs.serve", model_uri, other.uri, "--port", str(port), "--num-cpus", "1"]
    command += ["--grpc-port", str(rpc_port)]
    slow = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}  # by itself a proxy has 5 s to start
    with started(*command, log=log, RAY_SERVE_ENABLE_HA_PROXY="0", **slow) as process:
        until(lambda: "Ctrl-C stops it" in log.read_text() or process.poll() is not None, "the announcement")
        assert process.poll() is None, log.read_text()
        assert_triton(address, sent, tmp_path)
        assert_triton_over_grpc(f"127.0.0.1:{rpc_port}", sent, other, tmp_path)
        assert listeners(process, rpc_port) == {"127.0.0.1"}
        by_name = httpx.get(f"{address}/v2/models/other", timeout=30).json()
        assert by_name == httpx.get(f"{address}/models/other/v2/models/other", timeout=30).json()
        for given in (b"caf\xe9", b"a b"):
            status, headers, body = raw(address, b"GET /healthz HTTP/1.1\nHost: x\nX-Request-ID: " + given + b"\n\n")
            error = json.loads(body)["error"]
            assert (status, error["code"]) == (400, "invalid_request_id")
            assert headers["x-request-id"] == error["request_id"]
        for line, rest in ((b"GET", b"\n"), (b"POST", b"Content-Length: 2\n\nxx"), (b"POST", b"\n")):
            status, headers, body = raw(address, line + b" /predict HTTP/1.1\n" + _UPGRADE + rest)
            assert status in (400, 405) and json.loads(body)["error"]["request_id"] == headers["x-request-id"]
