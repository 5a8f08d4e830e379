"""infra/kubernetes: Kubernetes' own kinds, by its own schemas, which come with kubernetes-validate."""

import json
from pathlib import Path

from tests.clients import ROOT, run_client
from tests.manifests import OVERLAYS, Object, misspelt, needs_kubectl, rendered

VERSION = "1.33"
CLIENT = ROOT / "tests" / "clients" / "kubernetes_objects.py"


def judged(objects: list[Object], folder: Path) -> list[str | None]:
    """What Kubernetes' schemas say of each object; None: nothing."""
    (folder / "objects.json").write_text(json.dumps(objects))
    said = run_client("kubernetes", str(CLIENT), "objects.json", VERSION, cwd=folder)
    return list(json.loads(said.splitlines()[-1]))


@needs_kubectl
def test_objects_are_kubernetes_own_and_a_misspelt_field_is_refused_in_each_kind(tmp_path: Path) -> None:
    plain = [
        document
        for overlay in OVERLAYS
        for document in rendered(overlay)
        if not document["apiVersion"].startswith(("ray.io/", "monitoring.coreos.com/"))
    ]
    one_a_kind = {document["kind"]: document for document in plain}
    changed = [
        (kind, place, broken)
        for kind, document in one_a_kind.items()
        for place, broken in misspelt(document)
        if place not in ("apiVersion", "kind")  # without them it is no object at all
    ]
    said = judged([*plain, *(broken for _, _, broken in changed)], tmp_path)
    assert {document["kind"]: text for document, text in zip(plain, said, strict=False) if text} == {}
    taken = [(kind, place) for (kind, place, _), text in zip(changed, said[len(plain) :], strict=True) if text is None]
    assert len(one_a_kind) >= 9 and len(changed) > 100
    assert taken == []
