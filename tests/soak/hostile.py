"""Clients of a soak that do not behave: half a body, one that drips, gone before the answer, idle by thousands."""

import contextlib
import errno
import resource
import select
import socket
import struct
import time
from collections.abc import Iterator

from tests.soak.traffic import Place

_HEAD = "POST {} HTTP/1.1\r\nHost: soak\r\nContent-Length: {}\r\n\r\n"
_PATIENCE_S = 90  # a body that is half there may take request_timeout_s
IDLE, _IDLE_S = 2000, 40


@contextlib.contextmanager
def _connected(place: Place) -> Iterator[socket.socket]:
    with socket.create_connection((place.host, place.port), timeout=_PATIENCE_S) as connection:
        yield connection


def half(place: Place) -> None:
    """Half a body; then nothing until the service ends it, or the connection is closed."""
    _, data = place.any_image()
    with _connected(place) as connection:
        connection.sendall(_HEAD.format("/predict", len(data)).encode() + data[: len(data) // 2])
        if place.random.random() < 0.5:
            time.sleep(place.random.uniform(0, 2))
            place.tally.counts["half", 0, "closed"] += 1
            return
        _expect(place, connection, "half", {408})


def drip(place: Place) -> None:
    """A body, or a head, a byte at a time."""
    _, data = place.any_image()
    head = _HEAD.format("/predict", len(data)).encode()
    in_body = place.random.random() < 0.5
    with _connected(place) as connection:
        connection.sendall(head if in_body else head[:-2])
        with contextlib.suppress(OSError):  # it was closed in the middle of a byte's way
            said = select.poll()
            said.register(connection, select.POLLIN)
            for byte in (data if in_body else b"X: " + b"a" * 1000)[:200]:
                connection.sendall(bytes([byte]))
                if said.poll(200):
                    break
        _expect(place, connection, "drip", {408} if in_body else {408, 0})


def gone(place: Place) -> None:
    """A whole request, whose client does not wait for the answer; half of them end by a reset."""
    _, data = place.any_image()
    path = place.random.choice(["/predict", "/explain", "/predict?format=fhir"])
    with _connected(place) as connection:
        connection.sendall(_HEAD.format(path, len(data)).encode() + data)
        time.sleep(place.random.uniform(0, 0.05))
        if place.random.random() < 0.5:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    place.tally.counts["gone", 0, "closed"] += 1


def deaf(place: Place) -> None:
    """Many requests at once on one connection, none of whose answers is read."""
    request = b"GET /docs HTTP/1.1\r\nHost: soak\r\n\r\n"
    with _connected(place) as connection:
        connection.setblocking(False)
        with contextlib.suppress(OSError):  # full, or closed by the service
            for _ in range(200):
                connection.send(request)
        time.sleep(5)
    place.tally.counts["deaf", 0, "closed"] += 1


class Idle:
    """Connections that say nothing, until the service has closed most of them; then as many again."""

    def __init__(self) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.open_spans: list[tuple[float, float]] = []  # in which as many were open as wanted

    def __call__(self, place: Place) -> None:
        waiting: dict[int, socket.socket] = {}
        poll = select.poll()
        try:
            for _ in range(IDLE):
                connection = socket.create_connection((place.host, place.port), timeout=_PATIENCE_S)
                waiting[connection.fileno()] = connection
                poll.register(connection, select.POLLIN)
            began = time.monotonic()
            place.tally.counts["idle", 0, f"{IDLE} opened"] += 1
            full_until = None
            while len(waiting) > IDLE // 10 and time.monotonic() < began + _IDLE_S:
                for number, _ in poll.poll(500):
                    full_until = full_until or time.monotonic()
                    poll.unregister(number)
                    waiting.pop(number).close()
            self.open_spans.append((began, full_until or time.monotonic()))
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "?")
            place.tally.fault(f"idle: {len(waiting)} of {IDLE} connections, then {name} {error}")
        finally:
            for connection in waiting.values():
                connection.close()


def _expect(place: Place, connection: socket.socket, kind: str, statuses: set[int]) -> None:
    """The status of what is answered before it is closed; 0: closed without a word."""
    began, data = time.monotonic(), b""
    with contextlib.suppress(ConnectionError):
        while b"\r\n" not in data:
            try:
                piece = connection.recv(4096)
            except TimeoutError:
                place.tally.fault(f"{kind}: neither an answer nor an end within {time.monotonic() - began:.0f} s")
                return
            if not piece:
                break
            data += piece
    status = int(data.split(b" ")[1]) if data.startswith(b"HTTP/1.1 ") else 0
    place.tally.counts[kind, status, "" if status else "closed"] += 1
    if status not in statuses | {503}:
        place.tally.fault(f"{kind}: {data[:100]!r} after {time.monotonic() - began:.1f} s, expected one of {statuses}")
