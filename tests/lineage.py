"""A collector of OpenLineage events over HTTP, and whether an event is what the library's own classes take."""

import contextlib
import importlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import attr
from openlineage.client import facet_v2
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState

_OWN = {"_producer", "_schemaURL", "_deleted"}


def of_file(path: Path) -> list[dict[str, Any]]:
    """The events of a file, each found valid."""
    return [checked(json.loads(line)) for line in path.read_text().splitlines()]


def checked(event: dict[str, Any]) -> dict[str, Any]:
    """The same. Fails where the classes of the library, made from the specification, lack a field or miss one."""
    built = RunEvent(
        eventType=RunState[event["eventType"]],
        eventTime=event["eventTime"],
        producer=event["producer"],
        run=Run(event["run"]["runId"], _facets(event["run"]["facets"])),
        job=Job(**(event["job"] | {"facets": _facets(event["job"]["facets"])})),
        inputs=[_dataset(InputDataset, one) for one in event["inputs"]],
        outputs=[_dataset(OutputDataset, one) for one in event["outputs"]],
    )
    assert event["schemaURL"] == built.schemaURL
    assert set(event) == {"eventType", "eventTime", "producer", "run", "job", "inputs", "outputs", "schemaURL"}
    return event


def _dataset(kind: type[Any], given: dict[str, Any]) -> Any:
    return kind(**{name: _facets(value) if name.lower().endswith("facets") else value for name, value in given.items()})


def _facets(given: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: _facet(facet) for name, facet in given.items()}


def _facet(given: dict[str, Any]) -> Any:
    name = given["_schemaURL"].rsplit("/", 1)[-1]
    fields = {key: value for key, value in given.items() if key not in _OWN}
    if name == "BaseFacet":  # of ours: any fields
        return facet_v2.BaseFacet(producer=given["_producer"]).with_additional_properties(**fields)
    kind = next(
        getattr(module, name)
        for module in map(importlib.import_module, _modules())
        if getattr(getattr(module, name, None), "_get_schema", None)
        and getattr(module, name)._get_schema() == given["_schemaURL"]
    )
    return kind(producer=given["_producer"], **{key: _nested(value, kind, key) for key, value in fields.items()})


def _modules() -> list[str]:
    folder = Path(str(importlib.import_module("openlineage.client.generated.base").__file__)).parent
    return [f"openlineage.client.generated.{file.stem}" for file in folder.glob("*.py") if file.stem != "__init__"]


def _nested(value: Any, kind: type[Any], key: str) -> Any:
    """Lists of classes of the facet's own module are made of these."""
    module = importlib.import_module(kind.__module__)
    said = str(attr.fields_dict(kind)[key].type)
    inner = next((name for name in vars(module) if said.startswith((f"list[{name}]", f"dict[str, {name}]"))), None)
    if inner is None:
        return value
    made = getattr(module, inner)
    if isinstance(value, dict):
        return {name: made(**one) for name, one in value.items()}
    return [made(**one) for one in value]


@dataclass
class LineageServer:
    url: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    requests: list[tuple[str, str, bytes]] = field(default_factory=list)  # path, Authorization, body
    refusals: list[int] = field(default_factory=list)  # statuses of the next requests, before 201s
    answers: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def collecting(*, answers: bool = True) -> Iterator[LineageServer]:
    """A real server; without `answers` it takes requests and says nothing until it ends."""
    server = LineageServer()
    if answers:
        server.answers.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.requests.append((self.path, self.headers.get("Authorization", ""), body))
            server.answers.wait(30)
            status = server.refusals.pop(0) if server.refusals else 201
            if status == 201:
                server.events.append(checked(json.loads(body)))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.answers.set()
        http.shutdown()
        http.server_close()
