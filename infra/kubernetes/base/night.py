"""One night: a RayJob made from the suspended one that is kept as its pattern. Run by the CronJob leukoray-night.

Takes the pattern's name as its argument; asks Kubernetes' API as the pod's service account; prints the new job's name.
https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/
"""

import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ACCOUNT = Path(os.environ.get("SERVICE_ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
API = os.environ.get("KUBERNETES_API", "https://kubernetes.default.svc")


def ask(path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """GET, or POST where there is a body. Raises urllib.error.HTTPError and URLError."""
    request = urllib.request.Request(
        f"{API}/apis/ray.io/v1/namespaces/{(ACCOUNT / 'namespace').read_text().strip()}/rayjobs{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {(ACCOUNT / 'token').read_text().strip()}",
            "Content-Type": "application/json",
        },
    )
    trusted = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt")) if API.startswith("https") else None
    with urllib.request.urlopen(request, timeout=30, context=trusted) as answer:
        return dict(json.load(answer))


def night(pattern: dict[str, Any]) -> dict[str, Any]:
    """The RayJob of one night: the pattern's specification, not suspended, under a name of its own."""
    metadata = pattern["metadata"]
    return {
        "apiVersion": pattern["apiVersion"],
        "kind": pattern["kind"],
        "metadata": {"generateName": f"{metadata['name']}-", "labels": metadata.get("labels", {})},
        "spec": {**pattern["spec"], "suspend": False},
    }


def main() -> None:
    name = sys.argv[1]
    try:
        made = ask("", night(ask(f"/{name}")))
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")
        sys.exit(f"night: no RayJob could be made from {name}: HTTP {error.code}: {said[:500]}")
    except urllib.error.URLError as error:
        sys.exit(f"night: {API} does not answer: {error.reason}")
    print(f"night: {made['metadata']['name']} from {name}")


if __name__ == "__main__":
    main()
