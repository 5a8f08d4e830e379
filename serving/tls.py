"""TLS where HAProxy stands before the replicas: a certificate and its key, as files that may be renewed.

Two variables of the environment name the files to `leukoray-haproxy`, as those of Ray do it (infra/serve.env).
https://docs.haproxy.org/2.8/configuration.html#5.1-crt, https://docs.haproxy.org/2.8/management.html#9.3
"""

import os
import re
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.errors import InputError, LeukorayError, PlatformError

CERT_VARIABLE, KEY_VARIABLE = "LEUKORAY_TLS_CERT", "LEUKORAY_TLS_KEY"
_PEM = "tls.pem"  # beside HAProxy's configuration; it looks for its key in tls.pem.key
_ANSWER_S = 10.0
# What stands between blocks is for people, in whatever encoding (RFC 7468, section 5.2)
_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


@dataclass(frozen=True)
class Files:
    """PEM files: the certificate with those between it and the authority, and the private key without a password."""

    cert: str
    key: str

    def check(self) -> None:
        """Raises InputError where they are no pair that a server could use."""
        for path in (self.cert, self.key):
            if not os.path.isfile(path):
                raise InputError(f"{path}: no such file; expected PEM of a certificate, and of its key")
        try:
            self._context().load_cert_chain(self.cert, self.key, password=_no_password)
        except (ssl.SSLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise InputError(
                f"{self.cert} and {self.key}: no certificate and its key, PEM, without a password ({reason})"
            ) from error

    @staticmethod
    def _context() -> ssl.SSLContext:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def trusting(self) -> ssl.SSLContext:
        """For a client that takes this very certificate, whatever name it is for."""
        context = ssl.create_default_context(cafile=self.cert)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context

    def state(self) -> tuple[tuple[int, int, int], ...]:
        """Another where a file is another; empty while one is not there."""
        try:
            found = [os.stat(path) for path in (self.cert, self.key)]
        except OSError:
            return ()
        return tuple((one.st_mtime_ns, one.st_size, one.st_ino) for one in found)

    def open_to_others(self) -> str | None:
        """A warning where others than the owner and the group may read or write the key."""
        mode = os.stat(self.key).st_mode
        if mode & 0o026:
            done = "read" if mode & 0o004 else "replace"
            return f"{self.key}: others on this machine may {done} the private key; chmod 640"
        return None

    def environment(self) -> dict[str, str]:
        return {CERT_VARIABLE: self.cert, KEY_VARIABLE: self.key}


def of_environment(environment: Mapping[str, str]) -> Files | None:
    """Raises InputError where one of two is named."""
    cert, key = environment.get(CERT_VARIABLE), environment.get(KEY_VARIABLE)
    if not cert and not key:
        return None
    if not cert or not key:
        raise InputError(f"{CERT_VARIABLE} and {KEY_VARIABLE} belong together; set both, or none")
    return Files(cert, key)


def _no_password() -> str:
    return ""


def bind_options(folder: str, protocol: str = "http/1.1") -> str:
    """What follows the address of HAProxy's `bind`. HTTP/2 is for gRPC alone: limits here are those of HTTP/1.1."""
    return f"ssl crt {os.path.join(folder, _PEM)} ssl-min-ver TLSv1.2 alpn {protocol}"


def heard(host: str, port: int) -> ssl.SSLContext | None:
    """For a client of whatever certificate, where TLS is spoken there; None: it is not. Only for what is no secret."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), _ANSWER_S) as plain, context.wrap_socket(plain):
            return context
    except OSError:
        return None


def lay_out(files: Files, folder: Path) -> None:
    """Let HAProxy find both in `folder`: links, so that the key is nowhere twice."""
    for name, path in ((_PEM, files.cert), (f"{_PEM}.key", files.key)):
        draft = folder / f"{name}.new"
        draft.unlink(missing_ok=True)
        draft.symlink_to(os.path.abspath(path))
        draft.replace(folder / name)


def renew(files: Files, folder: Path) -> None:
    """Make the HAProxy of `folder` use the files as they are now; no connection ends.

    Raises InputError where they are no pair, PlatformError where HAProxy does not take them.
    """
    files.check()
    name = str(folder / _PEM)
    pem = b"\n".join(block for path in dict.fromkeys((files.cert, files.key)) for block in _blocks(path))
    for command, expected in (
        (f"set ssl cert {name} <<\n".encode() + pem + b"\n", "Transaction"),
        (f"commit ssl cert {name}".encode(), "Success"),
    ):
        said = _told(folder / "admin.sock", command)
        if expected not in said:
            raise PlatformError(f"HAProxy did not take {files.cert}: {' '.join(said.split())[:200]}")


def _blocks(path: str) -> list[bytes]:
    """What a PEM file holds, without empty lines, which would end HAProxy's reading. Raises PlatformError."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise PlatformError(f"{path} cannot be read ({error.strerror or error})") from error
    lines = (match[0].splitlines() for match in _BLOCK.finditer(data))
    return [b"\n".join(line.strip() for line in block if line.strip()) for block in lines]


class Renewal:
    """Looks now and then whether the files have changed. `folders`: those of the HAProxies that run now."""

    def __init__(self, files: Files, folders: Callable[[], Sequence[Path]], say: Callable[[str], None]) -> None:
        self._files, self._folders, self._say = files, folders, say
        self._seen = files.state()
        self._said: tuple[object, str] | None = None

    def look(self) -> None:
        """What cannot be used changes nothing, and is said once. A HAProxy that does not take it is asked again."""
        state = self._files.state()
        if not state or state == self._seen:
            return
        failed = [error for folder in self._folders() if (error := self._failed(folder)) is not None]
        if not failed or all(isinstance(error, InputError) for error in failed):
            self._seen = state
        if not failed:
            self._say(f"{self._files.cert} was renewed and is used from now on")
        elif self._said != (said := (state, str(failed[0]))):
            self._said = said
            self._say(f"warning: the certificate stays as it was: {failed[0]}")

    def _failed(self, folder: Path) -> LeukorayError | None:
        try:
            renew(self._files, folder)
        except LeukorayError as error:
            return error
        return None


def _told(at: Path, command: bytes) -> str:
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(_ANSWER_S)
            line.connect(str(at))
            line.sendall(command + b"\n")
            line.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: line.recv(4096), b"")).decode(errors="replace")
    except OSError as error:
        raise PlatformError(f"HAProxy does not answer at {at} ({error.strerror or error})") from error
