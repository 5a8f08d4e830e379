"""infra/kubernetes: `kubectl apply -k OVERLAY -l leukoray/part=PART` sends that part, and starts nothing else."""

import http.server
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.manifests import FOLDER, KUBECTL, Object, needs_kubectl, rendered

OVERLAY = "overlays/aws"
STARTS = {"RayJob", "RayCronJob", "CronJob", "RayService"}
pytestmark = needs_kubectl


def plural(kind: str) -> str:
    return kind.lower().removesuffix("y") + "ies" if kind.endswith("Policy") else kind.lower() + "s"


def discovery(objects: list[Object]) -> dict[str, Object]:
    """What an API server tells of the kinds that it has, by path."""
    versions = sorted({each["apiVersion"] for each in objects})
    told: dict[str, Object] = {"/api": {"kind": "APIVersions", "versions": ["v1"]}}
    groups = []
    for version in versions:
        kinds = sorted({each["kind"] for each in objects if each["apiVersion"] == version})
        resources = [
            {"name": plural(kind), "kind": kind, "namespaced": kind != "Namespace", "verbs": ["create", "get", "patch"]}
            for kind in kinds
        ]
        path = f"/apis/{version}" if "/" in version else f"/api/{version}"
        told[path] = {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
        if "/" in version:
            each = {"groupVersion": version, "version": version.partition("/")[2]}
            groups.append({"name": version.partition("/")[0], "versions": [each], "preferredVersion": each})
    told["/apis"] = {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    return told


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """An API server that knows the kinds, and has none of them yet."""
    told = discovery(rendered(OVERLAY))

    class Api(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            found = told.get(self.path.partition("?")[0])
            missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(found or missing).encode())

    api = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
    thread = threading.Thread(target=api.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{api.server_port}"
    api.shutdown()
    api.server_close()
    thread.join()


def applied(part: str, server: str, home: Path) -> set[str]:
    """Names of what kubectl would create, as kind.group/name."""
    command = [str(KUBECTL), "apply", "-k", str(FOLDER / OVERLAY), "-l", f"leukoray/part={part}", "-o", "name"]
    done = subprocess.run(
        [*command, "--dry-run=client", "--validate=false", "--server", server],
        env={"PATH": os.environ["PATH"], "HOME": str(home)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_a_part_is_applied_alone(server: str, tmp_path: Path) -> None:
    assert applied("train", server, tmp_path) == {"rayjob.ray.io/leukoray-train"}
    assert {
        each for each in applied("night-cronjob", server, tmp_path) if each.partition(".")[0] in ("rayjob", "cronjob")
    } == {"rayjob.ray.io/leukoray-night", "cronjob.batch/leukoray-night"}


def test_the_set_up_starts_nothing_and_holds_what_the_parts_refer_to(server: str, tmp_path: Path) -> None:
    names = applied("setup", server, tmp_path)
    assert {"namespace/leukoray", "serviceaccount/leukoray", "configmap/leukoray-jobs"} <= names
    assert {each.partition("/")[0].partition(".")[0] for each in names}.isdisjoint(kind.lower() for kind in STARTS)
