"""The client of one service: a request that is tried again while that may help, and words for every way it can fail.

HTTP by the standard library (RFC 9110), one connection a thread. A prediction changes nothing at the service, so it may
be sent twice. Retry-After: RFC 9110, section 10.2.3; problems: RFC 9457; the key: RFC 6750.
"""

import base64
import contextlib
import email.message
import email.utils
import http.client
import io
import ipaddress
import itertools
import json
import random
import re
import socket
import ssl
import threading
import time
import urllib.request
import uuid
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from pipeline import __version__
from pipeline.base.errors import PlatformError, UsageError

# 408 is what Serve says when an answer takes too long; 502 what a proxy says of a service that is being started anew
_TRANSIENT = frozenset({408, 429, 502, 503, 504})
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 8.0
_MAX_ANSWER_BYTES = 32 * 1024 * 1024
_REQUEST_ID = "X-Request-ID"
_SAID_CHARACTERS = 200
_PROBE_S = 30.0  # in which a replica is started anew, after a file that had no answer
_URL = re.compile(r"[!-~]+")  # RFC 3986 has no other characters
_CUT = (ConnectionResetError, BrokenPipeError)  # http.client.RemoteDisconnected is the first of them


class NoAnswer(Exception):
    """One request is given up. `code` is the service's own where it said one, else http_STATUS, timeout, no_answer."""

    def __init__(self, code: str, message: str, request_id: str, attempts: int) -> None:
        super().__init__(message)
        self.code, self.message, self.request_id, self.attempts = code, message, request_id, attempts


class Unusable(PlatformError):
    """No further file would be answered: nothing there, no such service, no right to ask."""


@dataclass(frozen=True)
class Reply:
    """What came back for a request, whose id is ours where the service said none."""

    status: int
    headers: email.message.Message
    data: bytes
    request_id: str
    attempts: int = 1

    def json(self) -> dict[str, Any] | None:
        """The body where it is a JSON object."""
        try:
            body = json.loads(self.data)
        except ValueError:
            return None
        return body if isinstance(body, dict) else None

    def failure(self) -> NoAnswer:
        """A status of an error, in the service's words where these are ours."""
        error = (self.json() or {}).get("error")
        if isinstance(error, dict) and isinstance(error.get("code"), str):
            said, known = str(error.get("message", "")), str(error.get("request_id") or self.request_id)
            return NoAnswer(error["code"], said, known, self.attempts)
        words = " ".join(self.data[: 4 * _SAID_CHARACTERS].decode("utf-8", "replace").split())[:_SAID_CHARACTERS]
        return NoAnswer(f"http_{self.status}", f"status {self.status}: {words}", self.request_id, self.attempts)

    def retry_after_s(self) -> float:
        """Seconds to wait, 0 where nothing (that can be read) is said."""
        said = self.headers.get("Retry-After", "").strip()
        if said.isdecimal():
            return float(said)
        try:
            return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
        except ValueError:
            return 0.0


class Service:
    """The endpoint at `url`; used by several threads. `stop` makes all of them give up what they wait for.

    `timeout_s` bounds one attempt, `patience_s` all attempts of one request.
    """

    def __init__(self, url: str, key: str | None, timeout_s: float, patience_s: float) -> None:
        self.url, self._at = url.rstrip("/"), checked_url(url)
        self._timeout_s, self._patience_s = timeout_s, patience_s
        self._own = threading.local()
        self._headers = {"User-Agent": f"leukoray/{__version__}", "Content-Type": "application/octet-stream"}
        if key is not None:
            if not key.isascii() or not key.isprintable() or not key.strip():
                raise UsageError("LEUKORAY_API_KEY: holds characters that no header can carry (a line's end?)")
            self._headers["Authorization"] = f"Bearer {key}"
        self._proxy = _proxy(self._at)
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self.unusable: Unusable | None = None

    @property
    def is_stopped(self) -> bool:
        return self._stopped.is_set()

    @property
    def shows_key(self) -> bool:
        """Whether a key is sent over a network as it is."""
        return "Authorization" in self._headers and self._at.scheme == "http" and not is_loopback(self._at)

    def stop(self, reason: Unusable | None = None) -> None:
        with self._lock:
            self.unusable = self.unusable or reason
        self._stopped.set()

    def ready(self, *, is_start: bool = True) -> dict[str, Any]:
        """What /readyz says. Raises Unusable; at the start at once where nothing listens."""
        patience_s = self._patience_s if is_start else min(self._patience_s, _PROBE_S)
        try:
            reply = self._persist("GET", "/readyz", None, "application/json", patience_s, is_start=is_start)
        except NoAnswer as failure:
            raise Unusable(f"{self.url} is not ready: {failure.message}; see its log, or wait") from failure
        said, location = reply.json() or {}, reply.headers.get("Location")
        if reply.status // 100 == 3 and location:
            raise Unusable(f"{self.url} sends on to {location}; give that address with --url")
        if reply.status != 200 or not isinstance(said.get("model"), dict) or not isinstance(said.get("max_bytes"), int):
            what = f"{reply.status} {reply.headers.get_content_type()}"
            raise Unusable(f"{self.url} is no leukoray service (its /readyz: {what}); check --url")
        return said

    def post(self, path: str, data: bytes, accept: str, request_id: str | None = None) -> Reply:
        """The answer of status 200. `request_id`: of an earlier one, for the same of two models to answer.

        Raises NoAnswer for this file alone, Unusable where no other would be answered.
        """
        try:
            reply = self._persist("POST", path, data, accept, self._patience_s, given_id=request_id)
        except NoAnswer:
            if not self.is_stopped:
                self.ready(is_start=False)  # else it is not the file's fault
            raise
        if reply.status != 200:
            raise reply.failure()
        return reply

    def _persist(
        self, method: str, path: str, data: bytes | None, accept: str, patience_s: float, *, is_start: bool = False,
        given_id: str | None = None,
    ) -> Reply:  # fmt: skip
        """The first answer that is none to come back for. Raises NoAnswer where there is none in time, and Unusable."""
        end = time.monotonic() + patience_s
        for attempt in itertools.count(1):
            request_id, asked_to_wait_s = given_id or uuid.uuid4().hex, 0.0
            try:
                limit_s = max(0.001, min(self._timeout_s, end - time.monotonic()))
                reply = self._send(method, path, data, accept, request_id, limit_s, attempt)
            except (OSError, http.client.HTTPException, UnicodeError) as error:
                self._refuse_address(error, is_start)
                is_late = isinstance(error, TimeoutError)
                words = f"no answer within {limit_s:.3g} s" if is_late else f"the connection failed: {_told(error)}"
                failure = NoAnswer("timeout" if is_late else "no_answer", words, request_id, attempt)
            else:
                self._refuse_key(reply)
                if reply.status not in _TRANSIENT:
                    return reply
                failure, asked_to_wait_s = reply.failure(), reply.retry_after_s()
            longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(attempt, 10))
            pause_s = asked_to_wait_s + random.uniform(0.5, 1) * (_FIRST_PAUSE_S if asked_to_wait_s else longest)
            if time.monotonic() + pause_s >= end or self._stopped.wait(pause_s):
                raise failure
        raise AssertionError("the loop has no end of its own")

    def _refuse_address(self, error: Exception, is_start: bool) -> None:
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            raise Unusable(f"{self.url}: TLS fails: {error}; check --url, or name the authority by SSL_CERT_FILE")
        if isinstance(error, UnicodeError) or (
            is_start and isinstance(error, ConnectionRefusedError | socket.gaierror)
        ):
            raise Unusable(f"{self.url}: nothing answers there ({_told(error)}); start the service, or check --url")

    def _refuse_key(self, reply: Reply) -> None:
        if reply.status in (401, 403):
            has_key = "Authorization" in self._headers
            what = "the key of $LEUKORAY_API_KEY is not accepted" if has_key else "set $LEUKORAY_API_KEY"
            raise Unusable(f"{self.url} refuses to answer ({reply.status} {reply.failure().code}): {what}")

    def _send(
        self, method: str, path: str, data: bytes | None, accept: str, request_id: str, limit_s: float, attempt: int
    ) -> Reply:
        end, headers = time.monotonic() + limit_s, {**self._headers, "Accept": accept, _REQUEST_ID: request_id}
        target = self._at.path.rstrip("/") + path
        if self._proxy is not None and self._at.scheme == "http":
            target = f"http://{self._at.netloc}{target}"
            headers |= _proxy_headers(self._proxy)
        is_used = getattr(self._own, "connection", None) is not None
        while True:
            connection = self._connection()
            try:
                response, body = _exchange(connection, method, target, data, headers, end)
            except BaseException as error:
                self._hang_up()
                if is_used and isinstance(error, _CUT):  # the other side has closed an idle connection
                    is_used = False
                    continue
                raise
            if response.will_close:
                self._hang_up()
            if len(body) > _MAX_ANSWER_BYTES:
                self._hang_up()
                raise http.client.HTTPException(f"an answer of more than {_MAX_ANSWER_BYTES} bytes")
            return Reply(response.status, response.headers, body, request_id, attempt)

    def _connection(self) -> "_Connection | _SecureConnection":
        connection = getattr(self._own, "connection", None)
        if connection is None:
            connection = _connect(self._at, self._proxy)
            self._own.connection = connection
        return connection

    def _hang_up(self) -> None:
        connection = getattr(self._own, "connection", None)
        if connection is not None:
            connection.close()
        self._own.connection = None


def _told(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class _InTime(io.RawIOBase):
    """Reads a socket until a point in time, however the bytes trickle in."""

    def __init__(self, sock: socket.socket, end: float) -> None:
        self._sock, self._end = sock, end
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self._end - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the answer took too long")
        self._sock.settimeout(left_s)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _Timed:
    """Of a connection: when the answer must be there."""

    end = 0.0

    def response_class(self, sock: socket.socket, **options: Any) -> http.client.HTTPResponse:
        response = http.client.HTTPResponse(sock, **options)
        response.fp.close()
        response.fp = io.BufferedReader(_InTime(sock, self.end))
        return response


class _Connection(_Timed, http.client.HTTPConnection):  # type: ignore[misc]
    pass


class _SecureConnection(_Timed, http.client.HTTPSConnection):  # type: ignore[misc]
    pass


def _exchange(
    connection: "_Connection | _SecureConnection",
    method: str,
    target: str,
    data: bytes | None,
    headers: dict[str, str],
    end: float,
) -> tuple[http.client.HTTPResponse, bytes]:
    """One request and its whole answer before `end`."""
    connection.end = end
    connection.timeout = max(0.001, end - time.monotonic())
    if connection.sock is not None:
        connection.sock.settimeout(connection.timeout)
    is_cut = False
    try:
        connection.request(method, target, data, headers)
    except _CUT:  # a refusal may have come before all was sent
        if connection.sock is None:
            raise
        is_cut = True
    response = connection.getresponse()
    body = response.read(_MAX_ANSWER_BYTES + 1)
    if response.length and len(body) <= _MAX_ANSWER_BYTES:  # read(n) says nothing of an end that comes too early
        raise http.client.IncompleteRead(body, response.length)
    if is_cut:
        response.will_close = True
    return response, body


def _connect(at: SplitResult, proxy: SplitResult | None) -> "_Connection | _SecureConnection":
    to = proxy or at
    host, port = to.hostname or "", to.port or (443 if to.scheme == "https" else 80)
    if at.scheme == "http":
        return _Connection(host, port)
    connection = _SecureConnection(host, port)
    if proxy is not None:
        connection.set_tunnel(at.hostname or "", at.port or 443, _proxy_headers(proxy))
    return connection


def checked_url(url: str) -> SplitResult:
    """Its parts. Raises UsageError for what is no address, or shows a secret to whoever lists processes."""
    at = urlsplit(url if _URL.fullmatch(url) else "")
    port: int | None = -1
    with contextlib.suppress(ValueError):
        port = at.port
    if at.scheme not in ("http", "https") or not at.hostname or port == -1 or at.query or at.fragment:
        raise UsageError(f"--url {url!r}: expected http://HOST:PORT or https://HOST, perhaps with a path")
    if at.username is not None or at.password is not None:
        raise UsageError("--url: a name or password in it is seen by all; a key goes into $LEUKORAY_API_KEY")
    return at


def is_loopback(at: SplitResult) -> bool:
    host = at.hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _proxy(at: SplitResult) -> SplitResult | None:
    """The environment's proxy for this address; this machine's own endpoint is none of its business."""
    named = urllib.request.getproxies().get(at.scheme)
    if named is None or is_loopback(at) or urllib.request.proxy_bypass(at.netloc):
        return None
    proxy = urlsplit(named if "://" in named else "http://" + named)
    if proxy.scheme != "http" or not proxy.hostname:
        raise UsageError(f"{at.scheme}_proxy: only http:// proxies are spoken to; name {at.hostname} in no_proxy")
    return proxy


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    who = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(who.encode()).decode()}
